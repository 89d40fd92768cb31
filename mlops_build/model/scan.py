"""Scan a model's files for content that would run code when it is read. The scan unpickles nothing.

A pickle is a program. A `torch.save` file is a zip file that contains a pickle; checkpoint.py lists the names that the pickle would import,
and torch loads it with `weights_only=True` only if all of them are allowed. Every other pickle is refused: a state_dict needs none.
"""

import json
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from mlops_build.finding import Finding
from mlops_build.model import checkpoint, openapi

# Names that a checkpoint may import besides those that torch allows for weights_only=True (tensors, storages, OrderedDict, …): those of
# numpy's plain arrays and numbers, which people store beside their weights (a metric, a list of labels). Loading them runs only numpy's
# code; `_codecs.encode` converts text into the bytes of a number.
ALLOWED = frozenset(
    {
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        *(f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")),
        *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64")),
    }
)
PICKLED_MODEL = "python_model.pkl"
PICKLES = {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"}
TORCH = {".pt", ".pth", ".ckpt", ".bin"}
ZIP, SAFE_HEAD = b"PK", 2
# The largest zip file inside another one that is extracted and scanned. torch.export writes its example inputs this way.
NESTED_BYTES = 1 << 30
PAYLOAD_BYTES = 64 << 20
PAYLOADS = ("_weights_config.json", "_constants_config.json")

# Rules for pickles, which run code when they are loaded. serving.unsafe_pickle accepts these findings and no others.
PICKLED = frozenset({"pickled-model", "pickle", "unsafe-import"})
# Keys of a flavor in MLmodel with a path that MLflow loads.
PATHS = ("code", "data", "model_data", "python_model")

LOG_MODEL = "log it with mlops_build.training.log_model, which stores code as code and weights as a state_dict"
REGISTER = "register the model again, with its files in its own folder"
STATE_DICT = "save weights only: torch.save(network.state_dict(), path)"


def refused(findings: Iterable[Finding], unsafe_pickle: str | None) -> list[Finding]:
    """The findings that are refused. unsafe_pickle: the reason why pickles are accepted; it accepts nothing else."""
    return [finding for finding in findings if not (unsafe_pickle and finding.rule in PICKLED)]


def advice(findings: Iterable[Finding]) -> str:
    """The remedy for refused findings. For pickles only, it names the key that accepts them."""
    if any(finding.rule not in PICKLED for finding in findings):
        return "see each finding above"
    return 'see each finding above; or, if you trust these pickles, write why into service.yaml: serving: {unsafe_pickle: "REASON"}'


def scan(folder: Path) -> list[Finding]:
    """Findings for the files under `folder`, in sorted order; empty if loading the files runs none of their code.

    folder: a folder or a single file. The subject of a finding is the file's path in the folder, with `!member` for a file inside a zip
    file.
    """
    if folder.is_file():
        return scan_file(folder.name, partial(_open, folder))
    findings = mlmodel(folder)
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            findings += scan_file(path.relative_to(folder).as_posix(), partial(_open, path))
    return findings


def mlmodel(folder: Path) -> list[Finding]:
    """Findings for the paths in MLmodel: files outside of the folder, which no digest covers, and a pickled model under any name."""
    if not (folder / "MLmodel").is_file():
        return []
    try:
        named = list(_named(openapi.read_yaml((folder / "MLmodel").read_text(encoding="utf-8"))))
    except (ValueError, AttributeError, TypeError):
        return [Finding("MLmodel", "unreadable", "it is not in MLflow's format", REGISTER)]
    findings = []
    for key, value in named:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            findings.append(Finding("MLmodel", "outside", f"{key} is {value[:200]!r}, which is outside of the model's folder", REGISTER))
        elif key == "python_model" and path.name != PICKLED_MODEL:
            findings.append(
                Finding(value, "pickled-model", "the model is a pickled Python object, which runs code when it is loaded", LOG_MODEL)
            )
    return findings


def _named(document: Any) -> Iterator[tuple[str, str]]:
    """The paths in MLmodel that MLflow loads, with their keys."""
    for flavor in (document.get("flavors") or {}).values():
        yield from ((key, str(flavor[key])) for key in PATHS if flavor.get(key))
        yield from ((f"artifacts.{name}", str(entry["path"])) for name, entry in (flavor.get("artifacts") or {}).items())


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def scan_file(subject: str, opener: Callable[[], AbstractContextManager[IO[bytes]]]) -> list[Finding]:
    """Findings for one file. subject: its path in the folder. opener: opens it, with seek; not called where the name decides.

    Reads the first bytes; of a zip file its directory, the pickles in it, and the first bytes of its members.
    """
    path = PurePosixPath(subject)
    if path.name == PICKLED_MODEL:
        return [Finding(subject, "pickled-model", "the model is a pickled Python object, which runs code when it is loaded", LOG_MODEL)]
    if path.suffix.lower() in PICKLES:
        return [Finding(subject, "pickle", f"a {path.suffix} file runs code when it is loaded", LOG_MODEL)]
    with opener() as file:
        head = file.read(SAFE_HEAD)
        if head == ZIP:
            return _zip(file, subject)
    if is_pickled(head):
        return [Finding(subject, "pickle", "the file is a pickle, which runs code when it is loaded", STATE_DICT)]
    if path.suffix.lower() in TORCH:
        return [Finding(subject, "not-a-checkpoint", "the file was not written by torch.save, so it cannot be scanned", STATE_DICT)]
    return []


def _zip(file: IO[bytes], subject: str, *, nested: bool = False) -> list[Finding]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = sorted(archive.namelist())
            if Path(subject).suffix.lower() in TORCH or any(Path(name).name == "data.pkl" for name in names):
                return _checkpoint(file, subject)
            exported = Path(subject).suffix == ".pt2" or any(Path(name).name == "archive_format" for name in names)
            return [finding for name in names if not name.endswith("/") for finding in _member(archive, name, subject, nested, exported)]
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        return [Finding(subject, "unreadable", f"the zip file cannot be read: {error}", "create it again, or leave it out")]


def _member(archive: zipfile.ZipFile, name: str, subject: str, nested: bool, exported: bool) -> list[Finding]:
    """Findings for one member of a zip file.

    nested: the zip file is itself a member. exported: torch.export.save wrote it; loading it loads the checkpoints inside, with
    weights_only=False where weights_only=True fails.
    """
    inside, suffix = f"{subject}!{name}", Path(name).suffix.lower()
    with archive.open(name) as member:
        head = member.read(SAFE_HEAD)
    if suffix in PICKLES or is_pickled(head):
        return [Finding(inside, "pickle", "a pickle inside a zip file runs code when it is loaded", LOG_MODEL)]
    if head == ZIP:
        if nested or archive.getinfo(name).file_size > NESTED_BYTES:
            why = "a zip file in a zip file in a zip file" if nested else f"a zip file of over {NESTED_BYTES >> 20} MiB inside another"
            return [Finding(inside, "unreadable", f"{why} is not scanned", "store its files without the inner zip file, or leave it out")]
        with archive.open(name) as member, tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(member, copy)
            return _zip(copy, inside, nested=True)
    if exported and (
        suffix in TORCH or (Path(name).name.startswith("serialized_") and Path(name).name != "serialized_exported_program.json")
    ):
        return [Finding(inside, "not-a-checkpoint", "it was not written by torch.save, so it cannot be scanned", STATE_DICT)]
    if exported and name.endswith(PAYLOADS) and _declares_pickle(_start(archive, name)):
        return [Finding(inside, "pickle", "it declares weights as pickles, which run code when they are loaded", STATE_DICT)]
    return []


def _checkpoint(file: IO[bytes], subject: str) -> list[Finding]:
    try:
        unsafe = sorted(checkpoint.imports(file) - checkpoint.SAFE - ALLOWED)
    except checkpoint.OtherPickle as error:
        return [Finding(subject, "pickle", f"its imports cannot be listed: {error}", STATE_DICT)]
    except (ValueError, struct.error, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        why = f"what it would import cannot be listed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return [Finding(subject, "unreadable", why, STATE_DICT)]
    if not unsafe:
        return []
    return [Finding(subject, "unsafe-import", f"loading it would import and could call {', '.join(unsafe[:10])}", STATE_DICT)]


def is_pickled(head: bytes) -> bool:
    """Whether a file's first bytes are those of a pickle of protocol 2 to 5: 0x80 and the protocol's number.

    Protocols 0 and 1 have no such mark; those files are recognized by their name only.
    """
    return len(head) == SAFE_HEAD and head[0] == 0x80 and 2 <= head[1] <= 5


def _start(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member, or as much of it as a list of weights can have: it may claim any size."""
    with archive.open(name) as member:
        return member.read(PAYLOAD_BYTES)


def _declares_pickle(payloads: bytes) -> bool:
    try:
        return any(payload.get("use_pickle") for payload in json.loads(payloads)["config"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True  # torch did not write this file
