"""`mlops-build train` as a user meets it: its order, what a version carries, and what happens when things are not right."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build import __version__, doctor
from mlops_build.adapters import dvc
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry import Registry
from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.model import contract, files, identity
from mlops_build.service.tasks import OpenTasks
from mlops_build.training.pipeline import DirtyTree, check_gate, check_outputs_are_ignored, train
from tests.conftest import git, mlops_build


@pytest.fixture
def service(piped: Path, tmp_path: Path) -> Path:
    """A service whose pipeline has run, with an origin."""
    folder = Path(shutil.copytree(piped, tmp_path / "points", symlinks=True))
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(folder, "remote", "add", "origin", (tmp_path / "origin.git").as_uri())
    git(folder, "push", "--quiet", "origin", "main")
    return folder


def registry(service: Path) -> Registry:
    return Registry(f"sqlite:///{service / 'mlflow.db'}")


def refusal(service: Path, kind: type[MlopsBuildError], match: str) -> MlopsBuildError:
    """Why `train` refuses, before it says or runs anything."""
    said: list[str] = []
    with pytest.raises(kind, match=match) as caught:
        train(service, say=said.append)
    assert said == []
    return caught.value


def test_mlflow_is_quiet_in_the_stages_too(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's own code imports mlflow before it calls anything of ours."""
    stage: dict[str, str] = {}

    def repro(*_: object, **__: object) -> None:
        stage.update(os.environ)
        raise Refused("stopped here")

    monkeypatch.setattr(dvc, "repro", repro)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    with pytest.raises(Refused, match="stopped here"):
        train(service, say=lambda _: None)
    assert stage["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_version_carries_everything_that_packaging_needs(service: Path, tmp_path: Path) -> None:
    settings = (service / "service.yaml").read_text()
    (service / "service.yaml").write_text(settings.replace("\n  registry: ", "\n  files: [params.yaml]\n  registry: "))
    git(service, "commit", "--quiet", "--all", "--message=Put the parameters into the image")
    before = git(service, "rev-parse", "HEAD")
    document = json.loads(mlops_build(service, "train", "--json").stdout)
    trained = document["models"][0]
    # The code has an origin, and the data only a folder in the checkout.
    (warning,) = document["warnings"]
    assert "the DVC remote 'storage' is the folder dvc-remote in this checkout, which no clone has" in warning
    assert "dvc remote modify storage url" in warning
    head = git(service, "rev-parse", "HEAD")
    assert trained["commit"] == head != before
    assert git(tmp_path / "origin.git", "rev-parse", "main") == head
    assert git(service, "status", "--porcelain") == ""
    committed = set(git(service, "show", "--name-only", "--format=", "HEAD").splitlines())
    assert committed == {"dvc.lock", "metrics.json", "openapi.json", "reports/confusion.csv", "reports/history.csv"}

    version = registry(service).version("points", 1)
    tags = version.tags
    assert tags[identity.COMMIT_TAG] == head
    assert tags[identity.SERVICE] == "points"
    assert tags[identity.REPOSITORY] == (tmp_path / "origin.git").as_uri()
    assert identity.DIRTY not in tags
    for tag in (identity.DATA, identity.PARAMS, identity.DIGEST_TAG):
        assert identity.DIGEST.fullmatch(tags[tag])
    assert {identity.TEMPLATE, identity.PACKAGE} <= set(tags)

    made = registry(service).fetch(version, tmp_path / "files")
    assert files.digest(made) == tags[identity.DIGEST_TAG]
    found = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert {"MLmodel", "predictor.py", "lineage.json", "examples/recorded.json", "environment/requirements.lock"} <= found
    assert {f"environment/wheels/mlops_build-{__version__}-py3-none-any.whl", "environment/environment.json"} <= found
    assert any(path.startswith("environment/wheels/points-") for path in found)
    assert (made / "environment/files/params.yaml").read_bytes() == (service / "params.yaml").read_bytes()
    assert not [path for path in found if path.endswith((".pkl", ".pickle"))]
    lock = (made / "environment/requirements.lock").read_text()
    assert "--hash=sha256:" in lock
    assert not [line for line in lock.splitlines() if line.startswith(("torch==", "points", "mlops-build", "-"))]
    lineage = json.loads((made / "lineage.json").read_text())
    assert lineage["code"] == {"repository": tags[identity.REPOSITORY], "commit": head, "dirty": False}
    assert lineage["data"]["data/raw"].startswith("md5:")
    assert [stage["name"] for stage in lineage["stages"]] == ["prepare", "train", "evaluate"]
    assert all(value for stage in lineage["stages"] for value in (*stage["deps"].values(), *stage["outs"].values()))
    recorded = json.loads((made / "examples/recorded.json").read_text())
    assert recorded["input"]["dataframe_split"]["data"]
    assert len(recorded["predictions"]) == len(recorded["input"]["dataframe_split"]["data"])

    # The contract is the same in the repository and in the version.
    assert (made / "openapi.json").read_text() == git(service, "show", "HEAD:openapi.json") + "\n"
    assert contract.of_folder("points", made).major == 1

    # The data is where the commit says: a clone elsewhere can pull it.
    remote = service / "dvc-remote"
    assert sum(1 for path in remote.rglob("*") if path.is_file()) >= 4

    shown = mlops_build(service, "lineage", "models:/points/1").stdout
    assert head in shown
    assert "accuracy" in shown
    as_json = json.loads(mlops_build(service, "lineage", "models:/points/1", "--json").stdout)
    assert as_json["version"] == {"uri": "models:/points/1", "digest": tags[identity.DIGEST_TAG], "image": None}
    assert mlops_build(service, "lineage", "models:/points/7", expect=3).stderr.count("versions: 1") == 1


STEPS = [
    "pipeline.check_gate",
    "pipeline.commit_results",
    "pipeline.push_data",
    "pipeline.push_code",
    "pipeline.register_models",
    "registry.Registry.upload",
    "registry.Registry.create_version",
]


# Before these, one thing more has changed that others can see than in `service`: the commit; the pushed commit and the uploaded files.
SOME = ["pipeline.push_code", "registry.Registry.create_version"]


@pytest.mark.parametrize("steps", [SOME, pytest.param(STEPS, marks=pytest.mark.soak)], ids=["some", "all"])
def test_killed_between_any_two_steps_a_second_run_finishes_it(service: Path, tmp_path: Path, steps: list[str]) -> None:
    """Each run is killed before a later step, and the last one is not killed. There is one version, and one commit."""
    before = git(service, "rev-parse", "HEAD")
    script = """
import os, signal, sys
from mlops_build.adapters import registry
from mlops_build.training import pipeline
module, _, name = sys.argv[1].partition(".")
owner = {"pipeline": pipeline, "registry": registry.Registry}[module]
setattr(owner, name.rpartition(".")[2], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
pipeline.train(__import__("pathlib").Path.cwd(), say=print)
"""
    for step in steps:
        done = subprocess.run([sys.executable, "-c", script, step], cwd=service, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, f"{step}: {done.stdout}{done.stderr}"
        assert registry(service).versions("points") == []
    first = json.loads(mlops_build(service, "train", "--json").stdout)["models"][0]
    again = json.loads(mlops_build(service, "train", "--json").stdout)["models"][0]
    assert (first["version"], first["new"]) == (1, True)
    assert (again["version"], again["new"]) == (1, False)
    assert [version.version for version in registry(service).versions("points")] == [1]
    assert git(service, "rev-list", "--count", f"{before}..HEAD") == "1"
    assert git(tmp_path / "origin.git", "rev-parse", "main") == git(service, "rev-parse", "HEAD") == first["commit"]


@pytest.mark.slow  # DVC does this
def test_killed_in_the_middle_of_the_pipeline_it_goes_on_from_the_last_finished_stage(with_data: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(with_data, tmp_path / "points"))
    running = subprocess.Popen(
        [sys.executable, "-m", "mlops_build", "train"], cwd=service, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stderr is not None
    for line in running.stderr:
        if "Running stage 'train'" in line:
            os.killpg(running.pid, signal.SIGKILL)
            break
    running.communicate(timeout=30)
    done = mlops_build(service, "train")
    assert "Stage 'prepare' didn't change, skipping" in done.stderr
    assert [version.version for version in registry(service).versions("points")] == [1]


@pytest.mark.slow  # test_generated_service.py does so for another example
def test_two_runs_give_the_same_bits(service: Path) -> None:
    before = (service / "dvc.lock").read_text()
    files.remove_bytecode(service / "models/points")
    weights = files.digest(service / "models/points")
    dvc.repro(service, force=True)
    assert (service / "dvc.lock").read_text() == before
    files.remove_bytecode(service / "models/points")
    assert files.digest(service / "models/points") == weights


def test_a_model_below_its_threshold_is_logged_and_not_registered(service: Path) -> None:
    params = service / "params.yaml"
    params.write_text(params.read_text().replace("accuracy: {min: 0.", "accuracy: {min: 1."))
    assert "accuracy: {min: 1." in params.read_text()
    git(service, "commit", "--quiet", "--all", "--message=Ask for more")
    head = git(service, "rev-parse", "HEAD")
    done = mlops_build(service, "train", expect=4)
    assert "accuracy is" in done.stderr
    assert "required ≥ 1" in done.stderr
    assert registry(service).versions("points") == []
    assert git(service, "rev-parse", "HEAD") == head


def test_a_metric_of_two_models_with_one_name_is_refused(service: Path) -> None:
    (service / "reports/second.json").write_text('{"accuracy": 0.1}')
    pipeline = (service / "dvc.yaml").read_text()
    entry = "      - metrics.json: {cache: false}\n"
    (service / "dvc.yaml").write_text(pipeline.replace(entry, entry + "      - reports/second.json: {cache: false}\n"))
    with pytest.raises(Refused, match=r"metrics\.json and reports/second\.json both have the metric 'accuracy'"):
        check_gate(service)
    (service / "reports/second.json").write_text('{"other_accuracy": 0.1}')
    assert {"accuracy", "other_accuracy"} <= set(check_gate(service))


def test_a_dirty_tree_is_not_registered_unless_asked_for(service: Path, tmp_path: Path) -> None:
    (service / "src/points/new.py").write_text("ANSWER = 42\n")
    (service / "README.md").write_text("changed\n")
    head = git(service, "rev-parse", "HEAD")
    refused = refusal(service, DirtyTree, r"uncommitted changes in README\.md, src/points/new\.py")
    assert "--allow-dirty" in str(refused.remedy)
    assert registry(service).versions("points") == []
    assert git(service, "rev-parse", "HEAD") == head

    trained = json.loads(mlops_build(service, "train", "--allow-dirty", "--json").stdout)["models"][0]
    assert trained["dirty"] is True
    assert trained["commit"] == head == git(service, "rev-parse", "HEAD") == git(tmp_path / "origin.git", "rev-parse", "main")
    version = registry(service).version("points", 1)
    assert version.tags[identity.DIRTY] == "true"
    made = registry(service).fetch(version, tmp_path / "files")
    patch = (made / "dirty.patch").read_text()
    assert "ANSWER = 42" in patch
    assert "dvc.lock" in patch
    wheel = next((made / "environment/wheels").glob("points-*.whl"))
    listed = subprocess.run([sys.executable, "-m", "zipfile", "--list", str(wheel)], capture_output=True, text=True, check=True, timeout=30)
    assert "points/new.py" in listed.stdout
    # The patch, put onto the commit, is the tree that was trained.
    git(service, "stash", "--quiet", "--include-untracked")
    git(service, "apply", "--check", str(made / "dirty.patch"))


def test_a_change_made_while_the_pipeline_runs_is_not_registered(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc, "repro", lambda *_, **__: (service / "README.md").write_text("changed\n"))
    with pytest.raises(DirtyTree, match=r"files changed while the pipeline ran: README\.md"):
        train(service, say=lambda _: None)
    assert registry(service).versions("points") == []


def test_an_output_that_dvc_would_add_to_a_gitignore_is_refused_before_the_pipeline(service: Path) -> None:
    pipeline = (service / "dvc.yaml").read_text()
    (service / "dvc.yaml").write_text(pipeline.replace("      - models/points\n", "      - models/points\n      - embeddings.npy\n", 1))
    git(service, "commit", "--quiet", "--all", "--message=Keep the embeddings")
    refused = refusal(service, DirtyTree, r"Git does not ignore embeddings\.npy")
    subprocess.run(["sh", "-c", str(refused.remedy)], cwd=service, check=True, capture_output=True, timeout=60)
    check_outputs_are_ignored(Checkout(service), service)
    assert git(service, "status", "--porcelain", ".gitignore") == ""


def test_open_tasks_of_a_scaffolded_service_are_refused_before_the_pipeline(service: Path) -> None:
    model = service / "src/points/model.py"
    model.write_text(f'{model.read_text()}\n\ndef example():\n    raise NotImplementedError("TODO 3, see TODO.md")\n')
    refusal(service, OpenTasks, r"TODO 3 \(src/points/model\.py\) of TODO\.md is not done yet")
    (finding,) = doctor.tasks(service).findings
    assert (finding.subject, finding.rule) == ("src/points/model.py", "task-open")


def test_in_a_clone_without_the_data_nothing_runs(service: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(tmp_path / "origin.git"), "clone")
    refusal(tmp_path / "clone", dvc.DataMissing, "data/raw is tracked by DVC, but it is not on this machine")


def test_a_dvc_remote_that_does_not_answer_stops_before_git_is_pushed(service: Path, tmp_path: Path) -> None:
    pushed = git(tmp_path / "origin.git", "rev-parse", "main")
    config = service / ".dvc/config"
    config.write_text(config.read_text().replace("../dvc-remote", "s3://nothing/here\n    endpointurl = http://127.0.0.1:9"))
    git(service, "commit", "--quiet", "--all", "--message=Another remote")
    done = mlops_build(
        service, "train", expect=5, environment={"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}
    )
    assert "dvc push failed" in done.stderr
    assert git(tmp_path / "origin.git", "rev-parse", "main") == pushed
    assert registry(service).versions("points") == []


def test_without_remotes_it_says_so_and_registers(service: Path) -> None:
    git(service, "remote", "remove", "origin")
    (service / ".dvc/config").write_text("[core]\n    analytics = false\n")
    git(service, "commit", "--quiet", "--all", "--message=No remotes")
    done = mlops_build(service, "train")
    assert "no DVC remote is configured" in done.stderr
    assert "no Git remote called origin" in done.stderr
    assert registry(service).version("points", 1).tags[identity.REPOSITORY] == ""


def test_a_branch_that_moved_on_is_refused_with_what_to_do(service: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(tmp_path / "origin.git"), str(other))
    (other / "README.md").write_text("theirs\n")
    git(other, "commit", "--quiet", "--all", "--message=Theirs")
    git(other, "push", "--quiet")
    done = mlops_build(service, "train", expect=4)
    assert "git pull --rebase" in done.stderr
    assert registry(service).versions("points") == []
    git(service, "pull", "--quiet", "--rebase", "origin", "main")
    mlops_build(service, "train")
    assert registry(service).version("points", 1).tags[identity.COMMIT_TAG] == git(tmp_path / "origin.git", "rev-parse", "main")


def test_no_mlflow_run_of_this_model_is_said_with_the_remedy(service: Path, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'other.db'}"
    done = mlops_build(service, "train", expect=4, environment={"MLFLOW_TRACKING_URI": elsewhere})
    assert "mlops-build train --force" in done.stderr
    done = mlops_build(service, "train", expect=5, environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert "MLflow at http://127.0.0.1:9 does not answer" in done.stderr


def test_no_commit_yet_is_said_before_anything_runs(rendered_none: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(rendered_none, tmp_path / "points"))
    assert "git init" in mlops_build(service, "train", expect=3).stderr
    assert not (service / "dvc.lock").exists()
