"""Two files of a service name a version of mlops-build: requirements-mlops-build.txt a commit, pyproject.toml a range.

The team moves them to get a fix, the template moves them with each release, and Git would call that a conflict each time. Of two versions
in one line the newer is kept, in these two lines only.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

# Of two commits of the template's repository, whether the first has the second in its history; None where it knows one of them not.
IsNewer = Callable[[str, str], bool | None]

RELEASE = r"[0-9]+(?:\.[0-9]+)*"
PINS: Mapping[str, re.Pattern[bytes]] = {
    "pyproject.toml": re.compile(rf'(?<=["\'])(mlops-build(?:\[[a-z, ]*\])? *(?:~=|==|>=) *)({RELEASE})(?=["\'])'.encode()),
    "requirements-mlops-build.txt": re.compile(
        rf"^(git\+[^\s@#]+@|mlops-build(?:\[[a-z, ]*\])? *== *)([0-9a-f]{{40}}|{RELEASE})(?=#|\s|$)".encode(), re.MULTILINE
    ),
}


class Three(NamedTuple):
    """The contents of a file in three trees."""

    base: bytes
    ours: bytes
    theirs: bytes


def unknown(one: str, other: str) -> bool | None:
    """An IsNewer that knows no commits."""
    return True if one == other else None


def with_the_newer(path: str, three: Three, is_newer: IsNewer) -> Three | None:
    """The three contents with the newer of the two versions in each; None where there are no two versions to choose from."""
    pattern = PINS.get(path)
    if pattern is None:
        return None
    found = [pattern.findall(content) for content in three]
    if any(len(pins) != 1 for pins in found):
        return None
    base, ours, theirs = (pins[0][1].decode() for pins in found)
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
