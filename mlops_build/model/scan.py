"""Look at a model's files for what would run code when they are read. Nothing is unpickled to find out.

A pickle is a program. A `torch.save` file is a zip with one in it; torch can list the names that this program would import, and loads
with `weights_only=True` only if they are few and harmless. Everything else that is pickled is refused: a state_dict needs none of it.
"""

import zipfile
from pathlib import Path

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

LOG_MODEL = "log it with mlops_build.training.log_model, which stores code as code and weights as a state_dict"
STATE_DICT = "save weights only: torch.save(network.state_dict(), path)"


def scan(folder: Path) -> list[Finding]:
    """What is wrong with the files under `folder`, in sorted order; empty when they can be loaded without running anything of theirs.

    subject: the file's path in the folder, with `!member` for one inside a zip file.
    """
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


def _zip(path: Path, subject: str) -> list[Finding]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if path.suffix.lower() in TORCH or any(Path(name).name == "data.pkl" for name in names):
                return _checkpoint(path, subject)
            inside = [name for name in sorted(names) if _pickled_member(archive, name)]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        return [Finding(subject, "unreadable", f"the zip file cannot be looked into: {error}", "pack it again, or leave it out")]
    return [Finding(f"{subject}!{name}", "pickle", "a pickle inside a zip file runs code when it is loaded", LOG_MODEL) for name in inside]


def _checkpoint(path: Path, subject: str) -> list[Finding]:
    try:
        unsafe = sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - ALLOWED)
    except Exception as error:  # torch raises what its parser meets, and a file made to break it is nobody's friend
        why = f"torch cannot list what it would import: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return [Finding(subject, "unreadable", why, STATE_DICT)]
    if not unsafe:
        return []
    return [Finding(subject, "unsafe-import", f"loading it would import and could call {', '.join(unsafe[:10])}", STATE_DICT)]


def _pickled(head: bytes) -> bool:
    """Protocols 2 to 5 start with 0x80 and their number. 0 and 1 have no mark: files of those are known by their name only."""
    return len(head) == SAFE_HEAD and head[0] == 0x80 and 2 <= head[1] <= 5


def _pickled_member(archive: zipfile.ZipFile, name: str) -> bool:
    if Path(name).suffix.lower() in PICKLES:
        return True
    if name.endswith("/"):
        return False
    with archive.open(name) as member:
        return _pickled(member.read(SAFE_HEAD))
