"""`doctor --pod`: credentials of a pod that can change data or artifacts are found, and nothing is written."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters.registry import Registry
from tests import servers

SERVICE = """\
schema: 1
name: digits
team: vision
models: [{{name: digits}}]
tracking: {{uri: "sqlite:///mlflow.db", s3_endpoint_url: "{endpoint}"}}
environments: {{staging: {{namespace: ml, host: digits.example.com, replicas: 1, cpu: 500m, memory: 1GiB}}}}
gpu: {{mode: none}}
image: {{registry: registry.example.com}}
"""
DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
STARTED = b"<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>"


class Gateway(servers.Handler):
    """Refuses uploads to buckets whose name begins with `closed`."""

    requests: list[str]

    def do_POST(self) -> None:
        self.requests.append(f"POST {self.path}")
        if "/closed" in self.path:
            self.reply(403, DENIED)
        else:
            self.reply(200, STARTED)

    def do_DELETE(self) -> None:
        self.requests.append(f"DELETE {self.path}")
        self.reply(204)

    def do_PUT(self) -> None:
        raise AssertionError("an object is written")


@pytest.fixture
def gateway() -> Iterator[str]:
    Gateway.requests = []
    with servers.serve(Gateway) as place:
        yield f"http://{place}"


@pytest.fixture
def root(tmp_path: Path, gateway: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "MLOPS_GIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "pod")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "default")
    (tmp_path / "service.yaml").write_text(SERVICE.format(endpoint=gateway))
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def remote(root: Path, url: str, gateway: str) -> None:
    (root / ".dvc/config").write_text(f"[core]\nremote = store\n['remote \"store\"']\nurl = {url}\nendpointurl = {gateway}\n")


def register(root: Path, source: str) -> None:
    registry = Registry(f"sqlite:///{root / 'mlflow.db'}", create=True)
    registry.create_version("digits", source, "", {})


def checked(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str], list[str]]:
    code = main(["doctor", "--pod", "--json"])
    document = json.loads(capsys.readouterr().out)
    seen = {check["name"]: check["seen"] for check in document["checks"]}
    return code, seen, [finding["subject"] for finding in document["findings"]]


def test_a_pod_that_may_only_read(root: Path, gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    remote(root, "s3://closed-data/digits", gateway)
    register(root, "s3://closed-models/1/run/artifacts/model")
    code, seen, findings = checked(capsys)
    assert (code, findings) == (0, [])
    assert seen["data remote"] == "s3://closed-data/digits refuses an upload: AccessDenied"
    assert seen["artifacts of digits"] == "s3://closed-models/1/run/artifacts/model refuses an upload: AccessDenied"


def test_a_pod_that_may_write(root: Path, gateway: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    remote(root, "s3://data/digits", gateway)
    register(root, "s3://models/1/run/artifacts/model")
    monkeypatch.setenv("MLOPS_GIT_TOKEN", "the-bots-token")
    code, seen, findings = checked(capsys)
    assert (code, findings) == (4, ["MLOPS_GIT_TOKEN", "data remote", "artifacts of digits"])
    assert "the-bots-token" not in str(seen)
    started = [request for request in Gateway.requests if request.startswith("POST")]
    cancelled = [request for request in Gateway.requests if request.startswith("DELETE")]
    assert len(started) == len(cancelled) == 2
    assert all(re.search(r"/mlops-build-doctor\?uploads", request) for request in started)


def test_folders(root: Path, gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "store").mkdir()
    remote(root, "../store", gateway)
    register(root, (root / "absent").as_uri())
    code, seen, findings = checked(capsys)
    assert seen["artifacts of digits"] == f"{root / 'absent'} does not exist here"
    assert (code, findings) == (4, ["data remote"])


def test_a_gateway_that_does_not_answer_proves_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote(root, "s3://closed-data/digits", "http://127.0.0.1:9")
    code, seen, findings = checked(capsys)
    assert "does not say whether it accepts an upload" in seen["data remote"]
    assert (code, findings) == (4, ["data remote"])
    assert seen["artifacts of digits"].startswith("where they are is not known")
