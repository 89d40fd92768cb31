"""The calls of Registry that only `adopt` needs: a run for the files of adopted versions, and the end of a version that exists twice."""

from collections.abc import Mapping

from mlops_build.adapters.registry import Registry, _translating
from mlops_build.adapters.registry.records import Rejected


@_translating
def create_run(registry: Registry, experiment_id: str, tags: Mapping[str, str]) -> str:
    """The id of a new run, which has ended."""
    return registry._store.create_run(experiment_id, tags)


@_translating
def delete_version(registry: Registry, name: str, version: int) -> None:
    """Remove a version, not its files; an unknown version is not an error."""
    try:
        registry._store.delete_version(name, str(version))
    except Rejected as error:
        if not error.is_missing:
            raise
