"""Run docs/how-to/serve-a-second-model.md like a reader, then check what the page only describes."""

import json
from pathlib import Path

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.model import identity
from mlops_build.model.answers import differences
from mlops_build.release import record
from tests.conftest import ROOT, git
from tests.e2e import console

PAGE = ROOT / "docs/how-to/serve-a-second-model.md"


@pytest.mark.slow
def test_two_models_are_trained_registered_released_and_served_together(tmp_path: Path, environment: dict[str, str]) -> None:
    done = console.check(PAGE.read_text(), tmp_path, environment)

    service = tmp_path / "points"
    registry = Registry(f"sqlite:///{service / 'mlflow.db'}")
    first, second = registry.version("points", 1), registry.version("points-novelty", 1)
    assert first.tags[identity.COMMIT_TAG] == second.tags[identity.COMMIT_TAG]
    runs = [registry.run(version.run_id) for version in (first, second)]
    assert [set(run.metrics) & {"accuracy", "novelty_recall"} for run in runs if run] == [{"accuracy"}, {"novelty_recall"}]
    assert [model.version for model in record.read(service, "staging").models] == [1, 2]
    # The incomplete promotion was refused before anything was written: two releases are two commits.
    assert len(git(service, "log", "--format=%h", "--", "deploy/overlays/staging/release").splitlines()) == 3

    # Each model's answer on the page equals the one recorded at its training.
    answered = [json.loads(printed)["predictions"] for command, printed in done if "/invocations" in command.text]
    for name, answer in zip(("points", "points-novelty"), answered, strict=True):
        recorded = json.loads((service / "build/context/models" / name / "examples/recorded.json").read_text())
        assert differences(recorded["predictions"], answer) == []
