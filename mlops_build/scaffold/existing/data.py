"""The data of an existing script: locate it and track it with DVC, without changing or moving the original."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mlops_build.adapters import dvc
from mlops_build.errors import Failed, NotFound, UsageError

# Larger data is not copied: it stays where it is, and DVC records its hash.
LARGEST = 2**30
S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9!_.*'()=+@, -]+)*/?")


@dataclass(frozen=True)
class Source:
    """A file or folder of data. given: as the user wrote it. place: an absolute path, or s3://BUCKET/PATH. inside: its path in the service.

    size: bytes, a lower bound for large data; None on S3, where it is not checked. by_reference: it is not copied.
    """

    given: str
    place: str
    inside: str
    size: int | None
    by_reference: bool

    @property
    def is_remote(self) -> bool:
        return self.place.startswith("s3://")

    def within(self, value: str, bases: Sequence[Path]) -> str | None:
        """The path in the service for a path in the script, if it is this source or inside it; else None."""
        if self.is_remote:
            place = self.place.rstrip("/")
            rest = value.removeprefix(place)
            return f"{self.inside}{rest.rstrip('/')}" if value.startswith(place) and (not rest or rest.startswith("/")) else None
        if "\0" in value or "\n" in value or not value.strip():
            return None
        for base in bases:
            path = Path(os.path.normpath(base / Path(value).expanduser()))
            if path == Path(self.place) or path.resolve() == Path(self.place):
                return self.inside
            if Path(self.place) in path.parents and path.exists():
                return f"{self.inside}/{path.relative_to(self.place).as_posix()}"
        return None

    def progress(self) -> str:
        """The line that is printed before it is copied or hashed."""
        if self.by_reference:
            return f"hashing {self.place}; it is not copied"
        size = self.size or 0
        return f"copying {self.place} ({size / 2**20:,.1f} MiB)" if size > 2**20 else f"copying {self.place} ({size:,} bytes)"

    def as_json(self) -> dict[str, Any]:
        return {"from": self.place, "path": self.inside, "by_reference": self.by_reference}


def plan(given: Sequence[str], script: Path, *, by_reference: bool) -> list[Source]:
    """Decide how each file or folder of data is added. Raises NotFound, UsageError."""
    sources: dict[str, Source] = {}
    for path in given:
        source = _remote(path) if re.match(r"[a-z0-9]+://", path) else _local(path, script, by_reference)
        plain, number = PurePosixPath(source.inside), 2
        # Different names with non-Latin letters may become the same name.
        while (other := sources.get(source.inside)) and Path(other.place).name != Path(source.place).name:
            source, number = replace(source, inside=str(plain.with_name(f"{plain.stem}_{number}{plain.suffix}"))), number + 1
        if source.inside in sources:
            raise UsageError(
                f"{sources[source.inside].given} and {path} would both become {source.inside}",
                remedy="give the folder that contains both, or rename one",
            )
        sources[source.inside] = source
    return list(sources.values())


def put(source: Source, root: Path, endpoint: str | None) -> None:
    """Track it with DVC in the service at `root`. Raises Failed, Unreachable."""
    (root / source.inside).parent.mkdir(parents=True, exist_ok=True)
    if source.by_reference:
        dvc.import_reference(root, source.place, source.inside, endpoint=endpoint)
        return
    try:
        if Path(source.place).is_dir():
            shutil.copytree(source.place, root / source.inside)
        else:
            shutil.copyfile(source.place, root / source.inside)
    except (OSError, shutil.Error) as error:
        reason = str(error) if isinstance(error, OSError) else "some of its files cannot be read"
        raise Failed(f"{source.given} cannot be copied: {reason[:300]}", remedy="make the files readable, or use --by-reference") from None
    dvc.add(root, source.inside)


def endpoint_of(answers: Mapping[str, object]) -> str | None:
    """The S3 gateway: the template's answer, else the variable that every S3 client reads."""
    return str(answers.get("s3_endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "") or None


def _remote(given: str) -> Source:
    if not S3.fullmatch(given):
        raise UsageError(f"{given[:200]!r} is not a valid address of data", remedy="give a file, a folder or s3://BUCKET/PATH")
    return Source(given, given.rstrip("/"), _inside(given.rstrip("/").rpartition("/")[2]), None, True)


def _local(given: str, script: Path, by_reference: bool) -> Source:
    place = Path(given).expanduser()
    if not place.exists():
        raise NotFound(f"the data {given} does not exist", remedy="give a file, a folder or s3://BUCKET/PATH")
    place = place.resolve()
    if not (place.is_file() or place.is_dir()):
        raise UsageError(f"{given} is neither a file nor a folder", remedy="give a file, a folder or s3://BUCKET/PATH")
    if place in script.resolve().parents or place == script.resolve():
        raise UsageError(f"{given} contains the script itself", remedy="give a file or folder that contains only the data")
    size = _size(place)
    return Source(given, str(place), _inside(place.name), size, by_reference or size > LARGEST)


def _inside(name: str) -> str:
    """`data/NAME`; a folder named data becomes data/raw, as in every service."""
    plain = re.sub(r"[^A-Za-z0-9_.-]" if name.isascii() else r"[^A-Za-z0-9.-]+", "_", name).strip(".")
    stem, dot, suffix = plain.partition(".")
    if not stem.strip("_-"):  # a name without a Latin letter or digit
        plain = f"raw{dot}{suffix}"
    return f"data/{'raw' if plain == 'data' else plain}"


def _size(place: Path) -> int:
    """The bytes of a file or folder; counting stops above LARGEST."""
    total, waiting = 0, [place]
    while waiting and total <= LARGEST:
        path = waiting.pop()
        if path.is_dir():
            waiting += path.iterdir()
        elif path.is_file():
            total += path.stat().st_size
    return total
