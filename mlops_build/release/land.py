"""Land a release by pull request: its commit on the branch `release/ENV`, and one open request from there to the branch of the releases.

The branch belongs to machines. Several bridges can do this at once: they create the same commit, they replace only the state of the
branch that they saw before they read the aliases, and the host opens one request at most.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlops_build.adapters.git.command import PushRejected
from mlops_build.adapters.git.objects import Objects
from mlops_build.adapters.git.remote import heads
from mlops_build.adapters.git.remote import host as host_of
from mlops_build.adapters.githost import HOSTS, Checks, GitHost, PullRequest, Repository
from mlops_build.errors import UsageError
from mlops_build.release import record as records
from mlops_build.release.past import values
from mlops_build.release.tree import recorded
from mlops_build.service import Git, Service

# The start of the title of a request that a machine closed. A person who closes one refuses its release.
OBSOLETE = "Obsolete: "

# The hosts that may get the token although their repositories have other addresses, separated by spaces.
OTHER_HOSTS = "MLOPS_GIT_API_HOSTS"


@dataclass(frozen=True)
class Place:
    """A repository on its Git host. target: the branch that its requests are merged into."""

    host: GitHost
    api: str
    repository: Repository
    target: str

    def find(self, source: str) -> PullRequest | None:
        """The open request from a branch, else the newest one."""
        return self.host.find_pull_request(self.api, self.repository, source=source, target=self.target)

    def ask(self, source: str, request: PullRequest | None, title: str, description: str) -> PullRequest | None:
        """Update the open request from a branch, or open one. None: everything is already merged. request: what `find` returned."""
        texts = {"title": title, "description": description}
        if request and request.state == "open":
            self.host.update_pull_request(self.api, self.repository, request.number, **texts)
            return request
        return self.host.open_pull_request(self.api, self.repository, source=source, target=self.target, **texts)


@dataclass(frozen=True)
class Requests:
    """Where the requests for releases are, and what was seen of the repository before the aliases were read.

    remote: the repository, as git knows it. head: the commit of the target. envs: the environments that land by request. branches: of each
    environment, the head of the branch of its request (None: there is no branch).
    """

    place: Place
    remote: str
    head: str
    envs: frozenset[str]
    branches: Mapping[str, str | None]

    def find(self, env: str) -> PullRequest | None:
        """The open request of an environment, else the newest one."""
        return self.place.find(branch_of(env))

    def checks(self, commit: str) -> Checks:
        """The result of the builds of a request's commit."""
        return self.place.host.checks(self.place.api, self.place.repository, commit)


def branch_of(env: str) -> str:
    """The branch of an environment's request."""
    return f"release/{env}"


def by_request(service: Service) -> frozenset[str]:
    """The environments whose releases land by pull request."""
    return frozenset(env for env, place in service.environments.items() if place.landing == "pull-request")


def place_of(git: Git, url: str, target: str) -> Place | None:
    """Where requests are opened; None if service.yaml has no Git host.

    Raises UsageError for an address that is not one of the host, and for a host that is not the repository's: whoever may write
    service.yaml could get the token of the bridge, which is for all services.
    """
    host = HOSTS.get(git.pull_requests)
    if host is None:
        return None
    repository = host.repository_of(url)
    names = [host_of(address).partition(":")[0] for address in (url, str(git.api))]
    if names[0] != names[1] and names[1] not in os.environ.get(OTHER_HOSTS, "").split():
        raise UsageError(
            f"git.api in service.yaml is at {names[1]}, but the repository at {names[0]}: the token is not sent there",
            remedy=f"correct git.api, or set {OTHER_HOSTS}={names[1]} where mlops-build runs",
        )
    return Place(host, str(git.api), repository, target)


def look(
    objects: Objects, service: Service, *, url: str, target: str, head: str, remote: str | None = None, every: bool = False
) -> Requests | None:
    """What `propose` needs to know, to be read before the aliases; None if service.yaml has no Git host, or none for this address.

    url: the repository's address. remote: as git knows it, if that is not the address. every: all environments land by request.
    Raises RemoteUnreachable, and UsageError for an address that is not one of the host, if an environment lands by request.
    """
    try:
        place = place_of(service.git, url, target)
    except UsageError:
        if every or by_request(service):
            raise
        return None
    if place is None:
        return None
    there = heads(objects.path, remote or url, *map(branch_of, service.environments))
    branches = {env: there.get(branch_of(env)) for env in service.environments}
    envs = frozenset(branches) if every else by_request(service)
    return Requests(place, remote or url, head, envs, branches)


def propose(objects: Objects, requests: Requests, env: str, commit: str, *, insist: bool = False) -> PullRequest | None:
    """Ask for `commit`, a release of `env` on top of the head: open a request, or update the open one.

    Returns it; the closed one if a person closed a request for the same release; None if the target has the commit.
    insist: also if a person closed one.

    Raises PushRejected if another bridge has moved the branch since, RemoteUnreachable, HostUnreachable, HostRefused.
    """
    request, seen = requests.find(env), requests.branches[env]
    if request and not insist and is_declined(objects, requests, request, env, commit):
        return request
    is_open = request is not None and request.state == "open"
    if seen != commit and not (is_open and seen and _stands(objects, seen, env, commit, requests.head)):
        _replace(objects, requests, env, commit)
    return requests.place.ask(branch_of(env), request, *texts(objects.message(commit), env))


def withdraw(objects: Objects, requests: Requests, env: str, why: str) -> None:
    """Close the open request of `env`, if there is one, because it is not needed any longer.

    The branch is removed then, and after a merge, so that the host is not asked again. What a person closed keeps its branch, and what
    another bridge has moved since stays.

    Raises RemoteUnreachable, HostUnreachable, HostRefused.
    """
    seen = requests.branches[env]
    request = requests.find(env) if seen else None
    if request is None or request.commit != seen or (request.state == "closed" and not request.title.startswith(OBSOLETE)):
        return
    if request.state == "open":
        place = requests.place
        title, description = OBSOLETE + request.title.removeprefix(OBSOLETE), f"{why}, so this request is not needed."
        place.ask(branch_of(env), request, title, description)
        place.host.close_pull_request(place.api, place.repository, request.number)
    with contextlib.suppress(PushRejected):
        objects.push_branch(requests.remote, "", branch_of(env), expected=seen)


def is_declined(objects: Objects, requests: Requests, request: PullRequest, env: str, commit: str) -> bool:
    """Whether a person closed `request`, and it asked for the release of `commit`: the same promotion and versions, or, if only the other
    files differ from the head, the same files."""
    if request.state != "closed" or request.title.startswith(OBSOLETE) or not request.commit or not objects.bring(request.commit):
        return False
    closed, wanted, there = (str(recorded(objects, each, env)) for each in (request.commit, commit, requests.head))
    if closed != wanted or values(objects.message(request.commit), "Promotion") != values(objects.message(commit), "Promotion"):
        return False
    folder = records.folder(env)
    return wanted != there or objects.tree(request.commit, folder) == objects.tree(commit, folder)


def texts(message: str, env: str) -> tuple[str, str]:
    """Title and description of a request, from the message of its commit, which has the evidence."""
    title, _, evidence = message.partition("\n")
    # Longer than any in the message: what comes from the registry must not end the block.
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", message)), default=2))
    lines = [
        f"Merge this to release it to {env}: with a merge commit or a fast-forward, so that Git keeps the commit's message.",
        "Close it to refuse it: then mlops-build asks again only after the next promotion or move of the alias.",
        f"The branch {branch_of(env)} belongs to mlops-build, which replaces its commits.",
        "",
        *(fence, evidence.strip(), fence),
    ]
    return title, "\n".join(lines) + "\n"


def _replace(objects: Objects, requests: Requests, env: str, commit: str) -> None:
    """Move the environment's branch to `commit`. Raises PushRejected if another bridge has moved it to another commit."""
    try:
        objects.push_branch(requests.remote, commit, branch_of(env), expected=requests.branches[env] or "")
    except PushRejected:
        if heads(objects.path, requests.remote, branch_of(env)).get(branch_of(env)) != commit:
            raise


def _stands(objects: Objects, seen: str, env: str, commit: str, head: str) -> bool:
    """Whether the branch asks for the release of `commit` on top of an older head with the same release.

    It is kept then: a new commit would take away the approvals of the request.
    """
    if not objects.bring(seen) or objects.message(seen) != objects.message(commit):
        return False
    folder = records.folder(env)
    parents = objects.parents(seen)
    return (
        len(parents) == 1
        and objects.bring(parents[0])
        and objects.tree(seen, folder) == objects.tree(commit, folder)
        and objects.tree(parents[0], folder) == objects.tree(head, folder)
    )
