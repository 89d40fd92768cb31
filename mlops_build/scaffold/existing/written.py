"""The files that a script writes, and which of them serving reads: vocabularies, tokenizers, scalers."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlops_build.scaffold.existing.script import Script, Values, dotted

# The position of the path among the arguments of functions and methods that write a file.
WRITERS = {
    0: ("np.save", "numpy.save", "np.savez", "np.savetxt", ".savefig", ".save_pretrained", ".save_vocabulary", ".to_csv", ".to_parquet"),
    1: ("torch.save", "torch.jit.save", "save_file", "joblib.dump"),
    2: ("torch.onnx.export",),
}
PATH_KEYWORDS = ("f", "path", "filename", "fname", "file", "path_or_buf", "save_directory")
OPENERS = ("open", "io.open", "gzip.open", "bz2.open")  # their mode is the second argument, that of Path.open the first
NOT_OPENERS = ("webbrowser.open", "Image.open", "os.open")
# Words in the names of files that serving reads, and of files that it does not read.
NEEDED = re.compile(
    r"vocab|token|bpe|merges|label|class|categor|encod|scal|norm|mean|std|stats|mapping|lookup|(?:^|_)(?:idx|index|map)|2i|2idx", re.I
)
REPORT = re.compile(r"metric|report|histor|result|score|loss|accura|log|predict|submission|confusion|checkpoint|optim|args|config", re.I)
PICKLES = (".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".sav")
DATA = (".json", ".npy", ".npz", ".txt", ".model")
# A path that needs no quoting in dvc.yaml and in Python.
PLAIN = re.compile(r"[\w ./@+=,()-]+")


@dataclass(frozen=True)
class Written:
    """A file that a script writes. path: None if it is not known. saved: the saved object, for torch.save."""

    script: Script = field(repr=False)
    path: str | None
    writer: str
    call: ast.Call = field(repr=False)
    saved: ast.expr | None = field(default=None, repr=False)

    @property
    def source(self) -> str:
        return self.script.source(self.call)

    @property
    def purpose(self) -> Literal["weights", "artifact", "pickle", "unsure", "other"]:
        """By its name: `artifact` if serving reads it, `pickle` if it is refused there, `unsure` if the name does not show it."""
        path = Path(self.path or "")
        if self.writer == "torch.save":
            return "weights"
        if REPORT.search(path.stem):
            return "other"
        if path.suffix.lower() in PICKLES:
            return "pickle"
        if self.writer.endswith(".save_pretrained"):
            return "artifact" if re.search("token|processor|extractor", self.writer, re.I) else "other"
        if path.suffix.lower() not in DATA:
            return "other"
        return "artifact" if NEEDED.search(path.stem) else "unsure"


def written(script: Script, values: Values) -> Iterator[Written]:
    """The files that the script writes, in line order."""
    opened = {
        item.optional_vars.id: item.context_expr
        for block in script.nodes(ast.With)
        for item in block.items
        if isinstance(item.optional_vars, ast.Name)
    }
    for called, call in script.calls:
        target = _target(called, call, values)
        if isinstance(target, ast.Name) and isinstance(opening := opened.get(target.id), ast.Call):
            target = _target(dotted(opening.func), opening, values)
        if target is None:
            continue
        saved = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "obj")][0] if called == "torch.save" else None
        path = values.path(target)
        yield Written(script, Path(path).as_posix() if path else None, called, call, saved)


def is_inside(path: str) -> bool:
    """Whether a relative path stays in the service and needs no quoting."""
    return bool(PLAIN.fullmatch(path)) and path != "." and not Path(path).is_absolute() and ".." not in Path(path).parts


def within(path: str, folder: str) -> bool:
    """Whether a path is `folder` or in it."""
    return path == folder or path.startswith(f"{folder}/")


def _target(called: str, call: ast.Call, values: Values) -> ast.expr | None:
    """The expression of the path that a call writes; None for a call that writes no file."""
    method = f".{called.rpartition('.')[2]}"
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if method in (".write_text", ".write_bytes"):
        return owner
    if called in OPENERS or (method == ".open" and called not in NOT_OPENERS):
        place = int(called in OPENERS)
        modes = [*call.args[place : place + 1], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        mode = values.of(modes[0]) if modes else "r"
        if not isinstance(mode, str) or not re.fullmatch(r"[rwaxbt+]{1,4}", mode) or not set(mode) & set("wax"):
            return None
        return call.args[0] if place else owner
    place = next((place for place, names in WRITERS.items() if called.endswith(names)), -1)
    if method == ".save" and call.args and str(values.path(call.args[0])).endswith(".json"):
        place = 0  # Tokenizer.save of the package tokenizers
    targets = [*call.args[place : place + 1], *(keyword.value for keyword in call.keywords if keyword.arg in PATH_KEYWORDS)]
    return targets[0] if place >= 0 and targets else None
