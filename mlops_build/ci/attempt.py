"""A deployment that may fail: then the cluster returns to the revision that ran before, and the versions are marked in MLflow.

Git still has the failed release. A bridge sees the mark, restores the previous release there, and holds the environment.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mlops_build.adapters.registry import Registry
from mlops_build.ci import cluster
from mlops_build.ci.cluster import Revision
from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.model.identity import NAME
from mlops_build.release import failure, gate, hold
from mlops_build.release import record as records
from mlops_build.release.failure import Failure
from mlops_build.release.record import Record

# A model version in the annotation of the pods.
MODEL = re.compile(rf"models:/({NAME.pattern})/([1-9][0-9]{{0,9}})(?![0-9])")


class WentBack(Refused):
    """The deployment failed, and the cluster runs the previous release again."""


@dataclass(frozen=True)
class Attempt:
    """A deployment of a record, created before anything is applied. name: of the Deployment. registry: None while MLflow is down.

    seconds: time limit of a rollout. before: the revision that the deployment replaces.
    """

    root: Path
    record: Record
    name: str
    namespace: str
    registry: Registry | None
    seconds: int
    say: Callable[[str], None]
    before: Revision | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", cluster.revision(self.name, self.namespace))

    def is_going_back(self) -> bool:
        """Whether a rollback from Git restored the release, or it has an older version of a model than the cluster, and no newer one."""
        if hold.restores(self.root, self.record.environment, self._files()):
            return True
        running = MODEL.findall(self.before.models or "") if self.before else []
        return gate.is_older({name: int(version) for name, version in running}, dict(self.record.numbers))

    def go_back(self, error: MlopsBuildError) -> MlopsBuildError:
        """Return to the previous revision, and mark the versions. The error to raise: WentBack, or `error` if it stays.

        If the pods did not change, such as in a second deployment of the same release, they run on, and nothing is marked.
        """
        env, before = self.record.environment, self.before
        after = cluster.revision(self.name, self.namespace)
        if before and before.complete and after and after.number == before.number:
            self.say(f"deploy: the pods of {env} are those that ran before, so nothing is rolled back")
            return error
        marked = self._mark(error)
        if not (before and before.complete and before.models):
            self.say(f"deploy: {env} stays at {self.record}: no complete release ran there before")
            return error
        self.say(f"deploy: returning to {before.models}")
        try:
            cluster.undo(self.name, self.namespace, before.number, self.seconds)
        except MlopsBuildError as refusal:
            self.say(f"deploy: {env} could not return to {before.models}: {refusal.message}")
            by_hand = f"kubectl --namespace {self.namespace} rollout undo deployment/{self.name} --to-revision={before.number}"
            error.remedy = f"{by_hand}\n{error.remedy or ''}".rstrip()
            return error
        in_git = "a bridge restores the previous release in Git; without one: " if marked else "restore the previous release in Git, too: "
        return WentBack(
            f"{error.message}\n{env} runs {before.models} again",
            remedy=f"{in_git}mlops-build rollback --from-git {env}",
            details={"runs": before.models, "failed": str(self.record), "marked": marked},
        )

    def _mark(self, error: MlopsBuildError) -> bool:
        """Mark the record's versions as failed in MLflow; returns whether all of them are."""
        if self.registry is None:
            return False
        made = Failure(datetime.now(UTC).isoformat(timespec="seconds"), failure.short(error.message), records.digest(self._files()))
        try:
            failure.mark(self.registry, self.record, made)
        except MlopsBuildError as refusal:
            self.say(f"deploy: the versions are not marked in MLflow: {refusal.message}")
            return False
        return True

    def _files(self) -> dict[str, bytes]:
        """The files of the release."""
        return {path.name: path.read_bytes() for path in (self.root / records.folder(self.record.environment)).iterdir()}
