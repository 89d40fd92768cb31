"""Run docs/how-to/start-from-an-existing-train-py.md like a reader, then check what the page only describes."""

import json
from pathlib import Path

from mlops_build.adapters.registry import Registry
from tests.conftest import ROOT, git
from tests.e2e import console

PAGE = ROOT / "docs/how-to/start-from-an-existing-train-py.md"


def test_a_script_becomes_a_service_that_trains_registers_and_answers(tmp_path: Path, environment: dict[str, str]) -> None:
    console.check(PAGE.read_text(), tmp_path, environment)
    # The original files are unchanged, and nothing ran in their folder.
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["net.py", "train.py", "wine.csv"]
    service = tmp_path / "wine"
    written = next(step for step in console.steps(PAGE.read_text()) if isinstance(step, console.File) and step.path == "work/net.py")
    assert (service / "src/wine/net.py").read_text() == written.content

    # The version's run has the metrics that the script logs, those of the evaluation, and the parameters.
    registry = Registry(f"sqlite:///{service / 'mlflow.db'}")
    version = registry.version("wine", 1)
    run = registry.run(version.run_id)
    assert run is not None
    assert {"loss", "accuracy"} <= set(run.metrics)
    assert run.params["train.hidden"] == "32"
    lineage = json.loads(registry.read(version, "lineage.json"))
    assert set(lineage["data"]) == {"data/wine.csv"}
    assert [stage["name"] for stage in lineage["stages"]] == ["train", "model"]
    assert git(service, "status", "--porcelain").splitlines() == []
