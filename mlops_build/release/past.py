"""The earlier releases of an environment, from Git's history alone."""

import re
from dataclasses import dataclass
from functools import cached_property

from mlops_build.adapters.git.objects import Objects
from mlops_build.model.version import ModelVersion
from mlops_build.release import record as records
from mlops_build.release.promotion import Promotion
from mlops_build.release.tree import recorded

# How many records are read to find a version that was released before.
MOST = 200


def values(message: str, key: str) -> list[str]:
    """The values of a trailer in the message of a release, in their order.

    The trailers are the last paragraph that begins with a model. Others have the text of a person, who can write `Version: 2` there.
    """
    trailers = [paragraph for paragraph in message.split("\n\n") if paragraph.lstrip("\n").startswith("Model: ")][-1:]
    return [value.strip() for value in re.findall(rf"^{key}: (.*)$", "".join(trailers), re.MULTILINE)]


@dataclass(frozen=True)
class Commit:
    """A commit that changed a release. at: Unix time in seconds."""

    id: str
    at: int
    author: str
    message: str

    @property
    def subject(self) -> str:
        return self.message.partition("\n")[0]

    @property
    def numbers(self) -> tuple[tuple[str, int], ...]:
        """Each model with its version, as its trailers say."""
        names, versions = self.values("Model"), self.values("Version")
        return tuple((name, int(version)) for name, version in zip(names, versions, strict=False) if version.isdecimal())

    @property
    def follows_aliases(self) -> bool:
        """Whether a bridge or `mlops-build release` made it; a rollback from Git has no alias."""
        return bool(self.numbers and self.values("Alias"))

    def values(self, key: str) -> list[str]:
        return values(self.message, key)


class Past:
    """The history of an environment's release up to `commit`; it is fetched when something of it is asked for."""

    def __init__(self, objects: Objects, commit: str, env: str) -> None:
        self._objects, self._commit, self._env = objects, commit, env

    @cached_property
    def commits(self) -> list[Commit]:
        """The commits that changed the release, newest first. Raises RemoteUnreachable."""
        self._objects.deepen()
        return [Commit(*entry) for entry in self._objects.messages(self._commit, records.folder(self._env))]

    @cached_property
    def released(self) -> tuple[tuple[str, int], ...]:
        """Each model with its version in the newest release from the aliases; empty if there is none."""
        return next((commit.numbers for commit in self.commits if commit.follows_aliases), ())

    @cached_property
    def _promotions(self) -> set[str]:
        return {promotion for commit in self.commits for promotion in commit.values("Promotion")}

    def carries(self, promotion: Promotion) -> bool:
        """Whether Git has a promotion: by its id, or because the present record has its list (an older bridge wrote no id)."""
        there = recorded(self._objects, self._commit, self._env)
        return promotion.id in self._promotions or (there is not None and promotion.is_complete(dict(there.numbers)))

    def has_released(self, model: ModelVersion) -> bool:
        """Whether a record of this environment had exactly these files of the version."""
        for commit in self.commits[:MOST]:
            record = recorded(self._objects, commit.id, self._env)
            if record is not None and any(entry == model for entry in record.models):
                return True
        return False
