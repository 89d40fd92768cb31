"""A small Bitbucket Data Center.

It answers as the real one does: 401 without a token that it knows, 404 for what is not there or may not be seen, 409 with
DuplicatePullRequestException and the pull request that is open, with EmptyPullRequestException where nothing is to be merged, and with
PullRequestOutOfDateException for a change of an old version.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any

from tests.githosts.server import GitHost, Pull, contains, git, serve

PULL = "com.atlassian.bitbucket.pull"
STATES = {"open": "OPEN", "merged": "MERGED", "closed": "DECLINED"}


@dataclass
class Bitbucket(GitHost):
    """stale: the number of changes before which another client changes the pull request."""

    stale: int = 0

    API = "/rest"
    CLONE = "/scm"

    @property
    def pull_requests(self) -> list[dict[str, Any]]:
        return [self.document(pull) for pull in self.current()]

    def refuses(self, headers: Mapping[str, str]) -> Any:
        if headers.get("Authorization") != f"Bearer {self.token}":
            return errors("Authentication failed.", "com.atlassian.bitbucket.auth.IncorrectPasswordAuthenticationException")
        return None

    def api(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        if stats := re.fullmatch(r"/build-status/1\.0/commits/stats/([0-9a-f]{40})", path):
            states = self.builds.get(stats[1], [])
            keys = {
                "successful": "SUCCESSFUL",
                "failed": "FAILED",
                "inProgress": "INPROGRESS",
                "cancelled": "CANCELLED",
                "unknown": "UNKNOWN",
            }
            return 200, {key: states.count(state) for key, state in keys.items()}
        if listed := re.fullmatch(r"/api/1\.0/projects/([^/]+)/repos", path):
            return self.listed(listed[1], int(query["start"]))
        match = re.fullmatch(r"/api/1\.0/projects/([^/]+)/repos/([^/]+)(/pull-requests)?(?:/([0-9]+))?(/decline)?", path)
        if not match or not self.bare(match[1], match[2]).is_dir():
            return 404, errors("Repository does not exist.", "com.atlassian.bitbucket.repository.NoSuchRepositoryException")
        bare = self.bare(match[1], match[2])
        if not match[3]:
            return (200, {"slug": match[2], "project": {"key": match[1]}}) if method == "GET" else (405, {})
        if match[4]:
            return self.one(method, int(match[4]), query, body)
        return self.search(bare, query) if method == "GET" else self.open(bare, body)

    def listed(self, project: str, start: int) -> tuple[int, Any]:
        """Pages of two repositories."""
        names = sorted(bare.stem for bare in (self.folder / project).glob("*.git"))
        if not names:
            return 404, errors("Project does not exist.", "com.atlassian.bitbucket.project.NoSuchProjectException")
        is_last = start + 2 >= len(names)
        values = [{"slug": name, "archived": name == "archived"} for name in names[start : start + 2]]
        return 200, {"values": values, "isLastPage": is_last, "nextPageStart": None if is_last else start + 2}

    def search(self, bare: Path, query: Mapping[str, str]) -> tuple[int, Any]:
        assert (query["direction"], query["state"], query["order"]) == ("OUTGOING", "ALL", "NEWEST")
        pulls = [pull for pull in reversed(self.current()) if pull.bare == bare and f"refs/heads/{pull.source}" == query["at"]]
        return 200, {"values": [self.document(pull) for pull in pulls[: int(query["limit"])]], "isLastPage": True}

    def open(self, bare: Path, asked: dict[str, Any]) -> tuple[int, Any]:
        source, target = (asked[ref]["id"].removeprefix("refs/heads/") for ref in ("fromRef", "toRef"))
        if None in (commits := [git(bare, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}") for branch in (source, target)]):
            return 404, errors("Repository does not have that ref.", "com.atlassian.bitbucket.repository.NoSuchRefException")
        if there := self.open_between(bare, source, target):
            message = "Only one pull request may be open for a given source and target branch"
            return 409, errors(message, f"{PULL}.DuplicatePullRequestException", existingPullRequest=self.document(there))
        if contains(bare, target, str(commits[0])):
            return 409, errors("main is already up-to-date", f"{PULL}.EmptyPullRequestException")
        return 201, self.document(self.new(bare, source, target, asked["title"], asked.get("description", "")))

    def one(self, method: str, number: int, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        if number > len(self.pulls):
            return 404, errors("No such pull request.", f"{PULL}.NoSuchPullRequestException")
        pull = self.current()[number - 1]
        if method == "GET":
            return 200, self.document(pull)
        if self.stale:
            self.stale, pull.version = self.stale - 1, pull.version + 1
        if pull.version != (body["version"] if method == "PUT" else int(query["version"])):
            return 409, errors("You are attempting to modify an old version.", f"{PULL}.PullRequestOutOfDateException")
        if pull.state != "open":
            return 409, errors("This pull request is not open.", f"{PULL}.IllegalPullRequestStateException")
        pull.version += 1
        if method == "PUT":
            pull.title, pull.description = body["title"], body["description"]
            pull.reviewers = [entry["user"]["name"] for entry in body.get("reviewers", [])]
        else:
            pull.state = "closed"
        return 200, self.document(pull)

    def document(self, pull: Pull) -> dict[str, Any]:
        where = {"slug": pull.bare.stem, "project": {"key": pull.bare.parent.name}}
        return {
            "id": pull.number,
            "version": pull.version,
            "title": pull.title,
            "description": pull.description,
            "state": STATES[pull.state],
            "fromRef": {"id": f"refs/heads/{pull.source}", "latestCommit": pull.commit, "repository": where},
            "toRef": {"id": f"refs/heads/{pull.target}", "repository": where},
            "reviewers": [{"user": {"name": name}, "role": "REVIEWER", "approved": False} for name in pull.reviewers],
            "links": {"self": [{"href": "javascript:alert(1)"}]},
        }


def errors(message: str, exception: str, **more: Any) -> dict[str, Any]:
    return {"errors": [{"context": None, "message": message, "exceptionName": exception, **more}]}


@contextmanager
def bitbucket(folder: Path, token: str, *, tls: SSLContext | None = None) -> Iterator[Bitbucket]:
    """A server on a free port of this machine."""
    with serve(Bitbucket, folder, token, tls) as host:
        yield host
