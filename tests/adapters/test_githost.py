"""Pull requests on Bitbucket Data Center, over real HTTP and HTTPS."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_build.adapters import http
from mlops_build.adapters.githost import HOSTS, HostRefused, HostUnreachable, Repository
from mlops_build.adapters.githost import bitbucket as githost
from mlops_build.errors import MlopsBuildError, UsageError
from mlops_build.service import json_schema
from tests.adapters.git.bitbucket import Bitbucket, bitbucket
from tests.conftest import git

TOKEN = "NzI3-a.token_of=the+bot/"
POINTS = Repository("ml", "points")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bitbucket]:
    """With a repository ml/points that has the branches main and, one commit further, retrain/7."""
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with bitbucket(tmp_path / "bitbucket", TOKEN) as found:
        fill(found, tmp_path)
        yield found


def fill(found: Bitbucket, folder: Path) -> None:
    found.make("ml", "points")
    work = folder / "work"
    git(folder, "init", "--quiet", "--initial-branch=main", str(work))
    git(work, "commit", "--quiet", "--allow-empty", "--message=First")
    git(work, "push", "--quiet", str(found.folder / "ml/points.git"), "HEAD:refs/heads/main", "HEAD:refs/heads/merged")
    git(work, "commit", "--quiet", "--allow-empty", "--message=Second")
    git(work, "push", "--quiet", str(found.folder / "ml/points.git"), "HEAD:refs/heads/retrain/7")


def ask(server: Bitbucket, source: str = "retrain/7", title: str = "Train points", text: str = "all of it") -> githost.PullRequest | None:
    return githost.open_pull_request(server.url, POINTS, source=source, target="main", title=title, description=text)


@pytest.mark.parametrize(
    ("url", "project", "name"),
    [
        ("https://git.example.com/scm/ML/points.git", "ML", "points"),
        ("https://git.example.com/scm/ml/points", "ml", "points"),
        ("https://git.example.com:8443/bitbucket/scm/ML/fraud-score.v2.git", "ML", "fraud-score.v2"),
        ("https://bot@git.example.com/scm/ML/points.git", "ML", "points"),
        ("ssh://git@git.example.com:7999/ml/points.git", "ml", "points"),
        ("ssh://git.example.com/~ada.l/points.git", "~ada.l", "points"),
        ("https://git.example.com/scm/~ada/points.git", "~ada", "points"),
    ],
)
def test_project_and_name_come_from_the_clone_address(url: str, project: str, name: str) -> None:
    assert githost.repository_of(url) == Repository(project, name)


@pytest.mark.parametrize(
    "url",
    [
        "file:///srv/ml/points.git",
        "https://git.example.com/ml/points.git",
        "https://git.example.com/scm/ml/points.git?x=1",
        "https://git.example.com/scm/ml/points.git\n",
        "https://git.example.com/scm/ml/../points.git",
        "https://git.example.com/scm/ml/deeper/points.git",
        "https://git.example.com/scm/m%6C/points.git",
        "ssh://git@git.example.com:7999/a/b/points.git",
        "ssh://-oProxyCommand=x/ml/points.git",
        "git@git.example.com:ml/points.git",
        "",
    ],
)
def test_any_other_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not a clone address"):
        githost.repository_of(url)


def test_a_pull_request_is_opened_once(server: Bitbucket) -> None:
    first, again = ask(server), ask(server, title="Another title")
    assert first == githost.PullRequest(1, f"{server.url}/projects/ml/repos/points/pull-requests/1", new=True)
    assert again == githost.PullRequest(1, f"{server.url}/projects/ml/repos/points/pull-requests/1", new=False)
    (opened,) = server.pull_requests
    assert opened["title"] == "Train points"
    assert opened["fromRef"] == {"id": "refs/heads/retrain/7", "repository": {"slug": "points", "project": {"key": "ml"}}}
    assert opened["toRef"]["id"] == "refs/heads/main"
    method, path, headers = server.requests[0]
    assert (method, path) == ("POST", "/rest/api/1.0/projects/ml/repos/points/pull-requests")
    assert headers["X-Atlassian-Token"] == "no-check"
    assert headers["Authorization"] == f"Bearer {TOKEN}"


def test_bitbuckets_limits_are_kept(server: Bitbucket) -> None:
    assert ask(server, "merged") is None, "what is merged already needs no pull request"
    assert server.pull_requests == []
    assert ask(server, title="t" * 300, text="d" * 40000) is not None
    assert (len(server.pull_requests[0]["title"]), len(server.pull_requests[0]["description"])) == (255, 32768)


def test_a_look_changes_nothing(server: Bitbucket) -> None:
    githost.check(server.url, POINTS)
    assert [method for method, _, _ in server.requests] == ["GET"]
    with pytest.raises(HostRefused, match="404 for ml/other"):
        githost.check(server.url, Repository("ml", "other"))


@pytest.mark.parametrize(
    ("status", "body", "kind", "remedy"),
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
def test_other_answers_are_errors_with_a_remedy(
    server: Bitbucket, status: int, body: str, kind: type[MlopsBuildError], remedy: str
) -> None:
    server.answer = (status, body, {})
    with pytest.raises(kind) as caught:
        ask(server)
    assert str(status) in caught.value.message
    assert remedy in str(caught.value.remedy)
    assert TOKEN not in f"{caught.value.message} {caught.value.remedy}"


def test_a_token_that_is_not_known_is_refused_and_not_shown(server: Bitbucket, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_token_follows_no_redirect(server: Bitbucket, tmp_path: Path) -> None:
    with bitbucket(tmp_path / "elsewhere", TOKEN) as elsewhere:
        for status in (301, 302, 307, 308):
            server.answer = (status, "", {"Location": f"{elsewhere.url}/rest/api/1.0/projects/ml/repos/points/pull-requests"})
            with pytest.raises(HostRefused, match=str(status)):
                ask(server)
        assert elsewhere.requests == []


@pytest.mark.parametrize("api", ["http://git.example.com", "ftp://git.example.com", "https://user:word@git.example.com", "git.example.com"])
def test_the_token_does_not_travel_in_the_clear(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with pytest.raises(MlopsBuildError) as caught:
        githost.check(api, POINTS)
    assert caught.value.exit_code in (2, 4)
    assert ":word" not in caught.value.message
    with pytest.raises(HostUnreachable, match="does not answer"):
        githost.check("http://127.0.0.1:9", POINTS)


def test_a_companys_certificates_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with bitbucket(tmp_path / "bitbucket", TOKEN, tls=tls) as server:
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
