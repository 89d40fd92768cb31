"""The mark of a failed deployment: a tag on the versions of a release, set by `ci deploy`, which a bridge then rolls back in Git."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from mlops_build.adapters.registry import RegisteredVersion
from mlops_build.model.identity import DIGEST

REASON_LENGTH = 200


@dataclass(frozen=True)
class Failure:
    """A deployment that failed. at: ISO 8601 with the time zone. release: `digest` of the release, which a later one does not have."""

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


def digest(files: Mapping[str, bytes]) -> str:
    """The digest of a release's files, by name without folder."""
    whole = [f"{hashlib.sha256(content).hexdigest()} {path.rpartition('/')[2]}\n" for path, content in files.items()]
    return f"sha256:{hashlib.sha256(''.join(sorted(whole)).encode()).hexdigest()}"


def short(reason: str) -> str:
    """A reason as one short line."""
    line = " ".join("".join(character if character.isprintable() else " " for character in reason).split())
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"


def failed(version: RegisteredVersion, env: str) -> Failure | None:
    """The failed deployment of a version to `env`; None without a mark, or with one that mlops-build cannot have written."""
    try:
        made = Failure(**json.loads(version.tags.get(tag(env), "")))
        valid = made.seconds > 0 and datetime.fromisoformat(made.at).tzinfo and DIGEST.fullmatch(made.release)
        return made if valid and made.reason and made.reason == short(made.reason) else None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
