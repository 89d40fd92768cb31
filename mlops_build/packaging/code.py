"""The service's code as /opt/code has it in the image: wheels, unpacked here, so that a built and an assembled image have the same files.

The wheels come from the model registry and are not trusted. The same wheels give the same bytes: no time, no bytecode (which differs
between interpreters), no setting of this machine.
"""

import errno
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.records import RecordEntry
from installer.sources import WheelFile
from installer.utils import Scheme

from mlops_build.errors import MlopsBuildError
from mlops_build.model.version import BadVersion

FOLDER = "code"
PYTHON = "/opt/venv/bin/python"
# Of all wheels of a version together, unpacked; and of a member that `installer` reads into memory, such as RECORD.
MOST_BYTES, MOST_FILES, MOST_DOCUMENT = 1 << 30, 50_000, 1 << 24
DOCUMENT = re.compile(r"[^/]*\.(dist-info|data/scripts)/.*")
# The system's errors that a wheel can cause: a damaged one makes zipfile seek to a place before its start.
OF_WHEEL = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
SHOWN = 100


def unpack(wheels: Sequence[Path], folder: Path) -> None:
    """Unpack wheels into the new folder: packages and dist-info at the top, scripts for the image's interpreter in bin/.

    Scripts, and files that are executable in the wheel, are executable. Raises BadVersion, naming the wheel, for a wheel that is damaged or
    hostile; nothing is written outside `folder`, but the folder may be incomplete.
    """
    code = _Code({"purelib": str(folder), "platlib": str(folder), "scripts": str(folder / "bin")}, PYTHON, "posix")
    folder.mkdir(parents=True)
    left = MOST_BYTES, MOST_FILES
    for path in sorted(wheels, key=lambda path: path.name):
        try:
            # installer warns of bytecode, which it leaves out.
            with zipfile.ZipFile(path) as archive, warnings.catch_warnings(action="ignore"):
                left = _check_members(archive.infolist(), *left)
                wheel = WheelFile(archive)
                wheel.validate_record()
                install(wheel, code, {"INSTALLER": b"mlops-build\n"})
        except MlopsBuildError as error:
            raise _refused(path, error.message) from None
        except Exception as error:  # zipfile and installer raise many kinds for a damaged wheel, AssertionError and KeyError among them
            if isinstance(error, OSError) and error.errno not in OF_WHEEL:  # such as a full disk
                raise
            issues = [*getattr(error, "issues", ()), str(error) or type(error).__name__]
            why = str(issues[0]).replace(f"In {path}, ", "").replace(str(path), path.name).replace(f"{folder}/", "")
            raise _refused(path, why) from None


def _refused(wheel: Path, why: str) -> BadVersion:
    return BadVersion(
        f"{wheel.name} cannot be unpacked: {why}",
        remedy="find out who built this wheel; `mlops-build train` registers a version with new ones",
    )


def _check_members(members: Iterable[zipfile.ZipInfo], most_bytes: int, most_files: int) -> tuple[int, int]:
    """Check names, kinds and sizes before anything is unpacked. Returns what is left of both limits. zipfile never reads more from a
    member than the size that is checked here."""
    for member in members:
        name = member.filename
        parts = name.removesuffix("/").split("/")
        if not name.isprintable() or "\\" in name or len(name) > 1000 or {"", ".", ".."} & {*parts}:
            raise BadVersion(f"{name[:SHOWN]!a} is not a plain relative path")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BadVersion(f"{name[:SHOWN]!a} is a link or a special file")
        # Other methods can fill the memory before the first byte is read.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadVersion(f"{name[:SHOWN]!a} is not compressed with deflate")
        if member.file_size > MOST_DOCUMENT and DOCUMENT.fullmatch(name):
            raise BadVersion(f"{name[:SHOWN]!a} has over {MOST_DOCUMENT >> 20} MiB")
        most_bytes, most_files = most_bytes - member.file_size, most_files - 1
        if most_bytes < 0 or most_files < 0:
            raise BadVersion(f"with {name[:SHOWN]!a} the wheels have over {MOST_BYTES >> 20} MiB or {MOST_FILES} files")
    return most_bytes, most_files


class _Code(SchemeDictionaryDestination):
    """Writes into the folder of the code. It refuses a file that is there already, and one outside the folder."""

    def write_to_fs(self, scheme: Scheme, path: str, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        if scheme not in self.scheme_dict:  # headers are of no use without a compiler; `data` would lie beside the packages under any name
            raise BadVersion(f"{path[:SHOWN]!a} belongs into {scheme}: an image has {', '.join(self.scheme_dict)} only")
        return super().write_to_fs(scheme, path, stream, is_executable or scheme == "scripts")
