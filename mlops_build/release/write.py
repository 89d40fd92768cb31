"""From aliases to a commit: what an environment should run according to the registry, and the commit with which Git records it.

The commit is deterministic: its author has a fixed name, and its date follows from the release. `mlops-build release` on a laptop and any
number of bridges create the same commit, so a second push changes nothing.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build import service as service_file
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.command import PushRejected
from mlops_build.adapters.git.objects import Identity, Objects
from mlops_build.adapters.githost import PullRequest
from mlops_build.adapters.registry import Registry
from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.fleet.rules import NONE, Rules
from mlops_build.release import gate
from mlops_build.release.changes import changes, shown
from mlops_build.release.decide import Desired, at_release, decide, rendered
from mlops_build.release.land import by_request, look, propose
from mlops_build.release.message import evidence, message
from mlops_build.release.record import Record
from mlops_build.release.tree import Tree
from mlops_build.service import Service

# The author of a release. MLOPS_BRIDGE_NAME and MLOPS_BRIDGE_EMAIL replace it for a host that checks committers.
NAME_OF_BRIDGE, EMAIL_OF_BRIDGE = "mlops-build bridge", "bridge@mlops-build.invalid"


@dataclass(frozen=True)
class Made:
    """The result of `in_checkout`. before, after: models and versions, as text. commit: None if Git has this release already.

    remarks: ignored uncommitted changes, and findings and gaps of the manifests' check. changes: changes besides the models' versions.
    request: the pull request that asks for the commit, which is not on the branch then.
    """

    environment: str
    before: str | None
    after: str
    commit: str | None
    pushed: bool
    remarks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    request: PullRequest | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "request": self.request.as_json() if self.request else None}

    def __str__(self) -> str:
        if self.commit is None:
            return f"nothing to do: {self.environment} is released with {self.after} already"
        request = f"  {self.request.url}" if self.request else ""
        return f"{self.environment}: {shown(self.before, self.after, self.changes)}  commit {self.commit[:12]}{request}"


@dataclass(frozen=True)
class Change:
    """A release's commit, and what it changes besides the models' versions (release/changes.py)."""

    commit: str
    changes: tuple[str, ...]


def in_checkout(
    root: Path, env: str, registry: Registry, *, rules: Rules = NONE, despite_hold: bool = False, despite_findings: bool = False
) -> Made:
    """Release `env` of the service at `root`: a commit on its branch, pushed to origin if there is one, or a pull request for it.

    Raises Refused for a held environment, Frozen, and what `gate.check`, `decide`, `change`, `land` and `propose` raise.
    """
    checkout, head = checkout_of(root)
    tree = Tree.at(checkout, head)
    tree.service.environment(env)
    hold = tree.hold(env)
    if hold and not despite_hold:
        raise Refused(f"{env} is held: {hold}", remedy=f"mlops-build hold {env} --remove, or add --despite-hold")
    decision = decide(checkout, tree, env, registry.alias_map(), registry, insist=True, despite_findings=despite_findings)
    wanted, there = decision.wanted, tree.record(env)
    before = str(there) if there and there.models else None
    remarks = _uncommitted(checkout) + decision.remarks
    made = change(checkout, head, tree, wanted, registry) if decision.state == "release" else None
    if made is None:
        return Made(env, before, str(wanted.record), None, pushed=False, remarks=remarks)
    remarks += tuple(gate.check(checkout, made.commit, there, wanted.record, rules, despite_findings=despite_findings))
    pushed, request, by_rule = _landed(checkout, tree.service, env, made.commit, head)
    return Made(env, before, str(wanted.record), made.commit, pushed, remarks + by_rule, made.changes, request)


def _landed(checkout: Checkout, service: Service, env: str, commit: str, head: str) -> tuple[bool, PullRequest | None, tuple[str, ...]]:
    """Whether the commit was pushed; else the pull request that asks for it, with a remark if only a rule of the host requires one."""
    url = checkout.origin_url()
    remarks: tuple[str, ...] = ()
    if url is None or env not in by_request(service):
        try:
            return land(checkout, commit, head), None, ()
        except PushRejected as error:
            has_rule = checkout.is_ancestor(checkout.fetch(checkout.branch()), head)
            if not has_rule or not service.git.opens_pull_requests:
                raise
            remarks = (f"{error.message}: it needs a pull request",)
    requests = look(checkout, service, url=str(url), target=checkout.branch(), head=head, remote=checkout.remote(), every=True)
    request = propose(checkout, requests, env, commit, insist=True) if requests else None
    return False, request, remarks


def _uncommitted(checkout: Checkout) -> tuple[str, ...]:
    """A remark on uncommitted changes of what a release is made from."""
    paths = [path for path in checkout.changes() if path == service_file.FILE or path.startswith("deploy/")]
    return (f"uncommitted changes in {', '.join(paths)} are ignored: commit them, then release again",) if paths else ()


def change(objects: Objects, parent: str, tree: Tree, wanted: Desired, registry: Registry) -> Change | None:
    """A commit on top of `parent` with this release; None if Git has it already. No ref is moved.

    tree: of a commit that has the same service.yaml and the same release. Raises NotFound if the environment has no overlay.
    """
    env = wanted.record.environment
    tree.check_overlay(env)
    before, existing, files = tree.record(env), tree.release(env), rendered(wanted.record, tree.service)
    changed = _changed(objects, tree, before, wanted.record, files) if before and before.models else ()
    made_at = [wanted.promotion.at] if wanted.promotion else [version.created_ms // 1000 for version in wanted.versions]
    seconds = max(objects.committed_at(parent), *made_at)
    text = message(tree.service, wanted, before, changed, evidence(registry, wanted, before))
    commit = objects.commit(parent, {**dict.fromkeys(existing), **files}, text, signer(seconds))
    return Change(commit, changed) if commit else None


def _changed(objects: Objects, tree: Tree, before: Record, after: Record, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """What a release changes besides the models' versions: settings, the image, and files of a person or another mlops-build."""
    was, written = at_release(objects, tree, before)
    lines = changes(was, tree.service, before.environment) if was else []
    if before.image != after.image and str(before) == str(after):
        tags = [str(image).rpartition(":")[2] for image in (before.image, after.image)]
        lines.append(f"image {tags[0]} → {tags[1]}")
    there = tree.release(before.environment)
    other = sorted(path for path in {**there, **written} if there.get(path) != written.get(path))
    return (*lines, *(f"{path.rpartition('/')[2]} {'rewritten' if path in files else 'removed'}" for path in other))


def signer(seconds: int) -> Identity:
    """The author of a machine's commit. Raises Failed for a name that git would change."""
    name, email = os.environ.get("MLOPS_BRIDGE_NAME") or NAME_OF_BRIDGE, os.environ.get("MLOPS_BRIDGE_EMAIL") or EMAIL_OF_BRIDGE
    if re.search(r"[<>\n\0]", name + email):
        raise Failed("MLOPS_BRIDGE_NAME or MLOPS_BRIDGE_EMAIL has a line break or one of <>", remedy="set them to a plain name and address")
    return Identity(name, email, seconds)


def land(checkout: Checkout, commit: str, parent: str) -> bool:
    """Make `commit` the head of a checkout, and update its files; returns whether it was pushed, which it is if there is an origin.

    It is pushed first, so a rejected push leaves the checkout unchanged. Raises PushRejected, RemoteUnreachable, or Refused if HEAD moved
    or one of these files has uncommitted changes.
    """
    paths = checkout.differing(parent, commit)
    undone = sorted(set(checkout.changes()) & set(paths))
    if undone:
        raise Refused(f"uncommitted changes in {', '.join(undone)}", remedy="commit them, or restore them with `git checkout -- FILE`")
    pushes = checkout.origin_url() is not None
    if pushes:
        try:
            checkout.push(commit)
        except PushRejected:
            if checkout.fetch(checkout.branch()) != commit:  # pushed by another process at the same time
                raise
    if checkout.head() != commit:
        checkout.advance(commit, parent, paths)
    checkout.restore(commit, paths)
    return pushes


def checkout_of(root: Path) -> tuple[Checkout, str]:
    """The checkout at a service's root, and its head. Raises NotFound if there is no commit."""
    checkout = Checkout.find(root)
    head = checkout.head() if checkout else None
    if checkout is None or head is None:
        raise NotFound(f"{root} has no Git commit", remedy="git init, git add --all, git commit: a release is a commit")
    return checkout, head
