"""The same faults on Ceph's gateway, with an MLflow server on PostgreSQL."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.adapters.registry.server import mlflow_server
from tests.audit.test_audit import Audit, audit, pairs
from tests.audit.world import World, clean, seed
from tests.release.world import alone
from tests.watch.zabbix_server import mlflow_database, sql

__all__ = ["alone", "audit"]
ENDPOINT, ACCESS, SECRET = (os.environ.get(f"MLOPS_TEST_S3_{name}") for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_python,
    pytest.mark.skipif(not ENDPOINT, reason="needs an S3 gateway: set MLOPS_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY"),
]
KEYS = {
    "AWS_ACCESS_KEY_ID": str(ACCESS),
    "AWS_SECRET_ACCESS_KEY": str(SECRET),
    "AWS_DEFAULT_REGION": "default",
    "MLFLOW_S3_ENDPOINT_URL": str(ENDPOINT),
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    import boto3

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    bucket = f"audit-{os.getpid()}-{int(time.time())}"
    client = boto3.client("s3", endpoint_url=ENDPOINT)
    client.create_bucket(Bucket=bucket)
    with ExitStack() as stack:
        database = stack.enter_context(mlflow_database())
        backend = f"postgresql+psycopg2://zabbix@127.0.0.1:{database.port}/mlflow"
        options = ["--backend-store-uri", backend, "--no-serve-artifacts", "--default-artifact-root", f"s3://{bucket}/mlflow"]
        uri = stack.enter_context(mlflow_server(tmp_path, *options, environment=KEYS))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

        def run(statement: str) -> None:
            assert sql(database, "mlflow", statement)

        yield World(tmp_path, uri, f"s3://{bucket}/mlflow", f"s3://{bucket}/dvc", ENDPOINT, run)


def test_each_seeded_fault_is_found_and_none_is_invented(world: World, audit: Audit) -> None:
    expected, deep = seed(world)
    code, document, _ = audit()
    assert set(pairs(document)) ^ expected == set()
    assert (len(document["findings"]), document["not_looked_at"], code) == (len(expected), [], 4)
    _, document, _ = audit("--deep")
    assert set(pairs(document)) == deep


def test_a_clean_world_has_no_finding_and_nothing_is_missing_while_the_gateway_does_not_answer(
    world: World, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(world)
    code, document, _ = audit("--deep")
    assert (code, document) == (0, {"findings": [], "ignored": [], "not_looked_at": []})
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    code, document, _ = audit()
    assert (code, document["findings"]) == (5, [])
    assert world.store in document["not_looked_at"][0]
