"""Old models on a real gateway, by S3 and by Swift: both list the same files, and what is registered is what was stored."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.storage.address import place
from mlops_build.adopt import table
from mlops_build.model import identity
from tests.adopt.world import World

ENDPOINT, ACCESS, SECRET = (os.environ.get(f"MLOPS_TEST_S3_{name}") for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ENDPOINT, reason="needs an S3 gateway: set MLOPS_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY"),
]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": str(ACCESS),
        "AWS_SECRET_ACCESS_KEY": str(SECRET),
        "AWS_DEFAULT_REGION": "default",
        "AWS_ENDPOINT_URL": str(ENDPOINT),
        "ST_AUTH": f"{ENDPOINT}/auth/v1.0",
        "ST_USER": "test:swift",
        "ST_KEY": str(SECRET),
    }.items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3")


@pytest.fixture
def bucket(client: Any, world: World) -> str:
    """The files of the mess, and one that is uploaded in parts."""
    name = f"adopt-{os.getpid()}-{time.time_ns()}"
    client.create_bucket(Bucket=name)
    for path in world.kinds:
        if path.isprintable():
            client.upload_file(str(world.source / path), name, f"old/{path}")
    (world.folder / "large").write_bytes(os.urandom(9 << 20))
    client.upload_file(str(world.folder / "large"), name, "old/large.bin")
    client.put_object(Bucket=name, Key="old/names/new\nline\x1b.pth", Body=b"x")
    client.put_object(Bucket=name, Key="old/folder/", Body=b"")
    client.put_object(Bucket=name, Key="older.pth", Body=b"x")
    return name


def test_s3_and_swift_list_and_send_the_same(bucket: str, world: World, tmp_path: Path) -> None:
    listed = {}
    for scheme in ("s3", "swift"):
        found = place(f"{scheme}://{bucket}/old")
        entries = {entry.path: entry for entry in found.objects()}
        listed[scheme] = {path: entry.size for path, entry in entries.items()}
        assert all(abs(entry.modified_ms / 1000 - time.time()) < 600 for entry in entries.values())
        for path in ("digits-best.pth", "names/größe–模型.pth", "names/quote'\"and,comma;=cmd.pth"):
            assert found.read(path, 1 << 20) == (world.source / path).read_bytes()
        found.save("large.bin", tmp_path / scheme)
        assert (tmp_path / scheme).read_bytes() == (world.folder / "large").read_bytes()
        assert [entry.path for entry in found.objects("run1")] == ["run1/checkpoint.ckpt"]
    assert listed["s3"] == listed["swift"]
    assert "large.bin" in listed["s3"]
    assert "folder/" not in listed["s3"]


@pytest.mark.parametrize("scheme", ["s3", "swift"])
def test_adopt_from_the_gateway(bucket: str, world: World, scheme: str, client: Any) -> None:
    before = [(entry["Key"], entry["ETag"], entry["LastModified"]) for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]
    world.adopt("list", f"{scheme}://{bucket}/old/")
    kinds = {row.path: row.kind for row in table.read(world.csv).values()}
    assert all(kinds[path] == kind.removeprefix("unsafe ") for path, kind in world.kinds.items() if path.isprintable())
    world.adopt_all()
    made = world.register("--yes", expect=4)
    prefix = f"{scheme}://{bucket}/old"
    assert made[f"{prefix}/digits-best.pth"]["version"] == "models:/digits/1"
    version = world.registry.version("digits", 1)
    assert version.tags[identity.ORIGIN].startswith(prefix)
    assert world.registry.read(version, "weights.pth") == (world.source / "digits-best.pth").read_bytes()
    assert not world.marker.exists()
    assert before == [(entry["Key"], entry["ETag"], entry["LastModified"]) for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]
