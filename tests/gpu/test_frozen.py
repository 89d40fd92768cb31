"""frozen.dataclass behaves like dataclasses.dataclass(frozen=True, slots=True)."""

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from mlops_build.gpu.frozen import dataclass, replace


@dataclass(frozen=True, slots=True)
class Ours:
    """A class with a doc."""

    a: int
    b: str = "b"
    c: "dict[str, int] | None" = None

    @property
    def twice(self) -> int:
        return 2 * self.a


@dataclass(frozen=True, slots=True)
class Below(Ours):
    d: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    a: int
    b: str = "b"
    c: "dict[str, int] | None" = None


@dataclasses.dataclass(frozen=True, slots=True)
class TheirsBelow(Theirs):
    d: tuple[int, ...] = ()


BOTH = [(Ours, Theirs, (1,), {}), (Ours, Theirs, (1, "x"), {"c": {}}), (Below, TheirsBelow, (), {"a": 2, "d": (3,)})]


@pytest.mark.parametrize(("ours", "theirs", "values", "named"), BOTH)
def test_it_behaves_like_a_standard_dataclass(ours: Any, theirs: Any, values: tuple[Any, ...], named: dict[str, Any]) -> None:
    instance, other = ours(*values, **named), theirs(*values, **named)
    assert repr(instance) == repr(other).replace("TheirsBelow", "Below").replace("Theirs", "Ours")
    assert dataclasses.asdict(instance) == dataclasses.asdict(other)
    assert [field.name for field in dataclasses.fields(ours)] == [field.name for field in dataclasses.fields(theirs)]
    assert (ours.__slots__, ours.__match_args__) == (theirs.__slots__, theirs.__match_args__)
    assert instance == ours(*values, **named) != other
    assert instance != replace(instance, b="y")
    for change in (replace, dataclasses.replace):
        assert change(instance, a=7) == ours(**{**dataclasses.asdict(other), "a": 7})
    for again in (copy.copy(instance), copy.deepcopy(instance), pickle.loads(pickle.dumps(instance))):  # noqa: S301
        assert again == instance
    assert instance.twice == 2 * instance.a
    if instance.c is None:
        assert {instance: 1}[ours(*values, **named)] == 1


def test_instances_are_immutable() -> None:
    instance = Ours(1)
    with pytest.raises(AttributeError, match="frozen"):
        instance.a = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        instance.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="frozen"):
        del instance.a


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, "b", None, 4), {}), ((1,), {"a": 1}), ((1,), {"z": 1})])
def test_wrong_arguments_are_a_type_error(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Ours"):
        Ours(*values, **named)
    with pytest.raises(TypeError):
        Theirs(*values, **named)
