"""The mark of a failed deployment: `ci deploy` puts it on the versions of a release, and a bridge then rolls the release back in Git.

The mark is a tag with the details, and an alias, which tells a bridge that there is a mark without another request: it reads all aliases.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.model.identity import DIGEST
from mlops_build.release import record as records
from mlops_build.release.record import Record

REASON_LENGTH = 200
# How far a clock may be ahead: the commit that restores a release has the time of the mark.
AHEAD_SECONDS = 600


@dataclass(frozen=True)
class Failure:
    """A deployment that failed. at: ISO 8601 with the time zone. release: its digest, which a later one does not have."""

    at: str
    reason: str
    release: str

    @property
    def seconds(self) -> int:
        """The time, as Unix time in seconds."""
        return int(datetime.fromisoformat(self.at).timestamp())

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def tag(env: str) -> str:
    """The name of the tag."""
    return f"mlops_build.failed.{env}"


def alias(env: str) -> str:
    """The name of the alias. No environment has an underscore in its name."""
    return f"failed_{env}"


def mark(registry: Registry, record: Record, made: Failure) -> None:
    """Mark the versions of a release. Raises the errors of the registry."""
    for model in record.models:
        registry.set_tag(model.name, model.version, tag(record.environment), str(made))
        registry.set_alias(model.name, alias(record.environment), model.version)


def forget(registry: Registry, version: RegisteredVersion, env: str) -> None:
    """Remove the mark of a version, if it has one: it may be released to `env` again."""
    if tag(env) not in version.tags:
        return
    registry.delete_tag(version.name, version.version, tag(env))
    if registry.aliases(version.name).get(alias(env)) == version.version:
        registry.delete_alias(version.name, alias(env))


def of_release(registry: Registry, aliases: Mapping[str, Mapping[str, int]], record: Record, files: Mapping[str, bytes]) -> Failure | None:
    """The failed deployment of exactly this release, whose files are `files`; None if there was none, or a version's mark was removed.

    aliases: the registry's.
    """
    env, made = record.environment, None
    for model in record.models:
        if aliases.get(model.name, {}).get(alias(env)) != model.version:
            return None
        made = failed(registry.version(model.name, model.version), env)
        if made is None or made.release != records.digest(files):
            return None
    return made


def short(reason: str) -> str:
    """A reason as one short line."""
    line = " ".join("".join(character if character.isprintable() else " " for character in reason).split())
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"


def failed(version: RegisteredVersion, env: str) -> Failure | None:
    """The failed deployment of a version to `env`; None without a mark, or with one that mlops-build cannot have written."""
    try:
        made = Failure(**json.loads(version.tags.get(tag(env), "")))
        valid = 0 < made.seconds < time.time() + AHEAD_SECONDS and datetime.fromisoformat(made.at).tzinfo and DIGEST.fullmatch(made.release)
        return made if valid and made.reason and made.reason == short(made.reason) else None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
