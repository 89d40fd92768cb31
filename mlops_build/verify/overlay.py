"""A kustomize overlay as it would be applied, each rendered value traced back to the file and line that it comes from.

`kubectl kustomize` renders. What it says about sources is nothing, so they are read here as well: the resources, patches, components and
generators that an overlay names, in the order in which kustomize applies them. A value that several of them set comes from the last one
that says what was rendered; a value that is missing, from the first one that has its surroundings.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from mlops_build.verify.document import File, Node, Path, parse
from mlops_build.verify.world import Object, at, mapping, text

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
RENDER_SECONDS = 60
MAX_FILES = 500
# What kustomize appends to the name of a generated object: a hash in an alphabet without vowels.
HASH = re.compile(r"-[bcdfghkmt2456789]{10}")
REMOTE = re.compile(r"://|^git@|^git::|^(?:www\.)?(?:github|gitlab|bitbucket)\.[a-z]+[/:]|\?(?:ref|version)=")
# Fields of a kustomization whose texts are loaded, and what in them is text itself.
LOADED = (
    "resources", "bases", "components", "crds", "openapi", "configurations", "generators", "transformers", "validators", "patches",
    "patchesStrategicMerge", "patchesJson6902", "replacements", "configMapGenerator", "secretGenerator", "helmCharts",
)  # fmt: skip
NOT_LOADED = {"patch", "target", "literals", "options", "name", "namespace"}
# What tells list items apart, in the order in which it is asked.
ITEM_KEYS = ("name", "containerPort", "mountPath", "port", "key", "topologyKey", "ip", "host", "path", "secretRef", "configMapRef")


@dataclass(frozen=True)
class Piece:
    """One source of rendered objects. kind, name: of the objects it speaks about, as patterns (None: any).

    node: rooted where the object is. at: where in the object that root lies; () for a whole object or a strategic patch.
    """

    file: str
    node: Node
    kind: str | None = None
    name: str | None = None
    at: Path = ()

    def speaks_of(self, one: Mapping[str, Any]) -> bool:
        kind, name = text(one.get("kind")), text(mapping(one.get("metadata")).get("name"))
        return _fits(self.kind, kind) and (_fits(self.name, name) or (bool(self.name) and _fits(self.name, HASH.sub("", name))))


def _fits(pattern: str | None, value: str) -> bool:
    if pattern is None or pattern == value:
        return True
    try:
        return bool(re.fullmatch(pattern, value))
    except re.error:
        return False


@dataclass
class Sources:
    """What an overlay is made of. files: every YAML file that was read, by its name. remote: (file, line, address)."""

    root: FilePath
    pieces: list[Piece] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    remote: list[tuple[str, int, str]] = field(default_factory=list)
    # Prefixes and suffixes of names, which pieces do not know.
    affixes: list[tuple[str, str]] = field(default_factory=list)
    component: bool = False
    # Folders whose kustomizations were read, this one's first.
    folders: list[FilePath] = field(default_factory=list)

    def locate(self, one: Mapping[str, Any]) -> Callable[[Path], tuple[str, int]]:
        """A function that finds the source of any path of a rendered object."""
        mine = [piece for piece in self.pieces if piece.speaks_of(one)]
        if not any(piece.name for piece in mine):
            mine += [piece for shorter in self._shorter(one) for piece in self.pieces if piece.name and piece.speaks_of(shorter)]

        def where(path: Path) -> tuple[str, int]:
            found = [(piece, *_follow(piece, one, path)) for piece in mine]
            if not found:
                first = next(iter(self.files), "")
                return first, 1
            whole = [(piece, node) for piece, node, depth in found if depth == len(path)]
            value = at(one, path)
            if whole and not isinstance(value, Mapping | list):
                piece, node = next(((piece, node) for piece, node in reversed(whole) if node.value == value), whole[-1])
            elif whole:
                piece, node = whole[0]
            else:
                piece, node, _ = max(found, key=lambda entry: entry[2])  # the first of the deepest
            return piece.file, node.line

        return where

    def _shorter(self, one: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The object under the names it may have had before a prefix or suffix."""
        name = text(mapping(one.get("metadata")).get("name"))
        for prefix, suffix in self.affixes:
            if name.startswith(prefix) and name.endswith(suffix):
                yield {**one, "metadata": {"name": name.removeprefix(prefix).removesuffix(suffix)}}


def _follow(piece: Piece, data: Any, path: Path) -> tuple[Node, int]:
    """How far a piece knows a path of the rendered object: the deepest node and how many parts of the path lead there."""
    node, depth = piece.node, len(piece.at)
    if path[:depth] != piece.at:
        # It changes something else, or a part of what is asked for: that is no better than knowing nothing.
        return node, len(path) if piece.at[: len(path)] == path else -1
    data = at(data, piece.at)
    for part in path[depth:]:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) and part < len(data) else None
            child = _item(node, data, part)
        else:
            data = data.get(part) if isinstance(data, Mapping) else None
            child = node.child(part)
        if child is None:
            break
        node, depth = child, depth + 1
    return node, depth


def _item(node: Node, item: Any, index: int) -> Node | None:
    """The item of a source list that became `item`: lists are merged by what tells their items apart."""
    if not isinstance(node.children, list):
        return None
    if isinstance(item, Mapping):
        for key in ITEM_KEYS:
            if key in item:
                same = [child for child in node.children if isinstance(child.value, Mapping) and child.value.get(key) == item[key]]
                if len(same) == 1:
                    return same[0]
                if not same:
                    return None
                break
    equal = [child for child in node.children if child.value == item]
    return equal[0] if equal else node.child(index)


def sources(overlay: FilePath, root: FilePath) -> Sources:
    """Read what the overlay at a folder is made of. Nothing outside `root` is read."""
    found = Sources(root.resolve())
    _read(found, overlay.resolve())
    return found


def kustomization(folder: FilePath) -> FilePath | None:
    """The kustomization file of a folder."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def _read(found: Sources, folder: FilePath) -> None:
    path = kustomization(folder) if folder.is_relative_to(found.root) else None
    if path is None or folder in found.folders or len(found.files) > MAX_FILES:
        return
    found.folders.append(folder)
    file = _file(found, path)
    if file is None:
        return
    for document in file.documents:
        settings = mapping(document.value)
        found.remote += [(file.name, node.line, text(node.value)) for node in _loaded(document) if REMOTE.search(text(node.value))]
        found.component |= len(found.folders) == 1 and settings.get("kind") == "Component"
        for key in ("resources", "bases", "components"):
            for node in _items(document, key):
                _named(found, folder, node)
        for key in ("transformers", "generators", "validators", "configurations", "crds"):
            for node in _items(document, key):
                # Settings of kustomize itself: read, so that they count as its own, and no source of objects.
                if text(node.value) and "\n" not in text(node.value):
                    _file(found, (folder / text(node.value)[:500]).resolve())
        for node in _items(document, "replacements"):
            if name := text(mapping(node.value).get("path")):
                _file(found, (folder / name[:500]).resolve())
        _generated(found, file.name, document)
        _patches(found, file, folder, document)
        _settings(found, file.name, document)
        affixes = text(settings.get("namePrefix")), text(settings.get("nameSuffix"))
        if any(affixes):
            # Nested ones add up.
            found.affixes += [affixes, *((affixes[0] + prefix, suffix + affixes[1]) for prefix, suffix in found.affixes)]


def _loaded(document: Node) -> Iterator[Node]:
    """Everything in a kustomization that kustomize loads, from the network too if it is an address."""
    for key in LOADED:
        if (node := document.child(key)) is not None:
            yield from _names(node)


def _names(node: Node) -> Iterator[Node]:
    children = node.children.items() if isinstance(node.children, dict) else enumerate(node.children or [])
    if node.children is None:
        yield node
    for key, child in children:
        if key not in NOT_LOADED:
            yield from _names(child)


def _named(found: Sources, folder: FilePath, node: Node) -> None:
    """A resource, base or component: a file or a folder."""
    name = text(node.value)[:500]
    if REMOTE.search(name):
        return
    path = (folder / name).resolve()
    if path.is_dir():
        _read(found, path)
    elif inner := _file(found, path):
        for document in inner.documents:
            for one in _objects(document):
                data = mapping(one.value)
                name = text(mapping(data.get("metadata")).get("name"))
                found.pieces.append(Piece(inner.name, one, _exactly(text(data.get("kind"))), _exactly(name)))


def _objects(document: Node) -> Iterator[Node]:
    data = mapping(document.value)
    items = document.child("items")
    if text(data.get("kind")).endswith("List") and items is not None and isinstance(items.children, list):
        yield from items.children
    else:
        yield document


def _exactly(value: str) -> str | None:
    return re.escape(value) if value else None


def _file(found: Sources, path: FilePath) -> File | None:
    """A parsed file inside the root; None where there is none."""
    if not path.is_relative_to(found.root) or not path.is_file():
        return None
    name = path.relative_to(found.root).as_posix()
    if name not in found.files:
        found.files[name] = parse(path.read_text(encoding="utf-8", errors="replace"), name)
    return found.files[name]


def _patches(found: Sources, file: File, folder: FilePath, document: Node) -> None:
    for node in _items(document, "patchesStrategicMerge"):
        _patch(found, file, folder, node, text(node.value), None, None)
    for key in ("patches", "patchesJson6902"):
        for node in _items(document, key):
            settings = mapping(node.value)
            target = mapping(settings.get("target"))
            kind, name = text(target.get("kind")) or None, text(target.get("name")) or None
            inline = node.child("patch")
            _patch(
                found, file, folder, inline or node.child("path") or node, text(settings.get("patch") or settings.get("path")), kind, name
            )


def _patch(found: Sources, file: File, folder: FilePath, node: Node, said: str, kind: str | None, name: str | None) -> None:
    """A patch, from a file or written in place."""
    inner = _file(found, (folder / said).resolve()) if said and "\n" not in said and len(said) < 500 and not said.startswith("[") else None
    if inner is None:
        inner = parse(said, file.name)
        # Text in place starts on the line after `|`, or where it stands.
        begin = node.text_line if "\n" not in said.strip() else node.text_line + 1
        for document in inner.documents:
            _shift(document, begin - 1)
    for document in inner.documents:
        data = mapping(document.value)
        if isinstance(document.children, list):
            found.pieces += _operations(inner.name, document, kind, name)
        elif data:
            own_kind, own_name = _exactly(text(data.get("kind"))), _exactly(text(mapping(data.get("metadata")).get("name")))
            found.pieces.append(Piece(inner.name, document, kind or own_kind, name or (None if kind else own_name)))


def _shift(node: Node, lines: int, seen: set[int] | None = None) -> None:
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    node.line += lines
    node.text_line += lines
    for child in node.children.values() if isinstance(node.children, dict) else node.children or []:
        _shift(child, lines, seen)


def _operations(name: str, document: Node, kind: str | None, target: str | None) -> Iterator[Piece]:
    """JSON patch operations, each a piece that knows one path."""
    for operation in document.children if isinstance(document.children, list) else []:
        pointer = text(mapping(operation.value).get("path"))
        parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        at: Path = tuple(int(part) if part.isdigit() else part for part in parts)
        node = operation.child("value")
        if at and node is not None:
            # A value is looked for where it is written; a scalar where its operation begins.
            node = Node(node.value, node.line, node.text_line, node.children)
            yield Piece(name, node, kind, target, at)


def _generated(found: Sources, name: str, document: Node) -> None:
    for key, kind in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
        for node in _items(document, key):
            found.pieces.append(Piece(name, node, kind, _exactly(text(mapping(node.value).get("name")))))


def _settings(found: Sources, name: str, document: Node) -> None:
    """Fields of a kustomization that change objects without a patch."""
    if namespace := document.child("namespace"):
        found.pieces.append(Piece(name, namespace, at=("metadata", "namespace")))
    for node in _items(document, "replicas"):
        count = node.child("count")
        if count is not None:
            at = Node(count.value, node.line, node.text_line)
            found.pieces.append(Piece(name, at, name=_exactly(text(mapping(node.value).get("name"))), at=("spec", "replicas")))
    for key, section in (("commonLabels", "labels"), ("commonAnnotations", "annotations")):
        pairs = document.child(key)
        if pairs is not None:
            found.pieces.append(Piece(name, pairs, at=("metadata", section)))
    for node in _items(document, "labels"):
        pairs = node.child("pairs")
        if pairs is not None:
            found.pieces.append(Piece(name, pairs, at=("metadata", "labels")))


def _items(document: Node, key: str) -> list[Node]:
    node = document.child(key)
    return node.children if node is not None and isinstance(node.children, list) else []


# Images are changed by name, wherever they stand.


def image_line(found: Sources, image: str) -> tuple[str, int] | None:
    """Where a kustomization names the image that was rendered."""
    for name, file in found.files.items():
        for document in file.documents:
            for node in _items(document, "images"):
                settings = mapping(node.value)
                base = text(settings.get("newName")) or text(settings.get("name"))
                if base and (image == base or image.startswith((f"{base}:", f"{base}@"))):
                    return name, node.line
    return None


class NotRendered(Exception):
    """kustomize refuses the overlay; the text says why."""


def render(overlay: FilePath) -> str | None:
    """What `kubectl kustomize` makes of an overlay; None where there is no kubectl. Raises NotRendered."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        return None
    try:
        done = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, timeout=RENDER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotRendered(f"kubectl kustomize took more than {RENDER_SECONDS} s") from None
    if done.returncode != 0:
        raise NotRendered(_said(done.stderr.decode(errors="replace")))
    return done.stdout.decode(errors="replace")


def _said(stderr: str) -> str:
    """kubectl's error: `error: …`, or a log line with the error in it where the error has several lines."""
    said = stderr.strip().removeprefix("error: ")
    if logged := re.search(r"err=(?:<\n(.*)\n\s*>|\"(.*)\")\s*$", said, re.DOTALL):
        said = " ".join(line.strip() for line in (logged[1] or logged[2].replace('\\"', '"')).splitlines())
    return said or "kubectl kustomize failed"


def objects(rendered: str, found: Sources) -> list[Object]:
    """The rendered objects, each with its way back to the sources."""
    result = []
    for document in parse(rendered, "rendered").documents:
        data = document.value
        if isinstance(data, dict):
            result.append(Object(data, _images_too(found, data)))
    return result


def written(found: Sources) -> list[Object]:
    """The resources and patches as they are written."""
    return [
        Object(piece.node.value, lambda path, piece=piece: (piece.file, piece.node.line_of(path)[0]))  # type: ignore[misc]
        for piece in found.pieces
        if not piece.at and isinstance(piece.node.value, dict)
    ]


def _images_too(found: Sources, data: Mapping[str, Any]) -> Callable[[Path], tuple[str, int]]:
    locate = found.locate(data)

    def where(path: Path) -> tuple[str, int]:
        if path and path[-1] == "image":
            named = image_line(found, text(at(data, path)))
            if named:
                return named
        return locate(path)

    return where
