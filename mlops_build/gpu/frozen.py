"""Frozen dataclasses that are cheap to define: `gpu pick` defines two dozen before it reads a card.

The standard `dataclasses` imports inspect, and compiles six functions for each class: that took a third of the time from process start to
chosen card (benchmarks/gpu_latency.py). These classes share their functions. Type checkers and the functions of `dataclasses` (replace,
fields, asdict, …) treat them as dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import replace as replace
    from typing import Any
else:

    def dataclass(*, frozen: bool, slots: bool) -> Callable[[Any], Any]:
        """Like dataclasses.dataclass(frozen=True, slots=True), without default factories."""
        assert frozen  # noqa: S101
        assert slots  # noqa: S101
        return _rebuild

    def replace(instance: Any, /, **changes: object) -> Any:
        """Like dataclasses.replace."""
        return type(instance)(**{**{name: getattr(instance, name) for name in instance.__match_args__}, **changes})


def _rebuild(cls: Any) -> Any:
    """The class with slots, shared methods and the attributes of a dataclass."""
    names = tuple(cls.__annotations__)
    inherited: tuple[str, ...] = getattr(cls, "__match_args__", ())
    defaults = {**getattr(cls, "_defaults", {}), **{name: cls.__dict__[name] for name in names if name in cls.__dict__}}
    body = {name: value for name, value in cls.__dict__.items() if name not in names and name not in ("__dict__", "__weakref__")}
    shared = {
        "__init__": _init,
        "__repr__": _repr,
        "__eq__": _eq,
        "__hash__": _hash,
        "__setattr__": _refuse_setting,
        "__delattr__": _refuse,
        "__reduce__": _reduce,
    }
    rebuilt = type(cls)(
        cls.__name__,
        cls.__bases__,
        {
            **shared,
            **body,
            "__slots__": tuple(name for name in names if name not in inherited),
            "__match_args__": (*inherited, *(name for name in names if name not in inherited)),
            "__qualname__": cls.__qualname__,
            "__dataclass_fields__": _Fields(),
            "_defaults": defaults,
        },
    )
    # They bypass the class's __setattr__, and are faster than object.__setattr__.
    rebuilt._setters = {name: getattr(rebuilt, name).__set__ for name in rebuilt.__match_args__}
    return rebuilt


class _Fields:
    """The value of `__dataclass_fields__`: the fields of an equivalent dataclass, built on first access."""

    def __init__(self) -> None:
        self._fields: Any = None

    def __get__(self, instance: object, cls: Any) -> Any:
        if self._fields is None:
            import dataclasses

            types = {name: type_ for base in reversed(cls.__mro__) for name, type_ in getattr(base, "__annotations__", {}).items()}
            fields: list[Any] = []
            for name in cls.__match_args__:
                default = [dataclasses.field(default_factory=partial(cls._defaults.get, name))] if name in cls._defaults else []
                fields.append((name, types[name], *default))
            equivalent: Any = dataclasses.make_dataclass(cls.__name__, fields)
            self._fields = equivalent.__dataclass_fields__
        return self._fields


def _init(self: Any, /, *values: object, **named: object) -> None:
    cls = type(self)
    names = cls.__match_args__
    arguments = {**cls._defaults, **dict(zip(names, values, strict=False)), **named}
    repeated = len(values) > len(names) or any(name in named for name in names[: len(values)])
    if repeated or len(arguments) != len(names) or not arguments.keys() <= cls._setters.keys():
        raise TypeError(
            f"{cls.__name__} takes {', '.join(names)}, each at most once, and requires those without a default; "
            f"it received {len(values)} by position, and {', '.join(named) or 'none'} by name"
        )
    for name, set_slot in cls._setters.items():
        set_slot(self, arguments[name])


def _values(self: Any) -> tuple[object, ...]:
    return tuple(getattr(self, name) for name in self.__match_args__)


def _repr(self: Any) -> str:
    return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__match_args__)})"


def _eq(self: Any, other: Any) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse_setting(self: Any, name: str, _: object) -> None:
    _refuse(self, name)


def _refuse(self: Any, name: str) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be changed")


def _reduce(self: Any) -> tuple[object, ...]:
    return type(self), _values(self)
