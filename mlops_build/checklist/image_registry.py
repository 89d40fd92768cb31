"""Checks the permission to push images: an upload is started and cancelled."""

from mlops_build.adapters.image_registry import Repository
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import Result, no, ok
from mlops_build.errors import MlopsBuildError


def push(names: Names) -> Result:
    """Whether images may be pushed."""
    try:
        Repository(names.image).check_push()
    except MlopsBuildError as error:
        return no(error.message)
    host, _, path = names.image.partition("/")
    return ok(f"{host} accepts a push to {path}")
