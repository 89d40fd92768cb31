"""The simulated libraries, built by the machine's C compiler on first use and kept in the user's cache."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mlops_build.errors import Failed

SOURCES = Path(__file__).parent / "c"
NAMES = ("libnvidia-ml.so.1", "libcuda.so.1", "libsimulatednode.so")
FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-pthread")


class NoCompiler(Failed):
    """There is no C compiler on this machine."""


class BuildFailed(Failed):
    """The C compiler would not build the libraries."""


def libraries() -> Path:
    """The folder with libnvidia-ml.so.1 and libcuda.so.1, for LD_LIBRARY_PATH.

    Built on first use with $CC, else gcc or cc, under $XDG_CACHE_HOME/mlops-build (else ~/.cache/mlops-build), and keyed by what they are
    built from: another version of the package has its own. Several processes may ask at once. Raises NoCompiler and BuildFailed.
    """
    if sys.platform != "linux":
        raise BuildFailed("a simulated node works on Linux only", remedy="run these tests in a Linux container or virtual machine")
    folder = _cache() / _key()
    if not all((folder / name).exists() for name in NAMES):
        _build(folder)
    return folder


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlops-build" / "simulated-node"


def _sources() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.suffix in {".c", ".h"})


def _key() -> str:
    digest = hashlib.sha256(f"{platform.machine()} {FLAGS} {NAMES}".encode())
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _compiler() -> list[str]:
    wanted = os.environ.get("CC")
    for command in [wanted] if wanted else ["gcc", "cc"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise NoCompiler(
        f"the simulated node is built by a C compiler, and {f'CC={wanted}' if wanted else 'neither gcc nor cc'} is on PATH",
        remedy="install one (Debian, Ubuntu: apt-get install gcc libc6-dev), or build on a machine that has one and copy its "
        "~/.cache/mlops-build here",
    )


def _build(folder: Path) -> None:
    """Into a folder of our own, then renamed into place: nobody sees half a library."""
    compiler = _compiler()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise BuildFailed(
            f"the simulated node's libraries cannot be kept in {folder.parent}: {error.strerror}",
            remedy="set XDG_CACHE_HOME to a folder that can be written",
        ) from None
    try:
        making.chmod(0o755)  # other users' processes load them, too
        first, *others = (making / name for name in NAMES)
        command = [*compiler, *FLAGS, "-o", str(first), *(str(path) for path in _sources() if path.suffix == ".c")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise BuildFailed(
                f"{shlex.join(command)} failed with exit code {done.returncode}:\n{done.stderr.strip()}",
                remedy="with a Debian or Ubuntu gcc, the headers are in libc6-dev; CC names another compiler",
            )
        for other in others:
            other.hardlink_to(first)
        try:
            making.rename(folder)
        except OSError:
            if not all((folder / name).exists() for name in NAMES):
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
