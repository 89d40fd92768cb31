"""The modules that a script is made of: those beside it, which come along, and the packages that must be installed.

Beside means: where Python would find them when the script is run from a shell, its own folder first. In the service they are one package,
so an import of one of them gets the package's name; nothing else in them changes.
"""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_build.errors import Refused
from mlops_build.scaffold.existing.script import Script, read

MOST = 200  # modules; more is a project, not a script

# Packages whose import has another name than their distribution, for where they are not installed (then the environment is asked first).
DISTRIBUTIONS = {
    "PIL": "pillow",
    "accelerate": "accelerate",
    "albumentations": "albumentations",
    "attr": "attrs",
    "boto3": "boto3",
    "bs4": "beautifulsoup4",
    "catboost": "catboost",
    "click": "click",
    "cv2": "opencv-python-headless",
    "datasets": "datasets",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "einops": "einops",
    "faiss": "faiss-cpu",
    "fastai": "fastai",
    "git": "gitpython",
    "h5py": "h5py",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "imageio": "imageio",
    "joblib": "joblib",
    "jsonlines": "jsonlines",
    "kornia": "kornia",
    "librosa": "librosa",
    "lightgbm": "lightgbm",
    "lightning": "lightning",
    "loguru": "loguru",
    "matplotlib": "matplotlib",
    "monai": "monai",
    "nltk": "nltk",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "openpyxl": "openpyxl",
    "optuna": "optuna",
    "pandas": "pandas",
    "peft": "peft",
    "polars": "polars",
    "psutil": "psutil",
    "pyarrow": "pyarrow",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "pytorch_lightning": "pytorch-lightning",
    "requests": "requests",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "seaborn": "seaborn",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "sentence_transformers": "sentence-transformers",
    "sentencepiece": "sentencepiece",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "soundfile": "soundfile",
    "spacy": "spacy",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "torch_geometric": "torch-geometric",
    "torchaudio": "torchaudio",
    "torchmetrics": "torchmetrics",
    "torchtext": "torchtext",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "ultralytics": "ultralytics",
    "wandb": "wandb",
    "xgboost": "xgboost",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}


@dataclass(frozen=True)
class Module:
    """A file that comes along. inside: its path in the service's package, such as `layers/conv.py`."""

    script: Script
    inside: str

    @property
    def name(self) -> str:
        """Its dotted name in the package; "" for the package itself."""
        return ".".join(Path(self.inside).with_suffix("").parts).removesuffix(".__init__")


@dataclass(frozen=True)
class Edit:
    """A replacement in a file's text, from line and column to line and column (both from 1 and 0, as ast counts; columns in UTF-8)."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def collect(script: Script) -> tuple[list[Module], list[tuple[Script, int, str]]]:
    """The script and every module beside it that it imports, itself or through others; and imports that lead out of its folder.

    Raises what `read` raises, and Refused for too many.
    """
    folder = script.path.parent
    own = _own_name(script.path)
    # A module beside it may have this name: train_v2.py beside train-v2.py.
    stem, number = own.removesuffix(".py"), 2
    while own != script.path.name and (folder / own).exists():
        own, number = f"{stem}_{number}.py", number + 1
    found = {script.path: Module(script, own)}
    outside: list[tuple[Script, int, str]] = []
    waiting = [script.path]
    while waiting:
        module = found[waiting.pop()]
        for one in module.script.imports():
            if one.level > len(Path(module.inside).parts):
                outside.append((module.script, one.node.lineno, module.script.source(one.node)))
                continue
            base = _base(module, one.level)
            parts = [part for part in [*base, *_stripped(one.module, folder, one.level).split(".")] if part]
            for path in _files(folder, parts, one.names):
                if path not in found:
                    found[path] = Module(read(path), path.relative_to(folder).as_posix())
                    waiting.append(path)
        if len(found) > MOST:
            raise Refused(
                f"{script.path} imports more than {MOST} modules beside it: that is a project",
                remedy="start from the template (copier copy) and move the code into its package",
            )
    return sorted(found.values(), key=lambda module: (module.script is not script, module.inside)), outside


def localized(modules: Sequence[Module], folder: Path, package: str) -> Mapping[Path, list[Edit]]:
    """For each file the edits by which its imports of the other modules get the package's name."""
    names = {module.name.partition(".")[0] for module in modules}
    found: dict[Path, list[Edit]] = {}
    for module in modules:
        edits = []
        for node in ast.walk(module.script.tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                inner = _stripped(node.module, folder, 0)
                if inner == "" or (inner.partition(".")[0] in names and _files(folder, inner.split("."), ())):
                    edits.append(_module_name(module.script, node, f"{package}.{inner}".rstrip(".")))
            elif isinstance(node, ast.Import):
                text = _plain_import(node, folder, package, names)
                if text is not None:
                    indent = " " * node.col_offset
                    edits.append(Edit((node.lineno, node.col_offset), _end(node), f"\n{indent}".join(text)))
        if edits:
            found[module.script.path] = edits
    return found


def changed(script: Script, edits: Sequence[Edit]) -> str:
    """The file's text with the edits made."""
    lines = [line.encode() for line in script.lines]
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        (first, left), (last, right) = edit.start, edit.end
        lines[first - 1 : last] = [lines[first - 1][:left] + edit.text.encode() + lines[last - 1][right:]]
    return b"\n".join(lines).decode()


def third_party(modules: Sequence[Module], folder: Path) -> dict[str, tuple[Script, int]]:
    """Import name → where it is imported first, of everything that is neither beside the script nor in the standard library."""
    found: dict[str, tuple[Script, int]] = {}
    for module in modules:
        for one in module.script.imports():
            top = one.module.partition(".")[0]
            is_local = one.level > 0 or bool(_files(folder, [part for part in _stripped(one.module, folder, 0).split(".") if part], ()))
            if top and not is_local and top not in sys.stdlib_module_names and top != folder.name and top != "__future__":
                found.setdefault(top, (module.script, one.node.lineno))
    return found


def distribution(name: str, installed: Mapping[str, Sequence[str]]) -> tuple[str, str | None] | None:
    """The distribution that brings an import, with the version installed here (MAJOR.MINOR); None where neither the environment nor the
    table knows one. A name is never guessed: whoever takes a name that nobody has would be installed.
    """
    known = sorted(set(installed.get(name, ())))
    if len(known) == 1:
        version = importlib.metadata.version(known[0]).partition("+")[0]
        return known[0].lower().replace("_", "-"), ".".join(version.split(".")[:2])
    return (DISTRIBUTIONS[name], None) if name in DISTRIBUTIONS else None


def _own_name(path: Path) -> str:
    """`train-v2.py` cannot be imported by that name: `train_v2.py`. A name without a Latin letter or digit becomes `train.py`."""
    stem = re.sub(r"[^A-Za-z0-9]" if path.stem.isascii() else r"[^A-Za-z0-9]+", "_", path.stem)
    if not stem.strip("_"):
        return "train.py"
    return f"{'_' if stem[:1].isdigit() else ''}{stem}.py"


def _base(module: Module, level: int) -> list[str]:
    """The package that the dots of a relative import lead to, as parts below the folder."""
    if level == 0:
        return []
    parts = list(Path(module.inside).parent.parts)
    return parts[: len(parts) - (level - 1)]


def _stripped(name: str, folder: Path, level: int) -> str:
    """An absolute import of the script's own package by its name (`project.model` in project/train.py) is one of a module beside it."""
    is_package = (folder / "__init__.py").is_file()
    if level == 0 and is_package and (name == folder.name or name.startswith(f"{folder.name}.")):
        return name[len(folder.name) + 1 :]
    return name


def _files(folder: Path, parts: Sequence[str], names: Sequence[str]) -> list[Path]:
    """The files that an import of these parts, and of these names from it, leads to; none if it is not beside the script."""
    place, found = folder, []
    for part in parts:
        place = place / part
        if (place / "__init__.py").is_file():
            found.append(place / "__init__.py")
        elif place.with_suffix(".py").is_file() and not place.is_dir():
            found.append(place.with_suffix(".py"))
        elif not place.is_dir() or not any(place.glob("*.py")):
            return []
    if place.is_dir():
        for name in names:
            found += [path for path in (place / f"{name}.py", place / name / "__init__.py") if path.is_file()]
            if name == "*":
                found += sorted(place.glob("*.py")) if place != folder else []
    return found


def _end(node: ast.stmt) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or 0


def _module_name(script: Script, node: ast.ImportFrom, name: str) -> Edit:
    """The edit of the name between `from` and `import`."""
    line = script.lines[node.lineno - 1].encode()
    start = line.index(str(node.module).encode(), node.col_offset + len("from"))
    return Edit((node.lineno, start), (node.lineno, start + len(str(node.module).encode())), name)


def _plain_import(node: ast.Import, folder: Path, package: str, names: set[str]) -> list[str] | None:
    """The statements that `import a, b.c, d as e` becomes; None where nothing in it is beside the script."""
    statements, is_changed = [], False
    for alias in node.names:
        inner = _stripped(alias.name, folder, 0)
        top = inner.partition(".")[0]
        if not inner or top not in names or not _files(folder, inner.split("."), ()):
            statements.append(f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
            continue
        is_changed = True
        if alias.asname:
            parent, _, last = f"{package}.{inner}".rpartition(".")
            statements.append(f"from {parent} import {last}" + (f" as {alias.asname}" if alias.asname != last else ""))
        else:
            # `import a.b` binds a, with b on it.
            statements += [f"import {package}.{inner}"] if "." in inner else []
            statements.append(f"from {package} import {top}")
    return statements if is_changed else None


def reached(start: Module, modules: Sequence[Module], folder: Path) -> list[Module]:
    """A module and those of the others that importing it imports."""
    by_path = {module.script.path: module for module in modules}
    found, waiting = [start], [start]
    while waiting:
        module = waiting.pop()
        for one in module.script.imports():
            parts = [part for part in [*_base(module, one.level), *_stripped(one.module, folder, one.level).split(".")] if part]
            for path in _files(folder, parts, one.names):
                if path in by_path and by_path[path] not in found:
                    found.append(by_path[path])
                    waiting.append(by_path[path])
    return found
