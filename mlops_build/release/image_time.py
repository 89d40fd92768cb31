"""How long the image of a release took: from the release's commit until the image registry had it.

`ci image` writes it onto the version of the first model, beside the image's digest. Git does not have it: CI makes no commits for it.
"""

from mlops_build.adapters.registry import Registry, UnknownVersion
from mlops_build.model.identity import IMAGE_NAME, IMAGE_SECONDS
from mlops_build.release.record import Record


def write(registry: Registry, record: Record, seconds: int) -> None:
    """Note the time of a new image. A clock that is behind that of the commit gives 0."""
    first = record.models[0]
    registry.set_tag(first.name, first.version, IMAGE_SECONDS, str(max(0, seconds)))


def read(registry: Registry, record: Record | None) -> int | None:
    """Seconds; None if there is no image yet, another one, or one of a release of mlops-build before 0.10."""
    if record is None or not record.models:
        return None
    try:
        tags = registry.version(record.models[0].name, record.models[0].version).tags
    except UnknownVersion:
        return None
    text = tags.get(IMAGE_SECONDS, "") if tags.get(IMAGE_NAME) == record.image else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
