"""Bamboo specs: unknown keys, and references between plans, jobs, stages, artifacts and environments.

Bamboo silently ignores unknown keys, so a misspelt key has no effect. The grammar follows Atlassian's reference of Bamboo Specs (YAML,
version 2, up to Bamboo 12). Plugins can extend task types, repositories, triggers and `other`: there only a key similar to a known one is
a fault. The content of an `!include` is not checked.
"""

from collections.abc import Iterator

from mlops_build.verify.bamboo.deployment import check_deployment, check_permissions
from mlops_build.verify.bamboo.plan import check_plan, check_plan_keys
from mlops_build.verify.bamboo.spec import Specs, looks_like, read
from mlops_build.verify.world import Fault

__all__ = ["check", "looks_like", "read"]


def check(specs: Specs) -> Iterator[Fault]:
    yield from specs.faults
    for document in specs.documents:
        if document.is_permissions:
            yield from check_permissions(specs, document)
        elif document.is_plan:
            yield from check_plan(specs, document)
        elif document.is_deployment:
            yield from check_deployment(specs, document)
    yield from check_plan_keys(specs)
