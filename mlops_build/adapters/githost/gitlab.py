"""GitLab's API, with python-gitlab. Its merge requests are the pull requests."""

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlops_build.adapters import http
from mlops_build.adapters.git.command import checked_ref, masked
from mlops_build.adapters.githost.access import REDIRECTED, SECONDS, checked_api, commit_in, in_time, number_in, refusal, token, unreachable
from mlops_build.adapters.githost.host import Checks, HostRefused, PullRequest, Repository, State
from mlops_build.errors import UsageError

# GitLab's own limits: 255 characters of a title, 1048576 of a description.
TITLE, DESCRIPTION = 255, 1048576
STATES: dict[object, State] = {"opened": "open", "locked": "open", "merged": "merged", "closed": "closed"}
CHECKS: dict[object, Checks] = {"success": "passed", "failed": "failed", "canceled": "failed", "skipped": "none", None: "none"}
# python-gitlab itself would wait and repeat after 429.
ONCE = {"max_retries": 0}
MOST = 5000  # repositories of a group
MOST_BYTES = 32 << 20  # of an answer: a merge request's description may have 1 MiB

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}"
HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})"
# https://HOST/GROUP[/SUBGROUP…]/NAME.git, ssh://git@HOST[:PORT]/… and git@HOST:…, the formats of GitLab's clone button.
START = rf"(?:(?:https?|ssh)://(?:[^/@\s]+@)?{HOST}(?::[0-9]{{1,5}})?/|[A-Za-z0-9_][A-Za-z0-9_.-]*@{HOST}:)"
ADDRESS = re.compile(rf"{START}(?P<groups>{NAME}(?:/{NAME}){{0,19}})/(?P<name>{NAME}?)(?:\.git)?/?")


def repository_of(url: str) -> Repository:
    """Groups and name in a clone address. Raises UsageError for an address that is not GitLab's."""
    match = ADDRESS.fullmatch(url)
    if not match or ".." in url:
        raise UsageError(
            f"{masked(url)[:200]!r} is not a clone address of GitLab, so the repository of the merge requests is not known",
            remedy="use https://HOST/GROUP/NAME.git or git@HOST:GROUP/NAME.git; on an agent, set MLOPS_GIT_URL",
        )
    return Repository(match["groups"], match["name"])


def repositories(api: str, project: str) -> list[str]:
    """See GitHost. project: the path of a group, whose subgroups count, too."""
    with _client(api, Repository(project, "")) as gitlab:
        group = gitlab.groups.get(project, lazy=True)
        listed = group.projects.list(iterator=True, per_page=100, include_subgroups=True, archived=False, simple=True, **ONCE)
        paths = [str(document.asdict().get("path_with_namespace")) for document in in_time(itertools.islice(listed, MOST))]
    # The addresses are not taken from the answer: the token is sent there.
    return sorted(url for url in (f"{checked_api(api)}/{path}.git" for path in paths) if ADDRESS.fullmatch(url) and ".." not in url)


def check(api: str, repository: Repository) -> None:
    """See GitHost."""
    with _client(api, repository) as gitlab:
        gitlab.projects.get(str(repository), **ONCE)


def find_pull_request(api: str, repository: Repository, *, source: str, target: str) -> PullRequest | None:
    """See GitHost."""
    with _client(api, repository) as gitlab:
        return _find(gitlab, api, repository, checked_ref(source), checked_ref(target))


def open_pull_request(api: str, repository: Repository, *, source: str, target: str, title: str, description: str) -> PullRequest | None:
    """See GitHost."""
    branches = {"source_branch": checked_ref(source), "target_branch": checked_ref(target)}
    with _client(api, repository) as gitlab:
        from gitlab.exceptions import GitlabCreateError

        project = gitlab.projects.get(str(repository), lazy=True)
        compared = project.repository_compare(target, source, **ONCE)
        commits = compared.get("commits") if isinstance(compared, dict) else None
        if commits == []:
            return None
        try:
            made = project.mergerequests.create({**branches, **_texts(title, description)}, **ONCE)
        except GitlabCreateError as error:
            # Also if another client opened it a moment ago.
            if error.response_code == 409 and (there := _find(gitlab, api, repository, source, target)) and there.state == "open":
                return there
            raise
        if request := _pull_request(api, repository, made, new=True):
            return request
    raise refusal(checked_api(api), repository, 201, "the answer has no number of a merge request")


def update_pull_request(api: str, repository: Repository, number: int, *, title: str, description: str) -> None:
    """See GitHost."""
    texts = _texts(title, description)
    with _client(api, repository) as gitlab:
        request = gitlab.projects.get(str(repository), lazy=True).mergerequests.get(number, **ONCE)
        changed = any((getattr(request, key, "") or "").strip() != text.strip() for key, text in texts.items())
        if request.state == "opened" and changed:
            request.manager.update(number, texts, **ONCE)


def close_pull_request(api: str, repository: Repository, number: int) -> None:
    """See GitHost."""
    with _client(api, repository) as gitlab:
        request = gitlab.projects.get(str(repository), lazy=True).mergerequests.get(number, **ONCE)
        if request.state == "opened":
            request.manager.update(number, {"state_event": "close"}, **ONCE)


def checks(api: str, repository: Repository, commit: str) -> Checks:
    """See GitHost. GitLab's own status of a commit covers all its pipelines, those of other CI systems included."""
    with _client(api, repository) as gitlab:
        status = gitlab.projects.get(str(repository), lazy=True).commits.get(commit, **ONCE).asdict().get("status")
        return CHECKS.get(status, "running")


def _find(gitlab: Any, api: str, repository: Repository, source: str, target: str) -> PullRequest | None:
    wanted = {"source_branch": source, "target_branch": target, "state": "all", "order_by": "created_at", "sort": "desc"}
    listed = gitlab.projects.get(str(repository), lazy=True).mergerequests.list(get_all=False, per_page=20, **wanted, **ONCE)
    # A fork may have a branch with the same name.
    own = [document for document in listed if document.asdict().get("source_project_id") == document.asdict().get("target_project_id")]
    there = [request for document in own if (request := _pull_request(api, repository, document))]
    return next((request for request in there if request.state == "open"), there[0] if there else None)


def _texts(title: str, description: str) -> dict[str, str]:
    """The texts of a merge request. GitLab would execute a line such as `/merge` in a description."""
    return {"title": title[:TITLE], "description": re.sub(r"(?m)^(\s*)/", r"\1\\/", description)[:DESCRIPTION]}


def _pull_request(api: str, repository: Repository, document: Any, *, new: bool = False) -> PullRequest | None:
    """The merge request in an answer. Its web page is not taken from the answer, because it is printed."""
    values = document.asdict()
    number = number_in(values.get("iid"))
    if number is None:
        return None
    url = f"{checked_api(api)}/{repository}/-/merge_requests/{number}"
    return PullRequest(
        number, url, new, STATES.get(values.get("state"), "open"), commit_in(values.get("sha")), str(values.get("title", ""))
    )


@contextmanager
def _client(api: str, repository: Repository) -> Iterator[Any]:
    """python-gitlab's client: no redirects, the time limit and certificates of `http.call`. Its errors become those of GitHost."""
    import gitlab
    import requests
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
            headers = {name: str(value) for name, value in request.headers.items() if name != "Accept-Encoding"}
            method, url, body = str(request.method), str(request.url), request.body if isinstance(request.body, bytes) else None
            if not url.startswith(f"{api}/"):  # the next page of a list, by the answer
                raise HostRefused(f"{api} names a page of another host", remedy=REDIRECTED)
            answer = http.call(method, url, seconds=SECONDS, headers=headers, body=body, limit=MOST_BYTES)
            response = requests.Response()
            response.request, response.url, response.status_code, response.reason = request, url, answer.status, ""
            response.headers.update(answer.headers)
            response.raw = io.BytesIO(answer.body)
            return response

    api = checked_api(api)
    try:
        with requests.Session() as session:
            session.max_redirects = 0
            for scheme in ("https://", "http://"):
                session.mount(scheme, Adapter())
            yield gitlab.Gitlab(api, private_token=token(), timeout=SECONDS, session=session, user_agent="mlops-build")
    except requests.TooManyRedirects:
        raise HostRefused(f"{api} redirects", remedy=REDIRECTED) from None
    except http.NoAnswer as error:
        raise unreachable(error.message, error.remedy) from None
    except gitlab.GitlabError as error:
        raise refusal(api, repository, error.response_code or 0, str(error.error_message)) from None
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # python-gitlab takes the shape of an answer for granted.
        raise refusal(api, repository, 0, f"{type(error).__name__} in python-gitlab") from None
