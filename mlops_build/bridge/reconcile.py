"""Reconcile: the registry's alias map is the desired state, the release records in Git are the actual state; commit the difference.

This needs no events: each pass brings every repository to the desired state, and writes nothing without a difference. Several bridges can
run at once: they create the same commit, and one of the pushes succeeds.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mlops_build.adapters.git.command import masked
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.registry import Registry, UnknownVersion
from mlops_build.errors import MlopsBuildError, NotFound
from mlops_build.release import gate
from mlops_build.release import hold as holds
from mlops_build.release.changes import shown
from mlops_build.release.record import Record
from mlops_build.release.write import Aliases, NothingPromoted, VersionOf, change, desired, pin_at, recorded, service_at
from mlops_build.service import Service


class ReleasedVersionGone(NotFound):
    """A version that Git releases no longer exists in the registry."""


State = Literal["released", "would release", "unchanged", "held", "nothing promoted yet", "failed"]


@dataclass(frozen=True)
class Outcome:
    """The result of a pass for an environment of a repository; environment is None if the whole repository failed.

    before, after: models and versions, as text. commit: the release's, if there is one. error: set if it failed. remarks: limits of the
    check of its manifests, and ignored findings. changes: the changes besides the models' versions.
    """

    repository: str
    environment: str | None
    state: State
    before: str | None = None
    after: str | None = None
    commit: str | None = None
    hold: str | None = None
    remarks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    error: MlopsBuildError | None = None

    @property
    def where(self) -> str:
        return f"{self.repository} {self.environment}" if self.environment else self.repository

    def __str__(self) -> str:
        detail = {"released": shown(self.before, self.after or "", self.changes), "unchanged": self.after, "held": self.hold}
        detail["would release"] = detail["released"]
        commit = f"commit {self.commit[:12]}" if self.commit else None
        error = self.error.message.splitlines()[0] if self.error else None
        kept = f"Git keeps {self.before}" if self.before and self.state in ("held", "nothing promoted yet", "failed") else None
        return "  ".join(part for part in (self.where, self.state, detail.get(self.state), commit, error, kept) if part)

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "error"}
        if self.error:
            document["error"] = {"message": self.error.message, "remedy": self.error.remedy, "exit_code": self.error.exit_code}
        return document


def once(
    urls: Iterable[str], registry: Registry, *, branch: str = "main", dry_run: bool = False, despite_findings: bool = False
) -> list[Outcome]:
    """Run a pass over these repositories with a single query of the alias map. A failure of one does not stop the others.

    A release with findings of `verify` is reported and not written, unless it returns to older versions or despite_findings is set.

    Raises RegistryUnreachable, because the alias map is required.
    """
    aliases = registry.alias_map()
    version_of = cache(registry.version)

    def aliases_now(model: str) -> Mapping[str, int]:
        try:
            return registry.aliases(model)
        except UnknownVersion:
            return {}

    outcomes: list[Outcome] = []
    for url in dict.fromkeys(urls):
        outcomes += repository(url, branch, aliases, aliases_now, version_of, dry_run=dry_run, despite_findings=despite_findings)
    return outcomes


def repository(
    url: str,
    branch: str,
    aliases: Aliases,
    aliases_now: Callable[[str], Mapping[str, int]],
    version_of: VersionOf,
    *,
    dry_run: bool = False,
    despite_findings: bool = False,
) -> list[Outcome]:
    """Reconcile a repository: returns an outcome for each environment, or a single one if the whole repository failed.

    aliases: of all models, read before. They only tell whether there may be a difference: a release is made from `aliases_now` of its
    models, read after the head of the branch, or this bridge could take back what another one has released meanwhile.
    """
    address = masked(url)
    outcomes: list[Outcome] = []

    def make(head: str) -> str | None:
        outcomes[:], commit = on_top(mirror, head, address, aliases, version_of, despite_findings=despite_findings)
        if commit is None:
            return None
        now = {model.name: aliases_now(model.name) for model in service_at(mirror, head).models}
        outcomes[:], commit = on_top(mirror, head, address, now, version_of, despite_findings=despite_findings)
        return commit

    try:
        with tempfile.TemporaryDirectory(prefix="mlops-build-bridge-") as scratch:
            mirror = Mirror(url, branch, Path(scratch))
            if dry_run:
                make(mirror.fetch())
                return [_would(outcome) for outcome in outcomes]
            mirror.publish(make)
    except MlopsBuildError as error:
        return [Outcome(address, None, "failed", error=error)]
    return outcomes


def on_top(
    mirror: Mirror, head: str, address: str, aliases: Aliases, version_of: VersionOf, *, despite_findings: bool = False
) -> tuple[list[Outcome], str | None]:
    """The outcome of each environment, and the last of the new commits (None: no difference)."""
    service = service_at(mirror, head)
    outcomes: list[Outcome] = []
    tip = head
    for env in service.environments:
        outcome = _environment(mirror, tip, service, env, address, aliases, version_of, despite_findings)
        tip = outcome.commit or tip
        outcomes.append(outcome)
    return outcomes, tip if tip != head else None


def _environment(
    mirror: Mirror,
    parent: str,
    service: Service,
    env: str,
    address: str,
    aliases: Aliases,
    version_of: VersionOf,
    despite_findings: bool,
) -> Outcome:
    there = recorded(mirror, parent, env)
    before = str(there) if there and there.models else None
    if hold := holds.of(mirror, parent, env, service):
        return Outcome(address, env, "held", before, before, hold=hold)
    try:
        wanted = desired(service, env, aliases, version_of, pin_at(mirror, parent))
        made = change(mirror, parent, service, wanted)
        if made is None:
            return Outcome(address, env, "unchanged", before, str(wanted.record))
        remarks = gate.check(mirror, made.commit, there, wanted.record, despite_findings=despite_findings)
    except NothingPromoted:
        gone = _gone(there, version_of)
        return Outcome(address, env, "failed" if gone else "nothing promoted yet", before, before, error=gone)
    except MlopsBuildError as error:
        return Outcome(address, env, "failed", before, error=error)
    return Outcome(address, env, "released", before, str(wanted.record), made.commit, remarks=tuple(remarks), changes=made.changes)


def _gone(there: Record | None, version_of: VersionOf) -> MlopsBuildError | None:
    """The error if a released version no longer exists: MLflow then removes its aliases, too."""
    if there is None:
        return None
    for model in there.models:
        try:
            version_of(model.name, model.version)
        except UnknownVersion as error:
            return ReleasedVersionGone(
                f"{model} was deleted or renamed in MLflow, but {there.environment} is released with it: {error.message}",
                remedy=f"mlops-build promote {model.name} VERSION --to {there.environment}",
            )
    return None


def _would(outcome: Outcome) -> Outcome:
    """The outcome of a dry run, without its commit, which is not kept."""
    if outcome.state != "released":
        return outcome
    return replace(outcome, state="would release", commit=None)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 without failures; the code of the failures if all have the same; else 1."""
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error}
    return codes.pop() if len(codes) == 1 else int(bool(codes))
