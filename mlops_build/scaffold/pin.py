"""Resolve conflicts between two versions of mlops-build: a commit in requirements-mlops-build.txt, a range in pyproject.toml.

The team changes them to get a fix, and the template changes them with each release. Git would report a conflict each time; in these two
lines the newer version is kept.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

# Whether the first of two commits of the template has the second in its history; None if one of them is not known.
IsNewer = Callable[[str, str], bool | None]

COMMIT = r"[0-9a-f]{40}(?:[0-9a-f]{24})?"
RELEASE = r"[0-9]+(?:\.[0-9]+)*"
PINS: Mapping[str, re.Pattern[bytes]] = {
    "pyproject.toml": re.compile(rf'(?<=["\'])(mlops-build(?:\[[a-z, ]*\])? *(?:~=|==|>=) *)({RELEASE})(?=["\'])'.encode()),
    "requirements-mlops-build.txt": re.compile(
        rf"^(git\+[^\s@#]+@|mlops-build(?:\[[a-z, ]*\])? *== *)({COMMIT}|{RELEASE})(?=#|\s|$)".encode(), re.MULTILINE
    ),
}


class Three(NamedTuple):
    """The contents of a file in the three trees of a merge."""

    base: bytes
    ours: bytes
    theirs: bytes


def unknown(commit: str, other: str) -> bool | None:
    """An IsNewer that knows no commits."""
    return True if commit == other else None


def with_the_newer(path: str, three: Three, is_newer: IsNewer) -> Three | None:
    """The three contents with the newer of the two versions in each; None if there are not two versions to choose from."""
    pattern = PINS.get(path)
    if pattern is None:
        return None
    matches = [pattern.findall(content) for content in three]
    if any(len(pins) != 1 for pins in matches):
        return None
    base, ours, theirs = (pins[0][1].decode() for pins in matches)
    if len({base, ours, theirs}) < 3:
        return None
    newer = _newer(ours, theirs, is_newer)
    return None if newer is None else Three(*(pattern.sub(lambda match: match[1] + newer.encode(), content) for content in three))


def _newer(ours: str, theirs: str, is_newer: IsNewer) -> str | None:
    if re.fullmatch(RELEASE, ours) and re.fullmatch(RELEASE, theirs) and len(ours) < 40 > len(theirs):
        return max(ours, theirs, key=lambda version: [int(part) for part in version.split(".")])
    if is_newer(theirs, ours):
        return theirs
    return ours if is_newer(ours, theirs) else None
