"""A CI system is a subpackage with the members of bamboo/, and an entry in SYSTEMS: nothing else knows which systems there are."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

import mlops_build
from mlops_build.__main__ import main
from mlops_build.checklist.plans import Plans
from mlops_build.checklist.result import Result
from mlops_build.ci import bamboo, systems
from mlops_build.service import Service
from mlops_build.verify.catalogue import Rule
from mlops_build.verify.document import File
from mlops_build.verify.specs import Problem, SpecChecker
from mlops_build.verify.world import Fault, Part
from tests.conftest import Render

ITEM = '[[item]]\nid = "jobs-project"\nwhere = "Jobs"\nwhat = "The project `$project` exists."\nhow = "Create it."\ncheck = "project"\n'


def jobs_checker(_: Problem) -> SpecChecker:
    def check(files: Sequence[File], service: Service | None) -> Iterator[Fault]:
        assert service
        part = Part("jobs", {}, lambda _: (files[0].name, 1))
        yield Fault("jobs-name", part, (), f"a job of {service.name} has no name")

    rule = Rule("jobs-name", "A job has no name", "It does not run.", "give it a name", "jobs: []")
    return SpecChecker("jobs", lambda data: isinstance(data, dict) and "jobs" in data, check, {"Jobs": (rule,)})


def jobs_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {"MLOPS_CI_BUILD": environment["JOBS_NUMBER"]} if "JOBS_NUMBER" in environment else {}


def jobs_plans(root: Path) -> Plans:
    return Plans("Jobs", (), {"project": root.name, "plans": "", "deployment": ""}, ITEM, {"project": lambda _: Result("ok", "there")})


JOBS = SimpleNamespace(SPECS="jobs/all.yaml", variables=jobs_variables, spec_checker=jobs_checker, plans=jobs_plans)


def test_a_second_system_is_used_everywhere(
    render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(systems, "SYSTEMS", (bamboo, JOBS))
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/all.yaml").write_text("jobs: []\n")
    (tmp_path / "service.yaml").write_text((render() / "service.yaml").read_text())
    (tmp_path / "deploy/overlays").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--json"]) == 4
    assert "jobs-name" in {finding["rule"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert main(["doctor", "--checklist"]) == 0
    printed = capsys.readouterr().out
    assert f"- [ ] **`jobs-project`** The project `{tmp_path.name}` exists." in printed
    assert "Bamboo" not in printed
    seen = systems.variables({"JOBS_NUMBER": "3", "bamboo_planRepository_branchName": "x"})
    assert seen == {"MLOPS_CI_BUILD": "3", "MLOPS_GIT_BRANCH": "x"}
    assert systems.variables({"JOBS_NUMBER": "3", "MLOPS_CI_BUILD": "4"}) == {}


def test_only_its_subpackage_knows_a_system() -> None:
    package = Path(mlops_build.__file__).parent
    allowed = {package / "ci/systems.py", *(package / "ci/bamboo").iterdir()}
    files = {file for pattern in ("*.py", "*.toml", "*.yaml") for file in package.rglob(pattern)}
    assert [file for file in files - allowed if "bamboo" in file.read_text().lower()] == []
    files -= set((package / "ci/gitlab").iterdir())
    assert [file for file in files if re.search(r"gitlab-ci|\bCI_[A-Z]", file.read_text())] == []


def test_gitlab_pushes_with_the_bots_token_to_the_projects_address() -> None:
    """The origin of a job's checkout contains a token that may only read."""
    job = {"GITLAB_CI": "true", "CI_COMMIT_BRANCH": "main", "CI_PIPELINE_IID": "7", "CI_PROJECT_URL": "https://git.example.com/ml/digits"}
    ours = {"MLOPS_GIT_BRANCH": "main", "MLOPS_CI_BUILD": "7", "MLOPS_CI_REPOSITORY": "https://git.example.com/ml/digits.git"}
    assert systems.variables(job) == ours
    assert systems.variables({**job, "MLOPS_GIT_TOKEN": "x"}) == {**ours, "MLOPS_GIT_URL": "https://git.example.com/ml/digits.git"}
    assert systems.variables({**job, "GITLAB_CI": ""}) == {}
    assert systems.variables({"GITLAB_CI": "true"}) == {}
