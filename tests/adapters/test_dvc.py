"""What dvc.lock and the .dvc files say, and the remote; on a real DVC repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build.adapters import dvc, dvc_remote
from mlops_build.errors import Refused


@pytest.fixture
def service(with_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_data, tmp_path / "points"))


def test_tracked_data_has_a_revision_that_follows_its_content(service: Path) -> None:
    before = dvc.tracked(service)
    assert set(before) == {"data/raw"}
    file = service / "data/raw/arcs.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.unlink()  # DVC links it to its cache, read-only
    file.write_text("".join(lines[:-1]))
    subprocess.run(
        [sys.executable, "-m", "dvc", "add", "--quiet", "data/raw"], cwd=service, env=dvc.environment(service), check=True, timeout=60
    )
    after = dvc.tracked(service)
    assert dvc.data_hash(after) != dvc.data_hash(before)


def test_what_the_pipeline_writes_is_known_from_dvc_yaml(service: Path) -> None:
    assert dvc.machine_files(service) == ["dvc.lock", "metrics.json", "openapi.json", "reports/confusion.csv", "reports/history.csv"]
    assert dvc.metric_files(service) == ["metrics.json"]


def test_outputs_that_dvc_keeps_are_known_from_dvc_yaml(service: Path) -> None:
    assert dvc.cached_outputs(service) == ["data/prepared", "models/points"]
    (service / "dvc.yaml").write_text(
        "stages:\n"
        "  a: {cmd: a, outs: [x, {y: {persist: true}}, {z: {cache: false}}, '${where}/w', ../up], plots: [p.csv]}\n"
        "  b: {cmd: b, wdir: src, outs: [here]}\n"
    )
    assert dvc.cached_outputs(service) == ["p.csv", "x", "y"]
    assert dvc.machine_files(service) == ["dvc.lock", "openapi.json", "z"]


def test_the_default_remote_is_known_from_the_configuration(service: Path) -> None:
    remote = dvc_remote.default_remote(service)
    assert remote
    assert (remote.name, remote.url, remote.folder) == ("storage", "../dvc-remote", service.resolve() / "dvc-remote")
    assert remote.is_inside(service)
    (service / ".dvc/config.local").write_text(
        "['remote \"storage\"']\n    url = s3://bucket/path\n    endpointurl = https://s3.example.com\n"
    )
    remote = dvc_remote.default_remote(service)
    assert remote == dvc_remote.Remote("storage", "s3://bucket/path", "https://s3.example.com", None)
    assert not remote.is_inside(service)
    (service / ".dvc/config").write_text("[core]\n    analytics = false\n")
    assert dvc_remote.default_remote(service) is None


def test_missing_data_is_reported_with_what_fetches_it(service: Path) -> None:
    dvc_remote.check_present(service)
    shutil.rmtree(service / "data/raw")
    with pytest.raises(dvc.DataMissing, match="data/raw is tracked by DVC, but it is not on this machine") as caught:
        dvc_remote.check_present(service)
    assert f"The DVC remote is the folder {service.resolve() / 'dvc-remote'}, which does not exist here" in str(caught.value.remedy)
    (service / "dvc-remote").mkdir()
    with pytest.raises(dvc.DataMissing) as caught:
        dvc_remote.check_present(service)
    assert str(caught.value.remedy).startswith("`dvc pull` fetches it")
    (service / "data/raw.dvc").unlink()  # never fetched
    with pytest.raises(dvc.DataMissing, match=r"data/raw does not exist, and a stage of dvc\.yaml reads it") as caught:
        dvc_remote.check_present(service)
    assert str(caught.value.remedy).startswith("`make data`")


def test_a_failing_stage_is_an_error_of_ours_and_keeps_what_is_done(service: Path) -> None:
    (service / "src/points/train.py").write_text("raise SystemExit('no GPU today')\n")
    with pytest.raises(dvc.PipelineFailed):
        dvc.repro(service)
    assert [stage.name for stage in dvc.stages(service)] == ["prepare"]


def test_remotes_are_found_however_long_their_address_is(service: Path) -> None:
    config = service / ".dvc/config"
    config.write_text(config.read_text().replace("../dvc-remote", "s3://bucket/" + "x" * 200))
    assert dvc.remotes(service) == {"storage": "s3://bucket/" + "x" * 200}
    config.write_text("[core]\n    analytics = false\n")
    assert dvc.remotes(service) == {}
    assert dvc.check_remote(service) == "no remote is configured"
    with pytest.raises(dvc.NoRemote):
        dvc.push(service)


def test_data_that_is_missing_everywhere_is_not_called_pushed(service: Path) -> None:
    """`dvc push` itself prints a warning and exits 0 (dvc#1677)."""
    shutil.rmtree(service / ".dvc/cache")
    shutil.rmtree(service / "data/raw")
    with pytest.raises((dvc.DataMissing, dvc.RemoteUnreachable)):
        dvc.push(service)


def held(service: Path, pid: int) -> Path:
    """DVC's lock file as a run leaves it that was killed while it wrote data/prepared."""
    lock = service / ".dvc/tmp/rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {str(service / "data/prepared"): {"pid": pid, "cmd": "dvc repro"}}}))
    return lock


def test_a_lock_of_a_run_that_was_killed_holds_nobody_up(service: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])  # never waited for: a zombie, as under a container's first process
    assert os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT) is not None
    held(service, dead.pid)
    dvc.repro(service)
    assert [stage.name for stage in dvc.stages(service)] == ["prepare", "train", "evaluate"]
    dead.wait()


def test_a_run_that_goes_on_is_respected(service: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lock = held(service, os.getpid())
    with pytest.raises(dvc.PipelineFailed):
        dvc.repro(service)
    assert "is busy" in "".join(capfd.readouterr())
    assert lock.exists()


@pytest.mark.parametrize("text", ["a: [", "\t"])
def test_a_broken_lock_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        dvc.parse_lock(text)
