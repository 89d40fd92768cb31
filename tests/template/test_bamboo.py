"""bamboo-specs/bamboo.yaml: two plans and a deployment, one line a script, and nothing secret for a branch.

tests/verify/test_template.py checks its grammar.
"""

import fnmatch
import json
import re
from typing import Any

import pytest
from ruamel.yaml import YAML


@pytest.fixture(scope="module")
def documents(render: Any) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all((render() / "bamboo-specs" / "bamboo.yaml").read_text()))


@pytest.fixture(scope="module")
def plans(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {document["plan"]["key"]: document for document in documents if "stages" in document}


@pytest.fixture(scope="module")
def deployment(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(document for document in documents if "environments" in document)


def jobs(plan: dict[str, Any]) -> list[str]:
    return [job for stage in plan["stages"] for settings in stage.values() for job in settings["jobs"]]


def scripts(tasks: list[Any]) -> list[str]:
    return [line for task in tasks if isinstance(task, dict) and "script" in task for line in task["script"]["scripts"]]


def test_there_are_two_plans_and_one_deployment_with_permissions(documents: list[dict[str, Any]]) -> None:
    kinds = [
        next(kind for kind in ("plan-permissions", "deployment-permissions", "environments", "stages") if kind in document)
        for document in documents
    ]
    assert kinds == ["stages", "environments", "plan-permissions", "deployment-permissions", "stages", "plan-permissions"]
    assert all(document["version"] == 2 for document in documents)


def test_every_script_is_one_line_that_calls_the_wrapper(plans: dict[str, dict[str, Any]], deployment: dict[str, Any]) -> None:
    lines = [line for plan in plans.values() for job in jobs(plan) for line in scripts(plan[job]["tasks"])]
    assert lines == [f"./ci/mlops-build ci {step}" for step in ("check", "image", "train")]
    assert {env: scripts(deployment[env]["tasks"]) for env in deployment["environments"]} == {
        "staging": ["tar -xf release.tar && ./ci/mlops-build ci deploy staging --if-released"],
        "production": ["tar -xf release.tar && ./ci/mlops-build ci deploy production"],
    }


def test_a_release_is_what_its_build_made_and_nothing_newer(plans: dict[str, dict[str, Any]], deployment: dict[str, Any]) -> None:
    # An environment has no repository of its own; a checkout there would be of a linked one, at whatever commit is the newest by then.
    (made,) = plans["DIGITS"]["Image"]["artifacts"]
    assert (made["name"], made["location"], made["pattern"], made["shared"]) == ("release", "build", "release.tar", True)
    for env in deployment["environments"]:
        tasks = deployment[env]["tasks"]
        assert tasks[:2] == ["clean", {"artifact-download": {"artifacts": [{"name": "release"}]}}]
        assert not any("checkout" in task for task in tasks if isinstance(task, dict))
    assert deployment["release-naming"]["applies-to-branches"] is False


def test_what_the_tests_said_is_shown_also_when_they_failed(plans: dict[str, dict[str, Any]]) -> None:
    from mlops_build.ci.check import REPORT

    ((kind, settings),) = plans["DIGITS"]["Check"]["final-tasks"][0].items()
    assert (kind, settings["type"]) == ("test-parser", "junit")
    assert any(fnmatch.fnmatch(REPORT, pattern) for pattern in settings["test-results"])


def test_nothing_of_a_branch_runs_beside_credentials(plans: dict[str, dict[str, Any]]) -> None:
    # Where branches take main's plan (specs of branches are off in Bamboo), the override does not apply to them, but this does.
    (script,) = [task["script"] for task in plans["DIGITS"]["Image"]["tasks"] if "script" in task]
    assert script["conditions"] == [{"variable": {"equals": {"planRepository.branch": "main"}}}]
    assert plans["DIGITS"]["Image"]["artifacts"][0]["required"] is False
    assert plans["DIGITSTRAIN"]["branches"]["create"] == "manually"


def test_two_builds_of_one_plan_do_not_run_at_once(plans: dict[str, dict[str, Any]]) -> None:
    assert [plan["other"]["concurrent-build-plugin"] for plan in plans.values()] == [1, 1]


def test_release_checks_first_and_no_stage_waits_for_a_person(plans: dict[str, dict[str, Any]]) -> None:
    # After a manual stage that nobody starts Bamboo runs nothing, so training is a plan of its own.
    assert jobs(plans["DIGITS"]) == ["Check", "Image"]
    assert jobs(plans["DIGITSTRAIN"]) == ["Train"]
    assert not any(settings.get("manual") for plan in plans.values() for stage in plan["stages"] for settings in stage.values())
    assert plans["DIGITSTRAIN"]["triggers"] == []
    assert "triggers" not in plans["DIGITS"], "Bamboo's default fits the repository's host"


@pytest.mark.parametrize(("branch", "covered"), [("feature/x", True), ("main-2", True), ("fix-main", True), ("main", False)])
def test_branches_only_check(plans: dict[str, dict[str, Any]], branch: str, covered: bool) -> None:
    (override,) = plans["DIGITS"]["branch-overrides"]
    ((pattern, settings),) = override.items()
    assert bool(re.fullmatch(pattern, branch)) is covered
    assert jobs(settings) == ["Check"]


def test_only_agents_with_credentials_run_what_needs_them(plans: dict[str, dict[str, Any]], deployment: dict[str, Any]) -> None:
    assert "requirements" not in plans["DIGITS"]["Check"]
    needing = [plans["DIGITS"]["Image"], plans["DIGITSTRAIN"]["Train"], *(deployment[env] for env in deployment["environments"])]
    assert all(job["requirements"] == ["mlops.credentials"] for job in needing)


def test_no_secret_stands_in_it(documents: list[dict[str, Any]]) -> None:
    text = json.dumps(documents)
    assert not re.search(r"password\"|secret\"|token\"|BAMSCRT", text, re.IGNORECASE)
    assert '"variables"' not in text


def test_staging_follows_at_once_and_production_waits_for_approval(deployment: dict[str, Any]) -> None:
    assert deployment["environments"] == ["staging", "production"]
    assert deployment["staging"]["triggers"] == ["build-success"]
    assert "release-approval-prerequisite" not in deployment["staging"]
    assert deployment["production"]["triggers"] == []
    assert deployment["production"]["release-approval-prerequisite"] == "approved"
    assert deployment["deployment"]["source-plan"] == "ML-DIGITS"


def test_permissions_name_what_they_belong_to_and_the_team(documents: list[dict[str, Any]]) -> None:
    named = {document["plan"]["key"] for document in documents if "plan-permissions" in document}
    assert named == {"ML-DIGITS", "ML-DIGITSTRAIN"}
    for document in documents:
        for key, permissions in document.items():
            if key.endswith("permissions"):
                assert permissions[0]["groups"] == ["ml-platform"]
                assert {"roles": ["logged-in"], "permissions": ["view"]} in permissions
