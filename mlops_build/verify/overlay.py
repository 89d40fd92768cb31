"""Renders a kustomize overlay and maps each rendered value to its source file and line.

`kubectl kustomize` renders, but does not report sources. Therefore this module also reads the objects and patches of an overlay, in the
order in which kustomize applies them. A value is located in the last of them that has it, else where a kustomization mentions it (inline
patches, images, namespace), and a missing value in the first of them that has its deepest existing parent.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from mlops_build.adapters import kubectl
from mlops_build.verify.document import File, Node, Path, listed, parse, read
from mlops_build.verify.schema import display
from mlops_build.verify.world import Locator, Object, at, mapping, text

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
RENDER_SECONDS = 60
MAX_FILES = 500
# The hash that kustomize appends to the name of a generated object.
HASH = re.compile(r"-[bcdfghkmt2456789]{10}")
REMOTE = re.compile(r"://|^git@|^git::|^(?:www\.)?(?:github|gitlab|bitbucket)\.[a-z]+[/:]|\?(?:ref|version)=")
# Fields of a kustomization whose strings are loaded as files or addresses, in the order in which they are applied, and keys inside them
# whose strings are not.
RESOURCES, PATCHES = ("resources", "bases", "components"), ("patchesStrategicMerge", "patches", "patchesJson6902")
SETTINGS = ("crds", "openapi", "configurations", "generators", "transformers", "validators", "replacements")
LOADED = (*RESOURCES, *PATCHES, *SETTINGS, "configMapGenerator", "secretGenerator", "helmCharts")
NOT_LOADED = {"patch", "target", "literals", "options", "name", "namespace"}
# Keys that identify list items, in order of preference.
ITEM_KEYS = ("name", "containerPort", "mountPath", "port", "key", "topologyKey", "ip", "host", "path", "secretRef", "configMapRef")


@dataclass(frozen=True)
class Piece:
    """An object as it is written in a file, or a patch. kind, name: patterns of the objects that it is about; empty: any."""

    file: File
    node: Node
    kind: str
    name: str


@dataclass
class Sources:
    """The sources of an overlay. files: every YAML file that was read, by name. remote: (file, line, address).

    parsed: files that were read before, also for other overlays.
    """

    root: FilePath
    parsed: dict[str, File]
    pieces: list[Piece] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    remote: list[tuple[str, int, str]] = field(default_factory=list)
    component: bool = False
    # Folders whose kustomizations were read, the overlay's first; the names of JSON patches and of these kustomizations.
    folders: list[FilePath] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def locate(self, obj: Mapping[str, Any]) -> Locator:
        """A function that returns the source line of a path of a rendered object."""
        pieces = self._about(obj)

        def where(path: Path) -> tuple[str, int]:
            value = at(obj, path)
            candidates = [(piece.file.name, *_follow(piece.node, obj, path)) for piece in pieces]
            complete = [(file, node) for file, node, depth in candidates if depth == len(path)]
            equal = [(file, node) for file, node in complete if _written(node.value) == _written(value)]
            if complete and (equal or isinstance(value, Mapping | list)):
                file, node = complete[0] if isinstance(value, Mapping | list) else equal[-1]
            elif mentioned := self._mentioned(value):
                return mentioned
            elif candidates:
                file, node, _ = max(candidates, key=lambda candidate: candidate[2])  # max returns the first of the deepest
            else:
                return next(iter(self.files), ""), 1
            return file, node.line

        return where

    def _about(self, obj: Mapping[str, Any]) -> list[Piece]:
        """The pieces of a rendered object. If none has its name, kustomize has added a prefix or suffix to it."""
        kind, name = text(obj, "kind"), text(obj, "metadata", "name")
        pieces = [piece for piece in self.pieces if _fits(piece.kind, kind)]
        exact = [piece for piece in pieces if _fits(piece.name, name) or _fits(piece.name, HASH.sub("", name))]
        return exact if any(piece.name for piece in exact) else [piece for piece in pieces if piece.name in name]

    def _mentioned(self, value: object) -> tuple[str, int] | None:
        """The last line of the first JSON patch or kustomization that contains a value, or the name of an image."""
        if value is None or isinstance(value, Mapping | list):
            return None
        written = _written(value)
        for words in (written, re.split("[:@]", written)[0]):
            whole = re.compile(rf"(?<![\w.-]){re.escape(words)}(?![\w.-])")
            for file in self.others if words else ():
                lines = enumerate(read(self.root / file).splitlines(), 1)
                if numbers := [number for number, line in lines if whole.search(line)]:
                    return file, numbers[-1]
        return None


def _written(value: object) -> str:
    """A value as a text. kustomize quotes some numbers: a source's `memory: 512` is "512" where it is rendered."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fits(pattern: str, value: str) -> bool:
    if pattern in ("", value):
        return True
    try:
        return bool(re.fullmatch(pattern, value))
    except re.error:
        return False


def _follow(node: Node, data: Any, path: Path) -> tuple[Node, int]:
    """The deepest node along a path of the rendered object, and its depth."""
    for depth, part in enumerate(path):
        data = at(data, (part,))
        child = _item(node, data, part) if isinstance(part, int) else node.child(part)
        if child is None:
            return node, depth
        node = child
    return node, len(path)


def _item(node: Node, item: Any, index: int) -> Node | None:
    """The item of a source list that became `item`: kustomize merges lists by the keys that identify items."""
    items = node.children if isinstance(node.children, list) else []
    # A key that a patch has added is in no source item.
    key = next((key for key in ITEM_KEYS if key in mapping(item) and any(key in mapping(child.value) for child in items)), None)
    matching = [child for child in items if key and mapping(child.value).get(key) == item[key]]
    if key and len(matching) < 2:
        return matching[0] if matching else None
    return next((child for child in items if child.value == item), node.child(index))


def read_sources(overlay: FilePath, root: FilePath, parsed: dict[str, File]) -> Sources:
    """Read the sources of the overlay in a folder. Nothing outside `root` is read, and nothing in `parsed`, to which files are added."""
    result = Sources(root.resolve(), parsed)
    _read(result, overlay.resolve())
    return result


def kustomization(folder: FilePath) -> FilePath | None:
    """The kustomization file of a folder."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def _read(sources: Sources, folder: FilePath) -> None:
    path = kustomization(folder) if folder.is_relative_to(sources.root) else None
    file = _file(sources, path) if path and folder not in sources.folders and len(sources.files) <= MAX_FILES else None
    if path is None or file is None:
        return
    sources.folders.append(folder)
    sources.others.append(file.name)
    for document in file.documents:
        sources.component |= len(sources.folders) == 1 and mapping(document.value).get("kind") == "Component"
        for key in LOADED:
            node = document.child(key)
            for entry in _strings(node) if node else ():
                if REMOTE.search(text(entry.value)):
                    sources.remote.append((file.name, entry.line, text(entry.value)))
                elif key in RESOURCES:
                    _resource(sources, (folder / text(entry.value)[:500]).resolve())
                elif key in SETTINGS:
                    # Configuration of kustomize, not objects; read so that plain.py does not check it as a manifest.
                    _file(sources, (folder / text(entry.value)[:500]).resolve())
            for patch in node.children or () if node and key in PATCHES else ():
                if isinstance(patch, Node):
                    _patch(sources, folder, patch.value)


def _strings(node: Node) -> Iterator[Node]:
    """Everything in a field of a kustomization that kustomize loads: files, folders and addresses."""
    if node.children is None and "\n" not in text(node.value):
        yield node
    for key, child in node.children.items() if isinstance(node.children, dict) else enumerate(node.children or []):
        if key not in NOT_LOADED:
            yield from _strings(child)


def _file(sources: Sources, path: FilePath) -> File | None:
    """A parsed file inside the root; None if it does not exist."""
    if not path.is_relative_to(sources.root) or not path.is_file():
        return None
    name = path.relative_to(sources.root).as_posix()
    if name not in sources.parsed:
        sources.parsed[name] = parse(read(path), name)
    sources.files[name] = sources.parsed[name]
    return sources.files[name]


def _resource(sources: Sources, path: FilePath) -> None:
    """Read a resource, base or component: a file or a folder."""
    if path.is_dir():
        _read(sources, path)
        return
    file = _file(sources, path)
    for document in file.documents if file else ():
        for node in listed(document):
            _add(sources, file, node, {})


def _patch(sources: Sources, folder: FilePath, patch: object) -> None:
    """Read a patch in a file of its own. patch: its entry in the kustomization."""
    name = text(patch, "path") or text(patch)
    file = _file(sources, (folder / name[:500]).resolve()) if "\n" not in name else None
    for document in file.documents if file else ():
        _add(sources, file, document, mapping(patch, "target"))


def _add(sources: Sources, file: File | None, node: Node, target: Mapping[str, Any]) -> None:
    if file and isinstance(node.value, dict):
        about = target or {"kind": node.value.get("kind"), "name": text(node.value, "metadata", "name")}
        sources.pieces.append(Piece(file, node, text(about, "kind"), text(about, "name")))
    elif file:  # the operations of a JSON patch
        sources.others.insert(0, file.name)


class NotRendered(Exception):
    """kustomize does not render the overlay. rule: the one that is violated; None: kubectl is not installed. place: file and line."""

    def __init__(self, why: str, rule: str | None, place: tuple[str, int]) -> None:
        super().__init__(why)
        self.rule, self.place = rule, place


def rendered(overlay: FilePath, sources: Sources) -> list[Object]:
    """The objects that `kubectl kustomize` renders, each with a locator of its source lines. Raises NotRendered."""
    first = next(iter(sources.files), overlay.name), 1
    for file, line, address in sources.remote:
        raise NotRendered(f"it loads {display(address)} from the network", "overlay-remote", (file, line))
    if any(problem.rule == "too-large" for read in sources.files.values() for problem in read.problems):
        # kustomize would expand the aliases until its timeout.
        raise NotRendered("a file is too large", "overlay-render", first)
    try:
        done = kubectl.kustomize(overlay, RENDER_SECONDS)
    except kubectl.ClusterUnreachable as error:
        raise NotRendered(error.message, "overlay-render" if kubectl.is_installed() else None, first) from None
    if done.code:
        message = _error_message(done.message).replace(f"{sources.root}{os.sep}", "")
        raise NotRendered(message, "overlay-render", (_named(message, sources) or first[0], 1))
    return objects(done.text, sources)


def _named(message: str, sources: Sources) -> str | None:
    """The file that a message of kustomize names, by as much of its path as possible."""

    def matching(name: str) -> int:
        parts = FilePath(name).parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return max((len(tail) for tail in tails if re.search(rf"(?<![\w.-]){re.escape(tail)}(?![\w-])", message)), default=0)

    best = max((name for name in sources.files if FilePath(name).name not in NAMES), key=matching, default="")
    return best if matching(best) else None


def _error_message(stderr: str) -> str:
    """kubectl's error: `error: …`, or a log line that contains it if it has several lines."""
    message = stderr.strip().removeprefix("error: ")
    if logged := re.search(r"err=(?:<\n(.*)\n\s*>|\"(.*)\")\s*$", message, re.DOTALL):
        message = " ".join(line.strip() for line in (logged[1] or logged[2].replace('\\"', '"')).splitlines())
    return message or "kubectl kustomize failed"


def objects(manifests: str, sources: Sources) -> list[Object]:
    """The objects in rendered manifests, each with a locator of its source lines."""
    documents = [document.value for document in parse(manifests, "rendered").documents]
    return [Object(data, sources.locate(data)) for data in documents if isinstance(data, dict)]


def written(sources: Sources) -> list[Object]:
    """The objects and patches as they are in the files."""
    return [Object(piece.node.value, piece.file.locator(piece.node)) for piece in sources.pieces]
