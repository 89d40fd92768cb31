"""YAML with source lines: every value knows the line it was written on.

The parser works event by event, because a checked file may contain anything: deep nesting does not overflow the stack, aliases do not
expand without bound, and a duplicate key is a fault instead of an exception. Scalars are resolved as in the parsers of Kubernetes and CI:
YAML 1.1, except that dates stay strings.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

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
    """A value with its line, from 1, which is that of its key if it has one.

    children: the nodes of a mapping by key or of a list by index; None for a scalar.
    """

    value: Any
    line: int
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
    try:
        _Reader(text, file).read()
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        file.problems.append(Problem(mark.line + 1 if mark else 1, "yaml-syntax", f"not valid YAML: {problem}"))
    except _Stop as error:
        file.problems.append(error.problem)
    return file


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


class _Reader:
    """Builds nodes from parser events."""

    def __init__(self, text: str, file: File) -> None:
        import yaml

        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        self.file = file
        self.anchors: dict[str, tuple[Node, int]] = {}  # and the number of nodes below
        self.nodes = 0

    def read(self) -> None:
        """Add the documents of the text to the file. Raises _Stop, YAMLError."""
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                self.anchors.clear()
                node = self._node(next(self.events), 0)
                if node.value is not None:
                    self.file.documents.append(node)

    def _node(self, event: Any, depth: int) -> Node:
        """The node that begins with an event."""
        kind, line, before = type(event).__name__, event.start_mark.line + 1, self.nodes
        self._count(line)
        if kind == "AliasEvent":
            if event.anchor not in self.anchors:
                raise _Stop(line, "yaml-syntax", f"the alias *{event.anchor} is used inside or before its anchor")
            same, size = self.anchors[event.anchor]
            self._count(line, size)
            return Node(same.value, line, same.children)
        if depth > MAX_DEPTH:
            raise _Stop(line, "too-large", f"nested deeper than {MAX_DEPTH} levels")
        if kind == "ScalarEvent":
            node = Node(_scalar(event), line)
        elif kind == "SequenceStartEvent":
            items = list(self._until_end("SequenceEndEvent", depth))
            node = Node([item.value for item in items], line, items)
        else:
            node = self._mapping(line, depth)
        if event.anchor:
            self.anchors[event.anchor] = node, self.nodes - before
        return node

    def _until_end(self, end: str, depth: int) -> Iterator[Node]:
        while type(event := next(self.events)).__name__ != end:
            # The name of a key is its text: `on`, not true.
            self.key = event.value if type(event).__name__ == "ScalarEvent" else ""
            yield self._node(event, depth + 1)

    def _mapping(self, line: int, depth: int) -> Node:
        children: dict[str | int, Node] = {}
        merged: list[Node] = []
        for key_node in self._until_end("MappingEndEvent", depth):
            key = self.key or str(key_node.value)
            node = self._node(next(self.events), depth + 1)
            node.line = key_node.line
            if key == "<<" and node.children is not None:
                merged += node.children if isinstance(node.children, list) else [node]
                continue
            if key in children:
                why = f"duplicate key {key!r}; the first is on line {children[key].line}"
                self.file.problems.append(Problem(node.line, "duplicate-key", why))
            children[key] = node
        for source in merged:
            children = {**(source.children if isinstance(source.children, dict) else {}), **children}
        return Node({key: node.value for key, node in children.items()}, line, children)

    def _count(self, line: int, count: int = 1) -> None:
        self.nodes += count
        if self.nodes > MAX_NODES:
            raise _Stop(line, "too-large", f"more than {MAX_NODES:,} values, aliases expanded")


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
