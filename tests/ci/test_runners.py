"""Run the pipeline of a service from the template on simulated GitLab runners (runner.py). test_agents.py has Bamboo's plans.

Real: the repository behind a Git host with merge requests, the training and MLflow. Nothing is released yet: test_agents.py tests images
and deployments, with the same commands.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mlops_build.adapters.registry import Registry
from mlops_build.ci import bamboo, gitlab
from mlops_build.model import identity
from tests.ci.agent import Agent, NotInterpreted, bare_environment
from tests.ci.runner import Pipeline, Project
from tests.conftest import Render, git
from tests.githosts import Gitlab
from tests.githosts import gitlab as gitlab_host

TOKEN = "the-bots-token"
CURIOUS = "#!/bin/sh\nenv | grep -E 'TOKEN|TRACKING' || echo found nothing\n"


@dataclass
class Company:
    """person: a developer's clone of the service. uri: of MLflow."""

    host: Gitlab
    project: Project
    person: Path
    uri: str

    def run(self, branch: str = "main", source: str = "push") -> Pipeline:
        pipeline = self.project.run(branch, source)
        assert pipeline
        return pipeline


@pytest.fixture(scope="module")
def company(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    folder = tmp_path_factory.mktemp("company")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    answers = {"project_name": "Points", "model_name": "points", "example": "none", "dvc_remote_url": str(folder / "dvc-remote")}
    person = Path(shutil.copytree(render(**answers, ci="gitlab"), folder / "person"))
    programs = str(Path(sys.executable).parent)
    installed = {"MLOPS_BUILD": f"{programs}/mlops-build", "OMP_NUM_THREADS": "1"}
    bare = {**bare_environment([programs, "/usr/local/bin", "/usr/bin", "/bin"]), **installed}
    identity_of_bot = {"MLOPS_GIT_NAME": "Points bot", "MLOPS_GIT_EMAIL": "points-bot@example.com"}
    credentials = {**bare, "MLFLOW_TRACKING_URI": uri, "MLOPS_GIT_TOKEN": TOKEN, **identity_of_bot, "no_proxy": "127.0.0.1"}
    runners = [
        Agent("plain", frozenset(), bare, folder / "home-plain"),
        Agent("credentials", frozenset({"mlops.credentials"}), credentials, folder / "home-credentials"),
    ]
    for runner in runners:
        runner.home.mkdir()
    with gitlab_host(folder / "gitlab", TOKEN) as host:
        url = host.make("ml", "points")
        with (person / "service.yaml").open("a") as file:
            file.write(f"git: {{pull_requests: gitlab, api: {host.url}}}\n")
        git(person, "init", "--quiet", "--initial-branch=main")
        subprocess.run(["make", "--silent", "data", f"VENV={Path(sys.executable).parent.parent}"], cwd=person, check=True, timeout=300)
        subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], cwd=person, check=True, timeout=300)
        git(person, "add", "--all")
        git(person, "commit", "--quiet", "--message=Start")
        git(person, "remote", "add", "origin", host.bare("ml", "points").as_uri())
        git(person, "push", "--quiet", "origin", "main")
        Registry(uri, create=True).experiment("points", folder / "mlartifacts")
        yield Company(host, Project(folder, host.bare("ml", "points"), url, runners), person, uri)


@pytest.fixture(scope="module")
def pipeline(company: Company) -> Pipeline:
    """The pipeline of main's first commit."""
    return company.run()


def test_its_commands_are_those_of_bamboos_plans(render: Render) -> None:
    def calls(path: Path) -> list[str]:
        text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.lstrip().startswith("#"))
        return sorted(line.split("./ci/mlops-build ")[1].strip(" ]") for line in text.splitlines() if "./ci/mlops-build " in line)

    assert calls(render(ci="gitlab") / gitlab.SPECS) == calls(render() / bamboo.SPECS)


@pytest.mark.slow
def test_main_is_checked_and_staging_follows_and_production_waits(company: Company, pipeline: Pipeline) -> None:
    assert pipeline.ok, pipeline.log
    assert [(job.name, job.agent.name) for job in pipeline.jobs.values()] == [
        ("check", "plain"),
        ("build", "credentials"),
        ("staging", "credentials"),
    ]
    assert pipeline.jobs["check"].tests
    assert "nothing is released yet" in pipeline.jobs["build"].log
    assert "nothing is released to staging yet" in pipeline.jobs["staging"].log
    assert set(pipeline.waiting) == {"production", "train"}
    # It starts, and refuses, because there is no release.
    production = company.project.start(pipeline, "production")
    assert (production.ok, "nothing is released to production yet" in production.log) == (False, True)
    del pipeline.jobs["production"]


@pytest.mark.slow
def test_a_branch_is_checked_without_credentials_and_a_failure_stops_main(company: Company) -> None:
    git(company.person, "switch", "--quiet", "--create", "curious", "main")
    (company.person / "ci/mlops-build").write_text(CURIOUS)
    spec = YAML(typ="safe").load((company.person / gitlab.SPECS).read_text())
    git(company.person, "commit", "--quiet", "--all", "--message=Look for credentials")
    git(company.person, "push", "--quiet", "origin", "curious")
    git(company.person, "switch", "--quiet", "main")
    branch = company.run("curious")
    assert [(job.name, job.agent.name, job.log) for job in branch.jobs.values()] == [("check", "plain", "found nothing\n")]
    assert branch.waiting == {}
    assert company.run("curious", "merge_request_event").jobs.keys() == {"check"}
    assert company.project.run("curious", "schedule") is None
    # A branch that takes the tag gets no runner.
    with pytest.raises(NotInterpreted, match="no runner"):
        company.project._runner(branch, spec["build"])


@pytest.mark.soak
def test_training_pushes_a_branch_and_opens_a_merge_request_once(company: Company, pipeline: Pipeline) -> None:
    """By hand, and again after it was interrupted; the schedule's pipeline has nothing else."""
    job = company.project.start(pipeline, "train")
    assert job.ok, job.log
    assert TOKEN not in job.log
    branch = f"retrain/{pipeline.number}"
    pushed = company.host.head("ml", "points", f"refs/heads/{branch}")
    assert pushed
    assert git(company.project.bare, "rev-parse", f"{pushed}^") == pipeline.commit, "main was not pushed"
    again = company.project.start(pipeline, "train")
    assert again.ok, again.log
    (version,) = Registry(company.uri).versions("points")
    assert version.tags[identity.COMMIT_TAG] == pushed
    (opened,) = company.host.pull_requests
    assert (opened["source_branch"], opened["target_branch"], opened["state"]) == (branch, "main", "opened")
    scheduled = company.run(source="schedule")
    assert scheduled.ok, scheduled.log
    assert set(scheduled.jobs) == {"train"}
    assert scheduled.waiting == {}
