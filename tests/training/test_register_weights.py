"""`mlops-build register --weights-from`: today's code around the weights of a version, and when that is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.model import contract, files, identity, openapi
from tests.conftest import git, mlops_build
from tests.training.test_code_tag import REFUSING, tags

MODEL = "src/points/model.py"
FIRST = "models:/points/1"


@pytest.fixture(scope="module")
def trained(piped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service with an origin and one version."""
    parent = tmp_path_factory.mktemp("trained")
    folder = Path(shutil.copytree(piped, parent / "points", symlinks=True))
    git(parent, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(folder, "remote", "add", "origin", (parent / "origin.git").as_uri())
    git(folder, "push", "--quiet", "origin", "main")
    mlops_build(folder, "train")
    return folder


@pytest.fixture
def service(trained: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path / "points", symlinks=True))
    shutil.copytree(trained.parent / "origin.git", tmp_path / "origin.git")
    git(folder, "remote", "set-url", "origin", (tmp_path / "origin.git").as_uri())
    return folder


def registry(service: Path) -> Registry:
    return Registry(f"sqlite:///{service / 'mlflow.db'}")


def edit(service: Path, file: str, old: str, new: str) -> str:
    """Change the code, commit; returns the commit."""
    text = (service / file).read_text()
    assert old in text
    (service / file).write_text(text.replace(old, new))
    git(service, "commit", "--quiet", "--all", "--message=Fix it")
    return git(service, "rev-parse", "HEAD")


def register(service: Path, *arguments: str, expect: int = 0) -> Any:
    done = mlops_build(service, "register", "--weights-from", FIRST, "--json", *arguments, expect=expect)
    return json.loads(done.stdout) if expect == 0 else done.stderr


def test_a_fix_is_a_new_version_with_the_same_weights(service: Path, tmp_path: Path) -> None:
    commit = edit(service, MODEL, "class Predictor", "# What was wrong here is right now.\nclass Predictor")
    made = register(service)
    assert (made["model_uri"], made["new"], made["weights_from"], made["remarks"]) == ("models:/points/2", True, FIRST, [])
    assert made["commit"] == commit == git(tmp_path / "origin.git", "rev-parse", "main") == git(service, "rev-parse", "HEAD")
    assert git(service, "status", "--porcelain") == ""

    one, other = registry(service).version("points", 1), registry(service).version("points", 2)
    assert (other.run_id, other.tags[identity.WEIGHTS_FROM], other.tags[identity.COMMIT_TAG]) == (one.run_id, FIRST, commit)
    assert set(other.tags) == {*one.tags, identity.WEIGHTS_FROM}
    for tag in (identity.DATA, identity.PARAMS, identity.SERVICE, identity.REPOSITORY):
        # The copy of the service has another origin.
        assert other.tags[tag] == one.tags[tag] or tag == identity.REPOSITORY
    before, after = (registry(service).fetch(version, tmp_path / str(version.version)) for version in (one, other))
    assert files.digest(after) == other.tags[identity.DIGEST_TAG]
    for same in ("MLmodel", "examples/recorded.json", "artifacts/weights.pt", "environment/requirements.lock", "openapi.json"):
        assert (before / same).read_bytes() == (after / same).read_bytes(), same
    wheels = [sorted((folder / "environment/wheels").glob("points-*.whl"))[0].read_bytes() for folder in (before, after)]
    assert wheels[0] != wheels[1]
    was, now = (json.loads((folder / "lineage.json").read_text()) for folder in (before, after))
    assert now["weights"] == {"version": FIRST, "digest": one.tags[identity.DIGEST_TAG], "commit": was["code"]["commit"]}
    assert now["code"]["commit"] == commit
    for carried in ("data", "stages", "params", "metrics", "run"):
        assert now[carried] == was[carried]
    assert f"of {FIRST}, commit {was['code']['commit']}" in mlops_build(service, "lineage", "models:/points/2").stdout

    assert register(service) == {**made, "new": False}
    assert len(registry(service).versions("points")) == 2


def test_other_answers_and_broken_callers_are_refused_until_they_are_meant(service: Path) -> None:
    edit(service, MODEL, '"probability": probabilities.tolist()', '"certainty": [one / 2 for one in probabilities.tolist()]')
    said = register(service, expect=4)
    assert "the current code gives other answers to the recorded example:\n  predictions[0]: recorded" in said
    assert "--allow-changed-answers" in said
    said = register(service, "--allow-changed-answers", expect=4)
    assert "points: output column probability (double) is gone" in said
    assert "`contract: 2`" in said
    assert len(registry(service).versions("points")) == 1
    assert git(service, "status", "--porcelain") == ""

    head = edit(service, "service.yaml", "contract: 1", "contract: 2")
    made = register(service, "--allow-changed-answers")
    assert made["new"]
    assert any("output column probability (double) is gone" in remark for remark in made["remarks"])
    assert made["commit"] != head, "openapi.json changed"
    assert git(service, "show", "--name-only", "--format=%s", "HEAD").split("\n\n") == [
        "Register points with the weights of version 1",
        "openapi.json",
    ]
    found = contract.of_text((service / openapi.FILE).read_bytes())
    assert found is not None
    assert found.major == 2
    assert [one["name"] for one in found.models["points"]["outputs"]] == ["label", "certainty"]
    mlops_build(service, "promote", "points", "1", "--to", "staging")
    assert "probability (double) is gone" in mlops_build(service, "promote", "points", "2", "--to", "staging").stderr


def test_what_is_refused_before_anything_is_made(service: Path) -> None:
    for arguments, code, what in (
        (["models:/points/7"], 3, "versions: 1"),
        (["models:/lines/1"], 2, "its models: points"),
        (["points"], 2, "is not a model URI"),
    ):
        assert what in mlops_build(service, "register", "--weights-from", *arguments, expect=code).stderr
    (service / "notes.txt").write_text("x")
    assert "no version is registered: uncommitted changes in notes.txt" in register(service, expect=4)
    (service / "notes.txt").unlink()
    edit(service, MODEL, "class Predictor", "class Oracle")
    assert "points.model.Predictor, which is no longer in src/" in register(service, expect=1)
    edit(service, MODEL, "class Oracle", "raise RuntimeError('half done')\n\n\nclass Predictor")
    assert "RuntimeError: half done" in register(service, expect=1)
    assert len(registry(service).versions("points")) == 1


def test_files_that_are_not_what_was_registered_are_not_used(service: Path) -> None:
    version = registry(service).version("points", 1)
    registry(service).set_tag("points", 1, identity.DIGEST_TAG, f"sha256:{'0' * 64}")
    assert "the version was registered with sha256:0000" in register(service, expect=4)
    registry(service).delete_tag("points", 1, identity.DIGEST_TAG)
    assert f"{version.shown} has no tag mlops_build.digest" in register(service, expect=4)


# The registry is a file here, which counts as a server.
RUN = """
import sys
from mlops_build.__main__ import main
from mlops_build.training import code_tag
code_tag.SERVER = ("sqlite://",)
sys.exit(main(sys.argv[1:]))
"""


def test_training_and_registering_push_the_tag_of_the_commit(service: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "-c", RUN, *arguments, "--json"]
        done = subprocess.run(command, cwd=service, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        document: dict[str, object] = json.loads(done.stdout)
        return document

    assert tags(service) == {}, "it was trained with a file"
    assert "model/points" not in str(run("train")["warnings"])
    first = git(service, "rev-parse", "HEAD")
    assert tags(service) == {f"model/points/{first[:12]}": first}
    second = edit(service, MODEL, "class Predictor", "# Fixed.\nclass Predictor")
    hook = tmp_path / "origin.git/hooks/update"
    hook.write_text(REFUSING)
    hook.chmod(0o755)
    made = run("register", "--weights-from", "models:/points/1")
    assert made["new"] is True
    assert "tags are protected" in str(made["remarks"])
    hook.unlink()
    assert run("register", "--weights-from", "models:/points/1")["remarks"] == []
    assert tags(service) == {f"model/points/{commit[:12]}": commit for commit in (first, second)}
