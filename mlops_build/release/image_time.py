"""When an image was made, and how long that took: from the commit of its release until the image registry had it.

`ci image` writes it onto the version of the first model, in a tag for each of the version's images. Git does not have it: CI makes no
commits for it.
"""

import re
from dataclasses import dataclass

from mlops_build.adapters.registry import Registry, UnknownVersion
from mlops_build.model.identity import IMAGE_TIME_PREFIX
from mlops_build.release.record import Record


@dataclass(frozen=True)
class ImageTime:
    """at: when it was made, Unix time. seconds: since the commit of the release that it was made for."""

    at: int
    seconds: int

    def since(self, commit: int) -> int:
        """Seconds from a commit until the image was there: 0 for one that was there before, such as after a rollback."""
        return max(0, self.at - commit)


def write(registry: Registry, record: Record, at: int, commit: int) -> None:
    """Note that the record's image was made. commit: when the release was committed. A clock that is behind that of the commit gives 0."""
    first = record.models[0]
    registry.set_tag(first.name, first.version, _tag(record), f"{at} {max(0, at - commit)}")


def read(registry: Registry, record: Record | None) -> ImageTime | None:
    """None if the record's image does not exist yet, or was made by a release of mlops-build before 0.10."""
    if record is None or not record.models or not record.image:
        return None
    try:
        text = registry.version(record.models[0].name, record.models[0].version).tags.get(_tag(record), "")
    except UnknownVersion:
        return None
    match = re.fullmatch("([0-9]{1,11}) ([0-9]{1,9})", text)
    return ImageTime(int(match[1]), int(match[2])) if match else None


def _tag(record: Record) -> str:
    return f"{IMAGE_TIME_PREFIX}{str(record.image).rpartition(':')[2]}"
