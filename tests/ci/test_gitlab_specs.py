"""The check of .gitlab-ci.yml: each fault in the pipeline of a new service is found in the right line, and by no other rule."""

import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build.ci import gitlab, systems
from mlops_build.ci.gitlab.pipeline import GRAMMAR
from mlops_build.cli.parser import problem_of
from mlops_build.verify import check
from mlops_build.verify.fields import definitions
from tests.ci.test_bamboo_specs import found
from tests.conftest import Render

SPECS = systems.spec_checkers(problem_of)
MANUAL = '    - if: $CI_COMMIT_BRANCH == "main" && $CI_PIPELINE_SOURCE != "schedule"\n      when: manual\n'

# (name, rule, text that only the reported line holds after the edits, old and new text of each edit)
FAULTS: list[tuple[str, ...]] = [
    ("job without a script", "gitlab-shape", "^build:", "  script:\n    - ./ci/mlops-build ci image\n", ""),
    ("job is a list", "gitlab-shape", "^lint", "check:\n", "lint: [make lint]\n\ncheck:\n"),
    ("stage is not a name", "gitlab-shape", "^stages", "production, train]", "production, train, {x: y}]"),
    ("misspelt key of a job", "gitlab-unknown-key", "resourcegroup", "resource_group: build", "resourcegroup: build"),
    ("misspelt key of a rule", "gitlab-unknown-key", "allow_fail:", "allow_failure: true", "allow_fail: true"),
    ("misspelt key of artifacts", "gitlab-unknown-key", "expires_in", "expire_in", "expires_in"),
    ("misspelt key of workflow", "gitlab-unknown-key", "rule:$", "workflow:\n  rules:", "workflow:\n  rule:"),
    ("misspelt key of an environment", "gitlab-unknown-key", "nam:", "environment: staging", "environment: {nam: staging}"),
    ("misspelt key of default", "gitlab-unknown-key", "tag:", "workflow:", "default:\n  tag: [x]\nworkflow:"),
    ("job with the name of a keyword", "gitlab-unknown-key", "make lint", "workflow:", "image:\n  script: make lint\nworkflow:"),
    ("misspelt value", "gitlab-value", "allways", "when: always", "when: allways"),
    ("misspelt value in a rule", "gitlab-value", "when: maual", "      when: manual\n      allow", "      when: maual\n      allow"),
    ("stage missing", "gitlab-missing-stage", "stage: buid$", "stage: build\n", "stage: buid\n"),
    ("job missing", "gitlab-missing-job", "biuld", "needs: [build]", "needs: [biuld]"),
    ("parent missing", "gitlab-missing-job", "extends", "  stage: check\n", "  stage: check\n  extends: .base\n"),
    ("password in a variable", "gitlab-secret", "hunter2", "workflow:", "variables:\n  REGISTRY_PASSWORD: hunter2\nworkflow:"),
    ("password of a job", "gitlab-secret", "hunter2", "GIT_STRATEGY: clone", "REGISTRY_PASSWORD: {value: hunter2}"),
    ("token in a script", "gitlab-secret", "0f6e8c1d9a", "ci/mlops-build ci image", "ci/x https://bot:0f6e8c1d9a@git.example.com/a.git"),
    ("step misspelt", "gitlab-command", "chekc", "ci check\n  artifacts", "ci chekc\n  artifacts"),
    ("program misspelt", "gitlab-command", "mlops-buidl", "mlops-build ci train", "mlops-buidl ci train"),
    ("option misspelt", "gitlab-command", "if-relased", "--if-released", "--if-relased"),
    ("environment without an overlay", "gitlab-overlay", "stagin ", "deploy staging ", "deploy stagin "),
    ("production by itself", "gitlab-approval", "^production", MANUAL, MANUAL.partition("      when")[0]),
    ("production in one case", "gitlab-approval", "^production", MANUAL, f"{MANUAL}    - if: $CI_COMMIT_TAG\n"),
    ("production in another environment", "gitlab-approval", "^production", "environment: production", "environment: {name: prod}"),
    ("production in no environment", "gitlab-approval", "^production", "  environment: production\n", ""),
    ("image that waits for nothing", "gitlab-order", "^build", "  stage: build\n", "  stage: build\n  needs: []\n"),
    ("image in the stage of the check", "gitlab-order", "^build", "  stage: build\n", "  stage: check\n"),
]  # fmt: skip


@pytest.fixture(scope="module")
def text(render: Render) -> str:
    return (render(ci="gitlab") / gitlab.SPECS).read_text()


@pytest.fixture(scope="module")
def service(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(render(ci="gitlab"), tmp_path_factory.mktemp("service") / "digits"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """GitLab's schema, as check-jsonschema publishes it."""
    pytest.importorskip("check_jsonschema")
    document: dict[str, Any] = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/gitlab-ci.json").read_text())
    return document


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_a_fault_is_found_where_it_is(service: Path, text: str, fault: tuple[str, ...]) -> None:
    _, rule, where, *edits = fault
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new, 1)
    (service / gitlab.SPECS).write_text(text)
    (line,) = [number for number, content in enumerate(text.splitlines(), 1) if re.search(where, content)]
    assert found(check(service, environments=[], specs=SPECS)) == [(rule, line)]


def test_every_rule_has_a_fault() -> None:
    (checker,) = [checker for checker in SPECS if checker.folder == gitlab.SPECS]
    assert {rule for _, rule, *_ in FAULTS} == {rule.id for family in checker.families.values() for rule in family}


def test_a_new_pipeline_fits_gitlabs_schema(text: str, schema: dict[str, Any]) -> None:
    from jsonschema import Draft7Validator

    assert [error.message for error in Draft7Validator(schema).iter_errors(YAML(typ="safe").load(text))] == []


def test_the_grammar_has_the_keys_of_gitlabs_schema(schema: dict[str, Any]) -> None:
    ours, theirs = definitions(GRAMMAR), schema["definitions"]
    job = theirs["job_template"]["properties"]

    def without_references(keys: Any) -> set[str]:
        return set(keys) - {"!reference", "pages"}

    assert set(ours["pipeline"]["properties"]) == without_references(schema["properties"])
    assert without_references(ours["job"]["propertyNames"]["enum"]) == without_references(job)
    image = theirs["image"]["oneOf"][1]["properties"]
    assert set(ours["pipeline"]["properties"]["image"]["propertyNames"]["enum"]) == set(image)
    assert set(ours["when"]["enum"]) == set(theirs["when"]["enum"])
    parts = {
        "artifacts": theirs["artifacts"],
        "rules": theirs["rules"]["items"]["anyOf"][0],
        "environment": job["environment"]["oneOf"][1],
    }
    for key, part in parts.items():
        own = ours["job"]["properties"][key]
        assert set(own.get("items", own)["propertyNames"]["enum"]) == set(part["properties"]), key
    for key in ("default", "workflow"):
        known = without_references(schema["properties"][key]["properties"])
        assert set(ours["pipeline"]["properties"][key]["propertyNames"]["enum"]) == known


def test_what_other_projects_write_is_not_a_fault(tmp_path: Path) -> None:
    """Inputs, references, hidden jobs, matrices, jobs of other pipelines, and programs and environments of their own."""
    (tmp_path / gitlab.SPECS).write_text(
        "spec:\n  inputs: {name: {default: x}}\n---\n"
        ".base:\n  anything: true\n  script: [make, [mlops-build chekc]]\n"
        "a:\n  extends: .base\n  parallel: {matrix: [{X: [1, 2]}]}\n"
        "b:\n  stage: deploy\n  extends: [.base]\n  rules:\n    - !reference [.base, rules]\n"
        "  needs: [a, {pipeline: $UP, job: far}, {job: not-always, optional: true}]\n"
        "c:\n  stage: .post\n  needs: !reference [.base, needs]\n  script: !reference [.base, script]\n  variables: {TOKEN: $OTHER}\n"
        "d:\n  trigger: group/project\n  stage: $STAGE\n"
        "pages:\n  script: make site\n  environment: {name: production}\n"
    )
    assert found(check(tmp_path, specs=SPECS)) == []
    (tmp_path / gitlab.SPECS).write_text("include: other.yml\nx:\n  stage: theirs\n  needs: [theirs]\ntheirs:\n  tags: [x]\n")
    assert found(check(tmp_path, specs=SPECS)) == []


def test_what_a_service_may_write_is_not_a_fault(service: Path, text: str) -> None:
    """Settings that a job extends; a job that waits for the check through another one; jobs that extend each other."""
    edited = text.replace("  needs: [build]\n", "  extends: .deployment\n").replace(MANUAL, MANUAL.replace("      when: manual\n", ""))
    edited = edited.replace("  stage: production\n", "  stage: production\n  when: manual\n")
    edited = edited.replace("  stage: build\n", "  stage: build\n  needs: [between]\n")
    edited += (
        ".deployment:\n  needs: [build]\n  extends: .deployment\nbetween:\n  stage: check\n  needs: [check]\n  script: [make, 'true']\n"
    )
    (service / gitlab.SPECS).write_text(edited)
    assert found(check(service, environments=[], specs=SPECS)) == []
