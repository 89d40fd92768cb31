"""Look at a model's files for what would run code when they are read. Nothing is unpickled to find out.

A pickle is a program. A `torch.save` file is a zip with one in it; torch can list the names that this program would import, and loads
with `weights_only=True` only if they are few and harmless. Everything else that is pickled is refused: a state_dict needs none of it.
"""

import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from torch.serialization import get_unsafe_globals_in_checkpoint

from mlops_build.finding import Finding

# What a checkpoint may name besides what torch itself allows for weights_only=True (tensors, storages, OrderedDict, …): numpy's own
# plain arrays and numbers, which people store beside their weights (a metric, a list of labels). Rebuilding them runs numpy and nothing
# of the file's choosing; `_codecs.encode` turns text into the bytes of such a number.
ALLOWED = frozenset(
    {
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        *(f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")),
        *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64")),
    }
)
PICKLES = {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"}
TORCH = {".pt", ".pth", ".ckpt", ".bin"}
ZIP, SAFE_HEAD = b"PK", 2
# A zip file inside another is copied out to be looked into: the example inputs of torch.export, say.
NESTED_BYTES = 1 << 30
PAYLOADS = ("_weights_config.json", "_constants_config.json")

LOG_MODEL = "log it with mlops_build.training.log_model, which stores code as code and weights as a state_dict"
STATE_DICT = "save weights only: torch.save(network.state_dict(), path)"


def scan(folder: Path) -> list[Finding]:
    """What is wrong with the files under `folder`, in sorted order; empty when they can be loaded without running anything of theirs.

    folder: or a single file. subject: the file's path in the folder, with `!member` for one inside a zip file.
    """
    if folder.is_file():
        return _file(folder, folder.name)
    findings: list[Finding] = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            findings += _file(path, path.relative_to(folder).as_posix())
    return findings


def _file(path: Path, subject: str) -> list[Finding]:
    if path.name == "python_model.pkl":
        return [Finding(subject, "pickled-model", "the model is a pickled Python object, which runs code when it is loaded", LOG_MODEL)]
    if path.suffix.lower() in PICKLES:
        return [Finding(subject, "pickle", f"a {path.suffix} file runs code when it is loaded", LOG_MODEL)]
    with path.open("rb") as file:
        head = file.read(SAFE_HEAD)
    if head == ZIP:
        return _zip(path, subject)
    if _pickled(head):
        return [Finding(subject, "pickle", "the file is a pickle, which runs code when it is loaded", STATE_DICT)]
    if path.suffix.lower() in TORCH:
        return [Finding(subject, "not-a-checkpoint", "the file is not what torch.save writes, so it cannot be looked into", STATE_DICT)]
    return []


def _zip(path: IO[bytes] | Path, subject: str, *, nested: bool = False) -> list[Finding]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            if Path(subject).suffix.lower() in TORCH or any(Path(name).name == "data.pkl" for name in names):
                return _checkpoint(path, subject)
            exported = Path(subject).suffix == ".pt2" or any(Path(name).name == "archive_format" for name in names)
            return [one for name in names if not name.endswith("/") for one in _member(archive, name, subject, nested, exported)]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        return [Finding(subject, "unreadable", f"the zip file cannot be looked into: {error}", "pack it again, or leave it out")]


def _member(archive: zipfile.ZipFile, name: str, subject: str, nested: bool, exported: bool) -> list[Finding]:
    """exported: of what torch.export.save wrote. Reading one loads the checkpoints inside it, with weights_only=False where that fails."""
    inside, suffix = f"{subject}!{name}", Path(name).suffix.lower()
    with archive.open(name) as member:
        head = member.read(SAFE_HEAD)
    if suffix in PICKLES or _pickled(head):
        return [Finding(inside, "pickle", "a pickle inside a zip file runs code when it is loaded", LOG_MODEL)]
    if head == ZIP:
        if nested or archive.getinfo(name).file_size > NESTED_BYTES:
            why = "a zip file in a zip file in a zip file" if nested else f"a zip file of over {NESTED_BYTES >> 20} MiB inside another"
            return [Finding(inside, "unreadable", f"{why} is not looked into", "pack it flat, or leave it out")]
        with archive.open(name) as member, tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(member, copy)
            return _zip(copy, inside, nested=True)
    if exported and (
        suffix in TORCH or (Path(name).name.startswith("serialized_") and Path(name).name != "serialized_exported_program.json")
    ):
        return [Finding(inside, "not-a-checkpoint", "it is not what torch.save writes, so it cannot be looked into", STATE_DICT)]
    if exported and name.endswith(PAYLOADS) and _says_pickled(archive.read(name)):
        return [Finding(inside, "pickle", "it says that weights are pickled, which runs code when they are loaded", STATE_DICT)]
    return []


def _checkpoint(path: IO[bytes] | Path, subject: str) -> list[Finding]:
    if not isinstance(path, Path):
        path.seek(0)
    try:
        unsafe = sorted(set(get_unsafe_globals_in_checkpoint(str(path) if isinstance(path, Path) else path)) - ALLOWED)
    except Exception as error:  # torch raises what its parser meets, and a file made to break it is nobody's friend
        why = f"torch cannot list what it would import: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return [Finding(subject, "unreadable", why, STATE_DICT)]
    if not unsafe:
        return []
    return [Finding(subject, "unsafe-import", f"loading it would import and could call {', '.join(unsafe[:10])}", STATE_DICT)]


def _pickled(head: bytes) -> bool:
    """Protocols 2 to 5 start with 0x80 and their number. 0 and 1 have no mark: files of those are known by their name only."""
    return len(head) == SAFE_HEAD and head[0] == 0x80 and 2 <= head[1] <= 5


def _says_pickled(payloads: bytes) -> bool:
    try:
        return any(one.get("use_pickle") for one in json.loads(payloads)["config"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True  # nothing that torch wrote
