"""Manifests, blobs and refusals."""

from pathlib import Path
from typing import Any

import pytest
import requests

from mlops_build.adapters.image_registry import ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry, Repository
from mlops_build.errors import UsageError
from tests.adapters.image_registry.cases import BLOB, DIGEST, MANIFEST, MIB, OCI, content, log_in, refused
from tests.registries import Fault, Registry, digest_of


def test_manifests_and_blobs_are_stored_and_read(registry: Registry, repository: Repository) -> None:
    assert repository.manifest("v1") is None
    assert not repository.has_blob(DIGEST)
    seen: list[int] = []
    repository.upload(DIGEST, len(BLOB), content, seen.append)
    assert (repository.has_blob(DIGEST), registry.blobs["ml/points", DIGEST] == BLOB) == (True, True)
    assert seen == [*range(MIB, 6 * MIB, MIB), len(BLOB)]
    assert repository.put_manifest("v1", OCI, MANIFEST) == digest_of(MANIFEST)
    for reference in ("v1", digest_of(MANIFEST)):
        manifest = repository.manifest(reference)
        assert manifest
        assert (manifest.digest, manifest.media_type, manifest.body) == (digest_of(MANIFEST), OCI, MANIFEST)
    accepted = registry.calls("GET .*/manifests/v1")[0].headers["Accept"]
    assert all(part in accepted for part in (OCI, "image.index.v1", "docker.distribution.manifest.v2", "manifest.list.v2"))
    small = b'{"os": "linux"}'
    repository.upload(digest_of(small), len(small), lambda offset: iter([small[offset:]]))
    assert repository.read_blob(digest_of(small)) == small
    repository.upload(digest_of(b""), 0, content)
    assert registry.blobs["ml/points", digest_of(b"")] == b""
    assert registry.uploads == {}


def test_wrong_content_is_refused(registry: Registry, repository: Repository) -> None:
    repository.put_manifest("v1", OCI, MANIFEST)
    wrong = f"sha256:{'0' * 64}"
    registry.faults = [Fault("GET .*/manifests/", replace={"Docker-Content-Digest": wrong}), Fault("GET .*/manifests/", 200, body=b"{}")]
    assert "digest" in refused(lambda: repository.manifest("v1"), RefusedByRegistry).message
    assert digest_of(b"{}") in refused(lambda: repository.manifest(digest_of(MANIFEST)), RefusedByRegistry).message
    registry.faults = [Fault("GET .*/manifests/", 200, {"Content-Type": "text/html"}, b"<html>")]
    assert "text/html" in refused(lambda: repository.manifest("v1"), RefusedByRegistry).message
    registry.faults = [Fault("PUT .*/manifests/", replace={"Docker-Content-Digest": wrong})]
    assert "digest" in refused(lambda: repository.put_manifest("v1", OCI, MANIFEST), RefusedByRegistry).message
    registry.faults = [Fault("PUT .*/manifests/", 201)]  # accepted, but not stored
    refused(lambda: repository.put_manifest("v2", OCI, b"[]"), RefusedByRegistry)
    registry.blobs["ml/points", wrong] = b"something else"
    assert wrong in refused(lambda: repository.read_blob(wrong), RefusedByRegistry).message
    registry.faults = [Fault("PUT .*digest=", replace={"Docker-Content-Digest": wrong})]
    assert DIGEST in refused(lambda: repository.upload(DIGEST, len(BLOB), content), RefusedByRegistry).message
    refused(lambda: repository.upload(wrong, len(BLOB), content), RefusedByRegistry)
    assert ("ml/points", wrong) in registry.blobs  # what was there before
    assert registry.blobs["ml/points", wrong] == b"something else"


def test_an_answer_without_end_is_not_read(registry: Registry, repository: Repository) -> None:
    registry.manifests["ml/points", "v1"] = (OCI, bytes(100 * MIB))
    assert "longer than" in refused(lambda: repository.manifest("v1"), RefusedByRegistry).message
    registry.faults = [Fault("GET .*/manifests/", 403, body=bytes(100 * MIB))]
    refused(lambda: repository.manifest("v1"), LoginNeeded)
    assert registry.sent < 40 * MIB


def test_a_truncated_answer_is_read_again(registry: Registry, repository: Repository, waits: list[float]) -> None:
    repository.put_manifest("v1", OCI, MANIFEST)
    registry.faults = [Fault("GET .*/manifests/", short=True)]
    manifest = repository.manifest("v1")
    assert manifest
    assert manifest.body == MANIFEST
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"errors": [{"code": "DENIED", "message": "quota of 10 GiB exceeded"}]}', "DENIED: quota of 10 GiB exceeded"),
        (b"<html><body>413 Request Entity Too Large</body></html>", "HTTP 400"),
        (b'{"errors": []}', "HTTP 400"),
        (b'[{"errors": 1}]', "HTTP 400"),
        (b"[" * 60000, "HTTP 400"),
        (b"\xff\xfe", "HTTP 400"),
        (b'{"errors": [{"code": "X", "message": "see https://u:xyzzy@h/p?sig=xyzzy for token"}]}', "see https://…@h/p…"),
        (b'{"errors": [{"code": "X", "message": "wrong header Authorization: Bearer xyzzy"}]}', "Bearer …"),
        (b'{"errors": [{"code": "X", "message": "\x1b[31m' + b"m" * 60000 + b'"}]}', "HTTP 400"),
    ],
)
def test_refusals_name_what_the_registry_says(registry: Registry, repository: Repository, body: bytes, expected: str) -> None:
    registry.faults = [Fault("PUT .*/manifests/", 400, body=body)]
    error = refused(lambda: repository.put_manifest("v1", OCI, MANIFEST), RefusedByRegistry)
    assert expected in error.message
    assert f"{registry.host} refused to store manifest v1 in {registry.host}/ml/points" in error.message
    assert "\x1b" not in error.message


def test_names_and_references_have_a_strict_form() -> None:
    for name in (
        "points",
        "ml/points",
        "registry.example.com",
        "registry.example.com/ML",
        "a..b/c",
        "https://registry.example.com/ml",
        "a.b/c?d=e",
    ):
        with pytest.raises(UsageError):
            Repository(name)
    repository = Repository("registry.example.com/ml/points")
    for reference in ("", "../x", "a/b", "v1?x=y", "sha256:12"):
        with pytest.raises(UsageError):
            repository.manifest(reference)


def test_an_upload_at_another_address_gets_no_login(registry: Registry, repository: Repository, other: Registry, tmp_path: Path) -> None:
    registry.mode = "basic"
    log_in(tmp_path, registry.host)
    other.uploads["1"] = bytearray()
    registry.faults = [Fault("POST", after=1, replace={"Location": f"http://{other.host}/v2/ml/points/blobs/uploads/1?sig=signed-state"})]
    repository.upload(DIGEST, len(BLOB), content)
    assert other.blobs["ml/points", DIGEST] == BLOB
    assert not any("Authorization" in call.headers for call in other.seen)
    for address in (
        f"http://{other.host.replace('127.0.0.1', '127.1')}/1",
        "ftp://127.0.0.1/1",
        "http://127.0.0.1:x/",
        "http://a b/",
        "http://[x/",
    ):
        registry.faults = [Fault("POST", replace={"Location": f"{address}?sig=signed-state"})]
        refused(lambda: repository.upload(DIGEST, len(BLOB), content), RefusedByRegistry)
    registry.faults = [Fault("POST", after=1, replace={"Location": "https://a..b/1"})]
    refused(
        lambda: Repository(f"{registry.host}/ml/points", sleep=lambda _: None).upload(DIGEST, len(BLOB), content), ImageRegistryUnreachable
    )
    registry.faults = [Fault("POST", 202)]
    assert "Location" in refused(repository.check_push, RefusedByRegistry).message


def test_blobs_are_read_from_a_storage_without_the_login(
    registry: Registry, repository: Repository, other: Registry, tmp_path: Path
) -> None:
    registry.mode = "basic"
    log_in(tmp_path, registry.host)
    address = {"Location": f"http://{other.host}/v2/ml/points/blobs/{DIGEST}?sig=signed-state"}
    registry.faults = [Fault("(GET|HEAD) .*/blobs/", 307, address, times=2)]
    small = b"{}"
    other.blobs["ml/points", DIGEST] = small
    assert repository.has_blob(DIGEST)
    assert digest_of(small) in refused(lambda: repository.read_blob(DIGEST), RefusedByRegistry).message
    assert len(other.seen) == 1
    assert "Authorization" not in other.seen[0].headers
    registry.faults = [Fault("GET .*/blobs/", 307, {"Location": f"/v2/ml/points/blobs/{DIGEST}"}, times=1000)]
    assert "redirects" in refused(lambda: repository.read_blob(DIGEST), RefusedByRegistry).message
    registry.faults = [Fault("PUT .*/manifests/", 307, address)]
    refused(lambda: repository.put_manifest("v1", OCI, MANIFEST), RefusedByRegistry)
    assert len(other.seen) == 1


def test_this_machine_is_reached_without_a_proxy(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert repository.manifest("v1") is None


def test_every_request_has_a_time_limit(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, set[object]] = {}
    send = requests.adapters.HTTPAdapter.send

    def recorded(adapter: requests.adapters.HTTPAdapter, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        limits.setdefault(str(request.method), set()).add(options["timeout"])
        return send(adapter, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", recorded)
    repository.check_push()
    repository.manifest("v1")
    repository.upload(DIGEST, len(BLOB), content)
    # To connect and write, and until an answer begins. A registry may pause while it receives a blob, and after it.
    assert limits == {"POST": {(10, 60)}, "GET": {(10, 60)}, "PUT": {(60, 300)}, "DELETE": {(10, 60)}}


def test_a_server_that_does_not_answer_is_named(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_build.adapters.image_registry.connection.PUT_SECONDS", (1, 0.1))
    registry.faults = [Fault("PUT", delay=5, times=1000)]
    repository = Repository(f"{registry.host}/ml/points", sleep=lambda _: None)
    error = refused(lambda: repository.upload(digest_of(b""), 0, content), ImageRegistryUnreachable)
    assert error.message.startswith(f"{registry.host} does not answer to a request to store blob")
    assert "timed out" in error.message
    assert "host=" not in error.message, "urllib3's objects are of no use to a user"


def test_blobs_are_mounted_where_the_registry_allows(registry: Registry, repository: Repository) -> None:
    base = f"{registry.host}/ml/base"
    assert not repository.mount(DIGEST, base)
    registry.blobs["ml/base", DIGEST] = BLOB
    assert repository.mount(DIGEST, base)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    registry.mounts = False
    assert not repository.mount(DIGEST, base)
    for status in (400, 401, 403, 405):
        registry.faults = [Fault("POST", status)]
        assert not repository.mount(DIGEST, base)
    assert not repository.mount(DIGEST, "other.example.com/ml/base")
    assert registry.uploads == {}, "the uploads that the registry started instead are cancelled"
