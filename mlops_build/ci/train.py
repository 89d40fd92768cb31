"""`ci train`: the order of training, with its commit on a branch of its own, `retrain/N`, and a pull request to the branch it came from.

N is the number of the build. The same N again goes on where it was: what is pushed is taken from there, a version that is registered stays
the only one, and the pull request that is open is the one. The branch that people merge to is never pushed.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlops_build import data
from mlops_build import service as service_file
from mlops_build.errors import NotFound, Refused, UsageError
from mlops_build.git import host
from mlops_build.git.command import checked_ref
from mlops_build.git.host import PullRequest
from mlops_build.git.repository import Checkout
from mlops_build.registry import Registry, tracking_uri
from mlops_build.release.alias import NextStep, next_step
from mlops_build.service import Service
from mlops_build.training import pipeline
from mlops_build.training.pipeline import Trained

PREFIX = "retrain/"
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class OtherTraining(Refused):
    """The branch of this number holds something else."""


def run(root: Path, *, build: str | None, force: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Train; returns {"models": […], "warnings": […], "branch": name or None, "pull_request": … or None}.

    build: N; default: bamboo_buildNumber, else that of the branch we are on, else the next free one.

    Raises what the pipeline raises, OtherTraining, and what the Git host's API raises. What can be known before hours of training
    (uncommitted changes, a taken number, a missing token) is refused before.
    """
    service = service_file.load(root)
    checkout = Checkout.find(root)
    if checkout is None or checkout.head() is None:
        raise NotFound(
            f"{root} has no Git commit yet", remedy="git init, git add --all, git commit: a version names the commit it was made from"
        )
    target = _target(checkout)
    pipeline.check_dirt(root, allow_dirty=False)
    branch = f"{PREFIX}{_number(build, checkout)}"
    repository = _check_host(service, checkout)
    say(f"train: from {target}, onto {branch}")
    _resume(checkout, root, branch, say)
    outcome = pipeline.train(root, say=say, force=force, branch=branch, pull=True)
    document: dict[str, Any] = {"models": [trained.as_json() for trained in outcome.models], "warnings": list(outcome.warnings)}
    if checkout.branch() != branch:
        return {**document, "branch": None, "pull_request": None}
    opened = _ask(service, checkout, root, repository, branch, target, outcome.models, say)
    return {**document, "branch": branch, "pull_request": opened.as_json() if opened else None}


def _target(checkout: Checkout) -> str:
    """The branch that the results are to be merged to: the one that is checked out; for one of ours, the one that it was made from."""
    current = checkout.branch()
    if not current.startswith(PREFIX):
        return current
    named = os.environ.get("MLOPS_GIT_BRANCH") or os.environ.get("bamboo_planRepository_branchName")  # noqa: SIM112
    return checked_ref(named or "main")


def _number(build: str | None, checkout: Checkout) -> int:
    named = build or os.environ.get("bamboo_buildNumber")  # noqa: SIM112
    if named:
        if not NUMBER.fullmatch(named):
            raise UsageError(f"{named[:50]!r} is no build number", remedy="a whole number from 1 on")
        return int(named)
    current = checkout.branch()
    if current.startswith(PREFIX) and NUMBER.fullmatch(current.removeprefix(PREFIX)):
        return int(current.removeprefix(PREFIX))
    taken = [name.removeprefix(PREFIX) for name in checkout.branches(PREFIX)]
    return max((int(number) for number in taken if NUMBER.fullmatch(number)), default=0) + 1


def _check_host(service: Service, checkout: Checkout) -> host.Repository | None:
    """Whose pull requests are meant, where service.yaml wants one: asked before the training, not after it."""
    if service.git.pull_requests == "none":
        return None
    url = checkout.origin_url()
    if url is None:
        raise Refused("there is no Git remote called origin, so no pull request can be opened", remedy="git remote add origin URL")
    found = host.repository_of(url)
    host.check(str(service.git.api), found)
    return found


def _resume(checkout: Checkout, root: Path, branch: str, say: Callable[[str], None]) -> None:
    """Go on from what an earlier try of this build has pushed or committed: its commit is checked out, its data comes from DVC's remote.

    Raises OtherTraining unless that is the result of a training of what is checked out now.
    """
    commit = checkout.branches(branch).get(branch)
    head = checkout.head()
    if commit is None or head is None or commit == head:
        return
    if checkout.origin_url() and not checkout.has(commit):
        commit = checkout.fetch(branch)
    made_from = checkout.parents(commit)
    remedy = "another build has this number: delete that branch once it is merged, or name another number with --build"
    if made_from != [head]:
        shown = ", ".join(one[:12] for one in made_from) or "nothing"
        raise OtherTraining(f"{branch} is a training of {shown}, not of {head[:12]}", remedy=remedy)
    results = data.machine_files(root)
    changed = checkout.differing(head, commit)
    if strange := [path for path in changed if not any(path == one or path.startswith(f"{one}/") for one in results)]:
        raise OtherTraining(f"{branch} changes {', '.join(strange[:5])}, which no training does", remedy=remedy)
    say(f"train: going on with {branch}, commit {commit[:12]}")
    checkout.take(branch, commit, changed)


def _ask(
    service: Service,
    checkout: Checkout,
    root: Path,
    repository: host.Repository | None,
    branch: str,
    target: str,
    trained: Sequence[Trained],
    say: Callable[[str], None],
) -> PullRequest | None:
    """Open the pull request, or say what to do."""
    if not checkout.origin_url():
        say(f"train: the commit is on {branch}, on this machine only; git switch {target} goes back")
        return None
    if repository is None:
        say(f"train: {branch} is pushed; open a pull request from it to {target} (or set `git.pull_requests` in {service_file.FILE})")
        return None
    before = _metrics_at(checkout, root, checkout.parents("HEAD"))
    opened = host.open_pull_request(
        str(service.git.api),
        repository,
        source=branch,
        target=target,
        title=service.git.subject(_title(service, trained, branch)),
        description=describe(trained, branch, before, _next_steps(service, root, trained)),
    )
    if opened is None:
        say(f"train: everything on {branch} is merged to {target} already")
    else:
        say(f"train: pull request {'opened' if opened.new else 'is open'}: {opened.url}")
    return opened


def _title(service: Service, trained: Sequence[Trained], branch: str) -> str:
    metrics = ", ".join(f"{_plain(name)} {value:.4g}" for name, value in sorted(_numbers(trained[0].metrics).items()))
    return f"Train {service.name}: {metrics or branch}"


def _next_steps(service: Service, root: Path, trained: Sequence[Trained]) -> list[NextStep]:
    registry = Registry(tracking_uri(root))
    return [next_step(registry, service, one.name, one.version) for one in trained]


def describe(trained: Sequence[Trained], branch: str, before: Mapping[str, float], next_steps: Sequence[NextStep]) -> str:
    """The pull request's text, in Markdown: the versions, the metrics beside those it was trained from (`before`), what to do next."""
    lines = [f"Trained by `mlops-build ci train` as {branch}. Merge it, so that the next training starts from these results.", ""]
    for one in trained:
        lines.append(f"* `{one.model_uri}` ({'registered' if one.new else 'was registered before'}), commit {one.commit[:12]}")
    lines += ["", "| metric | before | now | difference |", "| --- | --- | --- | --- |"]
    for name, value in sorted(_numbers(trained[0].metrics).items()):
        old = before.get(name)
        shown, difference = ("–", "–") if old is None else (f"{old:.6g}", f"{value - old:+.6g}")
        lines.append(f"| {_plain(name)} | {shown} | {value:.6g} | {difference} |")
    gone = sorted(_plain(name) for name in set(before) - set(trained[0].metrics))
    lines += [f"| {name} | {before.get(name, 0):.6g} | – | – |" for name in gone]
    if commands := [step.command for step in next_steps if step.refusal is None]:
        lines += ["", f"To {next_steps[0].environment}:", "", "```", *commands, "```"]
    for step in next_steps:
        if step.refusal is not None:
            lines += ["", f"{step.model} {step.version} cannot be promoted to {step.environment}:", "", "```", step.refusal, "```"]
    return "\n".join(lines) + "\n"


def _metrics_at(checkout: Checkout, root: Path, commits: Sequence[str]) -> dict[str, float]:
    """The metrics in Git at the first of these commits; none where there were none, or where a shallow clone lacks it."""
    found: dict[str, float] = {}
    for path in data.metric_files(root) if commits else []:
        try:
            document = json.loads(checkout.read(commits[0], path) or b"{}")
        except ValueError:
            continue
        if isinstance(document, dict):
            found |= _numbers(document)
    return found


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    return {str(name): float(value) for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def _plain(name: str) -> str:
    """A metric's name without what Markdown would take for something else."""
    return re.sub(r"[^\w .@/:+-]", "?", name)[:80]
