"""Reconcile: the registry's alias map is the desired state, the release records in Git are the actual state; commit the difference.

This needs no events: each pass brings every repository to the desired state, and writes nothing without a difference. Several bridges can
run at once: they create the same commit, and one of the pushes succeeds.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Literal

from mlops_build.adapters.git.command import PushRejected, masked
from mlops_build.adapters.git.mirror import Mirror, mirrored
from mlops_build.adapters.githost import Checks, PullRequest
from mlops_build.adapters.registry import Registry, UnknownVersion
from mlops_build.errors import Failed, MlopsBuildError, NotFound
from mlops_build.fleet.rules import NONE, Frozen, Rules
from mlops_build.release import failure, gate
from mlops_build.release import hold as holds
from mlops_build.release.changes import shown
from mlops_build.release.decide import Aliases, Moving, aliases_of, decide, may_differ, numbers
from mlops_build.release.failure import Failure
from mlops_build.release.land import Requests, branch_of, is_declined, look, propose, withdraw
from mlops_build.release.promotion import Incomplete
from mlops_build.release.record import Record
from mlops_build.release.restore import NothingBefore, restore
from mlops_build.release.tree import NoService, Tree
from mlops_build.release.write import change, signer

log = logging.getLogger(__name__)

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
    models' versions. request: the pull request that asks for it, or that a person closed. checks: the result of its builds, read by a dry
    run. wanted: where the aliases point at. host: the address of the environment. models: of the service. there: the release in Git.
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
    checks: Checks | None = None
    wanted: str | None = None
    host: str | None = None
    models: tuple[str, ...] = ()
    there: Record | None = None

    @property
    def where(self) -> str:
        return f"{self.repository} {self.environment}" if self.environment else self.repository

    @property
    def problem(self) -> str:
        """The error's message, without the address that `where` begins with."""
        return self.error.message.removeprefix(f"{self.repository} ") if self.error else ""

    def __str__(self) -> str:
        detail = {"released": shown(self.before, self.after or "", self.changes), "unchanged": self.after}
        detail["would release"] = detail["requested"] = detail["released"]
        detail["rolled back"] = detail["would roll back"] = f"{self.before} → {self.after}: {self.why}"
        request = self.request.url if self.request else None
        commit = f"commit {self.commit[:12]}" if self.commit else None
        error = self.problem.splitlines()[0] if self.error else None
        kept = f"Git keeps {self.before}" if self.before and self.state in KEEPS else None
        return "  ".join(part for part in (self.where, self.state, detail.get(self.state, self.why), commit, request, error, kept) if part)

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {name: value for name, value in vars(self).items() if name not in ("error", "there")}
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
    discovered: Collection[str] = (),
) -> list[Outcome]:
    """Run a pass over these repositories with a single query of the alias map. A failure of one does not stop the others.

    A release with findings of `verify` is reported and not written, unless it returns to older versions or despite_findings is set.
    discovered: the repositories that may have no service.

    Raises RegistryUnreachable, because the alias map is required.
    """
    aliases = registry.alias_map()
    options = {"dry_run": dry_run, "despite_findings": despite_findings}
    passes = [repository(url, branch, registry, aliases, rules, is_optional=url in discovered, **options) for url in dict.fromkeys(urls)]
    return list(chain.from_iterable(passes))


def repository(
    url: str,
    branch: str,
    registry: Registry,
    aliases: Aliases,
    rules: Rules = NONE,
    *,
    dry_run: bool = False,
    despite_findings: bool = False,
    is_optional: bool = False,
) -> list[Outcome]:
    """Reconcile a repository: returns an outcome for each environment, or a single one if the whole repository failed.

    is_optional: it may have no service, and then has no outcome.

    aliases: of all models, read before. They only tell whether there may be a difference: a release is made from the aliases of its
    models that are read after the head of the branch, or this bridge could take back what another one has released meanwhile.
    """
    address = masked(url)
    attempts: list[Attempt] = []

    def make(head: str, *, every: bool = False) -> str | None:
        tree = Tree.at(mirror, head)
        requests = look(mirror, tree.service, url=url, target=branch, head=head, every=every)
        attempt = Attempt(mirror, tree, address, aliases, registry, rules, requests, despite_findings)
        if any(may_differ(mirror, tree, env, aliases) or attempt.failure(env) for env in tree.service.environments):
            attempt = replace(attempt, aliases=aliases_of(registry, tree.service))
        attempts.append(attempt)
        return next((commit for outcome in reversed(attempt.outcomes) if (commit := attempt.pushed(outcome))), None)

    failure: MlopsBuildError
    try:
        with mirrored(url, branch) as mirror:
            if dry_run:
                make(mirror.fetch())
                return [attempts[-1].planned(outcome) for outcome in attempts[-1].outcomes]
            try:
                mirror.publish(make)
            except PushRejected as error:
                tried = attempts[-1]
                if tried.requests is None or mirror.fetch() != tried.tree.commit:
                    raise
                # The host has a rule against the push.
                make(tried.tree.commit, every=True)
                outcomes = [attempts[-1].landed(outcome) for outcome in attempts[-1].outcomes]
                why = f"{error.message}: it needs a pull request"
                return [replace(each, remarks=(*each.remarks, why)) if tried.pushes(each.environment) else each for each in outcomes]
            return [attempts[-1].landed(outcome) for outcome in attempts[-1].outcomes]
    except MlopsBuildError as error:
        if is_optional and isinstance(error, NoService):
            return []
        failure = error
    except Exception as error:  # a defect: the other repositories go on
        log.exception("%s", address)
        failure = Failed(f"{type(error).__name__}: {error}"[:300], remedy="this is a defect of mlops-build: report it with the log")
    return [Outcome(address, None, "failed", error=failure, models=attempts[-1].models if attempts else ())]


@dataclass(frozen=True)
class Attempt:
    """An attempt to release the environments of a repository on top of a head of its branch.

    requests: for the environments that land by request; None without a Git host.
    """

    mirror: Mirror
    tree: Tree
    address: str
    aliases: Aliases
    registry: Registry
    rules: Rules
    requests: Requests | None
    despite_findings: bool

    @property
    def models(self) -> tuple[str, ...]:
        """The service's."""
        return tuple(model.name for model in self.tree.service.models)

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """The outcome of each environment. A commit that is pushed is on top of the one before, a request's on top of the head alone."""
        outcomes: list[Outcome] = []
        tip = self.tree.commit
        for env in self.tree.service.environments:
            outcome = self._outcome(env, tip if self.pushes(env) else self.tree.commit)
            tip = self.pushed(outcome) or tip
            outcomes.append(outcome)
        return outcomes

    def pushes(self, env: str | None) -> bool:
        """Whether releases of an environment land by push."""
        return self.requests is None or env not in self.requests.envs

    def pushed(self, outcome: Outcome) -> str | None:
        """The outcome's commit, if it is to be pushed."""
        return outcome.commit if self.pushes(outcome.environment) else None

    def _outcome(self, env: str, parent: str) -> Outcome:
        service, there = self.tree.service, self.tree.record(env)
        wanted = ", ".join(f"{name} {number}" for name, number in numbers(service, env, self.aliases))
        before = str(there) if there and there.models else None
        host = service.environment(env).host
        kept = Outcome(self.address, env, "unchanged", before, before, wanted=wanted or None, host=host, models=self.models, there=there)
        if hold := self.tree.hold(env):
            return replace(kept, state="held", why=hold)
        try:
            return self._compared(env, parent, kept)
        except Frozen as error:
            return replace(kept, state="frozen", why=error.message)
        except MlopsBuildError as error:
            if isinstance(error, Moving) or (isinstance(error, Incomplete) and error.may_still_move):
                return replace(kept, state="waiting", why=error.message)
            return replace(kept, state="failed", after=None, error=error)

    def _compared(self, env: str, parent: str, kept: Outcome) -> Outcome:
        """The outcome, from `kept` if nothing changes. Raises MlopsBuildError."""
        mirror, tree, registry, there = self.mirror, self.tree, self.registry, self.tree.record(env)
        if not kept.wanted:
            self._check_versions(there)
            return replace(kept, state="nothing promoted yet")
        if failed := self.failure(env):
            return self._rolled_back(env, parent, kept, failed)
        if not may_differ(mirror, tree, env, self.aliases):
            return kept
        decision = decide(mirror, tree, env, self.aliases, registry, despite_findings=self.despite_findings)
        after = str(decision.wanted.record)
        if decision.state == "reverted":
            why = f"a person took {after} back in Git: it stays until the next promotion or move of the alias"
            return replace(kept, state="reverted", why=why)
        made = change(mirror, parent, tree, decision.wanted, registry) if decision.state == "release" else None
        if made is None:
            return replace(kept, after=after)
        checked = gate.check(mirror, made.commit, there, decision.wanted.record, self.rules, despite_findings=self.despite_findings)
        remarks = (*tree.ignored(), *decision.remarks, *checked)
        return replace(kept, state="released", after=after, commit=made.commit, remarks=remarks, changes=made.changes)

    def _check_versions(self, there: Record | None) -> None:
        """Raises NotFound if a released version no longer exists: MLflow then removes its aliases, too."""
        for model in there.models if there else ():
            try:
                self.registry.version(model.name, model.version)
            except UnknownVersion as error:
                raise NotFound(
                    f"{model} was deleted or renamed in MLflow, but Git releases it: {error.message}",
                    remedy=f"mlops-build promote {model.name} VERSION --to ENV, with a version that exists",
                ) from None

    def failure(self, env: str) -> Failure | None:
        """The failed deployment of the release in Git; None if there was none, or a person has chosen another release since."""
        there = self.tree.record(env)
        if there is None or numbers(self.tree.service, env, self.aliases) != there.numbers:
            return None
        return failure.of_release(self.registry, self.aliases, there, self.tree.release(env))

    def _rolled_back(self, env: str, parent: str, kept: Outcome, failed: Failure) -> Outcome:
        """Restore the previous release, with a hold. Every bridge creates the same commit. Raises NothingBefore, RemoteUnreachable."""
        self.mirror.deepen()
        why = f"the deployment of {kept.before} failed: {failed.reason}"
        author = signer(max(self.mirror.committed_at(parent), failed.seconds))
        try:
            restored = restore(self.mirror, parent, env, why[: holds.WHY_LENGTH], author=author)
        except NothingBefore as error:
            raise NothingBefore(f"{why}; {error.message}", remedy=f"mlops-build promote MODEL VERSION --to {env}") from None
        return replace(kept, state="rolled back", after=str(restored.after), commit=restored.commit, why=restored.hold)

    def landed(self, outcome: Outcome) -> Outcome:
        """The outcome after the environment's pull request was opened, updated or closed."""
        requests, env = self.requests, str(outcome.environment)
        if requests is None:
            return outcome
        # A merge would change what a person holds.
        reasons = {"held": f"{env} is held", "nothing promoted yet": f"no version has the alias of {env}"}
        if outcome.state in ("unchanged", *reasons) or self.pushed(outcome):
            reason = reasons.get(outcome.state, f"{requests.place.target} has what {env} should run")
            try:
                withdraw(self.mirror, requests, env, reason)
            except MlopsBuildError as error:
                return replace(outcome, remarks=(*outcome.remarks, f"its request may still be open: {error.message}"))
        if outcome.commit is None or self.pushes(env):
            return outcome
        try:
            request = propose(self.mirror, requests, env, outcome.commit)
        except PushRejected:
            return replace(outcome, state="waiting", commit=None, why=f"another bridge has just changed the branch {branch_of(env)}")
        except MlopsBuildError as error:
            return replace(outcome, state="failed", commit=None, error=error)
        if request is None:  # it is merged already
            return replace(outcome, state="unchanged", commit=None)
        return _declined(outcome, request) if request.state == "closed" else replace(outcome, state="requested", request=request)

    def planned(self, outcome: Outcome) -> Outcome:
        """The outcome of a dry run: without its commit, which is not kept, and with the open request."""
        state = WOULD.get(outcome.state)
        planned = replace(outcome, state=state, commit=None) if state else outcome
        requests, env = self.requests, str(outcome.environment)
        if requests is None or not requests.branches.get(env):
            return planned
        try:
            request = requests.find(env)
            is_open = request is not None and request.state == "open"
            checks = requests.checks(request.commit) if request and is_open and request.commit else None
        except MlopsBuildError as error:
            return replace(planned, remarks=(*planned.remarks, f"its request is not known: {error.message}"))
        if request and outcome.commit and not self.pushes(env) and is_declined(self.mirror, requests, request, env, outcome.commit):
            return _declined(planned, request)
        return replace(planned, request=request, checks=checks) if is_open else planned


def _declined(outcome: Outcome, request: PullRequest) -> Outcome:
    why = f"a person closed the request for {outcome.after}: that stays until the next promotion or move of the alias"
    return replace(outcome, state="declined", commit=None, why=why, request=request)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 without failures; the code of the failures if all have the same; else 1."""
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error}
    return codes.pop() if len(codes) == 1 else int(bool(codes))
