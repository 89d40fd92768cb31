"""What `verify` needs to know about the specs of one CI system. mlops_build/ci has a checker for each system."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlops_build.service import Service
from mlops_build.verify.catalogue import Families
from mlops_build.verify.document import File
from mlops_build.verify.world import Fault

# Why the command line would refuse the words after `mlops-build` in a spec; None if it would not.
Problem = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class SpecChecker:
    """The check of one CI system's specs.

    folder: the folder or file of a repository that has them. recognises: whether a YAML document is a spec. check: finds the faults in the
    specs of a service, or (None) in any specs, which may refer to something that is defined elsewhere. families: the rules.
    """

    folder: str
    recognises: Callable[[object], bool]
    check: Callable[[Sequence[File], Service | None], Iterator[Fault]]
    families: Families
