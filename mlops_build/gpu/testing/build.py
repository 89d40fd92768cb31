"""Build the simulated libraries with the machine's C compiler on first use, and keep them in the user's cache."""

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
    """The C compiler failed, or the libraries cannot be stored."""


def libraries() -> Path:
    """The folder with libnvidia-ml.so.1 and libcuda.so.1, for LD_LIBRARY_PATH.

    Built on first use with $CC, else gcc or cc, in $XDG_CACHE_HOME/mlops-build (else ~/.cache/mlops-build). The folder's name is a digest
    of the sources, so each version has its own. Several processes may call this at the same time. Raises NoCompiler and BuildFailed.
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
    configured = os.environ.get("CC")
    for command in [configured] if configured else ["gcc", "cc"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise NoCompiler(
        f"the simulated node needs a C compiler, but {f'CC={configured} is not' if configured else 'neither gcc nor cc is'} on PATH",
        remedy="install one (Debian, Ubuntu: apt-get install gcc libc6-dev), or copy ~/.cache/mlops-build from a machine that has one",
    )


def _build(folder: Path) -> None:
    """Build in a temporary folder and rename it, so that no process sees an incomplete library."""
    compiler = _compiler()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise BuildFailed(
            f"the simulated node's libraries cannot be kept in {folder.parent}: {error.strerror}",
            remedy="set XDG_CACHE_HOME to a writable folder",
        ) from None
    try:
        making.chmod(0o755)  # processes of other users load the libraries, too
        first, *others = (making / name for name in NAMES)
        command = [*compiler, *FLAGS, "-o", str(first), *(str(path) for path in _sources() if path.suffix == ".c")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise BuildFailed(
                f"{shlex.join(command)} failed with exit code {done.returncode}:\n{done.stderr.strip()}",
                remedy="on Debian or Ubuntu install libc6-dev (headers); to use another compiler, set CC",
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
