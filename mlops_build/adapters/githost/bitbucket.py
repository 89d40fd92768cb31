"""Bitbucket Data Center's REST API.

The token is MLOPS_GIT_TOKEN, which is also used for git push. It is sent only to the host in service.yaml: redirects are not followed,
and plain http is allowed only to this machine.
"""

import json
import os
import re
from typing import Any
from urllib.parse import urlsplit

from mlops_build.adapters import http
from mlops_build.adapters.git.command import checked_ref, masked
from mlops_build.adapters.githost.host import HostRefused, HostUnreachable, PullRequest, Repository
from mlops_build.errors import UsageError

SECONDS = 30
# Bitbucket's own limits: 255 characters of a title, 32768 of a description.
TITLE, DESCRIPTION = 255, 32768
LOOPBACK = ("127.0.0.1", "localhost", "::1")

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


def token() -> str:
    """MLOPS_GIT_TOKEN. Raises HostRefused if it is not set, or is not valid in a header."""
    value = os.environ.get("MLOPS_GIT_TOKEN", "")
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise HostRefused(
            "MLOPS_GIT_TOKEN is not set"
            if not value
            else "MLOPS_GIT_TOKEN contains a space or another character that is not valid in a token",
            remedy="set it to an HTTP access token of the bot with permission to write to the repository (Bitbucket: repository settings)",
        )
    return value


def checked_api(api: str) -> str:
    """Bitbucket's address without the final slash. Raises UsageError, or HostRefused if the token would be sent unencrypted."""
    parts = urlsplit(api)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageError(
            f"{masked(api)[:200]!r} is not a valid address of Bitbucket", remedy="write https://HOST[/PATH], without user and query"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise HostRefused(f"{api} is not https: the token would be sent unencrypted", remedy="write https:// in service.yaml's git.api")
    return api.rstrip("/")


def open_pull_request(api: str, repository: Repository, *, source: str, target: str, title: str, description: str) -> PullRequest | None:
    """Open a pull request from `source` to `target`, or return the open one. None: everything is already merged.

    Raises HostUnreachable, HostRefused, UsageError. No message contains the token.
    """
    api = checked_api(api)
    where = {"slug": repository.name, "project": {"key": repository.project}}
    document = {
        "title": title[:TITLE],
        "description": description[:DESCRIPTION],
        "fromRef": {"id": f"refs/heads/{checked_ref(source)}", "repository": where},
        "toRef": {"id": f"refs/heads/{checked_ref(target)}", "repository": where},
    }
    status, answer = _call(api, f"/projects/{repository.project}/repos/{repository.name}/pull-requests", document)
    if status == 201 and (number := _number(answer)):
        return PullRequest(number, _address(api, repository, number), new=True)
    for error in _errors(answer):
        kind = str(error.get("exceptionName", "")).rpartition(".")[2]
        if status == 409 and kind == "DuplicatePullRequestException" and (number := _number(error.get("existingPullRequest"))):
            return PullRequest(number, _address(api, repository, number), new=False)
        if status == 409 and kind == "EmptyPullRequestException":
            return None
    raise _refusal(api, repository, status, answer)


def check(api: str, repository: Repository) -> None:
    """Check that the token can read the repository; nothing is changed. Raises HostUnreachable, HostRefused, UsageError."""
    api = checked_api(api)
    status, answer = _call(api, f"/projects/{repository.project}/repos/{repository.name}", None)
    if status != 200:
        raise _refusal(api, repository, status, answer)


def _call(api: str, path: str, document: dict[str, Any] | None) -> tuple[int, Any]:
    """Status and parsed body (None if it is not JSON)."""
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "X-Atlassian-Token": "no-check",
        "Authorization": f"Bearer {token()}",
    }
    body = json.dumps(document).encode() if document is not None else None
    method = "GET" if body is None else "POST"
    try:
        answer = http.call(method, f"{api}/rest/api/1.0{path}", headers=headers, body=body, seconds=SECONDS)
    except http.NoAnswer as error:
        raise HostUnreachable(error.message, remedy=f"{error.remedy}; the address is `git.api` in service.yaml") from None
    return answer.status, answer.document


def _refusal(api: str, repository: Repository, status: int, answer: Any) -> Exception:
    messages = "; ".join(str(error.get("message", ""))[:300] for error in _errors(answer)) or "no reason given"
    message = f"{api} answered {status} for {repository}: {masked(messages)}"
    if status >= 500 or status == 429:
        return HostUnreachable(message, remedy="run this again later; the results so far are kept")
    remedies = {
        401: "MLOPS_GIT_TOKEN is not valid or has expired: create a new HTTP access token",
        403: "MLOPS_GIT_TOKEN needs permission to write to this repository",
        404: "the repository does not exist, or the token cannot read it: check `git.api`, origin's address and the token",
    }
    redirect = "the address redirects: use the new address in `git.api`" if 300 <= status < 400 else "see the message"
    return HostRefused(message, remedy=remedies.get(status, redirect))


def _errors(answer: Any) -> list[dict[str, Any]]:
    errors = answer.get("errors") if isinstance(answer, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def _number(pull_request: Any) -> int | None:
    number = pull_request.get("id") if isinstance(pull_request, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else None


def _address(api: str, repository: Repository, number: int) -> str:
    """The pull request's web page. It is not taken from the answer, because it is printed."""
    return f"{api}/projects/{repository.project}/repos/{repository.name}/pull-requests/{number}"
