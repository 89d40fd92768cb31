"""The whole pipeline with an MLflow server over HTTP, and artifacts and DVC's remote on S3 (Ceph's gateway)."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_build.adapters.registry.artifacts import Artifacts
from mlops_build.model import identity
from tests.adapters.registry import server
from tests.conftest import git, mlops_build

ENDPOINT, ACCESS, SECRET = (os.environ.get(f"MLOPS_TEST_S3_{name}") for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ENDPOINT, reason="needs an S3 gateway: set MLOPS_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY"),
]


@pytest.fixture
def keys() -> dict[str, str]:
    """A user's settings for the gateway."""
    return {
        "AWS_ACCESS_KEY_ID": str(ACCESS),
        "AWS_SECRET_ACCESS_KEY": str(SECRET),
        "AWS_DEFAULT_REGION": "default",
        "MLFLOW_S3_ENDPOINT_URL": str(ENDPOINT),
    }


@pytest.fixture
def bucket(keys: dict[str, str], tmp_path: Path) -> str:
    import boto3

    name = f"mlops-build-{os.getpid()}-{int(time.time())}"
    client = boto3.client("s3", endpoint_url=ENDPOINT, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, region_name="default")
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def mlflow_server(keys: dict[str, str], bucket: str, tmp_path: Path) -> Iterator[str]:
    """MLflow's server; clients access the artifacts on S3 directly."""
    options = ("--no-serve-artifacts", "--default-artifact-root", f"s3://{bucket}/mlflow")
    with server.mlflow_server(tmp_path, *options, environment=keys) as address:
        yield address


def test_the_pipeline_with_a_server_and_object_storage(
    with_data: Path, tmp_path: Path, keys: dict[str, str], bucket: str, mlflow_server: str
) -> None:
    service = Path(shutil.copytree(with_data, tmp_path / "points", symlinks=True))
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(service, "remote", "add", "origin", (tmp_path / "origin.git").as_uri())
    (service / ".dvc/config").write_text(
        f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = s3://{bucket}/dvc\n    endpointurl = {ENDPOINT}\n"
    )
    git(service, "commit", "--quiet", "--all", "--message=Keep the data on S3")
    environment = {**keys, "MLFLOW_TRACKING_URI": mlflow_server}

    trained = json.loads(mlops_build(service, "train", "--json", environment=environment).stdout)["models"][0]
    assert trained["model_uri"] == "models:/points/1"
    mlops_build(service, "promote", "points", "1", "--to", "staging", environment=environment)
    bridged = mlops_build(tmp_path, "bridge", "once", "--repo", (tmp_path / "origin.git").as_uri(), environment=environment)
    assert "staging" in bridged.stderr + bridged.stdout

    # Another clone can fetch the version's data.
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(tmp_path / "origin.git"), str(clone))
    command = [sys.executable, "-m", "dvc", "pull"]
    pulled = subprocess.run(command, cwd=clone, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False)
    assert pulled.returncode == 0, pulled.stderr
    assert (clone / "data/raw/arcs.csv").read_bytes() == (service / "data/raw/arcs.csv").read_bytes()
    assert (clone / "models/points/MLmodel").exists()

    # Packaging needs only the registry.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mlops_build(elsewhere, "package", "models:/points@staging", "-o", "context", environment=environment)
    context = json.loads((elsewhere / "context/context.json").read_text())
    assert re.fullmatch(identity.DIGEST, context["models"][0]["digest"])
    assert (elsewhere / "context/models/points/artifacts/weights.pt").read_bytes() == (service / "models/weights.pt").read_bytes()

    # The address and the keys of the storage are in no commit and no context.
    for text in (git(service, "log", "--patch", "origin/main" if git(service, "branch", "--remotes") else "main"), str(context)):
        assert str(SECRET) not in text


def test_files_go_through_the_gateway_of_service_yaml(
    keys: dict[str, str], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    (tmp_path / "files/below").mkdir(parents=True)
    (tmp_path / "files/below/a.txt").write_text("a\n")
    (tmp_path / "files/b.bin").write_bytes(bytes(range(256)))
    artifacts, uri = Artifacts("sqlite:///mlflow.db", None, ENDPOINT), f"s3://{bucket}/versions/one"
    artifacts.upload(tmp_path / "files", uri)
    assert artifacts.read(f"{uri}/below/a.txt") == b"a\n"
    artifacts.download(uri, tmp_path / "copy")
    copied = {
        path.relative_to(tmp_path / "copy").as_posix(): path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    assert copied == {"below/a.txt": b"a\n", "b.bin": bytes(range(256))}
