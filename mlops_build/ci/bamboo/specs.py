"""Bamboo specs: unknown keys, and references between plans, jobs, stages, artifacts and environments.

Bamboo silently ignores unknown keys, so a misspelt key has no effect. The grammar follows Atlassian's reference of Bamboo Specs (YAML,
version 2, up to Bamboo 12). Plugins can extend task types, repositories, triggers and `other`: there only a key similar to a known one is
a fault. The content of an `!include` is not checked.
"""

from collections.abc import Iterator, Sequence

from mlops_build.ci.bamboo.deployment import check_deployment, check_permissions
from mlops_build.ci.bamboo.plan import check_plan, check_plan_keys
from mlops_build.ci.bamboo.spec import looks_like, read
from mlops_build.service import Service
from mlops_build.verify import catalogue
from mlops_build.verify.document import File
from mlops_build.verify.specs import SpecChecker
from mlops_build.verify.world import Fault


def check(files: Sequence[File], service: Service | None) -> Iterator[Fault]:
    """The faults in the specs of a service, or (None) in any specs."""
    specs = read(files, closed=service is not None)
    yield from specs.faults
    for document in specs.documents:
        if document.is_permissions:
            yield from check_permissions(specs, document)
        elif document.is_plan:
            yield from check_plan(specs, document)
        elif document.is_deployment:
            yield from check_deployment(specs, document)
    yield from check_plan_keys(specs)


CHECKER = SpecChecker("bamboo-specs", looks_like, check, catalogue.read("mlops_build.ci.bamboo"))
