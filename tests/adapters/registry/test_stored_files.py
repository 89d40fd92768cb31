"""A version's files are read one by one where they are: on a local disk and on S3. test_registry.py does it through MLflow's server."""

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mlops_build.adapters.registry import RegisteredVersion, Registry, StoredFile, UnknownVersion, stored
from mlops_build.errors import Refused
from mlops_build.model import files
from tests.adapters.registry.s3 import Gateway, breaking

RANDOM = np.random.default_rng(1)
CONTENT = RANDOM.bytes(700_001)
OBJECTS = {"models/v/1/weights": CONTENT, "models/v/1/sub/": b"", "models/v/1/sub/empty": b"", "models/v/1/sub.txt": b"text"}
ENDPOINT, ACCESS, SECRET = (os.environ.get(f"MLOPS_TEST_S3_{name}") for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))


def version(source: str) -> RegisteredVersion:
    return RegisteredVersion("points", 3, "", source, {}, 0)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", create=True)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(stored, "WAIT", 0.0)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the keys of another test
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "r", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    with Gateway(dict(OBJECTS)).serve() as gateway:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", gateway.uri)
        yield gateway


@pytest.fixture
def on_s3(gateway: Gateway, registry: Registry) -> Registry:
    return registry


S3 = version("s3://models/v/1")


def test_a_copy_of_a_version_has_the_files_of_the_other_one(registry: Registry, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    (tmp_path / "version").mkdir()
    (tmp_path / "version/a.txt").write_bytes(b"6")
    client = MlflowClient(registry.uri, registry_uri=registry.uri)
    client.create_registered_model("points")
    client.create_model_version("points", (tmp_path / "version").as_uri())
    client.copy_model_version("models:/points/1", "copy")
    copied = registry.version("copy", 1)
    assert copied.source == "models:/points/1"
    assert registry.read(copied, "a.txt") == b"6"
    assert [file.path for file in registry.files(copied)] == ["a.txt"]
    client.delete_model_version("points", "1")
    with pytest.raises(UnknownVersion):
        registry.read(copied, "a.txt")


def test_files_on_a_local_disk_are_read_where_they_are(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "version"
    (folder / "a").mkdir(parents=True)
    (folder / "a/b").write_bytes(b"12345")
    (folder / "a.txt").write_bytes(b"6")
    listed = registry.files(version(folder.as_uri()))
    assert [(file.path, file.size) for file in listed] == [("a.txt", 1), ("a/b", 5)]
    with listed[1].open() as opened:
        assert Path(str(opened.name)) == folder / "a/b"
        opened.seek(-2, io.SEEK_END)
        assert opened.read() == b"45"
    (folder / "a/b").unlink()
    with pytest.raises(UnknownVersion, match="its file a/b cannot be read") as caught, listed[1].open():
        pass
    assert "doctor" in str(caught.value.remedy)
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="not a plain file"):
        registry.files(version(str(folder)))
    with pytest.raises(UnknownVersion, match="there are no files"):
        registry.files(version(str(tmp_path / "none")))


def test_files_on_s3_are_listed_and_read(on_s3: Registry, gateway: Gateway) -> None:
    listed = on_s3.files(S3)
    assert [(file.path, file.size) for file in listed] == [("sub.txt", 4), ("sub/empty", 0), ("weights", len(CONTENT))]
    assert gateway.ranges == []
    contents = {}
    for file in listed:
        with file.open() as opened:
            contents[file.path] = opened.read()
    assert contents == {"sub.txt": b"text", "sub/empty": b"", "weights": CONTENT}
    assert gateway.ranges == ["bytes=0-3", f"bytes=0-{len(CONTENT) - 1}"]


def test_an_object_is_read_from_any_position(on_s3: Registry) -> None:
    (file,) = (file for file in on_s3.files(S3) if file.path == "weights")
    local = io.BytesIO(CONTENT)
    with file.open() as opened:
        for _ in range(40):
            position, count = int(RANDOM.integers(len(CONTENT) + 10)), int(RANDOM.choice([1, 22, 5_000, 200_000]))
            assert opened.seek(position) == local.seek(position)
            assert opened.read(count) == local.read(count)
            assert opened.tell() == local.tell()
        with pytest.raises(ValueError, match="before the start"):
            opened.seek(-len(CONTENT) - 1, io.SEEK_END)


def test_a_jump_reads_little(on_s3: Registry, gateway: Gateway) -> None:
    (file,) = (file for file in on_s3.files(S3) if file.path == "weights")
    with file.open() as opened:
        for position in (650_000, 100_000):
            opened.seek(position)
            opened.read(2)
        opened.read(stored.BUFFER)
    assert gateway.ranges == ["bytes=650000-700000", "bytes=100000-165535", "bytes=165536-700000"]


def test_a_body_that_breaks_off_is_continued(on_s3: Registry, gateway: Gateway) -> None:
    gateway.cuts = [0, 100_000, 0, 0, 300_000]
    (file,) = (file for file in on_s3.files(S3) if file.path == "weights")
    with file.open() as opened:
        assert opened.read() == CONTENT
    assert gateway.ranges == [f"bytes={start}-{len(CONTENT) - 1}" for start in (0, 0, 100_000, 100_000, 100_000, 400_000)]


def test_a_body_that_always_breaks_off_is_an_error(on_s3: Registry, gateway: Gateway) -> None:
    gateway.cuts = [1000, *[0] * 100]
    (file,) = (file for file in on_s3.files(S3) if file.path == "weights")
    with pytest.raises(UnknownVersion, match=r"its file weights cannot be read .* ends after 1000 of 700001 bytes"), file.open() as opened:
        opened.read()
    assert len(gateway.ranges) == stored.TRIES


def read_then(file: StoredFile, do: Callable[[], None]) -> None:
    with file.open() as opened:
        opened.read(1)
        do()
        opened.seek(300_000)
        opened.read(1)


def test_what_changed_or_went_meanwhile_is_an_error(on_s3: Registry, gateway: Gateway) -> None:
    (file,) = (file for file in on_s3.files(S3) if file.path == "weights")
    with pytest.raises(UnknownVersion, match="412"):
        read_then(file, lambda: gateway.objects.update({"models/v/1/weights": CONTENT[::-1]}))
    gateway.status = 403
    with pytest.raises(UnknownVersion, match="403"), file.open() as opened:
        opened.read(1)
    gateway.status = 0
    gateway.objects = {"models/v/2": b""}
    with pytest.raises(UnknownVersion, match="404"), file.open() as opened:
        opened.read(1)
    with pytest.raises(UnknownVersion, match="there are no files"):
        on_s3.files(S3)


def test_a_store_that_sends_no_parts_is_an_error(on_s3: Registry, gateway: Gateway) -> None:
    gateway.ignores_ranges = True
    (file,) = (file for file in on_s3.files(S3) if file.path == "weights")
    with pytest.raises(UnknownVersion, match="sends no part of a file"):
        read_then(file, lambda: None)


@pytest.mark.parametrize("key", ["../evil", "/etc/evil", "a//b", "./a", "a\\b"])
def test_a_key_that_is_no_path_is_refused(on_s3: Registry, gateway: Gateway, key: str, tmp_path: Path) -> None:
    gateway.objects[f"models/v/1/{key}"] = b""
    with pytest.raises(UnknownVersion, match="not a path below"):
        on_s3.files(S3)
    with pytest.raises(UnknownVersion, match="not a path below"):
        on_s3.fetch(S3, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.skipif(not ENDPOINT, reason="needs an S3 gateway: set MLOPS_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY")
def test_an_object_on_a_real_gateway(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the keys of another test
    for name, value in {"ACCESS_KEY_ID": str(ACCESS), "SECRET_ACCESS_KEY": str(SECRET), "DEFAULT_REGION": "default"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", str(ENDPOINT))
    bucket = f"mlops-build-{os.getpid()}-{time.time_ns()}"
    client = boto3.client("s3", endpoint_url=ENDPOINT)
    client.create_bucket(Bucket=bucket)
    folder = tmp_path / "folder"
    folder.mkdir()
    content = RANDOM.bytes(64 << 20)
    (folder / "weights").write_bytes(content)
    client.upload_file(str(folder / "weights"), bucket, "v/1/weights")
    on_gateway = version(f"s3://{bucket}/v/1")

    (file,) = registry.files(on_gateway)
    with file.open() as opened:
        assert opened.read(len(content) + 1) == content
        for position in (63 << 20, 5, len(content) - 3, 20_000_000):
            opened.seek(position)
            assert opened.read(100_000) == content[position : position + 100_000]
    assert files.digest_of([(file.path, file.size, files.file_digest(folder / "weights"))]) == files.digest(folder)

    with breaking(str(ENDPOINT), 10_000_000) as address:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
        (file,) = registry.files(on_gateway)
        with file.open() as opened:
            assert opened.read(len(content) + 1) == content

    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", str(ENDPOINT))
    (file,) = registry.files(on_gateway)
    client.put_object(Bucket=bucket, Key="v/1/weights", Body=content[::-1])
    with pytest.raises(UnknownVersion, match="PreconditionFailed"), file.open() as opened:
        opened.read(1)
