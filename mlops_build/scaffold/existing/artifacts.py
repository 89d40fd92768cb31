"""Files that a script saves and that serving may read: vocabularies, tokenizers, scalers. They are passed to `log_model` by name."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_build.scaffold.existing.script import Written, dotted

# Words in the name or the content of a file that serving reads.
NEEDED = re.compile(
    r"vocab|token|bpe|merges|label|class|categor|encod|scal|norm|mean|std|stats|mapping|lookup|(?:^|_)(?:idx|index|map)|2i|2idx", re.I
)
REPORT = re.compile(r"metric|report|histor|result|score|loss|accura|log|predict|submission|confusion|checkpoint|optim|args|config", re.I)
TOKENIZER = re.compile(r"token|processor|extractor", re.I)
PICKLES = {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".sav"}
PICKLING = ("pickle.dump", "pickle.dumps", "joblib.dump", "dill.dump", "cloudpickle.dump")
SENTENCEPIECE = "SentencePieceTrainer.train"
PLAIN = ("open", ".write_text", ".write_bytes", ".save", ".savez", ".savetxt", ".dump", ".save_vocabulary")
WRITING = ("dump", "save", "savez", "savetxt", "write_text", "write_bytes", "save_pretrained", "save_vocabulary")
DATA = (".json", ".npy", ".npz", ".txt")


@dataclass(frozen=True)
class Artifact:
    """A file or folder that the predictor receives by name. path: relative to the service."""

    name: str
    path: str
    written: Written

    def reading(self) -> str:
        """An expression that reads it."""
        given = f'context.artifacts["{self.name}"]'
        suffix = Path(self.path).suffix.lower()
        if suffix == ".json" and not TOKENIZER.search(self.written.by):
            return f'json.loads(Path({given}).read_text(encoding="utf-8"))'
        if suffix in (".npy", ".npz"):
            return f"np.load({given})"
        if suffix == ".txt":
            return f'Path({given}).read_text(encoding="utf-8").splitlines()'
        if self.written.by.endswith(".save_pretrained"):
            return f"AutoTokenizer.from_pretrained({given})"
        if self.written.by == SENTENCEPIECE:
            return f"SentencePieceProcessor(model_file={given})"
        return f"Path({given})"


@dataclass(frozen=True)
class Saved:
    """Files saved for serving. pickled: refused by `log_model`. unsure: the name does not show whether serving reads it."""

    artifacts: tuple[Artifact, ...]
    pickled: tuple[Written, ...]
    unsure: tuple[Written, ...]


def saved(files: Sequence[Written], outputs: Sequence[str], weights: str) -> Saved:
    """Classify the files that the script writes. outputs: the paths in the service; files elsewhere are ignored."""
    artifacts: dict[str, Artifact] = {}
    pickled: dict[str, Written] = {}
    unsure: dict[str, Written] = {}
    for written in files:
        path = Path(written.path or "").as_posix()
        if path == weights or written.by == "torch.save" or not any(path == output or path.startswith(f"{output}/") for output in outputs):
            continue
        writer, content = _content(written)
        if REPORT.search(f"{Path(path).stem} {content}") or not is_data(written):
            continue
        if Path(path).suffix.lower() in PICKLES or writer.endswith(PICKLING):
            pickled.setdefault(path, written)
        elif is_needed(written) and Path(path).name.casefold() not in {Path(other).name.casefold() for other in artifacts}:
            artifacts[path] = Artifact(_name(path, {"network", *(artifact.name for artifact in artifacts.values())}), path, written)
        elif path not in artifacts and Path(path).suffix.lower() in DATA:
            unsure.setdefault(path, written)
    return Saved(tuple(artifacts.values()), tuple(pickled.values()), tuple(unsure.values()))


def is_data(written: Written) -> bool:
    """Whether the call writes a file that serving may need, not a picture or a table."""
    if written.by.endswith(".save_pretrained"):
        return bool(TOKENIZER.search(written.source.partition(".save_pretrained")[0]))
    if written.by == SENTENCEPIECE:
        return (written.path or ".model").endswith(".model")
    return written.by.endswith(PLAIN)


def is_needed(written: Written) -> bool:
    """Whether the file's name or content shows that serving reads it."""
    if not is_data(written):
        return False
    always = written.by.endswith((".save_pretrained", SENTENCEPIECE))
    name = Path(written.path).stem if written.path else written.source
    return always or bool(NEEDED.search(f"{name} {_content(written)[1]}"))


def _content(written: Written) -> tuple[str, str]:
    """The call that writes the file, and the source of the written content; for `open(…)`, the call that uses the open file.

    The expression of the path is left out: in `f"{args.out}/scaler.joblib"` the word args says nothing about the content.
    """
    script = written.script
    for node in ast.walk(script.tree):
        if isinstance(node, ast.With):
            names = [
                item.optional_vars.id
                for item in node.items
                if isinstance(item.optional_vars, ast.Name) and item.context_expr.lineno == written.line
            ]
            calls = [part for part in ast.walk(node) if isinstance(part, ast.Call) and names]
            for call in calls:
                if any(isinstance(argument, ast.Name) and argument.id in names for argument in call.args[1:]):
                    return dotted(call.func), script.source(call.args[0])
                if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id in names:
                    return dotted(call.func), " ".join(script.source(argument) for argument in call.args)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(WRITING) and _contains(node, written.target):
            # `tokenizer.save_pretrained(PATH)` writes the object before the dot; the names of keywords are those of arrays.
            parts = [dotted(node.func).rpartition(".")[0]]
            parts += [script.source(argument) for argument in node.args if not _contains(argument, written.target)]
            parts += [
                f"{keyword.arg} {script.source(keyword.value)}" for keyword in node.keywords if not _contains(keyword, written.target)
            ]
            return dotted(node.func), " ".join(parts)
    return written.by, ""


def _contains(node: ast.AST, target: ast.expr | None) -> bool:
    return any(part is target for part in ast.walk(node))


def _name(path: str, taken: set[str]) -> str:
    """A valid artifact name of log_model, derived from the file's name."""
    plain = re.sub(r"[^a-z0-9]+", "_", Path(path).stem.lower()).strip("_")[:50]
    name = plain if re.match(r"[a-z]", plain) and plain != "weights" else f"file_{plain}".rstrip("_")
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free
