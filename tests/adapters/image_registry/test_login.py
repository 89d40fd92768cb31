"""Logins and certificates: whose are used, and who receives them."""

import base64
import json
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from mlops_build.adapters import http
from mlops_build.adapters.image_registry import ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry, Repository
from tests import registries
from tests.adapters.image_registry.cases import BLOB, DIGEST, MANIFEST, OCI, content, log_in, make_certificate, refused
from tests.registries import Fault, Registry


def test_basic_login(registry: Registry, repository: Repository, tmp_path: Path) -> None:
    registry.mode = "basic"
    error = refused(repository.check_push, LoginNeeded)
    assert f"docker login {registry.host}" in str(error.remedy)
    assert "no login for it is stored here" in error.message
    log_in(tmp_path, registry.host)
    repository.check_push()
    assert registry.uploads == {}, "the upload is cancelled"
    registry.login = "bot:another"
    error = refused(repository.check_push, LoginNeeded)
    assert "stored here" not in error.message


def test_tokens_are_for_the_repository_and_its_sources(registry: Registry, repository: Repository, tmp_path: Path) -> None:
    registry.mode = "bearer"
    refused(repository.check_push, LoginNeeded)
    log_in(tmp_path, registry.host)
    registry.seen.clear()
    repository.put_manifest("v1", OCI, MANIFEST)
    repository.manifest("v1")
    (token,) = registry.calls("GET /token")
    assert "scope=repository%3Aml%2Fpoints%3Apull%2Cpush&scope=repository%3Aml%2Fbase%3Apull" in token.path
    assert token.headers["Authorization"].startswith("Basic ")


def test_expired_tokens_are_replaced_at_any_request(registry: Registry, repository: Repository, tmp_path: Path) -> None:
    registry.mode, registry.uses = "bearer", 1
    log_in(tmp_path, registry.host)
    repository.upload(DIGEST, len(BLOB), content)
    repository.put_manifest("v1", OCI, MANIFEST)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    assert len(registry.calls("GET /token")) == 3
    registry.uses = 0
    refused(lambda: repository.manifest("v1"), LoginNeeded)


def test_an_expired_token_is_not_sent_to_the_token_server(registry: Registry, repository: Repository, tmp_path: Path) -> None:
    registry.mode, registry.uses = "bearer", 1
    log_in(tmp_path, registry.host)
    repository.manifest("v1")
    (tmp_path / "home/.docker/config.json").unlink()
    refused(lambda: repository.manifest("v1"), LoginNeeded)
    assert "Authorization" not in registry.calls("GET /token")[-1].headers


def test_the_first_of_two_challenges_is_answered(registry: Registry, repository: Repository, tmp_path: Path) -> None:
    registry.mode = "bearer"
    log_in(tmp_path, registry.host)
    challenges = f'Bearer realm="http://{registry.host}/token",service="an image registry", Basic realm="x"'
    registry.faults = [Fault("GET .*/manifests/", 401, {"WWW-Authenticate": challenges})]
    assert repository.manifest("v1") is None
    assert "service=an+image+registry&" in registry.calls("GET /token")[0].path


def test_cookies_are_not_kept(registry: Registry, repository: Repository) -> None:
    registry.faults = [Fault("GET .*/manifests/", 404, {"Set-Cookie": "sid=1; Path=/"})]
    for _ in range(2):
        assert repository.manifest("v1") is None
    assert not any("Cookie" in call.headers for call in registry.seen)


def test_an_identity_token_is_exchanged(registry: Registry, repository: Repository, tmp_path: Path) -> None:
    registry.mode = "bearer"
    log_in(tmp_path, registry.host, {"auth": base64.b64encode(b"bot:").decode(), "identitytoken": registry.identity})
    repository.check_push()
    (token,) = registry.calls("POST /token")
    assert "Authorization" not in token.headers
    assert registry.calls("GET /token") == []
    registry.mode = "basic"
    refused(Repository(f"{registry.host}/ml/points").check_push, LoginNeeded)


def test_a_login_is_sent_to_no_other_address_without_https(
    registry: Registry, repository: Repository, other: Registry, tmp_path: Path
) -> None:
    registry.mode = "bearer"
    log_in(tmp_path, registry.host)
    for realm in (
        f"http://{other.host.replace('127.0.0.1', '127.1')}/token",
        "file:///etc/passwd",
        "",
        f"http://bot:xyzzy@{other.host}/token",
    ):
        registry.realm = realm
        if realm:
            refused(repository.check_push, RefusedByRegistry)
    assert other.seen == []
    registry.realm = f"http://{other.host}/token"  # this machine
    other.faults = [Fault("GET /token", 200, body=b'{"token": "with space"}'), Fault("GET /token", 302, {"Location": registry.host})]
    for _ in range(2):
        refused(repository.check_push, LoginNeeded)
    assert len(other.seen) == 2


def test_the_login_of_netrc_is_not_sent(
    registry: Registry, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password of-another-server\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert repository.manifest("v1") is None
    assert "Authorization" not in registry.seen[0].headers
    registry.mode = "basic"
    log_in(tmp_path, registry.host)
    repository.check_push()


@pytest.mark.parametrize("place", ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"])
@pytest.mark.parametrize("key", ["HOST", "https://HOST/v1/", "https://HOST"])
def test_stored_logins_of_docker_podman_and_buildah(
    registry: Registry, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, key: str
) -> None:
    registry.mode = "basic"
    folder = tmp_path / "logins"
    file = folder / {"DOCKER_CONFIG": "config.json", "REGISTRY_AUTH_FILE": "auth.json"}.get(place, "containers/auth.json")
    file.parent.mkdir(parents=True)
    auth = base64.b64encode(b"bot:xyzzy").decode()
    entries = {f"{registry.host}/other": {"auth": "?"}, key.replace("HOST", registry.host): {"auth": auth}, "a.example.com": {}}
    file.write_text(json.dumps({"auths": entries}))
    monkeypatch.setenv(place, str(file if place == "REGISTRY_AUTH_FILE" else folder))
    repository.check_push()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": [1]}', '{"auths": {"HOST": {"auth": "a"}}}', '{"credsStore": "../../bin/sh"}', "\xff"]
)
def test_a_broken_file_of_logins_is_named(registry: Registry, repository: Repository, tmp_path: Path, text: str) -> None:
    registry.mode = "basic"
    log_in(tmp_path, registry.host)
    file = tmp_path / "home/.docker/config.json"
    file.write_text(text.replace("HOST", registry.host), encoding="latin-1")
    error = refused(repository.check_push, LoginNeeded)
    assert str(file) in error.message


HELPER = """#!/bin/sh
read -r server || true
echo "$server" >> $0.calls
case "$1 $MODE" in
  "get user") echo '{"Username": "bot", "Secret": "xyzzy"}' ;;
  "get token") echo '{"Username": "<token>", "Secret": "an-identity-token"}' ;;
  "get nothing") echo "credentials not found in native keychain"; exit 1 ;;
  "get fails") echo 'xyzzy is locked' >&2; exit 2 ;;
  "get wrong") echo '["xyzzy"]' ;;
esac
"""


@pytest.mark.parametrize("setting", ["credHelpers", "credsStore"])
@pytest.mark.parametrize(("mode", "logged_in"), [("user", True), ("token", True), ("nothing", False), ("fails", False), ("wrong", False)])
def test_credential_helpers(
    registry: Registry, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, mode: str, logged_in: bool
) -> None:
    registry.mode = "bearer"
    helper = tmp_path / "programs/docker-credential-of-a-test"
    helper.parent.mkdir()
    helper.write_text(HELPER)
    helper.chmod(0o755)
    monkeypatch.setenv("MODE", mode)
    file = tmp_path / "home/.docker/config.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({setting: "of-a-test" if setting == "credsStore" else {registry.host: "of-a-test"}}))
    error = refused(repository.check_push, LoginNeeded)
    assert "docker-credential-of-a-test" in error.message, "it is not installed"
    monkeypatch.setenv("PATH", str(helper.parent), prepend=os.pathsep)
    if logged_in:
        repository.check_push()
    else:
        refused(repository.check_push, LoginNeeded)
    assert Path(f"{helper}.calls").read_text().split()[0] == registry.host


def test_docker_hub_has_names_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a proxy that refuses: where the client wants to go, and which login it would take."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ada:xyzzy@127.0.0.1:{proxy.getsockname()[1]}")
        asked: list[bytes] = []

        def answer() -> None:
            connection, _ = proxy.accept()
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        error = refused(Repository("docker.io/python").check_push, ImageRegistryUnreachable)
        thread.join(10)
    assert asked[0].startswith(b"CONNECT registry-1.docker.io:443 ")
    assert "registry-1.docker.io" in error.message
    from mlops_build.adapters.image_registry import login

    log_in(tmp_path, "https://index.docker.io/v1/")
    assert login.stored("docker.io")


def test_a_companys_certificates_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    certificate, key = make_certificate(tmp_path, "DNS:127.1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with registries.serve(tls) as server:
        name = f"{server.host.replace('127.0.0.1', '127.1')}/ml/points"  # a name of this machine that is not known to be
        error = refused(lambda: Repository(name, sleep=waits.append).manifest("v1"), ImageRegistryUnreachable)
        assert "SSL_CERT_FILE" in str(error.remedy)
        assert waits == []
        for variable in ("SSL_CERT_FILE", *http.BUNDLES):
            with monkeypatch.context() as patch:
                patch.setenv(variable, str(certificate))
                assert Repository(name).manifest("v1") is None, variable
        monkeypatch.setenv("GIT_SSL_CAINFO", str(key))
        refused(lambda: Repository(name), ImageRegistryUnreachable)
