"""What the tests of the client share: a blob and a manifest, logins, certificates, and how errors must look."""

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_build.errors import MlopsBuildError
from tests.registries import digest_of

MIB = 1 << 20
OCI = "application/vnd.oci.image.manifest.v1+json"
# Several pieces, and a last one that is not full.
BLOB = hashlib.shake_256(b"a layer").digest(5 * MIB + 17)
DIGEST = digest_of(BLOB)
MANIFEST = json.dumps({"schemaVersion": 2, "layers": [DIGEST]}).encode()
SECRETS = ("xyzzy", "an-identity-token", "token-", "signed-state", base64.b64encode(b"bot:xyzzy").decode())


def content(offset: int) -> Iterator[bytes]:
    for start in range(offset, len(BLOB), MIB):
        yield BLOB[start : start + MIB]


def log_in(tmp_path: Path, host: str, entry: dict[str, str] | None = None) -> None:
    entry = entry or {"auth": base64.b64encode(b"bot:xyzzy").decode()}
    file = tmp_path / "home/.docker/config.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"auths": {host: entry}}))


def refused(call: Callable[[], object], kind: type[MlopsBuildError]) -> MlopsBuildError:
    """The error of a call, which contains no secret and has a remedy."""
    with pytest.raises(kind) as caught:
        call()
    text = f"{caught.value.message} {caught.value.remedy}"
    assert caught.value.remedy
    assert not any(secret in text for secret in SECRETS), text
    assert len(text) < 1000
    return caught.value


def make_certificate(folder: Path, names: str) -> tuple[Path, Path]:
    if not shutil.which("openssl"):
        pytest.skip("put openssl on PATH to make a certificate")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=registry"]
    command += ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
