"""`ci train` as an agent runs it: a fresh, shallow clone at a detached HEAD, no data, a Git host that protects main."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.ci import train
from mlops_build.model import identity
from mlops_build.release.alias import NextStep
from mlops_build.training.pipeline import Trained
from tests.conftest import git, mlops_build
from tests.githosts import Bitbucket, bitbucket

TOKEN = "the-bots-token"


@dataclass
class Place:
    """A service on a Git host, and what its agents share. folder: contains everything."""

    folder: Path
    host: Bitbucket
    url: str
    uri: str
    clones: int = 0
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        # As on agents, Python writes bytecode.
        return {"MLOPS_GIT_TOKEN": TOKEN, "MLFLOW_TRACKING_URI": self.uri, "PYTHONDONTWRITEBYTECODE": "", **self.more}

    @property
    def registry(self) -> Registry:
        return Registry(self.uri)

    def head(self, branch: str) -> str | None:
        return self.host.head("ml", "points", f"refs/heads/{branch}")

    def agent(self) -> Path:
        """Bamboo's kind of checkout: one commit, no branch, and an origin that does not exist."""
        self.clones += 1
        folder = self.folder / f"agent-{self.clones}"
        bare = self.folder / "bitbucket/ml/points.git"
        git(self.folder, "clone", "--quiet", "--depth=1", bare.as_uri(), str(folder))
        git(folder, "checkout", "--quiet", "--detach")
        git(folder, "branch", "--quiet", "-D", "main")
        git(folder, "remote", "set-url", "origin", "file:///nothing")
        return folder

    def train(self, where: Path, number: int | None = 7, *arguments: str, expect: int = 0) -> Any:
        """Run the plan's command; returns its JSON, or its stderr if it is expected to fail."""
        bamboo = {"bamboo_planRepository_branchName": "main", "bamboo_planRepository_repositoryUrl": self.url}
        build = {"bamboo_buildNumber": str(number)} if number else {}
        done = mlops_build(where, "ci", "train", "--json", *arguments, expect=expect, environment={**self.environment, **bamboo, **build})
        assert TOKEN not in done.stdout + done.stderr
        return json.loads(done.stdout) if expect == 0 else done.stderr


@pytest.fixture
def place(piped: Path, tmp_path: Path) -> Iterator[Place]:
    """A first training has run without a commit of its results, so that training is quick and has something to commit."""
    person = Path(shutil.copytree(piped, tmp_path / "person", symlinks=True))
    with bitbucket(tmp_path / "bitbucket", TOKEN) as host:
        url = host.make("ml", "points")
        config, settings = person / ".dvc/config", person / "service.yaml"
        config.write_text(config.read_text().replace("../dvc-remote", str(tmp_path / "dvc-remote")))
        settings.write_text(settings.read_text() + f"git: {{pull_requests: bitbucket, api: {host.url}, commit_prefix: ML-42}}\n")
        git(person, "add", ".dvc/config", "service.yaml")
        git(person, "commit", "--quiet", "--message=Our places")
        git(person, "push", "--quiet", str(tmp_path / "bitbucket/ml/points.git"), "HEAD:refs/heads/main")
        host.protect("ml", "points")
        subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet", "data/raw"], cwd=person, check=True, timeout=60)
        yield Place(tmp_path, host, url, f"sqlite:///{person / 'mlflow.db'}")


@pytest.mark.parametrize("forced", [[], pytest.param(["--force"], marks=pytest.mark.soak)], ids=["", "forced"])
def test_an_agent_trains_in_a_shallow_clone_and_opens_a_pull_request(place: Place, forced: list[str]) -> None:
    main = place.head("main")
    agent = place.agent()
    result = place.train(agent)
    (model,) = result["models"]
    assert result["branch"] == "retrain/7"
    assert place.head("main") == main, "main is never pushed"
    assert place.head("retrain/7") == model["commit"] == git(agent, "rev-parse", "HEAD")
    assert git(agent, "cat-file", "commit", "HEAD").splitlines()[1] == f"parent {main}"
    changed = git(agent, "diff", "--name-only", str(main), "HEAD").splitlines()
    assert set(changed) == {"dvc.lock", "metrics.json", "openapi.json", "reports/confusion.csv", "reports/history.csv"}
    assert git(agent, "status", "--porcelain") == ""
    subject = git(agent, "log", "-1", "--format=%s")
    assert subject.startswith("ML-42 Train points: accuracy ")

    version = place.registry.version("points", 1)
    assert version.tags[identity.COMMIT_TAG] == model["commit"]
    assert version.tags[identity.REPOSITORY] == place.url

    (pull,) = place.host.pull_requests
    assert result["pull_request"] == {"number": 1, "url": f"{place.host.url}/projects/ml/repos/points/pull-requests/1", "new": True}
    assert (pull["fromRef"]["id"], pull["toRef"]["id"]) == ("refs/heads/retrain/7", "refs/heads/main")
    assert pull["title"].startswith("ML-42 Train points: accuracy ")
    assert "models:/points/1" in pull["description"]
    assert "| accuracy | – |" in pull["description"]
    assert "mlops-build promote points 1 --to staging" in pull["description"]

    # The same build on another agent: everything exists already.
    again = place.train(place.agent())
    assert again["models"][0] == {**model, "new": False}
    assert again["pull_request"] == {**result["pull_request"], "new": False}
    assert [version.version for version in place.registry.versions("points")] == [1]
    assert place.head("retrain/7") == model["commit"]

    # After the merge, another training changes nothing, also with --force: no branch, no commit, no pull request.
    git(place.folder / "bitbucket/ml/points.git", "update-ref", "refs/heads/main", model["commit"])
    nothing = place.train(place.agent(), 8, *forced)
    assert (nothing["branch"], nothing["pull_request"]) == (None, None)
    assert nothing["models"][0]["new"] is False
    assert place.head("retrain/8") is None
    assert len(place.host.pull_requests) == 1


@pytest.mark.soak  # the steps of `train` are killed in the fast tests
def test_killed_between_any_two_steps_another_agent_finishes_it(place: Place) -> None:
    # The first four on the same agent, whose folder is kept; then on others, which use what was pushed.
    steps = [
        "pipeline.commit_results",
        "pipeline.push_data",
        "pipeline.push_code",
        "pipeline.register_models",
        "bitbucket.open_pull_request",
    ]
    agent = place.agent()
    script = """
import os, signal, sys
from mlops_build.ci import train
from mlops_build.adapters.githost import bitbucket
from mlops_build.training import pipeline
module, name = sys.argv[1].split(".")
setattr({"pipeline": pipeline, "bitbucket": bitbucket}[module], name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
train.run(__import__("pathlib").Path.cwd(), build="7", force=False, say=print)
"""
    bamboo = {"MLOPS_GIT_BRANCH": "main", "MLOPS_GIT_URL": place.url}
    seen: dict[str, str | None] = {}
    for step in steps:
        done = subprocess.run(
            [sys.executable, "-c", script, step],
            cwd=agent if step != "bitbucket.open_pull_request" else place.agent(),
            env={**os.environ, **place.environment, **bamboo},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, f"{step}: {done.stdout}{done.stderr}"
        seen[step] = place.head("retrain/7")
        assert place.host.pull_requests == []
    assert seen["pipeline.push_code"] is None, "data is pushed first"
    assert seen["pipeline.register_models"] == seen["bitbucket.open_pull_request"] is not None
    result = place.train(place.agent())
    assert result["models"][0]["commit"] == place.head("retrain/7") == seen["bitbucket.open_pull_request"]
    assert [version.version for version in place.registry.versions("points")] == [1]
    assert len(place.host.pull_requests) == 1


def test_known_obstacles_are_refused_before_the_training(place: Place) -> None:
    agent = place.agent()
    bare = place.folder / "bitbucket/ml/points.git"

    def refused(expect: int, number: int = 7) -> str:
        message = str(place.train(agent, number, expect=expect))
        assert "[1/6]" not in message
        return message

    (agent / "README.md").write_text("changed\n")
    assert "uncommitted changes in README.md" in refused(4)
    git(agent, "checkout", "--quiet", "--", "README.md")

    other = git(bare, "commit-tree", "main^{tree}", "-m", "Somebody's")
    git(bare, "update-ref", "refs/heads/retrain/7", other)
    message = refused(4)
    assert "retrain/7 is the result of training nothing, not" in message
    assert "--build" in message

    tree = git(bare, "commit-tree", "main^{tree}", "-p", "main", "-m", "No training")
    git(bare, "update-ref", "refs/heads/retrain/8", tree)
    empty = place.agent()
    (empty / "README.md").write_text("changed\n")
    git(empty, "commit", "--quiet", "--all", "--message=More than a training")
    git(empty, "push", "--quiet", bare.as_uri(), "HEAD:refs/heads/retrain/9")
    assert "retrain/9 changes README.md" in refused(4, 9)

    place.host.answer = (403, "{}", {})
    assert "403 for ml/points" in refused(4, 10)
    place.host.answer = (503, "{}", {})
    assert "503 for ml/points" in refused(5, 10)
    place.host.answer = None
    place.more = {"MLOPS_GIT_TOKEN": ""}
    assert "MLOPS_GIT_TOKEN is not set" in refused(4, 10)
    assert (
        "is not a valid build number"
        in mlops_build(agent, "ci", "train", "--build", "0", expect=2, environment={"MLOPS_GIT_BRANCH": "main"}).stderr
    )
    assert place.registry.versions("points") == []


def test_missing_data_is_an_error_that_names_it(place: Place) -> None:
    agent = place.agent()
    stored = place.folder / "dvc-remote"
    stored.rename(place.folder / "elsewhere")
    assert "the DVC remote does not have the data of data/raw.dvc" in place.train(agent, expect=4)
    config = agent / ".dvc/config"
    config.write_text(config.read_text().replace(str(stored), "s3://nothing/here\n    endpointurl = http://127.0.0.1:9"))
    git(agent, "commit", "--quiet", "--all", "--message=Another remote")
    place.more = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}
    assert "dvc pull failed" in place.train(agent, expect=5)
    assert place.registry.versions("points") == []


def test_on_a_laptop_the_next_free_number_is_used_and_main_stays(place: Place) -> None:
    person = place.folder / "person"
    bare = place.folder / "bitbucket/ml/points.git"
    git(person, "remote", "add", "origin", bare.as_uri())
    settings = person / "service.yaml"
    settings.write_text(settings.read_text().replace("pull_requests: bitbucket", "pull_requests: none"))
    git(person, "commit", "--quiet", "--message=No pull requests", "service.yaml")
    for taken in ("retrain/2", "retrain/11", "retrain/x", "retrained/99"):
        git(bare, "update-ref", f"refs/heads/{taken}", "refs/heads/main")
    main = place.head("main")
    environment = {"MLFLOW_TRACKING_URI": place.uri, "MLOPS_GIT_NAME": "The bot", "MLOPS_GIT_EMAIL": "bot@example.com"}
    done = mlops_build(person, "ci", "train", "--json", environment=environment)
    result = json.loads(done.stdout)
    assert result["branch"] == "retrain/12"
    assert result["pull_request"] is None
    assert "retrain/12 is pushed; open a pull request from it to main" in done.stderr
    assert place.head("main") == main != git(person, "rev-parse", "main"), "an unpushed commit stays on the laptop"
    assert place.head("retrain/12") == git(person, "rev-parse", "HEAD")
    assert git(person, "symbolic-ref", "--short", "HEAD") == "retrain/12"
    assert git(person, "log", "-1", "--format=%an %ae %cn %ce") == "The bot bot@example.com The bot bot@example.com"
    assert git(person, "status", "--porcelain") == ""
    again = json.loads(mlops_build(person, "ci", "train", "--json", environment=environment).stdout)
    assert (again["branch"], again["models"][0]["new"]) == ("retrain/12", False)


def test_the_pull_request_says_what_changed() -> None:
    metrics = {"accuracy": 0.9671, "loss": 0.25, "odd|name`": 1.0}
    trained = [Trained("models:/points/3", "points", 3, True, "c" * 40, "r" * 32, metrics, False)]
    following = NextStep("staging", {"points": 3}, {("lines", 4): "it breaks callers"})
    text = train.describe(trained, "retrain/12", {"accuracy": 0.95, "loss": 0.25, "gone": 2.0}, following)
    assert "| accuracy | 0.95 | 0.9671 | +0.0171 |" in text
    assert "| loss | 0.25 | 0.25 | +0 |" in text
    assert "| odd?name? | – | 1 | – |" in text
    assert "| gone | 2 | – | – |" in text
    assert text.endswith(
        "\nTo staging:\n\n```\nmlops-build promote points 3 --to staging\n```\n"
        "\nlines 4 cannot be promoted to staging:\n\n```\nit breaks callers\n```\n"
    )
