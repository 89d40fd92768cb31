"""Real registries: MLOPS_TEST_IMAGE_REGISTRY names one, and docker-registry starts another."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlops_build.adapters.image_registry import LoginNeeded, RefusedByRegistry, Repository
from tests.adapters.image_registry.cases import BLOB, DIGEST, OCI, content, log_in, make_certificate, refused
from tests.registries import digest_of

# bcrypt's of "xyzzy".
HASHED = "$2b$04$WaVMwb93Fb71JZVp94OXdOZ9z8Gwu0YRqiYORdWBij02SPfQaHIbq"


@pytest.fixture
def real() -> str:
    """A new repository in the real registry."""
    address = os.environ.get("MLOPS_TEST_IMAGE_REGISTRY")
    if not address:
        pytest.skip("set MLOPS_TEST_IMAGE_REGISTRY to push to a real registry")
    return f"{address}/{uuid.uuid4().hex}/points"


def use(name: str) -> None:
    """Everything that an image needs."""
    repository, base = Repository(name), Repository(f"{name}-base")
    repository.check_push()
    assert repository.manifest("v1") is None
    base.upload(DIGEST, len(BLOB), content)
    assert not repository.has_blob(DIGEST)
    assert not repository.mount(digest_of(b"absent"), f"{name}-base")
    assert repository.mount(DIGEST, f"{name}-base") or repository.upload(DIGEST, len(BLOB), content) is None
    config = b'{"os": "linux", "architecture": "amd64"}'
    for _ in range(2):
        repository.upload(digest_of(config), len(config), lambda offset: iter([config[offset:]]))
    assert repository.read_blob(digest_of(config)) == config
    parts = [(f"{OCI.replace('manifest.v1+json', 'config.v1+json')}", config), (OCI.replace("manifest.v1+json", "layer.v1.tar"), BLOB)]
    described = [{"mediaType": kind, "size": len(part), "digest": digest_of(part)} for kind, part in parts]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI, "config": described[0], "layers": described[1:]}).encode()
    digest = repository.put_manifest("v1", OCI, body)
    manifest = repository.manifest("v1")
    assert manifest
    assert (manifest.digest, manifest.body, manifest.media_type) == (digest, body, OCI)
    refused(lambda: repository.upload(digest_of(b"x"), len(BLOB), content), RefusedByRegistry)
    refused(lambda: repository.put_manifest("v2", OCI, body.replace(DIGEST.encode(), digest_of(b"x").encode())), RefusedByRegistry)
    assert repository.manifest("v2") is None


@pytest.mark.slow
def test_a_real_registry(real: str) -> None:
    use(real)


@pytest.mark.slow
def test_two_agents_upload_the_same_to_a_real_registry(real: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: Repository(real).upload(DIGEST, len(BLOB), content), range(2)))
    assert Repository(real).has_blob(DIGEST)


@pytest.mark.slow
def test_a_real_registry_continues_or_begins_again(real: str, waits: list[float]) -> None:
    """The connection breaks in the middle: the registry sees the end of a client, and the client a closed connection."""
    broken: list[int] = []

    def source(offset: int) -> Iterator[bytes]:
        for number, chunk in enumerate(content(offset)):
            if number == 3 and not broken:
                broken.extend(close_connections(real.partition("/")[0]))
            yield chunk

    Repository(real, sleep=lambda seconds: (waits.append(seconds), time.sleep(seconds))[0]).upload(DIGEST, len(BLOB), source)
    assert broken
    assert waits
    assert Repository(real).has_blob(DIGEST)


def close_connections(host: str) -> list[int]:
    """Shut down the connections of this process to a host; their descriptors."""
    address, closed = (host.partition(":")[0], int(host.rpartition(":")[2])), []
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getpeername() == address:
                connection.shutdown(socket.SHUT_RDWR)
                closed.append(descriptor)
    return closed


SCRIPT = """
import hashlib, pathlib, sys, time
from mlops_build.adapters.image_registry import Repository
name, size, pause = sys.argv[1], int(sys.argv[2]) << 20, float(sys.argv[3])
def content(offset):
    for number in range(offset >> 20, size >> 20):
        time.sleep(pause)
        yield hashlib.sha256(str(number).encode()).digest() * (1 << 15)
digest = hashlib.sha256()
pause, wanted = 0, pause
for chunk in content(0):
    digest.update(chunk)
pause = wanted
repository = Repository(name)
print("starts", flush=True)
repository.upload(f"sha256:{digest.hexdigest()}", size, content)
assert repository.has_blob(f"sha256:{digest.hexdigest()}")
status = pathlib.Path("/proc/self/status")  # not getrusage, whose figure includes the parent's
print(status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else "", flush=True)
"""


@pytest.mark.slow
@pytest.mark.real_python
def test_memory_does_not_depend_on_the_size(real: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, real, "300", "0"], capture_output=True, text=True, timeout=120, check=True)
    if kilobytes := done.stdout.split()[1:]:
        assert int(kilobytes[0]) < 60 * 1024


@pytest.mark.slow
@pytest.mark.real_python
def test_a_client_that_is_killed_does_not_stop_the_next(real: str) -> None:
    command = [sys.executable, "-c", SCRIPT, real, "20"]
    for seconds in (0.1, 0.3, 0.6):
        with subprocess.Popen([*command, "0.05"], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"starts\n"
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    subprocess.run([*command, "0"], timeout=120, check=True)


@pytest.mark.slow
def test_a_real_registry_with_https_and_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("docker-registry"):
        pytest.skip("put docker-registry on PATH")
    certificate, key = make_certificate(tmp_path, "DNS:127.1")
    (tmp_path / "htpasswd").write_text(f"bot:{HASHED}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "tls": {"certificate": str(certificate), "key": str(key)}},
        "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}},
    }
    (tmp_path / "config.yml").write_text(json.dumps(settings))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(tmp_path / "config.yml")], stdout=log, stderr=log)
    try:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        refused(Repository(f"127.1:{port}/ml/points").check_push, LoginNeeded)
        log_in(tmp_path, f"127.1:{port}")
        use(f"127.1:{port}/ml/points")
    finally:
        process.kill()
        process.wait(10)
