"""docs/how-to/serve-a-second-model.md, done as its reader does it; then what the page says in words only."""

import json
import urllib.request
from pathlib import Path

from mlops_build.ci.deploy import differences
from mlops_build.model import identity
from mlops_build.registry import Registry
from mlops_build.release import record
from tests.conftest import ROOT, git
from tests.e2e import console
from tests.serving.conftest import serving

PAGE = ROOT / "docs/how-to/serve-a-second-model.md"


def test_two_models_are_trained_registered_released_and_served_together(tmp_path: Path, environment: dict[str, str]) -> None:
    done = console.run(PAGE.read_text(), tmp_path, environment)
    wrong = [
        f"$ {command.text}\n--- the page:\n{command.expected}\n--- printed:\n{printed}"
        for command, printed in done
        if not console.matches(command.expected, printed)
    ]
    assert not wrong, "\n\n".join(wrong)

    service = tmp_path / "points"
    registry = Registry(f"sqlite:///{service / 'mlflow.db'}")
    first, second = registry.version("points", 1), registry.version("points-novelty", 1)
    assert first.tags[identity.COMMIT_TAG] == second.tags[identity.COMMIT_TAG]
    runs = [registry.run(version.run_id) for version in (first, second)]
    assert [set(run.metrics) & {"accuracy", "novelty_recall"} for run in runs if run] == [{"accuracy"}, {"novelty_recall"}]
    assert [model.version for model in record.read(service, "staging").models] == [1, 2]
    # The half promotion was refused before anything was written: two releases are two commits.
    assert len(git(service, "log", "--format=%h", "--", "deploy/overlays/staging/release").splitlines()) == 3

    context = service / "build/context"
    with serving(tmp_path / "server", str(context), "--port", "0") as server:
        for name, path in (("points", ""), ("points", "/models/points"), ("points-novelty", "/models/points-novelty")):
            recorded = json.loads((context / "models" / name / "examples/recorded.json").read_text())
            request = urllib.request.Request(
                f"{server.url}{path}/invocations",
                data=json.dumps(recorded["input"]).encode(),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert differences(recorded["predictions"], json.load(answer)["predictions"]) == []
