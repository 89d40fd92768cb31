"""What the checklist needs to know about the CI system of a service. mlops_build/ci has it for each system."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlops_build.checklist.result import Result


@dataclass(frozen=True)
class Plans:
    """The plans of a service in its CI system.

    system: its name. capabilities: those of agents that jobs require. values: for the texts of items, in addition to those of items.py.
    items: what must be set up in the system itself, as a document in the format of items.toml. checks: the checks that it names.
    """

    system: str
    capabilities: Sequence[str]
    values: Mapping[str, str]
    items: str
    checks: Mapping[str, Callable[[Mapping[str, str]], Result]]
