"""Assemble an image in its registry: the environment image, a layer with the service's code, and layers with the models' files.

No engine takes part. Each layer is made while it is sent, and one that the registry has is not sent. The tag is written last, so it never
points at an incomplete image (docs/explanation/layers.md).
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mlops_build.adapters.registry import Registry
from mlops_build.adapters.registry.records import StoredFile
from mlops_build.model import files, scan
from mlops_build.model.identity import DIGEST, LAYERS
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.packaging import code, contents, context
from mlops_build.packaging.appended import Appended
from mlops_build.packaging.context import Prepared, UnsafeFiles
from mlops_build.packaging.layer import File, Layer
from mlops_build.packaging.recipe import Recipe

# A file of this size or more has a layer of its own: if it stays the same in the next version, it is not sent again.
OWN_LAYER = 32 << 10
# An image has at most 127 layers (overlayfs), and the environment image and the other layers need some of them.
MOST = 80
# For files of this size or more, the digest of their layer is a tag of the version; in all, its text has at most MOST_TAG characters.
LARGE, MOST_TAG = 1 << 20, 4500
CODE, APP = "opt/code", "app"
ENVIRONMENT = "environment/"


@dataclass(frozen=True)
class Staged:
    """The models of an image: the files that packaging reads in a folder, where they were checked; the others in their store.

    expected: the digests of the layers of large files, by path in the image. A tag of the version says them, so they are not trusted.
    """

    folder: Path
    prepared: Prepared
    stored: Mapping[ModelVersion, Sequence[StoredFile]]
    expected: Mapping[str, str]

    def of(self, model: ModelVersion) -> Path:
        """The folder of a model's copied files."""
        return self.folder / contents.folder_of(model.name)


def stage(recipe: Recipe, image: str, models: Sequence[ModelVersion], registry: Registry, folder: Path) -> Staged:
    """Copy the small files of released models, and those of their environment, into `folder`, and check them.

    Raises BadVersion, BadValue, Refused if the registry's digest differs from the released one, and the errors of fetching.
    """
    stored: dict[ModelVersion, Sequence[StoredFile]] = {}
    expected: dict[str, str] = {}
    for model in models:
        version = context.released(registry, model)
        stored[model] = registry.files(version)
        expected |= {_path(model.name, path): digest for path, digest in _expected(version.tags.get(LAYERS)).items()}
        for file in stored[model]:
            # A layer's name would be that of a line of the log, or of a whiteout: a file that removes another one.
            if not file.path.isprintable() or "/.wh." in f"/{file.path}":
                raise BadVersion(f"{model} has a file with the name {file.path[:100]!a}", remedy="rename it, and train and register again")
            if file.size < OWN_LAYER or file.path.startswith(ENVIRONMENT) or file.path in ("MLmodel", *context.DOCUMENTS):
                copy = folder / contents.folder_of(model.name) / file.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                with file.open() as source, copy.open("wb") as target:
                    shutil.copyfileobj(source, target)
    needs = [(model, context.needs(folder / contents.folder_of(model.name), str(model), pickled=False)) for model in models]
    return Staged(folder, context.prepare(recipe, image, needs, folder), stored, expected)


def push(image: Appended, staged: Staged, tag: str) -> tuple[str, str | None]:
    """Add the staged models to the environment image, and name the result `tag`.

    Returns its digest, and why pickled files were accepted, if there are any. Raises DigestMismatch, UnsafeFiles, and the errors of both
    registries: then nothing has the name.
    """
    assembly = _Assembly(image, staged, _with_own_layer(staged.stored))
    assembly.add_code()
    for model in staged.stored:
        assembly.add_model(model)
    made = assembly.add_rest()
    assembly.check()
    variables = {"MLOPS_FILES": f"/{APP}/files"} if staged.prepared.files_of else {}
    return image.put(tag, staged.prepared.labels, variables), made.unsafe_pickle


def layers_tag(name: str, folder: Path) -> str:
    """The digests that the layers of a version's largest files will have, as the text of a tag. name: of the model.

    With them, `ci image` sends such a file while it reads it for the first time.
    """
    sized = sorted((-path.stat().st_size, path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    layers: dict[str, str] = {}
    for size, path in sized:
        if -size < LARGE or len(json.dumps(layers)) + len(path) + 80 > MOST_TAG:
            break
        if path.startswith(ENVIRONMENT):
            continue
        layers[path] = Layer([_local(folder / path, _path(name, path))]).hashed().digest
    return json.dumps(layers)


@dataclass
class _Assembly:
    """The layers of an image's models. own: the files that have a layer of their own. rest: the other files.

    hashes: SHA-256 of each file that was added, by its path in the image.
    """

    image: Appended
    staged: Staged
    own: set[str]
    hashes: dict[str, str] = field(default_factory=dict)
    rest: list[File] = field(default_factory=list)
    pickled: bool = False

    def add_code(self) -> None:
        """Add the wheels of the first model's version, unpacked."""
        wheels = self.staged.of(self.staged.prepared.contents.models[0]) / context.WHEELS
        self._add("code", code.files([wheels / wheel for wheel in self.staged.prepared.needs.wheels], CODE))

    def add_model(self, model: ModelVersion) -> None:
        """Add a layer for each large file of a model, and one for its environment. Raises UnsafeFiles."""
        findings = scan.mlmodel(self.staged.of(model))
        environment: list[File] = []
        unsafe_pickle = self.staged.prepared.recipe.unsafe_pickle
        for stored in self.staged.stored[model]:
            copy, path = self.staged.of(model) / stored.path, _path(model.name, stored.path)
            if copy.exists():
                file = _local(copy, path)
                findings += scan.scan_file(stored.path, file.open)
                (environment if stored.path.startswith(ENVIRONMENT) else self.rest).append(file)
                continue
            # Opened once: some stores can only be read by copying a file.
            with stored.open() as stream:
                findings += scan.scan_file(stored.path, partial(_again, stream))
                if path in self.own and not scan.refused(findings, unsafe_pickle):
                    self._add(f"{model}: {stored.path}", [File(path, stored.size, partial(_again, stream))])
            if path not in self.own:
                self.rest.append(File(path, stored.size, stored.open))
        if refused := scan.refused(findings, unsafe_pickle):
            raise UnsafeFiles(str(model), refused)
        self.pickled = self.pickled or bool(findings)
        self._add(f"{model}: environment", environment)

    def add_rest(self) -> contents.Contents:
        """Add the other files, and context.json, whose contents are returned."""
        prepared = self.staged.prepared
        made = replace(prepared.contents, unsafe_pickle=prepared.recipe.unsafe_pickle if self.pickled else None)
        document = self.staged.folder / contents.FILE
        document.write_text(made.as_text())
        links = {f"{APP}/files": f"{contents.folder_of(made.models[0].name)}/{context.FILES}"} if prepared.files_of else {}
        self._add("other files", [*self.rest, _local(document, f"{APP}/{contents.FILE}")], links)
        return made

    def check(self) -> None:
        """Compare the files that were added with the digests of the versions. Raises DigestMismatch."""
        for model, listed in self.staged.stored.items():
            actual = files.digest_of((file.path, file.size, self.hashes[_path(model.name, file.path)]) for file in listed)
            files.check(actual, model.digest, str(model))

    def _add(self, label: str, added: Sequence[File], links: Mapping[str, str] | None = None) -> None:
        expected = self.staged.expected.get(added[0].path) if len(added) == 1 else None
        self.hashes |= self.image.add(label, Layer(added, links or {}), expected).files


def _expected(tag: str | None) -> dict[str, str]:
    try:
        document = json.loads(tag or "{}")
        return {path: digest for path, digest in document.items() if DIGEST.fullmatch(digest)}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _with_own_layer(stored: Mapping[ModelVersion, Sequence[StoredFile]]) -> set[str]:
    """The paths of the largest files."""
    sized = [(-file.size, _path(model.name, file.path)) for model, listed in stored.items() for file in listed if file.size >= OWN_LAYER]
    return {path for _, path in sorted(sized)[:MOST]}


def _path(model: str, path: str) -> str:
    return f"{APP}/{contents.folder_of(model)}/{path}"


def _local(path: Path, name: str) -> File:
    status = path.stat()
    return File(name, status.st_size, partial(_opened, path), executable=bool(status.st_mode & 0o100))


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


@contextmanager
def _again(stream: BinaryIO) -> Iterator[BinaryIO]:
    """An open file, from its beginning; it stays open."""
    stream.seek(0)
    yield stream
