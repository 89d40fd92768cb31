"""The release of mlops-build that a service is made for, according to the requirement in its pyproject.toml."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FILE = "pyproject.toml"
# Characters of a pyproject.toml, and of a requirement in it. A bridge reads those of many repositories, and the time to parse a long key
# grows with the square of its length.
LONGEST, LONGEST_REQUIREMENT = 1 << 15, 300


class Pin(NamedTuple):
    """A minor release, such as 0.4. Pins are ordered as releases are."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


# Of the releases that pin_of tries, besides those that the requirement names; what is newer makes no difference.
NEWEST = Pin(0, 9)


def pin_of(pyproject: str | None) -> Pin | None:
    """The newest release that a pyproject.toml allows; None if it does not restrict the release or cannot be read. Raises nothing."""
    from packaging.version import Version

    wanted = requirement(pyproject)
    if wanted is None or not wanted.specifier:
        return None
    try:
        named = [Version(clause.version.removesuffix(".*")) for clause in wanted.specifier]
    except ValueError:
        return None
    tried = [*named, *(Version(f"0.{minor}") for minor in range(NEWEST.minor + 1))]
    allowed = [Pin(version.major, version.minor) for version in tried if wanted.specifier.contains(version, prereleases=True)]
    return max(allowed, default=None)


def at(root: Path) -> Pin | None:
    """The pin of the service in a folder."""
    try:
        return pin_of((root / FILE).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def requirement(pyproject: str | None) -> "Requirement | None":
    """The first requirement of mlops-build in a pyproject.toml: of the project, of an extra, or of a dependency group. Raises nothing."""
    from packaging.requirements import Requirement

    if pyproject is None or len(pyproject) > LONGEST:
        return None
    try:
        document = tomllib.loads(pyproject)
    except (ValueError, RecursionError):
        return None
    project = document.get("project")
    project = project if isinstance(project, dict) else {}
    groups = [table for table in (project.get("optional-dependencies"), document.get("dependency-groups")) if isinstance(table, dict)]
    for lines in [project.get("dependencies"), *(lines for table in groups for lines in table.values())]:
        for line in lines if isinstance(lines, list) else ():
            if not isinstance(line, str) or len(line) > LONGEST_REQUIREMENT:
                continue
            try:
                wanted = Requirement(line)
            except ValueError:
                continue
            if wanted.name.lower().replace("_", "-") == "mlops-build":
                return wanted
    return None
