"""Frozen dataclasses whose making costs next to nothing: `gpu pick` makes two dozen before it can look at a card.

The standard `dataclasses` imports inspect, and writes and compiles six functions for each class: that took a third of the time from
process start to chosen card (benchmarks/gpu_latency.py). These share their functions. To type checkers they are dataclasses, and to the
functions of `dataclasses` (replace, fields, asdict, …), too.
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
        """As dataclasses.dataclass(frozen=True, slots=True), without default factories."""
        assert frozen  # noqa: S101
        assert slots  # noqa: S101
        return _made

    def replace(one: Any, /, **changes: object) -> Any:
        """As dataclasses.replace."""
        return type(one)(**{**{name: getattr(one, name) for name in one.__match_args__}, **changes})


def _made(cls: Any) -> Any:
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
    made = type(cls)(
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
    # Past our own __setattr__, and faster than object's.
    made._setters = {name: getattr(made, name).__set__ for name in made.__match_args__}
    return made


class _Fields:
    """What the functions of `dataclasses` ask for: the fields of the same class made by `dataclasses`, when they first do."""

    def __init__(self) -> None:
        self._fields: Any = None

    def __get__(self, one: object, cls: Any) -> Any:
        if self._fields is None:
            import dataclasses

            types = {name: kind for base in reversed(cls.__mro__) for name, kind in getattr(base, "__annotations__", {}).items()}
            fields: list[Any] = []
            for name in cls.__match_args__:
                default = [dataclasses.field(default_factory=partial(cls._defaults.get, name))] if name in cls._defaults else []
                fields.append((name, types[name], *default))
            made: Any = dataclasses.make_dataclass(cls.__name__, fields)
            self._fields = made.__dataclass_fields__
        return self._fields


def _init(self: Any, /, *values: object, **named: object) -> None:
    cls = type(self)
    names = cls.__match_args__
    given = {**cls._defaults, **dict(zip(names, values, strict=False)), **named}
    wrong = len(values) > len(names) or any(name in named for name in names[: len(values)])
    if wrong or len(given) != len(names) or not given.keys() <= cls._setters.keys():
        raise TypeError(
            f"{cls.__name__} takes {', '.join(names)}: each once, all without a default; "
            f"it is given {len(values)} of them in order, and {', '.join(named) or 'none'} by name"
        )
    for name, set_slot in cls._setters.items():
        set_slot(self, given[name])


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
