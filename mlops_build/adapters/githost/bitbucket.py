"""Bitbucket Data Center's REST API."""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from mlops_build.adapters import http
from mlops_build.adapters.git.command import checked_ref, masked
from mlops_build.adapters.githost.access import SECONDS, checked_api, commit_in, in_time, number_in, refusal, token, unreachable
from mlops_build.adapters.githost.host import Checks, PullRequest, Repository, State
from mlops_build.errors import UsageError

# Bitbucket's own limits: 255 characters of a title, 32768 of a description.
TITLE, DESCRIPTION = 255, 32768
# Pull requests of a branch that a search reads, and the bytes that their descriptions may need.
NEWEST, MOST_BYTES = 25, 4 << 20
# Pages of the repositories of a project.
MOST_PAGES = 20
# Attempts of a change while other clients change the same pull request.
TRIES = 4
STATES: dict[object, State] = {"OPEN": "open", "MERGED": "merged", "DECLINED": "closed"}

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
PROJECT = rf"(?:[A-Za-z][A-Za-z0-9_]{{0,127}}|~{NAME})"
HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})(?::[0-9]{1,5})?"
# https://HOST[/CONTEXT]/scm/PROJECT/NAME.git and ssh://[USER@]HOST[:PORT]/PROJECT/NAME.git, the formats of Bitbucket's clone button.
HTTP = re.compile(rf"https?://(?:[^/@\s]+@)?{HOST}(?:/[A-Za-z0-9_.-]+)*?/scm/(?P<project>{PROJECT})/(?P<name>{NAME}?)(?:\.git)?/?")
SSH = re.compile(rf"ssh://(?:{NAME}@)?{HOST}/(?P<project>{PROJECT})/(?P<name>{NAME}?)(?:\.git)?/?")


def repository_of(url: str) -> Repository:
    """Project and name in a clone address. Raises UsageError for an address that is not Bitbucket's."""
    match = HTTP.fullmatch(url) or SSH.fullmatch(url)
    if not match or ".." in url:
        raise UsageError(
            f"{masked(url)[:200]!r} is not a clone address of Bitbucket Data Center, so the repository of the pull requests is not known",
            remedy="use https://HOST/scm/PROJECT/NAME.git or ssh://git@HOST:7999/PROJECT/NAME.git; on an agent, set MLOPS_GIT_URL",
        )
    return Repository(match["project"], match["name"])


def repositories(api: str, project: str) -> list[str]:
    """See GitHost."""
    if not re.fullmatch(PROJECT, project):
        raise UsageError(f"{project[:100]!r} is not the key of a Bitbucket project", remedy="write its key, such as ML")
    names: list[str] = []
    start: int | None = 0
    for _ in in_time(range(MOST_PAGES)):
        page = _expect(200, api, Repository(project, ""), "GET", f"/api/1.0/projects/{project}/repos?limit=500&start={start}")
        names += [str(entry.get("slug")) for entry in _values(api, Repository(project, ""), page) if not entry.get("archived")]
        start = number_in(page.get("nextPageStart")) if not page.get("isLastPage") else None
        if start is None:
            break
    # The addresses are not taken from the answer: the token is sent there.
    return sorted(f"{checked_api(api)}/scm/{project}/{name}.git" for name in names if re.fullmatch(NAME, name) and ".." not in name)


def check(api: str, repository: Repository) -> None:
    """See GitHost."""
    _expect(200, api, repository, "GET", _path(repository))


def find_pull_request(api: str, repository: Repository, *, source: str, target: str) -> PullRequest | None:
    """See GitHost."""
    branch = f"refs/heads/{checked_ref(source)}"
    query = {"direction": "OUTGOING", "at": branch, "state": "ALL", "order": "NEWEST", "limit": NEWEST}
    answer = _expect(200, api, repository, "GET", f"{_path(repository)}/pull-requests?{urlencode(query)}")
    ref = f"refs/heads/{checked_ref(target)}"
    there = [_pull_request(api, repository, value) for value in _values(api, repository, answer) if _part(value, "toRef").get("id") == ref]
    return next((request for request in there if request and request.state == "open"), there[0] if there else None)


def open_pull_request(api: str, repository: Repository, *, source: str, target: str, title: str, description: str) -> PullRequest | None:
    """See GitHost."""
    api = checked_api(api)
    where = {"slug": repository.name, "project": {"key": repository.project}}
    document = {
        "title": title[:TITLE],
        "description": description[:DESCRIPTION],
        "fromRef": {"id": f"refs/heads/{checked_ref(source)}", "repository": where},
        "toRef": {"id": f"refs/heads/{checked_ref(target)}", "repository": where},
    }
    status, answer = _call(api, "POST", f"{_path(repository)}/pull-requests", document)
    if status == 201 and (request := _pull_request(api, repository, answer, new=True)):
        return request
    for error in _errors(answer):
        kind = str(error.get("exceptionName", "")).rpartition(".")[2]
        request = _pull_request(api, repository, error.get("existingPullRequest"))
        if status == 409 and kind == "DuplicatePullRequestException" and request:
            return request
        if status == 409 and kind == "EmptyPullRequestException":
            return None
    raise _refusal(api, repository, status, answer)


def update_pull_request(api: str, repository: Repository, number: int, *, title: str, description: str) -> None:
    """See GitHost."""
    texts = {"title": title[:TITLE], "description": description[:DESCRIPTION]}

    def new_texts(there: dict[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
        if all(str(there.get(key) or "").strip() == text.strip() for key, text in texts.items()):
            return None
        # Without them, Bitbucket removes the reviewers.
        there_now = there.get("reviewers")
        entries = there_now if isinstance(there_now, list) else []
        reviewers = [{"user": {"name": _part(entry, "user").get("name")}} for entry in entries]
        return "PUT", "", {**texts, "version": there.get("version"), "reviewers": reviewers}

    _change(api, repository, number, new_texts)


def close_pull_request(api: str, repository: Repository, number: int) -> None:
    """See GitHost."""
    _change(api, repository, number, lambda there: ("POST", f"/decline?{urlencode({'version': there.get('version')})}", {}))


def checks(api: str, repository: Repository, commit: str) -> Checks:
    """See GitHost."""
    counts = _expect(200, api, repository, "GET", f"/build-status/1.0/commits/stats/{commit}")
    numbers = counts if isinstance(counts, dict) else {}
    if numbers.get("failed") or numbers.get("cancelled"):
        return "failed"
    if numbers.get("inProgress") or numbers.get("unknown"):
        return "running"
    return "passed" if numbers.get("successful") else "none"


def _change(
    api: str, repository: Repository, number: int, request: Callable[[dict[str, Any]], tuple[str, str, dict[str, Any]] | None]
) -> None:
    """Change an open pull request. request: from its state to method, end of the path, and document; None: no change is needed.

    Bitbucket refuses a change with an old version of the pull request, which is then read again.
    """
    path = f"{_path(repository)}/pull-requests/{number}"
    for attempt in range(TRIES):
        there = _expect(200, api, repository, "GET", path)
        wanted = request(there) if isinstance(there, dict) and there.get("state") == "OPEN" else None
        if wanted is None:
            return
        method, suffix, document = wanted
        status, answer = _call(api, method, f"{path}{suffix}", document)
        if status == 200:
            return
        if status != 409 or attempt == TRIES - 1:
            raise _refusal(api, repository, status, answer)


def _path(repository: Repository) -> str:
    return f"/api/1.0/projects/{repository.project}/repos/{repository.name}"


def _expect(wanted: int, api: str, repository: Repository, method: str, path: str) -> Any:
    status, answer = _call(api, method, path)
    if status != wanted or answer is None:
        raise _refusal(api, repository, status, answer)
    return answer


def _call(api: str, method: str, path: str, document: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and parsed body (None if it is not JSON)."""
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "X-Atlassian-Token": "no-check",
        "Authorization": f"Bearer {token()}",
    }
    body = json.dumps(document).encode() if document is not None else None
    try:
        answer = http.call(method, f"{checked_api(api)}/rest{path}", headers=headers, body=body, seconds=SECONDS, limit=MOST_BYTES)
    except http.NoAnswer as error:
        raise unreachable(error.message, error.remedy) from None
    return answer.status, answer.document


def _values(api: str, repository: Repository, answer: Any) -> list[dict[str, Any]]:
    """The objects of a page. Raises HostRefused if the answer is something else."""
    values = answer.get("values") if isinstance(answer, dict) else None
    if not isinstance(values, list):
        raise refusal(checked_api(api), repository, 0, "the answer has no list of values")
    return [value for value in values if isinstance(value, dict)]


def _refusal(api: str, repository: Repository, status: int, answer: Any) -> Exception:
    return refusal(checked_api(api), repository, status, "; ".join(str(error.get("message", ""))[:300] for error in _errors(answer)))


def _errors(answer: Any) -> list[dict[str, Any]]:
    errors = answer.get("errors") if isinstance(answer, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def _part(document: Any, key: str) -> dict[str, Any]:
    """A part of a document, if both are objects."""
    part = document.get(key) if isinstance(document, dict) else None
    return part if isinstance(part, dict) else {}


def _pull_request(api: str, repository: Repository, document: Any, *, new: bool = False) -> PullRequest | None:
    """The pull request in an answer. Its web page is not taken from the answer, because it is printed."""
    number = number_in(document.get("id")) if isinstance(document, dict) else None
    if number is None:
        return None
    url = f"{checked_api(api)}/projects/{repository.project}/repos/{repository.name}/pull-requests/{number}"
    state = STATES.get(str(document.get("state")), "open")
    return PullRequest(number, url, new, state, commit_in(_part(document, "fromRef").get("latestCommit")), str(document.get("title", "")))
