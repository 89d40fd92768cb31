"""Reconcile: the registry's alias map is the desired state, the release records in Git are the actual state; commit the difference.

This needs no events: each pass brings every repository to the desired state, and writes nothing without a difference. Several bridges can
run at once: they create the same commit, and one of the pushes succeeds.
"""

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlops_build.adapters.git.command import PushRejected, masked
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.githost import PullRequest
from mlops_build.adapters.registry import Registry, UnknownVersion
from mlops_build.errors import MlopsBuildError, NotFound
from mlops_build.fleet.rules import NONE, Frozen, Rules
from mlops_build.release import failure, gate
from mlops_build.release import hold as holds
from mlops_build.release.changes import shown
from mlops_build.release.decide import Aliases, decide, may_differ, numbers
from mlops_build.release.failure import Failure
from mlops_build.release.land import Requests, branch_of, is_declined, look, propose, withdraw
from mlops_build.release.promotion import Incomplete
from mlops_build.release.record import Record
from mlops_build.release.restore import NothingBefore, restore
from mlops_build.release.tree import NoService, Tree
from mlops_build.release.write import change, signer


class ReleasedVersionGone(NotFound):
    """A version that Git releases no longer exists in the registry."""


State = Literal[
    "released",
    "requested",
    "would release",
    "rolled back",
    "would roll back",
    "unchanged",
    "held",
    "frozen",
    "reverted",
    "declined",
    "waiting",
    "nothing promoted yet",
    "failed",
]
WOULD: Mapping[State, State] = {"released": "would release", "rolled back": "would roll back"}
# The states in which Git keeps what it has.
KEEPS = ("held", "frozen", "reverted", "declined", "waiting", "nothing promoted yet", "failed")


@dataclass(frozen=True)
class Outcome:
    """The result of a pass for an environment of a repository; environment is None if the whole repository failed.

    before, after: models and versions, as text. commit: the release's, if there is one. why: it is held, frozen, rolled back and so on.
    error: set if it failed. remarks: limits of the check of its manifests, and ignored findings. changes: those besides the
    models' versions. request: the pull request that asks for it, or that a person closed. wanted: where the aliases point at. host: the
    address of the environment. models: of the service.
    """

    repository: str
    environment: str | None
    state: State
    before: str | None = None
    after: str | None = None
    commit: str | None = None
    why: str | None = None
    remarks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    error: MlopsBuildError | None = None
    request: PullRequest | None = None
    wanted: str | None = None
    host: str | None = None
    models: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.repository} {self.environment}" if self.environment else self.repository

    def __str__(self) -> str:
        detail = {"released": shown(self.before, self.after or "", self.changes), "unchanged": self.after}
        detail["would release"] = detail["requested"] = detail["released"]
        detail["rolled back"] = detail["would roll back"] = f"{self.before} → {self.after}: {self.why}"
        request = self.request.url if self.request else None
        commit = f"commit {self.commit[:12]}" if self.commit else None
        error = self.error.message.splitlines()[0] if self.error else None
        kept = f"Git keeps {self.before}" if self.before and self.state in KEEPS else None
        return "  ".join(part for part in (self.where, self.state, detail.get(self.state, self.why), commit, request, error, kept) if part)

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "error"}
        document["hold"] = self.why if self.state == "held" else None
        document["request"] = self.request.as_json() if self.request else None
        if self.error:
            document["error"] = {"message": self.error.message, "remedy": self.error.remedy, "exit_code": self.error.exit_code}
        return document


def once(
    urls: Iterable[str],
    registry: Registry,
    *,
    branch: str = "main",
    rules: Rules = NONE,
    dry_run: bool = False,
    despite_findings: bool = False,
) -> list[Outcome]:
    """Run a pass over these repositories with a single query of the alias map. A failure of one does not stop the others.

    A release with findings of `verify` is reported and not written, unless it returns to older versions or despite_findings is set.

    Raises RegistryUnreachable, because the alias map is required.
    """
    aliases = registry.alias_map()
    outcomes: list[Outcome] = []
    for url in dict.fromkeys(urls):
        outcomes += repository(url, branch, registry, aliases, rules, dry_run=dry_run, despite_findings=despite_findings)
    return outcomes


def repository(
    url: str,
    branch: str,
    registry: Registry,
    aliases: Aliases,
    rules: Rules = NONE,
    *,
    dry_run: bool = False,
    despite_findings: bool = False,
) -> list[Outcome]:
    """Reconcile a repository: returns an outcome for each environment, or a single one if the whole repository failed.

    aliases: of all models, read before. They only tell whether there may be a difference: a release is made from the aliases of its
    models that are read after the head of the branch, or this bridge could take back what another one has released meanwhile.
    """
    address = masked(url)
    outcomes: list[Outcome] = []
    requests: Requests | None = None
    tried = ""

    def make(head: str, *, every: bool = False) -> str | None:
        nonlocal requests, tried
        tree, tried = Tree.at(mirror, head), head
        requests = look(mirror, tree.service, url=url, target=branch, head=head, every=every)
        now = aliases
        if any(may_differ(mirror, tree, env, aliases) or _failure(tree, env, aliases, registry) for env in tree.service.environments):
            now = {model.name: _aliases(registry, model.name) for model in tree.service.models}
        outcomes[:], commit = on_top(mirror, tree, address, now, registry, rules, requests, despite_findings=despite_findings)
        return commit

    try:
        with tempfile.TemporaryDirectory(prefix="mlops-build-bridge-") as scratch:
            mirror = Mirror(url, branch, Path(scratch))
            if dry_run:
                make(mirror.fetch())
                return [_would(mirror, requests, outcome) for outcome in outcomes]
            try:
                mirror.publish(make)
            except PushRejected as error:
                asked = requests.envs if requests else ()
                if requests is None or mirror.fetch() != tried:
                    raise
                # The host has a rule against the push.
                make(tried, every=True)
                why = (f"{error.message}: it needs a pull request",)
                outcomes[:] = [replace(each, remarks=each.remarks + why) if each.environment not in asked else each for each in outcomes]
            return [_by_request(mirror, requests, outcome) for outcome in outcomes]
    except MlopsBuildError as error:
        return [Outcome(address, None, "failed", error=error)]


def on_top(
    mirror: Mirror,
    tree: Tree,
    address: str,
    aliases: Aliases,
    registry: Registry,
    rules: Rules = NONE,
    requests: Requests | None = None,
    *,
    despite_findings: bool = False,
) -> tuple[list[Outcome], str | None]:
    """The outcome of each environment, and the last of the new commits to push (None: no difference).

    requests: for the environments that land by request; each of their commits is on top of the head alone.
    """
    outcomes: list[Outcome] = []
    tip = tree.commit
    for env in tree.service.environments:
        is_pushed = requests is None or env not in requests.envs
        parent = tip if is_pushed else tree.commit
        outcome = _environment(mirror, parent, tree, env, address, aliases, registry, rules, despite_findings)
        tip = outcome.commit or tip if is_pushed else tip
        wanted = ", ".join(f"{name} {number}" for name, number in numbers(tree.service, env, aliases))
        models = tuple(model.name for model in tree.service.models)
        outcomes.append(replace(outcome, wanted=wanted or None, host=tree.service.environment(env).host, models=models))
    return outcomes, tip if tip != tree.commit else None


def _environment(
    mirror: Mirror,
    parent: str,
    tree: Tree,
    env: str,
    address: str,
    aliases: Aliases,
    registry: Registry,
    rules: Rules,
    despite_findings: bool,
) -> Outcome:
    there = tree.record(env)
    before = str(there) if there and there.models else None
    if hold := holds.read(tree.files.get(holds.file(env)), env, tree.service):
        return Outcome(address, env, "held", before, before, why=hold)
    try:
        if not numbers(tree.service, env, aliases):
            gone = _gone(there, registry)
            return Outcome(address, env, "failed" if gone else "nothing promoted yet", before, before, error=gone)
        if failed := _failure(tree, env, aliases, registry):
            return _rolled_back(mirror, parent, env, address, str(before), failed)
        if not may_differ(mirror, tree, env, aliases):
            return Outcome(address, env, "unchanged", before, before)
        decision = decide(mirror, tree, env, aliases, registry, despite_findings=despite_findings)
        after = str(decision.wanted.record)
        if decision.state == "reverted":
            why = f"a person took {after} back in Git: it stays until the next promotion or move of the alias"
            return Outcome(address, env, "reverted", before, before, why=why)
        made = change(mirror, parent, tree, decision.wanted, registry) if decision.state == "release" else None
        if made is None:
            return Outcome(address, env, "unchanged", before, after)
        checked = gate.check(mirror, made.commit, there, decision.wanted.record, rules, despite_findings=despite_findings)
        remarks = [*decision.remarks, *checked]
    except Frozen as error:
        return Outcome(address, env, "frozen", before, before, why=error.message)
    except Incomplete as error:
        if error.may_still_move:
            return Outcome(address, env, "waiting", before, before, why=error.message)
        return Outcome(address, env, "failed", before, error=error)
    except MlopsBuildError as error:
        return Outcome(address, env, "failed", before, error=error)
    return Outcome(address, env, "released", before, after, made.commit, remarks=tuple(remarks), changes=made.changes)


def _failure(tree: Tree, env: str, aliases: Aliases, registry: Registry) -> Failure | None:
    """The failed deployment of the release in Git; None if there was none, or a person has chosen another release since."""
    there = tree.record(env)
    if there is None or numbers(tree.service, env, aliases) != there.numbers:
        return None
    return failure.of_release(registry, aliases, there, tree.release(env))


def _rolled_back(mirror: Mirror, parent: str, env: str, address: str, before: str, failed: Failure) -> Outcome:
    """Restore the previous release, with a hold. Every bridge creates the same commit. Raises NothingBefore, RemoteUnreachable."""
    mirror.deepen()
    why = f"the deployment of {before} failed: {failed.reason}"
    author = signer(max(mirror.committed_at(parent), failed.seconds))
    try:
        restored = restore(mirror, parent, env, why[: holds.WHY_LENGTH], author=author)
    except NothingBefore as error:
        raise NothingBefore(f"{why}; {error.message}", remedy=f"mlops-build promote MODEL VERSION --to {env}") from None
    return Outcome(address, env, "rolled back", before, str(restored.after), restored.commit, why=restored.hold)


def _by_request(mirror: Mirror, requests: Requests | None, outcome: Outcome) -> Outcome:
    """The outcome after the environment's pull request was opened, updated or closed, if there is a Git host."""
    env = outcome.environment
    if requests is None or env is None:
        return outcome
    # A merge would change what a person holds.
    if outcome.state in ("unchanged", "held") or (outcome.commit and env not in requests.envs):
        reason = f"{env} is held" if outcome.state == "held" else f"{requests.target} has what {env} should run"
        try:
            withdraw(mirror, requests, env, reason)
        except MlopsBuildError as error:
            return replace(outcome, remarks=(*outcome.remarks, f"its request may still be open: {error.message}"))
    if outcome.commit is None or env not in requests.envs:
        return outcome
    try:
        proposal = propose(mirror, requests, env, outcome.commit)
    except PushRejected:
        return replace(outcome, state="waiting", commit=None, why=f"another bridge has just changed the branch {branch_of(env)}")
    except MlopsBuildError as error:
        return replace(outcome, state="failed", commit=None, error=error)
    if proposal.state == "declined":
        return _declined(outcome, proposal.request)
    if proposal.state == "merged":
        return replace(outcome, state="unchanged", commit=None)
    return replace(outcome, state="requested", request=proposal.request)


def _declined(outcome: Outcome, request: PullRequest | None) -> Outcome:
    why = f"a person closed the request for {outcome.after}: that stays until the next promotion or move of the alias"
    return replace(outcome, state="declined", commit=None, why=why, request=request)


def _aliases(registry: Registry, model: str) -> Mapping[str, int]:
    try:
        return registry.aliases(model)
    except UnknownVersion:
        return {}


def _gone(there: Record | None, registry: Registry) -> MlopsBuildError | None:
    """The error if a released version no longer exists: MLflow then removes its aliases, too."""
    for model in there.models if there else ():
        try:
            registry.version(model.name, model.version)
        except UnknownVersion as error:
            return ReleasedVersionGone(
                f"{model} was deleted or renamed in MLflow, but Git releases it: {error.message}",
                remedy=f"mlops-build promote {model.name} VERSION --to ENV, with a version that exists",
            )
    return None


def _would(mirror: Mirror, requests: Requests | None, outcome: Outcome) -> Outcome:
    """The outcome of a dry run: without its commit, which is not kept, and with the open request of the environment."""
    state = WOULD.get(outcome.state)
    planned = replace(outcome, state=state, commit=None) if state else outcome
    env = outcome.environment
    if requests is None or env is None or not requests.branches.get(env):
        return planned
    try:
        request = requests.find(env)
    except MlopsBuildError as error:
        return replace(planned, remarks=(*planned.remarks, f"its request is not known: {error.message}"))
    if request and outcome.commit and env in requests.envs and is_declined(mirror, requests, request, env, outcome.commit):
        return _declined(planned, request)
    return replace(planned, request=request) if request and request.state == "open" else planned


def services(outcomes: Iterable[Outcome], discovered: Collection[str]) -> list[Outcome]:
    """The outcomes without those of discovered repositories (their addresses) that have no service."""
    return [outcome for outcome in outcomes if not (outcome.repository in discovered and isinstance(outcome.error, NoService))]


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 without failures; the code of the failures if all have the same; else 1."""
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error}
    return codes.pop() if len(codes) == 1 else int(bool(codes))
