"""The check of Bamboo specs: each fault in the specs of a new service is found in the right line, and no other rule reports anything."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mlops_build.ci import bamboo, systems
from mlops_build.cli.parser import problem_of
from mlops_build.verify import Report, check
from tests.conftest import Render

SPECS = systems.spec_checkers(problem_of)
REPORT = ("  final-tasks: #", "  artifacts: [{name: report, pattern: tests.xml}]\n  final-tasks: #")
SUBSCRIBED = ("  key: IMAGE\n", "  key: IMAGE\n  artifact-subscriptions: [{artifact: report}]\n")
NOTIFICATIONS = "notifications:\n  - recipients: [committers"
CANARY = "canary:\n  tasks:\n    - script: ./ci/mlops-build ci deploy canary\nstaging: #"

# (name, rule, text that only the reported line holds after the edits, old and new text of each edit)
FAULTS: list[tuple[str, ...]] = [
    ("no version", "bamboo-shape", "no version",
     "version: 2\ndeployment:\n  name: digits\n  s", "deployment: # no version\n  name: digits\n  s"),
    ("docker without an image", "bamboo-shape", "docker:", "  key: IMAGE\n", "  key: IMAGE\n  docker: {volumes: {}}\n"),
    ("stage without jobs", "bamboo-shape", r"jobs: \[\]", "  - Train:\n", "  - Empty:\n      jobs: []\n  - Train:\n"),
    ("tasks are not a list", "bamboo-shape", "tasks: make",
     "  key: TRAIN\n  requirements: [mlops.credentials]\n  tasks:\n", "  key: TRAIN\n  tasks: make\n  final-tasks:\n"),
    ("script without a script", "bamboo-shape", r"script: \{",
     "script:\n        interpreter: SHELL\n        scripts: [./ci/mlops-build ci train]\n", "script: {interpreter: SHELL}\n"),
    ("misspelt key of a job", "bamboo-unknown-key", "finaltasks", "  final-tasks:", "  finaltasks:"),
    ("misspelt key of the plan", "bamboo-unknown-key", "nam: digits", "  name: digits release\n", "  nam: digits release\n"),
    ("misspelt key at the root", "bamboo-unknown-key", "notifcations", NOTIFICATIONS, NOTIFICATIONS.replace("fi", "f")),
    ("misspelt key of a task", "bamboo-unknown-key", "interpretter", "interpreter: SHELL", "interpretter: SHELL"),
    ("misspelt task", "bamboo-unknown-key", "test-praser", "- test-parser:", "- test-praser:"),
    ("misspelt key of a stage", "bamboo-unknown-key", "manul", "      jobs: [Check]\n", "      manul: true\n      jobs: [Check]\n"),
    ("misspelt key of an environment", "bamboo-unknown-key", "trigger: ", "  triggers: [build-success]\n", "  trigger: [build-success]\n"),
    ("misspelt trigger", "bamboo-unknown-key", "build-sucess", "[build-success]", "[build-sucess]"),
    ("misspelt key of an artifact", "bamboo-unknown-key", "share: true", "      shared: true\n", "      share: true\n"),
    ("misspelt key of permissions", "bamboo-unknown-key", "rols:", "  - roles: [logged-in]\n", "  - rols: [logged-in]\n"),
    ("approval misspelt", "bamboo-value", "prerequisite", "prerequisite: approved", "prerequisite: approve"),
    ("plan key in lower case", "bamboo-value", "key: digits$",
     "  key: DIGITS\n", "  key: digits\n",
     "plan: ML-DIGITS\n", "plan: ML-digits\n",
     "key: ML-DIGITS\n", "key: ML-digits\n"),
    ("project key in lower case", "bamboo-value", "project-key: ml$",
     "project-key: ML\n  key: DIGITS\n", "project-key: ml\n  key: DIGITS\n",
     "plan: ML-DIGITS\n", "plan: ml-DIGITS\n",
     "key: ML-DIGITS\n", "key: ml-DIGITS\n"),
    ("job key in lower case", "bamboo-value", "key: image", "key: IMAGE", "key: image"),
    ("permission misspelt", "bamboo-value", "edti", "[view, edit, build", "[view, edti, build"),
    ("cron with five fields", "bamboo-value", "expression:",
     "  triggers: [build-success]\n", "  triggers: [{cron: 0 3 * * 0}, {cron: {expression: 0 0 3 ? * SUN}}]\n"),
    ("job missing", "bamboo-missing-job", r"jobs: \[Imag\]", "jobs: [Image]", "jobs: [Imag]"),
    ("job of a branch missing", "bamboo-missing-job", r"jobs: \[Chek\]", "            jobs: [Check]", "            jobs: [Chek]"),
    ("job in no stage", "bamboo-unused-job", "^Lint", NOTIFICATIONS, f"Lint:\n  tasks:\n    - script: make lint\n{NOTIFICATIONS}"),
    ("two jobs of one key", "bamboo-duplicate-key", "again", "key: IMAGE", "key: CHECK # again"),
    ("two plans of one key", "bamboo-duplicate-key", "again",
     "key: DIGITSTRAIN\n  name", "key: DIGITS # again\n  name",
     "key: ML-DIGITSTRAIN", "key: ML-DIGITS"),
    ("environment missing", "bamboo-missing-environment", "prod, production", "[staging, production]", "[staging, prod, production]"),
    ("waits for no environment", "bamboo-missing-environment", "environment-success",
     "triggers: []\n  release", "triggers: [{environment-success: stage}]\n  release"),
    ("waits for no stage", "bamboo-missing-environment", "stage-success", "[build-success]", "[{stage-success: {stage: Images}}]"),
    ("environment that is not listed", "bamboo-unused-environment", "^staging:", "[staging, production]", "[production]"),
    ("artifact that nobody makes", "bamboo-artifact", "artifact: reports", *REPORT, *SUBSCRIBED, "artifact: report}", "artifact: reports}"),
    ("artifact that is not shared", "bamboo-artifact", "artifact: report", *REPORT, *SUBSCRIBED, "tests.xml}", "tests.xml, shared: false}"),
    ("artifact of the same stage", "bamboo-artifact", "artifact: report",
     *REPORT, *SUBSCRIBED,
     "      jobs: [Check]\n  - Image:\n      jobs: [Image]\n", "      jobs: [Check, Image]\n"),
    ("two artifacts of one name", "bamboo-artifact", "again",
     *REPORT, "name: report,", "name: release,", "    - name: release\n", "    - name: release # again\n"),
    ("download of no artifact", "bamboo-artifact", "relase", "          - name: release\n", "          - name: relase\n"),
    ("another source plan", "bamboo-source-plan", "source-plan", "source-plan: ML-DIGITS", "source-plan: ML-DIGIT"),
    ("permissions of no plan", "bamboo-permissions", "key: ML-DIGIT$", "  key: ML-DIGITS\n", "  key: ML-DIGIT\n"),
    ("permissions of no deployment", "bamboo-permissions", "name: digit$",
     "  name: digits\ndeployment-permissions", "  name: digit\ndeployment-permissions"),
    ("permissions of no environment", "bamboo-permissions", "- prod:",
     "default-environment-permissions:", "environment-permissions:\n  - prod: []\ndefault-environment-permissions:"),
    ("condition misspelt", "bamboo-condition", "equal:$", "              equals:\n", "              equal:\n"),
    ("condition without a value", "bamboo-condition", "equals: main",
     "equals:\n                planRepository.branch: main", "equals: main"),
    ("conditions are not a list", "bamboo-condition", "conditions: main",
     "conditions: #", "conditions: main #",
     "          - variable:\n              equals:\n                planRepository.branch: main\n", ""),
    ("stages after a manual one", "bamboo-manual-stage", "manual: true",
     "      jobs: [Check]\n", "      manual: true\n      jobs: [Check]\n"),
    ("password in a variable", "bamboo-secret", "hunter2", NOTIFICATIONS, f"variables:\n  registry_password: hunter2\n{NOTIFICATIONS}"),
    ("password of a repository", "bamboo-secret", "hunter2",
     NOTIFICATIONS, f"repositories:\n  - digits: {{type: git, password: hunter2}}\n{NOTIFICATIONS}"),
    ("token in a script", "bamboo-secret", "0f6e8c1d9a",
     "scripts: [./ci/mlops-build ci image]", "scripts: [git push https://bot:0f6e8c1d9a@git.example.com/ml/digits.git]"),
    ("password in an argument", "bamboo-secret", "hunter2",
     "scripts: [./ci/mlops-build ci image]", "script: docker login --password hunter2x"),
    ("step misspelt", "bamboo-command", "chekc", "ci check]", "ci chekc]"),
    ("step misspelt before a redirection", "bamboo-command", "chek", "ci check]", "'(cd . && ./ci/mlops-build ci chek --json 2>&1) >log']"),
    ("command misspelt", "bamboo-command", "mlops-build co", "mlops-build ci image", "mlops-build co image"),
    ("program misspelt", "bamboo-command", "mlops-buidl", "mlops-build ci train", "mlops-buidl ci train"),
    ("option misspelt", "bamboo-command", "if-relased", "--if-released", "--if-relased"),
    ("environment without an overlay", "bamboo-overlay", "deploy canary",
     "[staging, production]", "[staging, canary, production]",
     "staging: #", CANARY),
    ("environment misspelt in a command", "bamboo-overlay", "deploy stagin ", "deploy staging ", "deploy stagin "),
    ("production without approval", "bamboo-approval", "^production", "  release-approval-prerequisite: approved\n", ""),
    ("production that needs no approval", "bamboo-approval", "^production", "prerequisite: approved", "prerequisite: none"),
    ("image before the check", "bamboo-order", r"jobs: \[Image\]",
     "  - Check:\n      jobs: [Check]\n  - Image:\n      jobs: [Image]\n",
     "  - Image:\n      jobs: [Image]\n  - Check:\n      jobs: [Check]\n"),
]  # fmt: skip


@pytest.fixture(scope="module")
def service(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(render(), tmp_path_factory.mktemp("service") / "digits"))


def found(report: Report) -> list[tuple[str, int | None]]:
    return [(finding.rule, finding.line) for finding in report.findings]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_a_fault_is_found_where_it_is(service: Path, render: Render, fault: tuple[str, ...]) -> None:
    _, rule, where, *edits = fault
    text = (render() / bamboo.SPECS).read_text()
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new, 1)
    (service / bamboo.SPECS).write_text(text)
    (line,) = [number for number, content in enumerate(text.splitlines(), 1) if re.search(where, content)]
    assert found(check(service, environments=[], specs=SPECS)) == [(rule, line)]


def test_every_rule_has_a_fault() -> None:
    (checker,) = [checker for checker in SPECS if checker.folder == "bamboo-specs"]
    assert {rule for _, rule, *_ in FAULTS} == {rule.id for family in checker.families.values() for rule in family}


@pytest.mark.slow
def test_the_specs_of_a_service_fit_atlassians_schema(render: Render) -> None:
    path = os.environ.get("MLOPS_TEST_BAMBOO_SCHEMA")
    if not path:
        pytest.skip("set MLOPS_TEST_BAMBOO_SCHEMA to a copy of https://json.schemastore.org/bamboo-spec.json")
    from jsonschema import Draft7Validator

    validator = Draft7Validator(json.loads(Path(path).read_text()))
    for document in YAML(typ="safe").load_all((render() / bamboo.SPECS).read_text()):
        assert [error.message for error in validator.iter_errors(document)] == []


def test_what_other_projects_write_is_not_a_fault(tmp_path: Path) -> None:
    """Includes, plugins, plans of other repositories, lists of jobs, programs and environments of their own."""
    specs = tmp_path / "bamboo-specs"
    specs.mkdir()
    (specs / "bamboo.yaml").write_text("---\n!include release.yaml\n")
    (specs / "release.yaml").write_text(
        "version: 2\nplan: {project-key: AB, key: CD, name: x}\nstages:\n  - One:\n      manual: true\n      jobs: [A]\n  - Two: [B]\n"
        "A:\n  tasks:\n    - some-plugin: {anything: true}\n    - script: [make, mlops-build chekc]\n    - clean\nB: !include job.yaml\n"
        "---\nversion: 2\ndeployment: {name: x, source-plan: OTHER-PLAN}\nenvironments: [QA, production]\nQA:\n  tasks: [clean]\n"
        "production:\n  tasks: [clean]\n"
    )
    assert found(check(tmp_path, specs=SPECS)) == []


VALID = [
    "A=b mlops-build train && python -m mlops_build ci deploy --timeout 9 staging; mlops-build ci deploy ${bamboo.env} | cat",
    "mlops-build gpu --help # twice, isn't it",
    "./mlops-build.sh x",
    "./ci/mlops-build ci check 2>&1 | tee check.log",
    "./ci/mlops-build ci check > check.log 2>&1",
    "./ci/mlops-build ci check --json >out.json",
    "(cd . && ./ci/mlops-build ci check)",
    "./ci/mlops-build ci check & wait",
    "./ci/mlops-build ci check \\\n  --json",
    "mlops-build ci deploy `cat environment`",
    "cat <<END\nmlops-build is used here\nEND",
    "echo 'one\nmlops-build is used here\n# two'",
]


def test_commands_that_a_script_may_have(service: Path, render: Render) -> None:
    text = (render() / bamboo.SPECS).read_text()
    (service / bamboo.SPECS).write_text(text.replace("[./ci/mlops-build ci check]", json.dumps(VALID)))
    assert found(check(service, environments=[], specs=SPECS)) == []


def test_the_rules_of_specs_can_be_ignored_where_they_are_not_checked(service: Path, render: Render) -> None:
    """A release checks manifests only; it may run with another version of mlops-build, which has other rules."""
    settings = (render() / "service.yaml").read_text()
    (service / "service.yaml").write_text(f"{settings}verify: {{ignore: {{bamboo-order: on purpose}}}}\n")
    try:
        assert found(check(service, environments=[])) == []
    finally:
        (service / "service.yaml").write_text(settings)
