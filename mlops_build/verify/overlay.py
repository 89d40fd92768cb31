"""Renders a kustomize overlay and maps each rendered value to its source file and line.

`kubectl kustomize` renders, but does not report sources. Therefore this module also reads the resources, patches, components and generators
of an overlay, in the order in which kustomize applies them. A value that several of them set is located in the last one with the rendered
value; a missing value, in the first one that has its deepest existing parent.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from mlops_build.adapters import kubectl
from mlops_build.verify.document import File, Node, Path, parse
from mlops_build.verify.world import Object, at, mapping, text

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
RENDER_SECONDS = 60
MAX_FILES = 500
# The hash that kustomize appends to the name of a generated object.
HASH = re.compile(r"-[bcdfghkmt2456789]{10}")
REMOTE = re.compile(r"://|^git@|^git::|^(?:www\.)?(?:github|gitlab|bitbucket)\.[a-z]+[/:]|\?(?:ref|version)=")
# Fields of a kustomization whose strings are loaded as files or addresses, and keys inside them whose strings are not.
LOADED = (
    "resources", "bases", "components", "crds", "openapi", "configurations", "generators", "transformers", "validators", "patches",
    "patchesStrategicMerge", "patchesJson6902", "replacements", "configMapGenerator", "secretGenerator", "helmCharts",
)  # fmt: skip
NOT_LOADED = {"patch", "target", "literals", "options", "name", "namespace"}
# Keys that identify list items, in order of preference.
ITEM_KEYS = ("name", "containerPort", "mountPath", "port", "key", "topologyKey", "ip", "host", "path", "secretRef", "configMapRef")


@dataclass(frozen=True)
class Piece:
    """One source of rendered objects. kind, name: patterns of the objects that it applies to (None: any).

    node: its content. at: the path in the object where the content belongs; () for a whole object or a strategic merge patch.
    """

    file: str
    node: Node
    kind: str | None = None
    name: str | None = None
    at: Path = ()

    def matches(self, obj: Mapping[str, Any]) -> bool:
        kind, name = text(obj.get("kind")), text(mapping(obj.get("metadata")).get("name"))
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
    """The sources of an overlay. files: every YAML file that was read, by name. remote: (file, line, address)."""

    root: FilePath
    pieces: list[Piece] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    remote: list[tuple[str, int, str]] = field(default_factory=list)
    # Prefixes and suffixes of names, which are not part of the names in pieces.
    affixes: list[tuple[str, str]] = field(default_factory=list)
    component: bool = False
    # Folders whose kustomizations were read, the overlay's first.
    folders: list[FilePath] = field(default_factory=list)

    def locate(self, obj: Mapping[str, Any]) -> Callable[[Path], tuple[str, int]]:
        """A function that returns the source line of a path of a rendered object."""
        pieces = [piece for piece in self.pieces if piece.matches(obj)]
        if not any(piece.name for piece in pieces):
            pieces += [piece for shorter in self._shorter(obj) for piece in self.pieces if piece.name and piece.matches(shorter)]

        def where(path: Path) -> tuple[str, int]:
            candidates = [(piece, *_follow(piece, obj, path)) for piece in pieces]
            if not candidates:
                first = next(iter(self.files), "")
                return first, 1
            complete = [(piece, node) for piece, node, depth in candidates if depth == len(path)]
            value = at(obj, path)
            if complete and not isinstance(value, Mapping | list):
                piece, node = next(((piece, node) for piece, node in reversed(complete) if node.value == value), complete[-1])
            elif complete:
                piece, node = complete[0]
            else:
                piece, node, _ = max(candidates, key=lambda entry: entry[2])  # max returns the first of the deepest
            return piece.file, node.line

        return where

    def _shorter(self, obj: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The object with the names that it may have had before kustomize added a prefix or suffix."""
        name = text(mapping(obj.get("metadata")).get("name"))
        for prefix, suffix in self.affixes:
            if name.startswith(prefix) and name.endswith(suffix):
                yield {**obj, "metadata": {"name": name.removeprefix(prefix).removesuffix(suffix)}}


def _follow(piece: Piece, data: Any, path: Path) -> tuple[Node, int]:
    """The deepest node of a piece along a path of the rendered object, and its depth; -1 if the piece is about something else."""
    node, depth = piece.node, len(piece.at)
    if path[:depth] != piece.at:
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
    """The item of a source list that became `item`: kustomize merges lists by the keys that identify items."""
    if not isinstance(node.children, list):
        return None
    if isinstance(item, Mapping):
        for key in ITEM_KEYS:
            if key in item:
                matching = [child for child in node.children if isinstance(child.value, Mapping) and child.value.get(key) == item[key]]
                if len(matching) == 1:
                    return matching[0]
                if not matching:
                    return None
                break
    equal = [child for child in node.children if child.value == item]
    return equal[0] if equal else node.child(index)


def read_sources(overlay: FilePath, root: FilePath) -> Sources:
    """Read the sources of the overlay in a folder. Nothing outside `root` is read."""
    result = Sources(root.resolve())
    _read(result, overlay.resolve())
    return result


def kustomization(folder: FilePath) -> FilePath | None:
    """The kustomization file of a folder."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def _read(sources: Sources, folder: FilePath) -> None:
    path = kustomization(folder) if folder.is_relative_to(sources.root) else None
    if path is None or folder in sources.folders or len(sources.files) > MAX_FILES:
        return
    sources.folders.append(folder)
    file = _file(sources, path)
    if file is None:
        return
    for document in file.documents:
        settings = mapping(document.value)
        sources.remote += [(file.name, node.line, text(node.value)) for node in _loaded(document) if REMOTE.search(text(node.value))]
        sources.component |= len(sources.folders) == 1 and settings.get("kind") == "Component"
        for key in ("resources", "bases", "components"):
            for node in _items(document, key):
                _named(sources, folder, node)
        for key in ("transformers", "generators", "validators", "configurations", "crds"):
            for node in _items(document, key):
                # Configuration of kustomize, not objects; read so that plain.py does not check it as a manifest.
                if text(node.value) and "\n" not in text(node.value):
                    _file(sources, (folder / text(node.value)[:500]).resolve())
        for node in _items(document, "replacements"):
            if name := text(mapping(node.value).get("path")):
                _file(sources, (folder / name[:500]).resolve())
        _generated(sources, file.name, document)
        _patches(sources, file, folder, document)
        _settings(sources, file.name, document)
        affixes = text(settings.get("namePrefix")), text(settings.get("nameSuffix"))
        if any(affixes):
            # Nested prefixes and suffixes are concatenated.
            sources.affixes += [affixes, *((affixes[0] + prefix, suffix + affixes[1]) for prefix, suffix in sources.affixes)]


def _loaded(document: Node) -> Iterator[Node]:
    """Everything that kustomize loads: files, folders and addresses."""
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


def _named(sources: Sources, folder: FilePath, node: Node) -> None:
    """Read a resource, base or component: a file or a folder."""
    name = text(node.value)[:500]
    if REMOTE.search(name):
        return
    path = (folder / name).resolve()
    if path.is_dir():
        _read(sources, path)
    elif inner := _file(sources, path):
        for document in inner.documents:
            for resource in _objects(document):
                data = mapping(resource.value)
                name = text(mapping(data.get("metadata")).get("name"))
                sources.pieces.append(Piece(inner.name, resource, _exactly(text(data.get("kind"))), _exactly(name)))


def _objects(document: Node) -> Iterator[Node]:
    data = mapping(document.value)
    items = document.child("items")
    if text(data.get("kind")).endswith("List") and items is not None and isinstance(items.children, list):
        yield from items.children
    else:
        yield document


def _exactly(value: str) -> str | None:
    return re.escape(value) if value else None


def _file(sources: Sources, path: FilePath) -> File | None:
    """A parsed file inside the root; None if it does not exist."""
    if not path.is_relative_to(sources.root) or not path.is_file():
        return None
    name = path.relative_to(sources.root).as_posix()
    if name not in sources.files:
        sources.files[name] = parse(path.read_text(encoding="utf-8", errors="replace"), name)
    return sources.files[name]


def _patches(sources: Sources, file: File, folder: FilePath, document: Node) -> None:
    for node in _items(document, "patchesStrategicMerge"):
        _patch(sources, file, folder, node, text(node.value), None, None)
    for key in ("patches", "patchesJson6902"):
        for node in _items(document, key):
            settings = mapping(node.value)
            target = mapping(settings.get("target"))
            kind, name = text(target.get("kind")) or None, text(target.get("name")) or None
            inline = node.child("patch")
            _patch(
                sources, file, folder, inline or node.child("path") or node, text(settings.get("patch") or settings.get("path")), kind, name
            )


def _patch(sources: Sources, file: File, folder: FilePath, node: Node, content: str, kind: str | None, name: str | None) -> None:
    """Read a patch, from a file or inline."""
    is_path = bool(content) and "\n" not in content and len(content) < 500 and not content.startswith("[")
    inner = _file(sources, (folder / content).resolve()) if is_path else None
    if inner is None:
        inner = parse(content, file.name)
        # An inline patch starts on the line after `|`, or on the line of its key.
        begin = node.text_line if "\n" not in content.strip() else node.text_line + 1
        for document in inner.documents:
            _shift(document, begin - 1)
    for document in inner.documents:
        data = mapping(document.value)
        if isinstance(document.children, list):
            sources.pieces += _operations(inner.name, document, kind, name)
        elif data:
            own_kind, own_name = _exactly(text(data.get("kind"))), _exactly(text(mapping(data.get("metadata")).get("name")))
            sources.pieces.append(Piece(inner.name, document, kind or own_kind, name or (None if kind else own_name)))


def _shift(node: Node, lines: int, visited: set[int] | None = None) -> None:
    visited = set() if visited is None else visited
    if id(node) in visited:
        return
    visited.add(id(node))
    node.line += lines
    node.text_line += lines
    for child in node.children.values() if isinstance(node.children, dict) else node.children or []:
        _shift(child, lines, visited)


def _operations(name: str, document: Node, kind: str | None, target: str | None) -> Iterator[Piece]:
    """The operations of a JSON patch, each as a piece for one path."""
    for operation in document.children if isinstance(document.children, list) else []:
        pointer = text(mapping(operation.value).get("path"))
        parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        at: Path = tuple(int(part) if part.isdigit() else part for part in parts)
        node = operation.child("value")
        if at and node is not None:
            yield Piece(name, node, kind, target, at)


def _generated(sources: Sources, name: str, document: Node) -> None:
    for key, kind in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
        for node in _items(document, key):
            sources.pieces.append(Piece(name, node, kind, _exactly(text(mapping(node.value).get("name")))))


def _settings(sources: Sources, name: str, document: Node) -> None:
    """Read the fields of a kustomization that change objects without a patch."""
    if namespace := document.child("namespace"):
        sources.pieces.append(Piece(name, namespace, at=("metadata", "namespace")))
    for node in _items(document, "replicas"):
        count = node.child("count")
        if count is not None:
            count_node = Node(count.value, node.line, node.text_line)
            sources.pieces.append(Piece(name, count_node, name=_exactly(text(mapping(node.value).get("name"))), at=("spec", "replicas")))
    for key, section in (("commonLabels", "labels"), ("commonAnnotations", "annotations")):
        pairs = document.child(key)
        if pairs is not None:
            sources.pieces.append(Piece(name, pairs, at=("metadata", section)))
    for node in _items(document, "labels"):
        pairs = node.child("pairs")
        if pairs is not None:
            sources.pieces.append(Piece(name, pairs, at=("metadata", "labels")))


def _items(document: Node, key: str) -> list[Node]:
    node = document.child(key)
    return node.children if node is not None and isinstance(node.children, list) else []


def image_line(sources: Sources, image: str) -> tuple[str, int] | None:
    """The line where a kustomization sets the rendered image."""
    for name, file in sources.files.items():
        for document in file.documents:
            for node in _items(document, "images"):
                settings = mapping(node.value)
                base = text(settings.get("newName")) or text(settings.get("name"))
                if base and (image == base or image.startswith((f"{base}:", f"{base}@"))):
                    return name, node.line
    return None


class NotRendered(Exception):
    """kustomize cannot render the overlay; the text is its error message."""


def render(overlay: FilePath) -> str | None:
    """The output of `kubectl kustomize`; None if kubectl is not installed. Raises NotRendered."""
    try:
        done = kubectl.kustomize(overlay, RENDER_SECONDS)
    except kubectl.ClusterUnreachable as error:
        if not kubectl.is_installed():
            return None
        raise NotRendered(error.message) from None
    if done.code:
        raise NotRendered(_error_message(done.message))
    return done.text


def _error_message(stderr: str) -> str:
    """kubectl's error: `error: …`, or a log line that contains it if it has several lines."""
    message = stderr.strip().removeprefix("error: ")
    if logged := re.search(r"err=(?:<\n(.*)\n\s*>|\"(.*)\")\s*$", message, re.DOTALL):
        message = " ".join(line.strip() for line in (logged[1] or logged[2].replace('\\"', '"')).splitlines())
    return message or "kubectl kustomize failed"


def objects(rendered: str, sources: Sources) -> list[Object]:
    """The rendered objects, each with a locator of its source lines."""
    result = []
    for document in parse(rendered, "rendered").documents:
        data = document.value
        if isinstance(data, dict):
            result.append(Object(data, _image_locator(sources, data)))
    return result


def written(sources: Sources) -> list[Object]:
    """The resources and patches as they are in the sources."""
    return [
        Object(piece.node.value, lambda path, piece=piece: (piece.file, piece.node.line_of(path)[0]))  # type: ignore[misc]
        for piece in sources.pieces
        if not piece.at and isinstance(piece.node.value, dict)
    ]


def _image_locator(sources: Sources, data: Mapping[str, Any]) -> Callable[[Path], tuple[str, int]]:
    locate = sources.locate(data)

    def where(path: Path) -> tuple[str, int]:
        if path and path[-1] == "image":
            named = image_line(sources, text(at(data, path)))
            if named:
                return named
        return locate(path)

    return where
