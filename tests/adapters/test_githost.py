"""Pull requests on Bitbucket Data Center and GitLab, over real HTTP and HTTPS, with real repositories."""

import contextlib
import itertools
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters import http
from mlops_build.adapters.githost import (
    HOSTS,
    HostRefused,
    HostUnreachable,
    PullRequest,
    Repository,
    access,
    bitbucket,
    gitlab,
    repository_of,
)
from mlops_build.errors import MlopsBuildError, UsageError
from mlops_build.service import json_schema
from tests import githosts
from tests.conftest import git
from tests.githosts import Bitbucket, GitHost

TOKEN = "NzI3-a.token_of=the+bot/"
POINTS = Repository("ml", "points")
PAGES = {"bitbucket": "projects/ml/repos/points/pull-requests", "gitlab": "ml/points/-/merge_requests"}


@pytest.fixture(params=list(githosts.HOSTS))
def kind(request: pytest.FixtureRequest) -> str:
    """The value of `git.pull_requests` in service.yaml."""
    return str(request.param)


@pytest.fixture
def server(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHost]:
    """With a repository ml/points that has the branches main, merged and, one commit further, retrain/7."""
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with githosts.HOSTS[kind](tmp_path / "host", TOKEN) as host:
        fill(host, tmp_path)
        yield host


def fill(host: GitHost, folder: Path) -> None:
    host.make("ml", "points")
    work, bare = folder / "work", str(host.bare("ml", "points"))
    git(folder, "init", "--quiet", "--initial-branch=main", str(work))
    git(work, "commit", "--quiet", "--allow-empty", "--message=First")
    git(work, "push", "--quiet", bare, "HEAD:refs/heads/main", "HEAD:refs/heads/merged")
    git(work, "commit", "--quiet", "--allow-empty", "--message=Second")
    git(work, "push", "--quiet", bare, "HEAD:refs/heads/retrain/7")


def kind_of(server: GitHost) -> str:
    return "bitbucket" if isinstance(server, Bitbucket) else "gitlab"


def call(server: GitHost, operation: str, *arguments: Any, **options: Any) -> Any:
    return getattr(HOSTS[kind_of(server)], operation)(server.url, POINTS, *arguments, **options)


def ask(server: GitHost, source: str = "retrain/7", title: str = "Train points", text: str = "all of it") -> PullRequest | None:
    request: PullRequest | None = call(server, "open_pull_request", source=source, target="main", title=title, description=text)
    return request


def find(server: GitHost) -> PullRequest | None:
    request: PullRequest | None = call(server, "find_pull_request", source="retrain/7", target="main")
    return request


def page(server: GitHost, number: int) -> str:
    return f"{server.url}/{PAGES[kind_of(server)]}/{number}"


@pytest.mark.parametrize(
    ("host", "url", "project", "name"),
    [
        (bitbucket, "https://git.example.com/scm/ML/points.git", "ML", "points"),
        (bitbucket, "https://git.example.com/scm/ml/points", "ml", "points"),
        (bitbucket, "https://git.example.com:8443/bitbucket/scm/ML/fraud-score.v2.git", "ML", "fraud-score.v2"),
        (bitbucket, "https://bot@git.example.com/scm/ML/points.git", "ML", "points"),
        (bitbucket, "ssh://git@git.example.com:7999/ml/points.git", "ml", "points"),
        (bitbucket, "ssh://git.example.com/~ada.l/points.git", "~ada.l", "points"),
        (bitbucket, "https://git.example.com/scm/~ada/points.git", "~ada", "points"),
        (gitlab, "https://gitlab.example.com/ml/points.git", "ml", "points"),
        (gitlab, "https://gitlab.example.com:8443/ml/nlp/points", "ml/nlp", "points"),
        (gitlab, "https://bot@gitlab.example.com/a/b/c/d.v2.git/", "a/b/c", "d.v2"),
        (gitlab, "ssh://git@gitlab.example.com/ml/points.git", "ml", "points"),
        (gitlab, "ssh://git@gitlab.example.com:2222/ml/points.git", "ml", "points"),
        (gitlab, "git@gitlab.example.com:ml/nlp/points.git", "ml/nlp", "points"),
    ],
)
def test_project_and_name_come_from_the_clone_address(host: Any, url: str, project: str, name: str) -> None:
    assert host.repository_of(url) == Repository(project, name)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        *((host, url) for host in (bitbucket, gitlab) for url in ("", "file:///srv/ml/points.git")),
        (bitbucket, "https://git.example.com/ml/points.git"),
        (bitbucket, "https://git.example.com/scm/ml/points.git?x=1"),
        (bitbucket, "https://git.example.com/scm/ml/points.git\n"),
        (bitbucket, "https://git.example.com/scm/ml/../points.git"),
        (bitbucket, "https://git.example.com/scm/ml/deeper/points.git"),
        (bitbucket, "https://git.example.com/scm/m%6C/points.git"),
        (bitbucket, "ssh://git@git.example.com:7999/a/b/points.git"),
        (bitbucket, "ssh://-oProxyCommand=x/ml/points.git"),
        (bitbucket, "git@git.example.com:ml/points.git"),
        (gitlab, "https://gitlab.example.com/points.git"),
        (gitlab, "https://gitlab.example.com/ml/points.git?x=1"),
        (gitlab, "https://gitlab.example.com/ml/points.git\n"),
        (gitlab, "https://gitlab.example.com/ml/../points.git"),
        (gitlab, "https://gitlab.example.com/ml//points.git"),
        (gitlab, "https://gitlab.example.com/m%6C/points.git"),
        (gitlab, "git@gitlab.example.com:/points.git"),
        (gitlab, "gitlab.example.com:ml/points.git"),
        (gitlab, "-oProxyCommand=x@gitlab.example.com:ml/points.git"),
    ],
)
def test_any_other_address_is_refused(host: Any, url: str) -> None:
    with pytest.raises(UsageError, match="is not a clone address"):
        host.repository_of(url)


def test_the_host_in_service_yaml_decides_on_an_address_that_fits_several() -> None:
    both = "https://git.example.com/scm/ml/points.git"
    assert [repository_of(both, kind) for kind in HOSTS] == [POINTS, Repository("scm/ml", "points")]
    assert repository_of(both) == POINTS
    assert repository_of("git@git.example.com:ml/points.git") == POINTS
    assert repository_of("git@git.example.com:ml/points.git", "bitbucket") is None
    assert repository_of("file:///srv/points.git") is None


def test_a_pull_request_is_opened_once(server: GitHost) -> None:
    assert find(server) is None
    first, again = ask(server), ask(server, title="Another title")
    head = server.head("ml", "points", "retrain/7")
    assert first == PullRequest(1, page(server, 1), new=True, state="open", commit=str(head), title="Train points")
    assert again == find(server) == PullRequest(1, page(server, 1), new=False, state="open", commit=str(head), title="Train points")
    assert [(pull.source, pull.target, pull.title) for pull in server.pulls] == [("retrain/7", "main", "Train points")]
    for _, _, headers in server.requests:
        assert headers.get("Private-Token") == TOKEN or headers["Authorization"] == f"Bearer {TOKEN}"
        assert kind_of(server) == "gitlab" or headers["X-Atlassian-Token"] == "no-check"


def test_the_newest_pull_request_is_the_one_that_counts(server: GitHost) -> None:
    ask(server)
    server.decline(1)
    declined = find(server)
    assert declined
    assert (declined.number, declined.state, declined.commit) == (1, "closed", server.head("ml", "points", "retrain/7"))
    assert (again := ask(server))
    assert (again.number, again.new) == (2, True)
    server.merge(2)
    assert (merged := find(server))
    assert (merged.number, merged.state) == (2, "merged")
    assert ask(server) is None, "everything is merged"


def test_the_texts_of_a_pull_request_are_replaced(server: GitHost) -> None:
    ask(server)
    server.pulls[0].reviewers = ["ada"]
    if isinstance(server, Bitbucket):
        server.stale = 2
    call(server, "update_pull_request", 1, title="Train again", description="all of it\n")
    assert (server.pulls[0].title, server.pulls[0].description) == ("Train again", "all of it\n")
    assert server.pulls[0].reviewers == ["ada"]
    server.requests.clear()
    call(server, "update_pull_request", 1, title="Train again", description="all of it")
    assert {method for method, _, _ in server.requests} == {"GET"}, "nothing changed"
    server.decline(1)
    call(server, "update_pull_request", 1, title="Too late", description="")
    assert server.pulls[0].title == "Train again"


def test_a_pull_request_is_closed_once(server: GitHost) -> None:
    ask(server)
    if isinstance(server, Bitbucket):
        server.stale = 1
    for _ in range(2):
        call(server, "close_pull_request", 1)
        assert [pull.state for pull in server.pulls] == ["closed"]
    with pytest.raises(HostRefused, match="404"):
        call(server, "close_pull_request", 2)


def test_a_change_is_not_repeated_for_ever(kind: str, server: GitHost) -> None:
    if not isinstance(server, Bitbucket):
        pytest.skip("only Bitbucket refuses a change of an old version")
    ask(server)
    server.stale = 100
    with pytest.raises(HostRefused, match="409"):
        call(server, "close_pull_request", 1)
    assert server.pulls[0].state == "open"


@pytest.mark.parametrize(
    ("bitbuckets", "gitlabs", "expected"),
    [
        ([], [], "none"),
        (["SUCCESSFUL"], ["success"], "passed"),
        (["SUCCESSFUL", "FAILED"], ["failed"], "failed"),
        (["CANCELLED"], ["canceled"], "failed"),
        (["INPROGRESS", "SUCCESSFUL"], ["running"], "running"),
        (["UNKNOWN"], ["pending"], "running"),
        ([], ["skipped"], "none"),
    ],
)
def test_the_builds_of_a_commit_have_a_result(server: GitHost, bitbuckets: list[str], gitlabs: list[str], expected: str) -> None:
    commit = str(server.head("ml", "points", "main"))
    server.builds[commit] = bitbuckets if isinstance(server, Bitbucket) else gitlabs
    assert call(server, "checks", commit) == expected


def test_the_limits_of_the_host_are_kept(server: GitHost) -> None:
    assert ask(server, "merged") is None, "what is merged already needs no pull request"
    assert server.pulls == []
    assert ask(server, title="t" * 300, text="d" * 40000) is not None
    (pull,) = server.pulls
    assert (len(pull.title), len(pull.description)) == (255, 32768 if isinstance(server, Bitbucket) else 40000)


def test_a_description_executes_nothing(server: GitHost) -> None:
    """GitLab executes a line of a description that begins with a slash."""
    ask(server, text="Why:\n/close\n  /close")
    assert server.pulls[0].state == "open"
    call(server, "update_pull_request", 1, title="Train points", description="/close")
    assert server.pulls[0].state == "open"


def test_a_check_changes_nothing(server: GitHost) -> None:
    call(server, "check")
    assert [method for method, _, _ in server.requests] == ["GET"]
    with pytest.raises(HostRefused, match="404 for ml/other"):
        HOSTS[kind_of(server)].check(server.url, Repository("ml", "other"))


@pytest.mark.parametrize(
    ("status", "body", "error", "remedy"),
    [
        (403, "{}", HostRefused, "write to this repository"),
        (404, "<html>", HostRefused, "git.api"),
        (409, '{"errors": [{"exceptionName": "x.PullRequestOutOfDateException", "message": "stale"}]}', HostRefused, "see the message"),
        (
            409,
            '{"errors": [{"exceptionName": "x.DuplicatePullRequestException", "existingPullRequest": {"id": "1/../x"}}]}',
            HostRefused,
            "",
        ),
        (409, '{"errors": "odd"}', HostRefused, ""),
        (201, '{"id": true}', HostRefused, ""),
        (201, "not JSON", HostRefused, ""),
        (429, "{}", HostUnreachable, "later"),
        (500, "{}", HostUnreachable, "later"),
        (503, "<html>down</html>", HostUnreachable, "later"),
    ],
)
def test_other_answers_are_errors_with_a_remedy(server: GitHost, status: int, body: str, error: type[MlopsBuildError], remedy: str) -> None:
    server.answer = (status, body, {})
    with pytest.raises(error) as caught:
        ask(server)
    assert str(status) in caught.value.message or body == "not JSON"
    assert remedy in str(caught.value.remedy)
    assert TOKEN not in f"{caught.value.message} {caught.value.remedy}"


@pytest.mark.parametrize("body", ["null", "5", "{}", "[5]", '{"values": 5}', '{"values": [5]}', '{"id": 1, "state": []}', "[" * 100_000])
def test_an_answer_of_another_form_is_an_error(server: GitHost, body: str) -> None:
    server.answer = (200, body, {})
    commit = "a" * 40
    texts = {"title": "Train", "description": ""}
    for operation, arguments, options in [
        ("find_pull_request", (), {"source": "retrain/7", "target": "main"}),
        ("open_pull_request", (), {"source": "retrain/7", "target": "main", **texts}),
        ("update_pull_request", (1,), texts),
        ("close_pull_request", (1,), {}),
        ("checks", (commit,), {}),
        ("check", (), {}),
    ]:
        with contextlib.suppress(HostRefused):
            call(server, operation, *arguments, **options)
    with contextlib.suppress(HostRefused):
        assert HOSTS[kind_of(server)].repositories(server.url, "ml") == []


@contextlib.contextmanager
def slow_host(begin: bytes, *, is_endless: bool = True) -> Iterator[str]:
    """A server that sends `begin` and then a byte every 50 ms; its address."""

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(begin)
            for _ in itertools.count() if is_endless else ():
                connection.sendall(b"x")
                time.sleep(0.05)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_the_time_limit_applies_to_the_whole_answer(kind: str, begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    monkeypatch.setattr(HOSTS[kind], "SECONDS", 0.5)
    with slow_host(begin) as url, pytest.raises(HostUnreachable, match="the answer takes too long"):
        HOSTS[kind].repositories(url, "ml")


def test_an_answer_that_is_not_http_is_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with slow_host(b"SSH-2.0-OpenSSH\r\n\r\n", is_endless=False) as url, pytest.raises(HostUnreachable, match="does not answer"):
        HOSTS[kind].check(url, POINTS)


def test_a_list_without_an_end_is_an_error(server: GitHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LIST_SECONDS", 0)
    with pytest.raises(HostUnreachable, match="not complete after"):
        HOSTS[kind_of(server)].repositories(server.url, "ml")


def test_a_token_that_is_not_known_is_refused_and_not_shown(server: GitHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_GIT_TOKEN", "another-token")
    with pytest.raises(HostRefused, match="401") as caught:
        ask(server)
    assert "another-token" not in f"{caught.value.message} {caught.value.remedy}"
    for bad in ("", "two words", "line\nbreak"):
        monkeypatch.setenv("MLOPS_GIT_TOKEN", bad)
        with pytest.raises(HostRefused, match="MLOPS_GIT_TOKEN") as caught:
            ask(server)
        assert not bad or bad not in caught.value.message
    assert len(server.requests) == 1


def test_the_token_follows_no_redirect(kind: str, server: GitHost, tmp_path: Path) -> None:
    with githosts.HOSTS[kind](tmp_path / "elsewhere", TOKEN) as elsewhere:
        for status in (301, 302, 307, 308):
            server.answer = (status, "", {"Location": f"{elsewhere.url}{server.API}/x"})
            for operation in (ask, find):
                with pytest.raises(HostRefused, match=r"redirects|answered 30"):
                    operation(server)
        server.answer = (200, '[{"id": 1, "path_with_namespace": "ml/a"}]', {"Link": f'<{elsewhere.url}{server.API}/x>; rel="next"'})
        with pytest.raises(HostRefused, match=r"another host|something unexpected"):
            HOSTS[kind].repositories(server.url, "ml")
        assert elsewhere.requests == []


@pytest.mark.parametrize("api", ["http://git.example.com", "ftp://git.example.com", "https://user:word@git.example.com", "git.example.com"])
def test_the_token_does_not_travel_in_the_clear(kind: str, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with pytest.raises(MlopsBuildError) as caught:
        HOSTS[kind].check(api, POINTS)
    assert caught.value.exit_code in (2, 4)
    assert ":word" not in caught.value.message
    with pytest.raises(HostUnreachable, match="does not answer"):
        HOSTS[kind].check("http://127.0.0.1:9", POINTS)


def test_a_companys_certificates_are_honoured(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("openssl"):
        pytest.skip("put openssl on PATH to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext"]  # noqa: RUF005
        + ["subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with githosts.HOSTS[kind](tmp_path / "host", TOKEN, tls=tls) as server:
        fill(server, tmp_path)
        with pytest.raises(HostUnreachable, match="does not answer") as caught:
            ask(server)
        assert "SSL_CERT_FILE" in str(caught.value.remedy)
        assert server.requests == []
        for variable in ("SSL_CERT_FILE", *http.BUNDLES):
            with monkeypatch.context() as patch:
                patch.setenv(variable, str(certificate))
                assert ask(server) is not None
        monkeypatch.setenv("GIT_SSL_CAINFO", str(key))
        with pytest.raises(HostUnreachable, match=r"GIT_SSL_CAINFO is .* contains no certificates"):
            ask(server)


def test_each_host_is_a_value_of_service_yaml() -> None:
    assert json_schema()["$defs"]["Git"]["properties"]["pull_requests"]["enum"] == ["none", *HOSTS]


def test_the_repositories_of_a_project_or_group(server: GitHost, tmp_path: Path) -> None:
    for name in ("archived", "digits", "letters"):
        server.make("ml", name)
    host = HOSTS[kind_of(server)]
    listed = host.repositories(server.url, "ml")
    assert listed == [f"{server.url}{server.CLONE}/ml/{name}.git" for name in ("digits", "letters", "points")]
    assert all(host.repository_of(url) for url in listed)
    with pytest.raises(HostRefused):
        host.repositories(server.url, "nothing")
    with pytest.raises(MlopsBuildError):
        host.repositories(server.url, "../x")
