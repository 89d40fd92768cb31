"""What fleet.yaml says now: read from a file or a Git repository, and what it forbids, also while it cannot be read."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlops_build import fleet as fleet_file
from mlops_build.adapters.git.mirror import mirrored
from mlops_build.errors import MlopsBuildError, NotFound, Refused
from mlops_build.fleet import Fleet, frozen

# Where fleet.yaml is, if no option says so.
VARIABLE = "MLOPS_FLEET"
# The environment that does not change while a configured fleet.yaml cannot be read.
PRODUCTION = "production"
GIT = re.compile(r"(?:[a-z]+://|[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:).*")
# More is not a list of repositories and freezes.
MOST_BYTES = 1 << 20


class Frozen(Refused):
    """An environment does not change now, except to go back."""


@dataclass(frozen=True)
class Rules:
    """fleet: None if none is configured, or it cannot be read; then `error` says why."""

    fleet: Fleet | None = None
    error: MlopsBuildError | None = None

    def freeze(self, env: str, now: datetime | None = None) -> str | None:
        """Why an environment must not change now, except to go back; None if it may."""
        if self.error and env == PRODUCTION:
            return f"whether {env} is frozen is not known: {self.error.message}"
        freeze = frozen(self.fleet, env, now or datetime.now(UTC)) if self.fleet else None
        return f"frozen until {freeze.until.isoformat()}: {freeze.why}" if freeze else None

    def without_effect(self, environments: Collection[str | None]) -> str:
        """A remark on the freezes of environments that no service has; "" without one."""
        unknown = fleet_file.without_effect(self.fleet, environments, datetime.now(UTC)) if self.fleet else []
        return f"{fleet_file.FILE} freezes {', '.join(unknown)}, but no examined service has such an environment" if unknown else ""

    def check(self, env: str, *, goes_back: bool) -> None:
        """Raises Frozen if the environment must not change, unless the release goes back."""
        if not goes_back and (why := self.freeze(env)):
            raise Frozen(f"{env} is not changed: {why}", remedy=f"wait, or change {fleet_file.FILE}; going back is always possible")


NONE = Rules()


def configured(where: str | None = None) -> str | None:
    """Where the rules are: `where`, else where MLOPS_FLEET says; None if none are configured."""
    return where or os.environ.get(VARIABLE) or None


def read(where: str | None = None, *, kept: Path | None = None) -> Rules:
    """The rules in a file or a Git repository (`URL` or `URL#BRANCH`); default: where MLOPS_FLEET says. Raises nothing.

    kept: a copy of an earlier time, which counts if none is configured, or it cannot be read.
    """
    where = configured(where)
    try:
        if where:
            return Rules(fleet_file.parse(text_of(where)))
    except MlopsBuildError as error:
        if kept is None or not kept.is_file():
            return Rules(error=error)
    return read(str(kept)) if kept is not None and kept.is_file() else Rules()


def text_of(where: str) -> str:
    """The text of fleet.yaml in a file or a Git repository. Raises NotFound, FleetError, UsageError, RemoteUnreachable."""
    try:
        is_repository = GIT.fullmatch(where) or Path(where.partition("#")[0]).is_dir()
        content = _from_git(where) if is_repository else _from_file(Path(where))
        if len(content) > MOST_BYTES:
            raise fleet_file.FleetError(f"{where}: more than {MOST_BYTES} bytes", remedy=f"see {fleet_file.REFERENCE}")
        return content.decode()
    except OSError as error:
        raise NotFound(f"{where} cannot be read: {error.strerror}", remedy=f"check {VARIABLE} or --fleet") from None
    except UnicodeDecodeError:
        raise fleet_file.FleetError(f"{where} is not UTF-8 text", remedy="save it as UTF-8") from None


def _from_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _from_git(where: str) -> bytes:
    url, _, branch = where.partition("#")
    with mirrored(url if GIT.fullmatch(url) else str(Path(url).absolute()), branch or "main") as mirror:
        content = mirror.read(mirror.fetch(), fleet_file.FILE)
    if content is None:
        raise NotFound(f"{where} has no {fleet_file.FILE}", remedy="commit it at the top of the repository, or give URL#BRANCH")
    return content
