"""The service's code as /opt/code has it in the image: wheels, unpacked here, so that a built and an assembled image have the same files.

The wheels come from the model registry and are not trusted. The same wheels give the same bytes: no time, no bytecode (which differs
between interpreters), no setting of this machine. They are unpacked into memory: to write hundreds of files takes longer than all the rest.
"""

import base64
import hashlib
import io
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.records import Hash, RecordEntry
from installer.scripts import Script
from installer.sources import WheelFile
from installer.utils import Scheme

from mlops_build.errors import MlopsBuildError
from mlops_build.model.version import BadVersion
from mlops_build.packaging.layer import File

if TYPE_CHECKING:
    from installer.scripts import ScriptSection

FOLDER = "code"
PYTHON = "/opt/venv/bin/python"
# Of all wheels of a version together, unpacked; and of a member that `installer` reads into memory, such as RECORD.
MOST_BYTES, MOST_FILES, MOST_DOCUMENT = 1 << 28, 50_000, 1 << 24
DOCUMENT = re.compile(r"[^/]*\.(dist-info|data/scripts)/.*")
PART_BYTES = 255  # of the name of a file or folder
SHOWN = 100


def files(wheels: Sequence[Path], folder: str) -> list[File]:
    """The files of wheels: packages and dist-info at the top of `folder`, scripts for the image's interpreter in bin/.

    Scripts, and files that are executable in the wheel, are executable. Raises BadVersion, naming the wheel, for a wheel that is damaged or
    hostile.
    """
    code = _Code({"purelib": "/code", "platlib": "/code", "scripts": "/code/bin"}, PYTHON, "posix")
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
            issues = [*getattr(error, "issues", ()), str(error) or type(error).__name__]
            raise _refused(path, str(issues[0]).replace(f"In {path}, ", "").replace(str(path), path.name)) from None
    return [
        File(f"{folder}/{name}", len(content), partial(io.BytesIO, content), executable)
        for name, (content, executable) in code.files.items()
    ]


def unpack(wheels: Sequence[Path], folder: Path) -> None:
    """Write the files of wheels into a new folder. Raises BadVersion, and OSError."""
    folder.mkdir(parents=True)
    for file in files(wheels, "."):
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with file.open() as content:
            path.write_bytes(content.read())
        path.chmod(0o755 if file.executable else 0o644)


def _refused(wheel: Path, why: str) -> BadVersion:
    return BadVersion(
        f"{wheel.name} cannot be unpacked: {why}",
        remedy="find out who built this wheel; `mlops-build train` registers a version with new ones",
    )


def _check_name(name: str) -> None:
    """Raises BadVersion for a path that is not plain and relative."""
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name and len(name) <= 1000 and not {"", ".", ".."} & {*parts}
    if not is_plain or any(len(part.encode()) > PART_BYTES for part in parts):
        raise BadVersion(f"{name[:SHOWN]!a} is not a plain relative path")


def _check_members(members: Iterable[zipfile.ZipInfo], most_bytes: int, most_files: int) -> tuple[int, int]:
    """Check names, kinds and sizes before anything is unpacked. Returns what is left of both limits. zipfile never reads more from a
    member than the size that is checked here."""
    for member in members:
        name = member.filename
        _check_name(name.removesuffix("/"))
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


@dataclass
class _Code(SchemeDictionaryDestination):
    """Keeps what is written: its path, the content, and whether it is executable. It refuses a file that is there already."""

    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def write_to_fs(self, scheme: Scheme, path: str, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        if scheme not in self.scheme_dict:  # headers are of no use without a compiler; `data` would lie beside the packages under any name
            raise BadVersion(f"{path[:SHOWN]!a} belongs into {scheme}: an image has {', '.join(self.scheme_dict)} only")
        _check_name(path)
        name = f"bin/{path}" if scheme == "scripts" else path
        folders = {parent.as_posix() for parent in PurePosixPath(name).parents}
        if name in self.files or name in self.folders or folders & self.files.keys():
            raise BadVersion(f"{name[:SHOWN]!a} is in the wheels twice")
        self.folders |= folders
        content = stream.read()
        self.files[name] = content, is_executable or scheme == "scripts"
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        return RecordEntry(path, Hash("sha256", digest), len(content))

    def write_script(self, name: str, module: str, attr: str, section: "ScriptSection") -> RecordEntry:
        script, content = Script(name, module, attr, section).generate(self.interpreter, self.script_kind)
        return self.write_to_fs(Scheme("scripts"), script, io.BytesIO(content), is_executable=True)
