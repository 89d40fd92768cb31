"""The modules that a script imports: local ones, which are copied, and packages, which must be installed.

A local module is one that Python finds when the script is run from a shell, in the script's folder first. In the service the local
modules form one package, so their imports of each other get the package's name; nothing else in them changes.
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

# Import name → distribution, for packages that are not installed. Installed packages are looked up in the environment first.
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
    """A file to copy. inside: its path in the service's package, such as `layers/conv.py`."""

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
    """The script and every local module that it imports directly or indirectly; and imports from above the script's folder.

    Raises the errors of `read`, and Refused for more than MOST modules.
    """
    folder = script.path.parent
    own = _own_name(script.path)
    # Another module may have this name: train_v2.py next to train-v2.py.
    stem, number = own.removesuffix(".py"), 2
    while own != script.path.name and (folder / own).exists():
        own, number = f"{stem}_{number}.py", number + 1
    modules = {script.path: Module(script, own)}
    outside: list[tuple[Script, int, str]] = []
    waiting = [script.path]
    while waiting:
        module = modules[waiting.pop()]
        for statement in module.script.imports():
            if statement.level > len(Path(module.inside).parts):
                outside.append((module.script, statement.node.lineno, module.script.source(statement.node)))
                continue
            base = _base(module, statement.level)
            parts = [part for part in [*base, *_stripped(statement.module, folder, statement.level).split(".")] if part]
            for path in _files(folder, parts, statement.names):
                if path not in modules:
                    modules[path] = Module(read(path), path.relative_to(folder).as_posix())
                    waiting.append(path)
        if len(modules) > MOST:
            raise Refused(
                f"{script.path} imports more than {MOST} local modules: that is a project, not a script",
                remedy="start from the template (copier copy) and move the code into its package",
            )
    return sorted(modules.values(), key=lambda module: (module.script is not script, module.inside)), outside


def localized(modules: Sequence[Module], folder: Path, package: str) -> Mapping[Path, list[Edit]]:
    """For each file, the edits that add the package's name to its imports of other local modules."""
    names = {module.name.partition(".")[0] for module in modules}
    edits_by_path: dict[Path, list[Edit]] = {}
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
            edits_by_path[module.script.path] = edits
    return edits_by_path


def changed(script: Script, edits: Sequence[Edit]) -> str:
    """The file's text after the edits."""
    lines = [line.encode() for line in script.lines]
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        (first, left), (last, right) = edit.start, edit.end
        lines[first - 1 : last] = [lines[first - 1][:left] + edit.text.encode() + lines[last - 1][right:]]
    return b"\n".join(lines).decode()


def third_party(modules: Sequence[Module], folder: Path) -> dict[str, tuple[Script, int]]:
    """Import name → place of its first import, for packages that are neither local nor in the standard library."""
    first_import: dict[str, tuple[Script, int]] = {}
    for module in modules:
        for statement in module.script.imports():
            top = statement.module.partition(".")[0]
            is_local = statement.level > 0 or bool(
                _files(folder, [part for part in _stripped(statement.module, folder, 0).split(".") if part], ())
            )
            if top and not is_local and top not in sys.stdlib_module_names and top != folder.name and top != "__future__":
                first_import.setdefault(top, (module.script, statement.node.lineno))
    return first_import


def distribution(name: str, installed: Mapping[str, Sequence[str]]) -> tuple[str, str | None] | None:
    """The distribution that provides an import, with the installed version (MAJOR.MINOR); None if neither the environment nor the table
    has it. A name is never guessed: anyone could register an unused name on the package index.
    """
    known = sorted(set(installed.get(name, ())))
    if len(known) == 1:
        version = importlib.metadata.version(known[0]).partition("+")[0]
        return known[0].lower().replace("_", "-"), ".".join(version.split(".")[:2])
    return (DISTRIBUTIONS[name], None) if name in DISTRIBUTIONS else None


def _own_name(path: Path) -> str:
    """The file name as a valid module name: `train-v2.py` becomes `train_v2.py`. Without a Latin letter or digit it is `train.py`."""
    stem = re.sub(r"[^A-Za-z0-9]" if path.stem.isascii() else r"[^A-Za-z0-9]+", "_", path.stem)
    if not stem.strip("_"):
        return "train.py"
    return f"{'_' if stem[:1].isdigit() else ''}{stem}.py"


def _base(module: Module, level: int) -> list[str]:
    """The package that the dots of a relative import mean, as path parts below the folder."""
    if level == 0:
        return []
    parts = list(Path(module.inside).parent.parts)
    return parts[: len(parts) - (level - 1)]


def _stripped(name: str, folder: Path, level: int) -> str:
    """Remove the name of the script's own package: `project.model` in project/train.py is the local module `model`."""
    is_package = (folder / "__init__.py").is_file()
    if level == 0 and is_package and (name == folder.name or name.startswith(f"{folder.name}.")):
        return name[len(folder.name) + 1 :]
    return name


def _files(folder: Path, parts: Sequence[str], names: Sequence[str]) -> list[Path]:
    """The files that an import of the module `parts`, and of `names` from it, loads; empty if it is not a local module."""
    place, files = folder, []
    for part in parts:
        place = place / part
        if (place / "__init__.py").is_file():
            files.append(place / "__init__.py")
        elif place.with_suffix(".py").is_file() and not place.is_dir():
            files.append(place.with_suffix(".py"))
        elif not place.is_dir() or not any(place.glob("*.py")):
            return []
    if place.is_dir():
        for name in names:
            files += [path for path in (place / f"{name}.py", place / name / "__init__.py") if path.is_file()]
            if name == "*":
                files += sorted(place.glob("*.py")) if place != folder else []
    return files


def _end(node: ast.stmt) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or 0


def _module_name(script: Script, node: ast.ImportFrom, name: str) -> Edit:
    """The edit that replaces the name between `from` and `import`."""
    line = script.lines[node.lineno - 1].encode()
    start = line.index(str(node.module).encode(), node.col_offset + len("from"))
    return Edit((node.lineno, start), (node.lineno, start + len(str(node.module).encode())), name)


def _plain_import(node: ast.Import, folder: Path, package: str, names: set[str]) -> list[str] | None:
    """The statements that replace `import a, b.c, d as e`; None if it imports no local module."""
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
            # `import a.b` binds a, which has the attribute b.
            statements += [f"import {package}.{inner}"] if "." in inner else []
            statements.append(f"from {package} import {top}")
    return statements if is_changed else None


def reached(start: Module, modules: Sequence[Module], folder: Path) -> list[Module]:
    """A module and the others of `modules` that importing it loads."""
    by_path = {module.script.path: module for module in modules}
    result, waiting = [start], [start]
    while waiting:
        module = waiting.pop()
        for statement in module.script.imports():
            parts = [
                part for part in [*_base(module, statement.level), *_stripped(statement.module, folder, statement.level).split(".")] if part
            ]
            for path in _files(folder, parts, statement.names):
                if path in by_path and by_path[path] not in result:
                    result.append(by_path[path])
                    waiting.append(by_path[path])
    return result
