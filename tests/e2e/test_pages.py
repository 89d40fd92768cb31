"""Run README and other pages like a reader: every command must print what the page shows. Then check what a page only describes."""

import json
from pathlib import Path

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.model import identity
from mlops_build.model.answers import differences
from mlops_build.release import record
from tests.conftest import ROOT, MadeOnce, git
from tests.e2e import console
from tests.e2e.conftest import reader
from tests.template.releases import published as published_releases

SLOW = (
    "tutorial/first-service",
    "how-to/host-your-own-copy",
    pytest.param("how-to/experiment", marks=pytest.mark.soak),
    "how-to/use-a-pickled-model",
)
UPDATES = (pytest.param("how-to/roll-a-template-change-out", marks=pytest.mark.slow), "how-to/resolve-a-conflicting-update")


def page(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text()


def test_readme(tmp_path: Path, environment: dict[str, str], published: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(published), "reader")
    console.check((ROOT / "README.md").read_text(), tmp_path / "reader", environment, at_least=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_command_prints_what_the_page_shows(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    # Job control, as in an interactive shell: a signal to a job reaches all of its processes.
    (tmp_path / "bashrc").write_text("set -m\n")
    (tmp_path / "reader").mkdir()
    console.check(page(name), tmp_path / "reader", {**environment, "BASH_ENV": str(tmp_path / "bashrc")}, at_least=8)


@pytest.mark.parametrize("name", UPDATES)
def test_the_pages_about_updates(name: str, tmp_path: Path, made_once: MadeOnce) -> None:
    (tmp_path / "reader").mkdir()
    environment = {**reader(made_once("releases", published_releases), tmp_path), "COPIER_CACHE_DIR": str(tmp_path / "copier")}
    console.check(page(name), tmp_path / "reader", environment, at_least=10)


@pytest.mark.slow
def test_a_script_becomes_a_service_that_trains_registers_and_answers(tmp_path: Path, environment: dict[str, str]) -> None:
    text = page("how-to/start-from-an-existing-train-py")
    console.check(text, tmp_path, environment)
    # The original files are unchanged, and nothing ran in their folder.
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["net.py", "train.py", "wine.csv"]
    service = tmp_path / "wine"
    written = next(step for step in console.steps(text) if isinstance(step, console.File) and step.path == "work/net.py")
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


@pytest.mark.slow
def test_two_models_are_trained_registered_released_and_served_together(tmp_path: Path, environment: dict[str, str]) -> None:
    done = console.check(page("how-to/serve-a-second-model"), tmp_path, environment)
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


@pytest.mark.slow
def test_an_old_service_moves_into_one_that_is_released_and_rolled_back(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "bashrc").write_text("set -m\n")
    (tmp_path / "reader").mkdir()
    console.check(
        page("how-to/move-a-flask-service"), tmp_path / "reader", {**environment, "BASH_ENV": str(tmp_path / "bashrc")}, at_least=30
    )
    service = tmp_path / "reader/iris-service"
    registry = Registry(f"sqlite:///{tmp_path / 'reader/mlflow.db'}")
    adopted, *released = [registry.version("iris", number) for number in (1, 2, 3)]
    for version in released:
        assert version.tags[identity.WEIGHTS_FROM] == "models:/iris/1"
        for tag in (identity.ORIGIN, identity.FILE_TAG, identity.DECIDED_BY):
            assert version.tags[tag] == adopted.tags[tag]
    weights = [registry.read(version, "artifacts/weights.pt") for version in (adopted, *released)]
    assert weights[0] == weights[1] == weights[2]
    recorded = [json.loads(registry.read(version, "examples/recorded.json"))["predictions"] for version in (adopted, *released)]
    assert differences(recorded[0], recorded[1]) + differences(recorded[0], recorded[2]) == []
    # Rolled back: the release record is that of version 2, byte for byte.
    assert [model.version for model in record.read(service, "staging").models] == [2]
    _, first, _, last = git(service, "log", "--reverse", "--format=%h", "--", "deploy/overlays/staging/release").splitlines()
    assert git(service, "diff", "--stat", first, last, "--", "deploy") == ""


@pytest.mark.parametrize(
    ("expected", "printed", "fits"),
    [
        ("a\nb", "a\nb\n", True),
        ("a …\nb", "a x y\nb", True),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…", "a\n", True),
        ("", "", True),
        ("", "text", False),
        ("a", "b", False),
        ("a\nb", "a", False),
    ],
)
def test_the_comparison(expected: str, printed: str, fits: bool) -> None:
    assert console.matches(expected, printed) is fits


def test_pages_are_read_as_commands_and_files() -> None:
    text = '```console\n$ one \\\n> two\nout\n$ three\n```\n\n```yaml title="a.yaml"\nb: 1\n```\n'
    assert console.steps(text) == [
        console.Command("one \\\ntwo", "out"),
        console.Command("three", ""),
        console.File("a.yaml", "b: 1\n", is_diff=False),
    ]
