"""A script that knows nothing of mlops-build, run as a stage: its exit code, its output, its run."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from mlops_build.adapters import dvc
from mlops_build.training import resume_run
from mlops_build.training.script import main

SCRIPT = """
import sys
if sys.argv[1] == "0":
    import mlflow
    with mlflow.start_run():
        mlflow.log_metric("loss", 0.25)
    open("weights.pt", "w").write(" ".join(sys.argv[1:]))
sys.exit(int(sys.argv[1]) % 7)
"""


@pytest.fixture
def service(with_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(with_data, tmp_path / "points", symlinks=True))
    (folder / "src/points/theirs.py").write_text(SCRIPT)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", dvc.environment(folder)["PYTHONPATH"])
    return folder


def test_what_it_logs_goes_into_the_services_run_and_how_it_ends_is_how_the_run_ends(service: Path) -> None:
    command = [sys.executable, "-m", "mlops_build.training.script", "weights.pt", "-m", "points.theirs", "0", "--epochs", "3"]
    done = subprocess.run(command, cwd=service, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (service / "weights.pt").read_text() == "0 --epochs 3"
    with resume_run(Path("weights.pt")) as run:
        assert mlflow.get_run(run.run_id).data.metrics == {"loss": 0.25}

    with pytest.raises(SystemExit) as ended:
        main(["weights.pt", "-m", "points.theirs", "3"])
    assert ended.value.code == 3
    with pytest.raises(SystemExit, match=r"did not write other\.pt"):
        main(["other.pt", "-m", "points.theirs", "7"])
    with pytest.raises(SystemExit, match="usage: "):
        main(["points.theirs"])
    found = mlflow.search_runs(search_all_experiments=True, order_by=["attributes.start_time"], output_format="list")
    assert [one.info.status for one in found] == ["FINISHED", "FAILED", "FAILED"]
