"""Wheels for a build without a package index: copy the wheels that an image needs from a prepared folder.

Packages in the lock are selected by their hash, so that a wheel with the right name and other content is not used. torch, its CUDA
packages and the installer have no hash in the lock: they are selected by name and version, as from an index.
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
# Dependencies of torch's CUDA build, which the lock does not contain.
CUDA = re.compile(r"(?:nvidia|cuda|triton)(?:-|$)")
MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


class Incomplete(Refused):
    """A wheelhouse that lacks wheels for the image."""


@dataclass(frozen=True)
class Wheel:
    """A wheel, as the name of its file says. name: normalised. version: without the local part, such as torch's +cpu."""

    path: Path
    name: str
    version: str
    tags: str

    def fits(self, python: str, machine: str) -> bool:
        """Whether this version of Python on this machine (x86_64; "" for any) can install it, according to the tags in the file's name."""
        interpreter, abi, platform = self.tags.split("-")
        number = python.replace(".", "")
        wanted = any(
            tag in ("py3", f"cp{number}")
            or (re.fullmatch(r"cp3[0-9]+" if abi == "abi3" else r"py3[0-9]+", tag) and int(tag[3:]) <= int(number[1:]))
            for tag in interpreter.split(".")
        )
        return wanted and (platform == "any" or machine in platform)


@dataclass(frozen=True)
class Wanted:
    """The wheels that an image needs. exact: name → version of packages outside the lock. cuda: add those of torch's CUDA build."""

    lock: str
    exact: Mapping[str, str]
    python: str
    platform: str
    cuda: bool


def named(path: Path) -> Wheel:
    """The wheel of a file whose name matches the grammar."""
    name, version, tags = path.name.removesuffix(".whl").split("-", 2)
    return Wheel(path, re.sub(r"[-_.]+", "-", name).lower(), version.partition("+")[0], tags)


def fill(source: Path, destination: Path, wanted: Wanted) -> list[Path]:
    """Copy the needed wheels from `source` to the new folder `destination`. Raises NotFound for a missing folder, and Incomplete."""
    if not source.is_dir():
        raise NotFound(f"{source} is not a folder", remedy="give the folder with the wheels")
    machine = MACHINES[wanted.platform]
    wheels = [wheel for wheel in _wheels(source) if wheel.fits(wanted.python, machine)]
    locked, needed, missing = grammar.hashes(wanted.lock), [], []
    for name, version in [*grammar.pinned(wanted.lock).items(), *wanted.exact.items()]:
        candidates = [wheel for wheel in wheels if (wheel.name, wheel.version) == (name, version)]
        matching = [wheel for wheel in candidates if name not in locked or file_digest(wheel.path) in locked[name]]
        needed += matching[:1]
        if not matching:
            missing.append(f"{name}=={version}{' (its hash is not the one in the lock)' if candidates else ''}")
    if missing:
        raise Incomplete(
            f"{source} lacks {len(missing)} wheels for Python {wanted.python} on {machine}:\n  " + "\n  ".join(missing),
            remedy="download them on a machine with an index: docs/how-to/build-the-image-in-your-ci.md in the repository of mlops-build",
        )
    if wanted.cuda:
        needed += [wheel for wheel in wheels if CUDA.match(wheel.name) and wheel not in needed]
    return _copy(needed, destination)


def _wheels(source: Path) -> Iterator[Wheel]:
    for path in sorted(source.glob("*.whl")):
        if path.is_symlink() or not path.is_file() or not grammar.WHEEL.fullmatch(path.name):
            continue
        yield named(path)


def _copy(needed: Sequence[Wheel], destination: Path) -> list[Path]:
    destination.mkdir(parents=True)
    return [Path(shutil.copyfile(wheel.path, destination / wheel.path.name)) for wheel in needed]
