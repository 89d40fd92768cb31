"""The check of Bamboo specs: the grammar, references between their parts, secrets, and the conventions of a service.

Bamboo silently ignores unknown keys, so a misspelt key has no effect. The content of an `!include` is not checked.
"""

from collections.abc import Iterator, Sequence

from mlops_build.ci.bamboo import conventions, references, secrets, structure
from mlops_build.ci.bamboo.spec import GRAMMAR, looks_like, read
from mlops_build.service import Service
from mlops_build.verify import catalogue, fields
from mlops_build.verify.document import File
from mlops_build.verify.schema import without_nulls
from mlops_build.verify.specs import Problem, SpecChecker
from mlops_build.verify.world import Fault


def checker(problem_of: Problem) -> SpecChecker:
    """The checker for `verify`. problem_of: see CiSystem.spec_checker."""

    def check(files: Sequence[File], service: Service | None) -> Iterator[Fault]:
        specs = read(files, closed=service is not None)
        yield from specs.faults
        for document in specs.documents:
            for violation in fields.violations(GRAMMAR, document.kind, without_nulls(document.data)) if document.kind else ():
                yield Fault(violation.rule, document.part, violation.path, violation.why, violation.remedy)
            yield from references.check(specs, document)
            yield from secrets.check(document)
        yield from structure.check(specs)
        if service is not None:
            yield from conventions.check(specs, service, problem_of)

    return SpecChecker("bamboo-specs", looks_like, check, catalogue.read("mlops_build.ci.bamboo"))
