"""The service's code as /opt/code has it in the image: wheels, unpacked here, so that a built and an assembled image have the same files.

The wheels come from the model registry and are not trusted. The same wheels give the same bytes: no time, no bytecode (which differs
between interpreters), no setting of this machine.
"""

import base64
import errno
import hashlib
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from installer import install
from installer.destinations import WheelDestination
from installer.records import Hash, RecordEntry
from installer.sources import WheelContentElement, WheelFile
from installer.utils import Scheme, construct_record_file

from mlops_build.errors import MlopsBuildError
from mlops_build.model.version import BadVersion

FOLDER = "code"
PYTHON = "/opt/venv/bin/python"
# Of all wheels of a version together, unpacked; and of a document that is read into memory, such as RECORD.
MOST_BYTES, MOST_FILES, MOST_DOCUMENT = 1 << 30, 50_000, 1 << 24
CHUNK = 1 << 20
# Folders of NAME-VERSION.data/. Headers are of no use without a compiler; `data` would lie beside the packages under any name.
SCHEMES = {"purelib": "", "platlib": "", "scripts": "bin/"}
SCRIPT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
SCRIPT = """\
#!{python}
import sys
from {module} import {imported}
if __name__ == "__main__":
    sys.exit({called}())
"""
SHOWN = 100


def unpack(wheels: Sequence[Path], folder: Path) -> None:
    """Unpack wheels into the new folder: packages and dist-info at the top, scripts for the image's interpreter in bin/.

    Files have mode 0644, or 0755 if they are scripts or executable in the wheel. Raises BadVersion, naming wheel and member, for a wheel
    that is damaged or hostile; nothing is written outside `folder`, but the folder may be incomplete.
    """
    code = _Code(folder)
    folder.mkdir(parents=True)
    left = MOST_BYTES, MOST_FILES
    for path in sorted(wheels, key=lambda path: path.name):
        try:
            with zipfile.ZipFile(path) as archive:
                left = _check_members(archive.infolist(), *left)
                wheel = _Wheel(archive)
                wheel.validate_record()
                install(wheel, code, {"INSTALLER": b"mlops-build\n"})
        except MlopsBuildError as error:
            raise _refused(path, error.message) from None
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # a full disk; a damaged file makes zipfile seek to a place before its start
                raise
            raise _refused(path, "it is not a readable zip file") from None
        except Exception as error:  # zipfile and installer raise many kinds for a damaged wheel, AssertionError and KeyError among them
            issues = [*getattr(error, "issues", ()), *error.args[-1:], type(error).__name__]
            raise _refused(path, str(issues[0]).replace(f"In {path}, ", "").replace(str(path), path.name)) from None


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
        _check_name(name.removesuffix("/"))
        if name != member.orig_filename:
            raise BadVersion(f"the name of {name[:SHOWN]!a} has a zero byte")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BadVersion(f"{name[:SHOWN]!a} is a link or a special file")
        # Other methods can fill the memory before the first byte is read.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadVersion(f"{name[:SHOWN]!a} is not compressed with deflate")
        most_bytes, most_files = most_bytes - member.file_size, most_files - 1
        if most_bytes < 0 or most_files < 0:
            raise BadVersion(f"with {name[:SHOWN]!a} the wheels have over {MOST_BYTES >> 20} MiB or {MOST_FILES} files")
    return most_bytes, most_files


def _check_name(name: str) -> None:
    """Raises BadVersion for a path that is not plain and relative."""
    parts = name.split("/")
    if (
        not name.isprintable()
        or "\\" in name
        or len(name) > 1000
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    ):
        raise BadVersion(f"{name[:SHOWN]!a} is not a plain relative path")


class _Wheel(WheelFile):
    """A wheel whose documents are read with a limit, and without the bytecode that it may bring."""

    def read_dist_info(self, filename: str) -> str:
        with self._zipfile.open(f"{self.dist_info_dir}/{filename}") as file:
            text = file.read(MOST_DOCUMENT + 1)
        if len(text) > MOST_DOCUMENT:
            raise BadVersion(f"{filename} has over {MOST_DOCUMENT >> 20} MiB")
        return text.decode("utf-8")

    def get_contents(self) -> Iterator[WheelContentElement]:
        return (content for content in super().get_contents() if "__pycache__" not in content[0][0].split("/"))


class _Code(WheelDestination):
    """Writes into the folder of the code. taken: folded path → the path, and whether it is a file, for everything written so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: dict[str, tuple[str, bool]] = {}

    def write_script(self, name: str, module: str, attr: str, section: str) -> RecordEntry:
        del section  # a script with windows is a script
        if not SCRIPT_NAME.fullmatch(name):
            raise BadVersion(f"entry_points.txt names a script {name[:SHOWN]!a}")
        text = SCRIPT.format(python=PYTHON, module=module, imported=attr.partition(".")[0], called=attr)
        return self._write(Scheme("scripts"), name, iter([text.encode()]), executable=True)

    def write_file(self, scheme: Scheme, path: "str | os.PathLike[str]", stream: BinaryIO, is_executable: bool) -> RecordEntry:
        scripts = scheme == "scripts"
        return self._write(scheme, os.fspath(path), _chunks(stream, script=scripts), executable=is_executable or scripts)

    def finalize_installation(self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]) -> None:
        with construct_record_file(records, lambda each: SCHEMES[each] or None) as stream:
            self._write(scheme, record_file_path, _chunks(stream, script=False), executable=False)

    def _write(self, scheme: Scheme, path: str, chunks: Iterable[bytes], *, executable: bool) -> RecordEntry:
        if scheme not in SCHEMES:
            raise BadVersion(f"{path[:SHOWN]!a} belongs into {scheme}: an image has {', '.join(SCHEMES)} only")
        inside = SCHEMES[scheme] + path
        self._take(inside)
        target = self.folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with target.open("xb") as file:
            for chunk in chunks:
                digest.update(chunk)
                size += file.write(chunk)
        target.chmod(0o755 if executable else 0o644)
        return RecordEntry(path, Hash("sha256", base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")), size)

    def _take(self, path: str) -> None:
        """Note a new file and its folders. Names that differ only in case or in their Unicode form are one file on some machines."""
        _check_name(path)
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            part, is_file = "/".join(parts[:count]), count == len(parts)
            folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())
            before = self.taken.get(folded)
            if before and (is_file or before != (part, False)):
                raise BadVersion(f"{path[:SHOWN]!a} is there already, as {before[0][:SHOWN]!a}")
            self.taken[folded] = (part, is_file)


def _chunks(stream: BinaryIO, *, script: bool) -> Iterator[bytes]:
    """The content in parts. The first line of a script that begins with #!python becomes that of the image's interpreter."""
    if script:
        first = stream.readline(CHUNK)
        yield f"#!{PYTHON}\n".encode() if first.startswith(b"#!python") else first
    while chunk := stream.read(CHUNK):
        yield chunk
