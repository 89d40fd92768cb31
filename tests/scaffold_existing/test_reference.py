"""Data by reference: not copied, known by its hash, fetched by the first training, and then in the remote like any other data."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mlops_build.adapters import dvc
from mlops_build.scaffold.existing import around
from mlops_build.scaffold.existing import data as sources
from tests.conftest import git

ENDPOINT, ACCESS, SECRET = (os.environ.get(f"MLOPS_TEST_S3_{name}") for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
TRAIN = """\
import torch
from pathlib import Path
total = sum(path.stat().st_size for path in Path("PLACE").rglob("*"))
torch.save({"total": torch.tensor(total)}, "model.pt")
"""


def make(template: Path, folder: Path, place: str, **more: object) -> tuple[Path, around.Made]:
    (folder / "work").mkdir(exist_ok=True)
    (folder / "work/train.py").write_text(TRAIN.replace("PLACE", place))
    made = around.scaffold(
        folder / "service",
        folder / "work/train.py",
        [place],
        {},
        template=str(template),
        say=lambda _: None,
        **more,  # type: ignore[arg-type]
    )
    return folder / "service", made


def on_disk(folder: Path) -> int:
    """The bytes that a folder takes, as `du` counts."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def recorded(service: Path, name: str) -> dict[str, object]:
    return dict(YAML(typ="safe").load((service / f"data/{name}.dvc").read_text()))


def test_more_than_a_gibibyte_is_not_copied(template: Path, tmp_path: Path) -> None:
    big = tmp_path / "pictures"
    big.mkdir()
    with (big / "a.bin").open("wb") as file:
        file.truncate(sources.LARGEST + 1)  # it takes no room itself; a copy of it would
    before = (big / "a.bin").stat()
    service, made = make(template, tmp_path, str(big))
    assert made.data[0].by_reference
    assert on_disk(service) < 2 * 2**20
    assert not (service / "data/pictures").exists()
    assert max(path.stat().st_size for path in service.rglob("*") if path.is_file()) < 2**20
    after = (big / "a.bin").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (before.st_ino, before.st_mtime_ns, 1)
    (dep,) = recorded(service, "pictures")["deps"]  # type: ignore[misc]
    assert (dep["path"], dep["size"], dep["nfiles"]) == (str(big), sources.LARGEST + 1, 1)
    assert str(dep["md5"]).endswith(".dir")


def test_a_gibibyte_is_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(sources.LARGEST)
    (one,) = sources.plan([str(tmp_path / "a.bin")], tmp_path / "train.py", by_reference=False)
    assert not one.by_reference
    (one,) = sources.plan([str(tmp_path / "a.bin")], tmp_path / "train.py", by_reference=True)
    assert one.by_reference


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 1000)
    (folder / "more/b.bin").write_bytes(b"b" * 2000)
    return folder


def test_the_first_run_fetches_it_and_the_remote_gets_a_copy(template: Path, tmp_path: Path, source: Path) -> None:
    service, _ = make(template, tmp_path, str(source), by_reference=True)
    only_training(service)
    dvc.push(service)  # nothing is here yet, which is not an error
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Start")
    # An agent's fresh clone, before the first training: it gets the data from the source.
    git(tmp_path, "clone", "--quiet", str(service), "agent")
    dvc.repro(tmp_path / "agent", pull=True)
    assert (tmp_path / "agent/data/pictures/a.bin").read_bytes() == b"a" * 1000
    lives_through_a_run(service, tmp_path)
    # What was fetched is not what the source is later, until somebody says so.
    (source / "a.bin").write_bytes(b"c" * 1500)
    before = dvc.tracked(service)
    dvc.repro(service)
    assert dvc.tracked(service) == before
    run_dvc(service, "update", "data/pictures.dvc")
    assert dvc.tracked(service) != before
    assert (service / "data/pictures/a.bin").stat().st_size == 1500


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with a folder of two objects, and the keys in the environment; the address is not."""
    if not ENDPOINT:
        pytest.skip("needs an S3 gateway: set MLOPS_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY")
    import boto3

    client = boto3.client("s3", endpoint_url=ENDPOINT, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, region_name="default")
    name = f"mlops-build-data-{os.getpid()}-{int(time.time())}"
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="sets/pictures/a.bin", Body=b"a" * 1000)
    client.put_object(Bucket=name, Key="sets/pictures/more/b.bin", Body=b"b" * 2000)
    for key, value in (("AWS_ACCESS_KEY_ID", ACCESS), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_DEFAULT_REGION", "default")):
        monkeypatch.setenv(key, str(value))
    for key in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(key, raising=False)
    return name


@pytest.mark.slow
def test_data_on_s3_is_imported_by_reference(template: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(ENDPOINT))
    service, made = make(template, tmp_path, f"s3://{bucket}/sets/pictures")
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # the service knows the gateway itself
    assert made.data[0].inside == "data/pictures"
    assert not (service / "data/pictures").exists()
    text = (service / "data/pictures.dvc").read_text()
    assert f"path: s3://{bucket}/sets/pictures" in text
    assert str(ENDPOINT) in text
    assert str(SECRET) not in text
    assert str(ACCESS) not in text
    assert 'Path("data/pictures")' in (service / "src/service/train.py").read_text()
    only_training(service)
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Start")
    lives_through_a_run(service, tmp_path)


@pytest.mark.slow
def test_an_object_that_is_not_there_is_said_and_leaves_nothing(template: Path, tmp_path: Path, bucket: str) -> None:
    with pytest.raises(dvc.RemoteUnreachable, match="cannot be imported"):
        make(template, tmp_path, f"s3://{bucket}/none")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def only_training(service: Path) -> None:
    """Leave out the stage that logs a model: here it is about data."""
    text = (service / "dvc.yaml").read_text()
    (service / "dvc.yaml").write_text(text[: text.index("  model:")].replace("mlops_build.training.script model.pt -m ", ""))


def lives_through_a_run(service: Path, folder: Path) -> None:
    """Run the pipeline, commit what it wrote, push; then a clone elsewhere gets the data from the remote, the source being gone."""
    dvc.repro(service)
    assert (service / "data/pictures/more/b.bin").read_bytes() == b"b" * 2000
    assert "md5" in recorded(service, "pictures")["outs"][0]  # type: ignore[index]
    # DVC wrote into the .dvc file: that is the machine's business, like dvc.lock, and no uncommitted change of somebody.
    assert git(service, "status", "--porcelain").splitlines() == [" M data/pictures.dvc", "?? dvc.lock"]
    assert {"data/pictures.dvc", "dvc.lock"} <= set(dvc.machine_files(service))
    assert dvc.tracked(service)["data/pictures"].endswith(".dir")
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Train")
    dvc.push(service)
    clone = folder / "clone"
    git(folder, "clone", "--quiet", str(service), str(clone))
    shutil.copytree(service / "dvc-remote", clone / "dvc-remote")
    place = folder / "pictures"
    if place.exists():
        place.rename(folder / "away")
    dvc.repro(clone, pull=True)
    assert git(clone, "status", "--porcelain") == ""
    assert (clone / "data/pictures/more/b.bin").read_bytes() == b"b" * 2000
    assert (clone / "model.pt").exists()
    if (folder / "away").exists():
        (folder / "away").rename(place)
    dvc.repro(service)
    assert git(service, "status", "--porcelain") == ""


def run_dvc(where: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=where, env=dvc.environment(where), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_names_in_other_scripts_than_latin_stay_apart(tmp_path: Path) -> None:
    names = ["данные.csv", "тесты.csv", "цены 2024.csv", "цены_2024.csv", "plain-name.csv", "словари", ".скрыто"]
    for name in names:
        (tmp_path / name).write_text("a\n1\n") if "." in name else (tmp_path / name).mkdir()
    planned = sources.plan([str(tmp_path / name) for name in names], tmp_path / "train.py", by_reference=False)
    assert [source.inside.removeprefix("data/") for source in planned] == [
        "raw.csv",
        "raw_2.csv",
        "_2024.csv",
        "_2024_2.csv",
        "plain-name.csv",
        "raw",
        "raw_2",
    ]
