"""A promotion: one act for all models of a service, stored as a tag on each version that it lists, before the aliases move.

A promotion is complete when the aliases equal its list. Everybody who may write to MLflow can write the tag, so who made it is a claim,
and every value is checked.
"""

import contextlib
import getpass
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlops_build import reason
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.objects import EMAIL
from mlops_build.adapters.registry import RegisteredVersion
from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.model.identity import NAME
from mlops_build.model.version import MOST, BadVersion

PREFIX = "mlops_build.promotion."
ID = re.compile(r"[0-9a-f]{16}")
# How far a clock may be ahead: the commit of a release has the time of its promotion.
AHEAD_SECONDS = 600
# How long the aliases of a promotion may take to move.
PATIENCE_SECONDS = 120
BY = 100  # characters of a name
# Who moved an alias without a promotion.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Promotion:
    """Who moved which models of a service to which versions, when (Unix time in seconds) and why. Raises BadVersion for an invalid value.

    dirty: versions with uncommitted changes are allowed. back: it is a rollback, which does not ask for callers. replaced: another
    promotion came after it, so a later move to its versions is one by hand.
    """

    id: str
    by: str
    at: int
    why: str
    models: Mapping[str, int]
    dirty: bool = False
    back: bool = False
    replaced: bool = False

    def __post_init__(self) -> None:
        checks = {
            "id": isinstance(self.id, str) and ID.fullmatch(self.id),
            "by": isinstance(self.by, str) and 0 < len(self.by) <= BY and self.by.isprintable(),
            "at": type(self.at) is int and self.at >= 0,
            "why": isinstance(self.why, str) and len(self.why) <= reason.LENGTH and (self.why.isprintable() or not self.why),
            "models": isinstance(self.models, dict)
            and self.models
            and all(NAME.fullmatch(name) and type(version) is int and 0 < version <= MOST for name, version in self.models.items()),
            "dirty": isinstance(self.dirty, bool),
            "back": isinstance(self.back, bool),
            "replaced": isinstance(self.replaced, bool),
        }
        if wrong := [key for key, is_right in checks.items() if not is_right]:
            raise BadVersion(f"a promotion's {', '.join(wrong)} is not valid")
        if self.at > time.time() + AHEAD_SECONDS:
            raise BadVersion("its time is ahead of this machine's clock")

    def __str__(self) -> str:
        return f"{self.id} ({', '.join(f'{name} {version}' for name, version in self.models.items())})"

    def is_complete(self, numbers: Mapping[str, int]) -> bool:
        """Whether the aliases (model → version) equal its list."""
        return all(numbers.get(name) == version for name, version in self.models.items())

    def as_text(self) -> str:
        return json.dumps(asdict(self))


class Incomplete(Refused):
    """A promotion of which only some aliases have moved. may_still_move: it was made less than PATIENCE_SECONDS ago."""

    def __init__(self, made: Promotion, env: str, alias: str, numbers: Mapping[str, int]) -> None:
        there = ", ".join(f"{name} {number}" for name, number in numbers.items())
        again = " ".join(f"{name}={version}" for name, version in made.models.items())
        super().__init__(
            f"the promotion {made} is not complete: the aliases {alias} point at {there}",
            remedy=f"mlops-build promote {again} --to {env}, or promote the versions that it should have",
        )
        self.may_still_move = made.at > time.time() - PATIENCE_SECONDS


def tag(alias: str) -> str:
    """The name of the tag for the environments that follow an alias."""
    return f"{PREFIX}{alias}"


def author() -> str:
    """Who promotes: MLOPS_GIT_NAME, else git's name, else the login name. It is a claim."""
    name = getpass.getuser()
    with contextlib.suppress(MlopsBuildError):  # without git
        person = Checkout(Path.cwd()).signs_as()
        if person.email != EMAIL:
            name = f"{person.name} <{person.email}>"
    return "".join(filter(str.isprintable, name)).strip()[:BY] or UNKNOWN


def new(models: Mapping[str, int], by: str, why: str, *, dirty: bool = False, back: bool = False) -> Promotion:
    """A promotion made now."""
    return Promotion(secrets.token_hex(8), by, int(time.time()), why, dict(models), dirty, back)


def parse(version: RegisteredVersion, alias: str) -> Promotion | None:
    """The promotion in a version's tag; None without one. Raises BadVersion if the tag is not valid."""
    text = version.tags.get(tag(alias))
    if not text:
        return None
    try:
        document = json.loads(text)
        known = {name: value for name, value in document.items() if name in Promotion.__dataclass_fields__}
        return Promotion(**known)
    except (ValueError, TypeError, AttributeError, RecursionError, BadVersion) as error:
        raise BadVersion(
            f"{version.shown}: the tag {tag(alias)} is not valid: {str(error)[:80]!a}",
            remedy=f"if no clock is wrong, it was changed in MLflow: mlops-build promote {version.name} {version.version} --to ENV",
        ) from None


def of(versions: Sequence[RegisteredVersion], env: str, alias: str, is_carried: Callable[[Promotion], bool]) -> Promotion | None:
    """The promotion that Git does not have yet and that moved the aliases to these versions; None if they were moved by hand.

    is_carried: whether Git has a promotion already. Later differences from it were made by hand.
    Raises Incomplete if aliases of a promotion have not moved yet, and BadVersion.
    """
    numbers = {version.name: version.version for version in versions}
    tagged = (parse(version, alias) for version in versions)
    made = {promotion.id: promotion for promotion in tagged if promotion and not promotion.replaced}
    pending = [promotion for promotion in made.values() if not is_carried(promotion)]
    for promotion in pending:
        if not promotion.is_complete(numbers):
            raise Incomplete(promotion, env, alias, numbers)
    return max(pending, key=lambda promotion: (promotion.at, promotion.id), default=None)
