"""Which service a model belongs to."""

from pathlib import Path

from mlops_build import service
from mlops_build.errors import NotFound
from mlops_build.model.identity import parse_uri
from mlops_build.service.root import find_root


def owner(what: str) -> "service.Service | None":
    """The service around the current folder, if a model URI names one of its registered models, or a path is in its folder; else None.

    Raises ServiceError for its service.yaml, and BadModelUri.
    """
    try:
        root = find_root()
    except NotFound:
        return None
    if not what.startswith("models:"):
        return service.load(root) if Path(what).resolve().is_relative_to(root) else None
    name, own = parse_uri(what).name, service.load(root)
    return own if name in [model.name for model in own.models] else None
