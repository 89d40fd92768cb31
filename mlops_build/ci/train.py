"""`ci train`: train with the commit on its own branch `retrain/N`, and open a pull request to the original branch.

N is the number of the build. A second run with the same N continues the first one: it uses the pushed commit, the registered version and
the open pull request. The target branch is never pushed.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlops_build import service as service_file
from mlops_build import tracking
from mlops_build.adapters import dvc, githost
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.command import checked_ref
from mlops_build.adapters.githost import PullRequest
from mlops_build.errors import NotFound, Refused, UsageError
from mlops_build.release.alias import NextStep, next_step
from mlops_build.service import Service
from mlops_build.training import pipeline
from mlops_build.training.pipeline import Trained

OpenPullRequest = Callable[..., PullRequest | None]
PREFIX = "retrain/"
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class OtherTraining(Refused):
    """The branch with this number has other commits."""


def run(root: Path, *, build: str | None, force: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Train; returns {"models": […], "warnings": […], "branch": name or None, "pull_request": … or None}.

    build: N; default: MLOPS_CI_BUILD, else the number of the current branch, else the next free one.

    Raises OtherTraining, and the errors of the pipeline and of the Git host's API. Uncommitted changes, a used number and a missing token
    are detected before the training, which may take hours.
    """
    service = service_file.load(root)
    checkout = Checkout.find(root)
    if checkout is None or checkout.head() is None:
        raise NotFound(
            f"{root} has no Git commit yet",
            remedy="run git init, git add --all, git commit: a version records the commit that it was trained from",
        )
    target = _target(checkout)
    pipeline.check_dirt(root, allow_dirty=False)
    branch = f"{PREFIX}{_number(build, checkout)}"
    open_pull_request = _check_host(service, checkout)
    say(f"train: from {target}, onto {branch}")
    _resume(checkout, root, branch, say)
    outcome = pipeline.train(root, say=say, force=force, branch=branch, pull=True)
    document: dict[str, Any] = {"models": [trained.as_json() for trained in outcome.models], "warnings": list(outcome.warnings)}
    if checkout.branch() != branch:
        return {**document, "branch": None, "pull_request": None}
    opened = _open_pull_request(service, checkout, root, open_pull_request, branch, target, outcome.models, say)
    return {**document, "branch": branch, "pull_request": opened.as_json() if opened else None}


def _target(checkout: Checkout) -> str:
    """The branch to merge the results into: the current branch, or the original branch of a retrain branch."""
    current = checkout.branch()
    if not current.startswith(PREFIX):
        return current
    return checked_ref(os.environ.get("MLOPS_GIT_BRANCH") or "main")


def _number(build: str | None, checkout: Checkout) -> int:
    named = build or os.environ.get("MLOPS_CI_BUILD")
    if named:
        if not NUMBER.fullmatch(named):
            raise UsageError(f"{named[:50]!r} is not a valid build number", remedy="give a whole number from 1")
        return int(named)
    current = checkout.branch()
    if current.startswith(PREFIX) and NUMBER.fullmatch(current.removeprefix(PREFIX)):
        return int(current.removeprefix(PREFIX))
    taken = [name.removeprefix(PREFIX) for name in checkout.branches(PREFIX)]
    return max((int(number) for number in taken if NUMBER.fullmatch(number)), default=0) + 1


def _check_host(service: Service, checkout: Checkout) -> OpenPullRequest | None:
    """The function that opens the pull request, if service.yaml enables them. The host is checked before the training, not after it."""
    host = githost.HOSTS.get(service.git.pull_requests)
    if host is None:
        return None
    url = checkout.origin_url()
    if url is None:
        raise Refused("there is no Git remote called origin, so no pull request can be opened", remedy="git remote add origin URL")
    repository = host.repository_of(url)
    host.check(str(service.git.api), repository)
    return partial(host.open_pull_request, str(service.git.api), repository)


def _resume(checkout: Checkout, root: Path, branch: str, say: Callable[[str], None]) -> None:
    """Continue from the commit of an earlier run of this build: check it out; its data comes from the DVC remote.

    Raises OtherTraining unless it is the result of training the current commit.
    """
    commit = checkout.branches(branch).get(branch)
    head = checkout.head()
    if commit is None or head is None or commit == head:
        return
    if checkout.origin_url() and not checkout.has(commit):
        commit = checkout.fetch(branch)
    made_from = checkout.parents(commit)
    remedy = "another build used this number: delete the branch after it is merged, or give another number with --build"
    if made_from != [head]:
        shown = ", ".join(parent[:12] for parent in made_from) or "nothing"
        raise OtherTraining(f"{branch} is the result of training {shown}, not {head[:12]}", remedy=remedy)
    results = dvc.machine_files(root)
    changed = checkout.differing(head, commit)
    if strange := [path for path in changed if not any(path == result or path.startswith(f"{result}/") for result in results)]:
        raise OtherTraining(f"{branch} changes {', '.join(strange[:5])}, which a training does not change", remedy=remedy)
    say(f"train: continuing with {branch}, commit {commit[:12]}")
    checkout.take(branch, commit, changed)


def _open_pull_request(
    service: Service,
    checkout: Checkout,
    root: Path,
    open_pull_request: OpenPullRequest | None,
    branch: str,
    target: str,
    trained: Sequence[Trained],
    say: Callable[[str], None],
) -> PullRequest | None:
    """Open the pull request, or print the next step."""
    if not checkout.origin_url():
        say(f"train: the commit is on {branch}, on this machine only; `git switch {target}` returns to the original branch")
        return None
    if open_pull_request is None:
        say(f"train: {branch} is pushed; open a pull request from it to {target} (or set `git.pull_requests` in {service_file.FILE})")
        return None
    before = _metrics_at(checkout, root, checkout.parents("HEAD"))
    opened = open_pull_request(
        source=branch,
        target=target,
        title=service.git.subject(_title(service, trained, branch)),
        description=describe(trained, branch, before, _next_step(service, root, trained)),
    )
    if opened is None:
        say(f"train: everything on {branch} is already merged into {target}")
    else:
        say(f"train: pull request {'opened' if opened.new else 'is open'}: {opened.url}")
    return opened


def _title(service: Service, trained: Sequence[Trained], branch: str) -> str:
    metrics = ", ".join(f"{_plain(name)} {value:.4g}" for name, value in sorted(_numbers(trained[0].metrics).items()))
    return f"Train {service.name}: {metrics or branch}"


def _next_step(service: Service, root: Path, trained: Sequence[Trained]) -> NextStep:
    return next_step(tracking.registry(root), service, {model.name: model.version for model in trained})


def describe(trained: Sequence[Trained], branch: str, before: Mapping[str, float], following: NextStep) -> str:
    """The pull request's text in Markdown: the versions, the metrics compared with `before`, and the next step."""
    lines = [f"Trained by `mlops-build ci train` as {branch}. Merge it so that the next training starts from these results.", ""]
    for model in trained:
        lines.append(f"* `{model.model_uri}` ({'registered' if model.new else 'was registered before'}), commit {model.commit[:12]}")
    lines += ["", "| metric | before | now | difference |", "| --- | --- | --- | --- |"]
    for name, value in sorted(_numbers(trained[0].metrics).items()):
        old = before.get(name)
        shown, difference = ("–", "–") if old is None else (f"{old:.6g}", f"{value - old:+.6g}")
        lines.append(f"| {_plain(name)} | {shown} | {value:.6g} | {difference} |")
    gone = sorted(_plain(name) for name in set(before) - set(trained[0].metrics))
    lines += [f"| {name} | {before.get(name, 0):.6g} | – | – |" for name in gone]
    if following.command:
        lines += ["", f"To {following.environment}:", "", "```", following.command, "```"]
    for (name, version), why in following.refusals.items():
        lines += ["", f"{name} {version} cannot be promoted to {following.environment}:", "", "```", why, "```"]
    return "\n".join(lines) + "\n"


def _metrics_at(checkout: Checkout, root: Path, commits: Sequence[str]) -> dict[str, float]:
    """The metrics in Git at the first of these commits; empty if there are none, or a shallow clone does not have the commit."""
    metrics: dict[str, float] = {}
    for path in dvc.metric_files(root) if commits else []:
        try:
            document = json.loads(checkout.read(commits[0], path) or b"{}")
        except ValueError:
            continue
        if isinstance(document, dict):
            metrics |= _numbers(document)
    return metrics


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    return {str(name): float(value) for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def _plain(name: str) -> str:
    """A metric's name without characters that Markdown interprets."""
    return re.sub(r"[^\w .@/:+-]", "?", name)[:80]
