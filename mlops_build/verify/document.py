"""YAML with source lines: every value knows the line it was written on.

The parser works event by event, because a checked file may contain anything: deep nesting does not overflow the stack, aliases do not
expand without bound, and a duplicate key is a fault instead of an exception. Scalars are resolved as in the parsers of Kubernetes and CI:
YAML 1.1, except that dates stay strings.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, cast

Path = tuple[str | int, ...]

# Larger than the largest published bundle of custom resource definitions.
MAX_BYTES, MAX_DEPTH, MAX_NODES = 16 * 2**20, 100, 500_000

NULL = {"", "~", "null", "Null", "NULL"}
TRUE = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"}
FALSE = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"}
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
OCTAL = re.compile(r"[-+]?0o?([0-7]+)")
HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
# The whole comment: `# mlops-build: ignore RULE: why`.
IGNORE = re.compile(r"#\s*mlops-build:\s*ignore\s+(?P<rule>[a-z0-9-]+)(?:\s*:\s*(?P<why>.*\S))?")


@dataclass(frozen=True)
class Problem:
    """A fault in the text itself. line: from 1. rule: its name in rules.toml."""

    line: int
    rule: str
    why: str


@dataclass(slots=True)
class Node:
    """A value with its lines, from 1. line: of its key or dash. text_line: where the value itself begins.

    children: the nodes of a mapping by key or of a list by index; None for a scalar.
    """

    value: Any
    line: int
    text_line: int
    children: dict[str | int, "Node"] | list["Node"] | None = None

    def line_of(self, path: Path) -> tuple[int, int]:
        """The line of the deepest part of `path` that exists, and how many of its parts exist."""
        node, depth = self, 0
        for part in path:
            child = node.child(part)
            if child is None:
                break
            node, depth = child, depth + 1
        return node.line, depth

    def child(self, part: str | int) -> "Node | None":
        if isinstance(self.children, dict):
            return self.children.get(part)
        if isinstance(self.children, list) and isinstance(part, int) and 0 <= part < len(self.children):
            return self.children[part]
        return None


@dataclass(frozen=True)
class Ignored:
    """A comment that ignores a rule on its line, or on the next line if it stands alone. why: the reason; None if it gives none."""

    rule: str
    why: str | None
    line: int
    comment_line: int


@dataclass
class File:
    """A parsed file. name: as shown in findings. documents: the ones that are not empty."""

    name: str
    documents: list[Node] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)

    def locator(self, node: Node) -> Callable[[Path], tuple[str, int]]:
        """A function that returns the file and line of a path below a node."""
        return lambda path: (self.name, node.line_of(path)[0])


def read(path: FilePath) -> str:
    """The text of a file, as far as `parse` accepts it. Raises OSError."""
    with path.open("rb") as opened:
        return opened.read(4 * MAX_BYTES + 1).decode("utf-8", errors="replace")


def listed(document: Node) -> list[Node]:
    """The items of a `kind: List`, or else the document itself."""
    items, kind = document.child("items"), document.child("kind")
    is_list = items and kind and str(kind.value).endswith("List") and not document.child("spec")
    return items.children if is_list and items and isinstance(items.children, list) else [document]


def parse(text: str, name: str) -> File:
    """Every document of a YAML text. Never raises because of the content: faults are in `problems`."""
    from yaml import YAMLError

    file = File(name, ignored=list(_ignored(text)))
    if len(text) > MAX_BYTES:
        file.problems.append(Problem(1, "too-large", f"the file has {len(text):,} characters; the limit is {MAX_BYTES:,}"))
        return file
    composer = _Composer(file)
    try:
        for event in _events(text):
            composer.take(event)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        file.problems.append(Problem(mark.line + 1 if mark else 1, "yaml-syntax", f"not valid YAML: {problem}"))
    except _Stop as error:
        file.problems.append(error.problem)
    return file


def _events(text: str) -> Iterator[Any]:
    import yaml

    yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _ignored(text: str) -> Iterator[Ignored]:
    if "mlops-build:" not in text:
        return
    for number, line in enumerate(text.splitlines(), 1):
        if match := IGNORE.search(line):
            alone = line.lstrip().startswith("#")
            yield Ignored(match["rule"], match["why"], number + 1 if alone else number, number)


class _Stop(Exception):
    """Parsing cannot continue."""

    def __init__(self, line: int, rule: str, why: str) -> None:
        super().__init__(why)
        self.problem = Problem(line, rule, why)


@dataclass(slots=True)
class _Open:
    """A mapping or list that is being parsed. key: the mapping's key whose value comes next, as (key, line)."""

    node: Node
    key: tuple[str, int] | None = None
    merged: list[Node] = field(default_factory=list)


class _Composer:
    """Builds nodes from parser events, with its own stack."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int]] = {}  # and the number of nodes below
        self.sizes: list[tuple[str, Node, int]] = []  # anchors of open collections, and the count at their start
        self.nodes = 0

    def take(self, event: Any) -> None:
        kind = type(event).__name__
        line = event.start_mark.line + 1
        if kind == "DocumentStartEvent":
            self.anchors.clear()
        elif kind == "ScalarEvent":
            self._count(line)
            node = Node(_scalar(event), line, line)
            if event.anchor:
                self.anchors[event.anchor] = (node, 1)
            self._put(node, line, event.value)
        elif kind == "AliasEvent":
            if event.anchor not in self.anchors:
                raise _Stop(line, "yaml-syntax", f"the alias *{event.anchor} is used inside or before its anchor")
            node, size = self.anchors[event.anchor]
            self._count(line, size)
            self._put(Node(node.value, line, node.text_line, node.children), line)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._count(line)
            if len(self.stack) >= MAX_DEPTH:
                raise _Stop(line, "too-large", f"nested deeper than {MAX_DEPTH} levels")
            node = Node({}, line, line, {}) if kind == "MappingStartEvent" else Node([], line, line, [])
            if event.anchor:
                self.sizes.append((event.anchor, node, self.nodes))
            self.stack.append(_Open(node))
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            collection = self.stack.pop()
            for source in collection.merged:
                _merge(collection.node, source)
            if self.sizes and self.sizes[-1][1] is collection.node:
                anchor, node, before = self.sizes.pop()
                self.anchors[anchor] = (node, self.nodes - before + 1)
            self._put(collection.node, collection.node.text_line)

    def _count(self, line: int, count: int = 1) -> None:
        self.nodes += count
        if self.nodes > MAX_NODES:
            raise _Stop(line, "too-large", f"more than {MAX_NODES:,} values, aliases expanded")

    def _put(self, node: Node, line: int, written: str | None = None) -> None:
        """Add a finished node to its parent. written: a scalar's text, which is its name if it is a key."""
        if not self.stack:
            if node.value is not None:
                self.file.documents.append(node)
            return
        parent = self.stack[-1]
        if isinstance(parent.node.children, list):
            node.line = line
            parent.node.children.append(node)
            parent.node.value.append(node.value)
        elif parent.key is None:
            parent.key = (str(node.value) if written is None else written, line)
        else:
            (key, key_line), parent.key = parent.key, None
            node.line = key_line
            siblings = cast("dict[str | int, Node]", parent.node.children)
            if key == "<<" and isinstance(node.value, dict | list):
                parent.merged += node.children if isinstance(node.children, list) else [node]
                return
            if key in siblings:
                first = siblings[key].line
                why = f"duplicate key {key!r}; the first is on line {first}"
                self.file.problems.append(Problem(key_line, "duplicate-key", why))
            siblings[key] = node
            parent.node.value[key] = node.value


def _merge(into: Node, source: Node) -> None:
    """Add the entries of a `<<` mapping that `into` does not have."""
    if not isinstance(source.children, dict) or not isinstance(into.children, dict):
        return
    for key, node in source.children.items():
        if key not in into.children:
            into.children[key] = node
            into.value[key] = node.value


def _scalar(event: Any) -> Any:
    """A scalar's value: a string if it is quoted or tagged as one."""
    text: str = event.value
    if event.tag and event.tag != "!":
        return _TAGGED.get(event.tag.rpartition(":")[2], Tagged)(text)
    return plain(text) if event.implicit[0] else text


def plain(text: str) -> Any:
    """The value of an unquoted scalar."""
    if text in NULL:
        return None
    if text in TRUE or text in FALSE:
        return text in TRUE
    first = text[0]
    if not (first.isdigit() or first in "+-."):
        return text
    if len(text) > 400:  # Python refuses to parse longer integers
        return text
    if INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if octal := OCTAL.fullmatch(text):
        return int(octal[1], 8) * (-1 if first == "-" else 1)
    if HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    return float(text) if FLOAT.fullmatch(text) else text


class Tagged(str):
    """A string with a custom tag, such as `!include file.yaml`, whose value is unknown."""


_TAGGED: dict[str, Callable[[str], Any]] = {"int": plain, "float": plain, "bool": plain, "null": lambda _: None, "str": str}
