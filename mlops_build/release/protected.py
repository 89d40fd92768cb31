"""Land a commit that cannot wait, a rollback or a hold, also on a protected branch: push it, else open a pull request, else say which
command a person with permission can run.

Neither MLflow nor a service.yaml that can be read is needed.
"""

import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.command import PushRejected, RemoteUnreachable
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.git.objects import Objects
from mlops_build.adapters.git.remote import heads
from mlops_build.adapters.githost import PullRequest
from mlops_build.errors import MlopsBuildError, NotFound, Refused
from mlops_build.release import record as records
from mlops_build.release.land import place_of
from mlops_build.release.tree import NoService, service_at
from mlops_build.release.write import checkout_of, land
from mlops_build.service import Git, ServiceError

# Creates a commit on top of a head; None: nothing to change.
Make = Callable[[Objects, str], str | None]
# Lands what a Make returns; the text is the branch of a pull request.
Land = Callable[[str, Make], "Landed"]


class NotLanded(Refused):
    """The host refuses the push, and no pull request could be opened; the remedy has the commands to run by hand."""


@dataclass(frozen=True)
class Landed:
    """commit: None if nothing had to be changed. pushed: whether its branch has it at the remote. request: it waits for this merge.

    is_elsewhere: there is a checkout that does not have it.
    """

    commit: str | None
    pushed: bool
    request: PullRequest | None = None
    is_elsewhere: bool = False


def at(place: Path | str, branch: str = "main") -> Land:
    """Lands on a branch of the origin of the checkout at a service's root, or of a remote (its address)."""
    return partial(from_checkout, place, branch) if isinstance(place, Path) else partial(on_remote, place, branch)


def from_checkout(root: Path, branch: str, source: str, make: Make) -> Landed:
    """Land what `make` returns on a branch of origin, as origin has it now: a clone may be old, or on another branch.

    The checkout at the service's root follows if it is at this branch's head and its files are unchanged. Without an origin, the commit is
    made there. source: the branch of a pull request.

    Raises NotLanded, RemoteUnreachable, NotFound for a missing branch, and the errors of `make`.
    """
    checkout, here = checkout_of(root)
    if checkout.origin_url() is None:
        commit = make(checkout, here)
        if commit:
            land(checkout, commit, here)
        return Landed(commit, pushed=False)
    if branch not in heads(checkout.path, checkout.remote(), branch):
        raise NotFound(f"origin has no branch {branch}", remedy="name the branch of the releases: --branch NAME")
    landed = _landed(checkout, checkout.remote(), branch, source, make, partial(checkout.fetch, branch))
    return replace(landed, is_elsewhere=not _follow(checkout, branch, here, str(landed.commit))) if landed.pushed else landed


def _follow(checkout: Checkout, branch: str, here: str, commit: str) -> bool:
    """Move the checkout from its head to `commit`; False, and nothing is moved, if another branch or a person's work is in the way."""
    paths = checkout.differing(here, commit)
    try:
        if checkout.branch() != branch or checkout.parents(commit) != [here] or set(checkout.changes()) & set(paths):
            return False
        checkout.advance(commit, here, paths)
    except Refused:
        return False
    checkout.restore(commit, paths)
    return True


def on_remote(url: str, branch: str, source: str, make: Make) -> Landed:
    """Land what `make` returns on a branch of a remote. Raises NotLanded, RemoteUnreachable and the errors of `make`."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-build-"))
    needed = False
    try:
        mirror = Mirror(url, branch, folder)
        return _landed(mirror, mirror.url, branch, source, make, partial(mirror.fetch, depth=None))
    except NotLanded as error:
        needed = str(folder) in str(error.remedy)
        raise
    finally:
        if not needed:
            shutil.rmtree(folder, ignore_errors=True)


def _landed(objects: Objects, remote: str, branch: str, source: str, make: Make, fetch: Callable[[], str]) -> Landed:
    """Push what `make` returns on top of the branch's head, or open a pull request for it if the host refuses the push."""
    made: list[str | None] = []

    def remembered(head: str) -> str | None:
        made.append(make(objects, head))
        return made[-1]

    try:
        commit = objects.publish_to(remote, branch, fetch, remembered)
        return Landed(commit, pushed=commit is not None)
    except (PushRejected, RemoteUnreachable) as error:  # a host may say that it cannot be used if it refuses access
        if not made:
            raise
        return _request(objects, remote, source, branch, str(made[-1]), error)


def _request(objects: Objects, remote: str, source: str, target: str, commit: str, error: MlopsBuildError) -> Landed:
    """Push the commit as the branch `source`, and open a pull request from it. Raises NotLanded."""
    by_hand = f"git -C {shlex.quote(str(objects.path))} push {shlex.quote(remote)} {commit}:refs/heads/{target}"
    try:
        objects.push_branch(remote, commit, source)
    except (PushRejected, RemoteUnreachable) as refusal:
        message = f"{error.message}; as the branch {source}: {refusal.message}"
        raise NotLanded(message, remedy=f"with permission to push to {target}:\n{by_hand}", details={"commands": [by_hand]}) from None
    try:
        url = (objects.origin_url() or "") if isinstance(objects, Checkout) else remote
        if request := _opened(objects, url, source, target, commit):
            return Landed(commit, pushed=False, request=request)
        reason = "it is merged already"
    except MlopsBuildError as refusal:
        reason = refusal.message
    commands = [by_hand]
    if isinstance(objects, Mirror):
        folder = shlex.quote(source.replace("/", "-"))
        commands = [
            f"git clone --quiet --branch {source} {shlex.quote(remote)} {folder}",
            f"git -C {folder} push origin HEAD:refs/heads/{target}",
        ]
    raise NotLanded(
        f"{error.message}; it was pushed as the branch {source}, but no pull request was opened: {reason}",
        remedy="\n".join([f"open a pull request from {source} to {target}, or with permission to push to {target}:", *commands]),
        details={"branch": source, "commands": commands},
    )


def _opened(objects: Objects, url: str, source: str, target: str, commit: str) -> PullRequest | None:
    """Open a pull request, or update the open one. Raises NotFound without a Git host, and the errors of its adapter."""
    place = place_of(git_settings(objects, f"{commit}^"), url, target)
    if place is None:
        raise NotFound("service.yaml names no Git host in `git.pull_requests`")
    title, _, description = objects.message(commit).partition("\n")
    return place.ask(source, place.find(source), title, description.strip())


def git_settings(objects: Objects, head: str) -> Git:
    """`git` of the newest service.yaml that can be read; the defaults if there is none."""
    for commit in objects.log(head, service_file.FILE)[:20]:
        try:
            return service_at(objects, commit).git
        except (ServiceError, NotFound):
            continue
    return Git()


def check_environment(objects: Objects, head: str, env: str) -> bool:
    """Whether service.yaml can be read. Raises NotFound for an environment that it does not have, or else that has no release folder."""
    try:
        service = service_at(objects, head)
    except (ServiceError, NoService):
        if objects.tree(head, records.folder(env)) is None:
            raise NotFound(f"there is no {records.folder(env)}", remedy="git ls-files deploy/overlays shows the environments") from None
        return False
    service.environment(env)
    return True
