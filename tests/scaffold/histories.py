"""Random histories: a template's files, what its next version makes of them, and what a team made of them meanwhile.

Every line that somebody writes is unlike any other, so that it can be found again, and so can the lack of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tests.scaffold.trees import Content, Run

NAMES = ("a.txt", "b.md", "run.sh", "sub/c.txt", "sub/d.txt")
# Few enough for both sides to choose the same one now and then.
NEW_NAMES = ("new.txt", "sub/new.txt", "other/a.txt")
LENGTH = 14


@dataclass
class Side:
    """What one side did. now: where each file of the start is; None: deleted. edited: those of the start with other content or mode."""

    files: dict[str, Content]
    now: dict[str, str | None]
    edited: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class History:
    """The start, and both sides."""

    start: dict[str, Content]
    template: Side
    team: Side


def _kind(content: Content, text: str) -> Content:
    return Run(text) if isinstance(content, Run) else text


def _start(name: str) -> Content:
    text = "".join(f"{name} line {number}: {hash_of(name, number)}\n" for number in range(LENGTH))
    return Run(text) if name.endswith(".sh") else text


def hash_of(name: str, number: int) -> str:
    """Words that make lines unlike each other, so that lines are similar only on purpose."""
    return " ".join(f"{ord(character) * (number + 3) % 89:02d}" for character in name)


@st.composite
def _side(draw: st.DrawFn, start: Mapping[str, Content], mark: str) -> Side:
    side = Side(dict(start), {name: name for name in start})
    for step in range(draw(st.integers(0, 4))):
        there = [name for name, now in side.now.items() if now is not None]
        deed = draw(st.sampled_from(["edit", "edit", "edit", "insert", "cut", "delete", "rename", "mode", "add"]))
        if deed == "add" or not there:
            name = draw(st.sampled_from(NEW_NAMES))
            # One in four times both sides write the very same.
            text = f"the same in {name}\n" if draw(st.integers(0, 3)) == 0 else f"{mark} {step} adds {name}\n"
            if name not in side.files:
                side.files[name] = text
            continue
        name = draw(st.sampled_from(there))
        path = side.now[name]
        assert path is not None
        content = side.files[path]
        lines = str(content).splitlines(keepends=True)
        at = draw(st.integers(0, len(lines) - 1)) if lines else 0
        if deed == "delete":
            del side.files[path]
            side.now[name] = None
        elif deed == "rename":
            moved = f"{mark}/{name}" if draw(st.booleans()) else f"moved/{name}"
            if moved not in side.files:
                side.files[moved] = side.files.pop(path)
                side.now[name] = moved
        elif deed == "mode":
            side.files[path] = str(content) if isinstance(content, Run) else Run(content)
            side.edited.add(name)
        elif lines:
            if deed == "cut":
                del lines[at : at + 2]
            else:
                lines[at : at + (deed == "edit")] = [f"{mark} {step} {deed}s {name} at {at}\n"]
            side.files[path] = _kind(content, "".join(lines))
            side.edited.add(name)
    side.edited = {name for name in side.edited if (path := side.now[name]) and not _equal(side.files[path], start[name])}
    return side


def _equal(one: Content, other: Content) -> bool:
    return one == other and type(one) is type(other)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """A start of a few files, and two sides."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=len(NAMES), unique=True))
    start = {name: _start(name) for name in names}
    return History(start, draw(_side(start, "template")), draw(_side(start, "team")))


def lines_of(files: Mapping[str, Content]) -> set[str]:
    """Every line of all files."""
    return {line for content in files.values() for line in str(content).splitlines()}
