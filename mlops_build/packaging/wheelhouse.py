"""Wheels for a build that reaches no package index: out of a folder that somebody filled, those that this image needs.

What the lock names is taken by its hash, so that a wheel of the right name and other content is not. torch, what it brings for CUDA, and
the installer have no hash in the lock: they are taken by name and version, as from an index.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_build.errors import NotFound, Refused
from mlops_build.model.files import file_digest
from mlops_build.packaging import grammar

FOLDER = "wheelhouse"
# What torch's CUDA build depends on; the lock has none of it.
CUDA = re.compile(r"(?:nvidia|cuda|triton)(?:-|$)")
MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


class Incomplete(Refused):
    """A wheelhouse without something that the image needs."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on disk. name: normalised. version: without the local part that names a build of torch."""

    path: Path
    name: str
    version: str
    tags: str

    def fits(self, python: str, machine: str) -> bool:
        """Whether an interpreter of this version, on this machine, may install it, as far as the file's name says."""
        interpreter, abi, platform = self.tags.split("-")
        number = python.replace(".", "")
        wanted = any(
            one in ("py3", f"cp{number}") or (abi == "abi3" and re.fullmatch(r"cp3[0-9]+", one) and int(one[3:]) <= int(number[1:]))
            for one in interpreter.split(".")
        )
        return wanted and (platform == "any" or machine in platform)


@dataclass(frozen=True)
class Wanted:
    """What an image needs. exact: name → version of what the lock does not name. cuda: and whatever torch's CUDA build may depend on."""

    lock: str
    exact: Mapping[str, str]
    python: str
    platform: str
    cuda: bool


def fill(source: Path, destination: Path, wanted: Wanted) -> list[Path]:
    """Copy what is wanted from `source` to `destination`, which is made. Raises NotFound for no such folder, and Incomplete."""
    if not source.is_dir():
        raise NotFound(f"{source} is no folder", remedy="name the folder that holds the wheels")
    machine = MACHINES[wanted.platform]
    wheels = [wheel for wheel in _wheels(source) if wheel.fits(wanted.python, machine)]
    locked, needed, missing = grammar.hashes(wanted.lock), [], []
    for name, version in [*grammar.pinned(wanted.lock).items(), *wanted.exact.items()]:
        candidates = [wheel for wheel in wheels if (wheel.name, wheel.version) == (name, version)]
        found = [wheel for wheel in candidates if name not in locked or file_digest(wheel.path) in locked[name]]
        needed += found[:1]
        if not found:
            missing.append(f"{name}=={version}{' (there, but with another hash than the lock says)' if candidates else ''}")
    if missing:
        raise Incomplete(
            f"{source} lacks {len(missing)} wheels for Python {wanted.python} on {machine}:\n  " + "\n  ".join(missing),
            remedy="download them where an index can be reached: docs/how-to/build-the-image-in-your-ci.md",
        )
    if wanted.cuda:
        needed += [wheel for wheel in wheels if CUDA.match(wheel.name) and wheel not in needed]
    return _copy(needed, destination)


def _wheels(source: Path) -> Iterator[Wheel]:
    for path in sorted(source.glob("*.whl")):
        if path.is_symlink() or not path.is_file() or not grammar.WHEEL.fullmatch(path.name):
            continue
        name, version, tags = path.name.removesuffix(".whl").split("-", 2)
        yield Wheel(path, re.sub(r"[-_.]+", "-", name).lower(), version.partition("+")[0], tags)


def _copy(needed: Sequence[Wheel], destination: Path) -> list[Path]:
    destination.mkdir(parents=True)
    return [Path(shutil.copyfile(wheel.path, destination / wheel.path.name)) for wheel in needed]
