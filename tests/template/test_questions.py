"""The questionnaire: every default works, every validator refuses what would break a file, and nothing asks for trust."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build import service

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    "project_name",
    "description",
    "team",
    "model_name",
    "example",
    "python_version",
    "gpu",
    "gpu_memory",
    "mlflow_tracking_uri",
    "dvc_remote_url",
    "s3_endpoint_url",
    "image_registry",
    "k8s_namespace",
    "k8s_host",
    "ci",
    "bamboo_project_key",
    "bamboo_plan_key",
    "git_host",
    "pull_requests",
    "monitoring",
    "package_source",
]
# Each would break out of a YAML, TOML, Dockerfile or shell word, or out of Jinja.
HOSTILE = ["a\nb", "a\n", 'a"b', "a'b", "a$(b)", "a{{ 1 }}b", "a{% x %}", "a #b", "a\\b", "a: b"]
FREE_TEXT = [name for name in QUESTIONS if name not in ("example", "python_version", "gpu", "ci", "pull_requests", "monitoring")]

WRONG = [
    ("project_name", ["", "7digits", "a", "Two  spaces", "-x", "x-", "x" * 41, "naïve", "a/b", "../up"]),
    (
        "project_name",
        ["class", "torch", "MLflow", "mlops-build", "test", "JSON", "Calendar", "Keyword", "Secrets", "Requests", "Yaml", "SKLearn"],
    ),
    ("project_name", ["Null", "True", "no", "Off"]),
    ("description", ["", "x" * 121, "1st", "key: value", "ends with, "]),
    ("team", ["", "a b", "-a", "a/b", "x" * 64]),
    ("model_name", ["", "Digits", "a_b", "-a", "a-", "x" * 64]),
    ("gpu_memory", ["", "4", "4GB", "4G", "0GiB", "4 GiB", "-1GiB", "4.5GiB"]),
    (
        "mlflow_tracking_uri",
        ["", "sqlite://x", "sqlite:////etc/x", "sqlite:///../x", "ftp://a", "https://user:pw@host", "https://host?x=1"],
    ),
    ("dvc_remote_url", ["", "../up", "a/../../b", "s3://B", "s3://key:secret@bucket/x", "http://host/x", "data/remote", "/", "-x", "a/.x"]),
    ("s3_endpoint_url", ["host", "https://", "https://user:pw@host", "https://host/path/x", "s3://bucket"]),
    ("image_registry", ["", "https://host/ml", "Host/ml", "host/ml/", "host/ml:tag", "host//ml", "user@host/ml"]),
    ("k8s_namespace", ["", "ML", "a_b", "-a", "x" * 56]),
    ("k8s_host", ["", "Host.example.com", "a..b", "-a.example.com", "a_b.example.com", "https://a.example.com", "x" * 56 + ".example.com"]),
    ("bamboo_project_key", ["", "ml", "M", "1ML", "M-L", "X" * 21]),
    ("bamboo_plan_key", ["", "digits", "D", "1D", "D_1"]),
    ("git_host", ["", "https://git.example.com", "git.example.com/x", "Git.example.com", "a..b", "user@git.example.com"]),
    ("package_source", ["", "pypi", "mlops-build>=0.5.0", "mlops-build==0.5", "mlops-build[train]==0.5.0", "other==1.0.0"]),
    (
        "package_source",
        ["https://git.example.com/x", "git+https://user:pw@git.example.com/x", "git+https://git.example.com/x@", "git+../x"],
    ),
    ("package_source", ["/srv/other-1.0.0-py3-none-any.whl", "../mlops_build-0.5.0-py3-none-any.whl", "mlops_build-0.5.0.tar.gz"]),
    ("package_source", ["https://user:pw@example.com/mlops_build-0.5.0-py3-none-any.whl"]),
]
RIGHT = [
    ("project_name", ["Fraud score", "fraud_score", "ocr-2", "Calendar service"]),
    ("description", ["Says, for a card payment (Visa + others), how likely fraud is.", "Größe"]),
    ("team", ["ML.Platform_1"]),
    ("gpu_memory", ["1500MiB", "80GiB"]),
    ("mlflow_tracking_uri", ["https://mlflow.example.com", "http://10.0.0.1:5000/mlflow", "sqlite:///state/mlflow.db"]),
    ("dvc_remote_url", ["s3://bucket-1/team/digits", "/mnt/dvc/digits", "state/dvc-remote"]),
    ("s3_endpoint_url", ["https://s3.example.com", "http://127.0.0.1:7480"]),
    ("image_registry", ["localhost:5000", "registry.example.com:5000/team/ml"]),
    ("k8s_namespace", ["x" * 55]),
    ("k8s_host", ["digits", "x" * 55 + ".example.com"]),
    ("git_host", ["bitbucket.example.com:7990"]),
    ("pull_requests", ["none", "gitlab", "bitbucket"]),
    ("package_source", ["mlops-build", "mlops-build==0.5.0", "git+https://git.example.com:7990/scm/ml/mlops-build.git"]),
    ("package_source", ["git+ssh://git@git.example.com/ml/mlops-build.git@v0.5.0", "git+file:///srv/mlops-build@release/0.5"]),
    ("package_source", ["/srv/wheels/mlops_build-0.5.0-py3-none-any.whl", "wheels/mlops_build-0.5.0+acme.1-py3-none-any.whl"]),
    ("package_source", ["https://files.example.com/w/mlops_build-0.5.0-py3-none-any.whl"]),
]


@pytest.fixture(scope="module")
def questionnaire() -> dict[str, Any]:
    documents = YAML(typ="safe").load_all((ROOT / "copier.yml").read_text())
    return {key: value for document in documents for key, value in document.items()}


@pytest.fixture(scope="module")
def complaint(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """complaint(question, answer): why copier refuses the answer, or None. Nothing is rendered."""
    from copier import run_copy

    # The questions without the files, and no Git repository, which copier would clone for each answer.
    questions = tmp_path_factory.mktemp("questions")
    (questions / "copier.yml").write_bytes((template / "copier.yml").read_bytes())
    (questions / "template").mkdir()

    def ask(question: str, answer: str) -> str | None:
        answers = {question: answer, **({"gpu": "shared"} if question == "gpu_memory" else {})}
        try:
            run_copy(str(questions), questions / "never-written", data=answers, defaults=True, quiet=True, pretend=True)
        except ValueError as error:
            return str(error)
        return None

    return ask


def test_the_questions_are_the_promised_ones_in_order(questionnaire: dict[str, Any]) -> None:
    asked = [name for name, question in questionnaire.items() if not name.startswith("_") and question.get("when") is not False]
    assert asked == QUESTIONS


def test_every_question_has_a_default_a_help_text_and_says_what_is_allowed(questionnaire: dict[str, Any]) -> None:
    for name in QUESTIONS:
        question = questionnaire[name]
        assert "default" in question, name
        assert len(question["help"]) > 10, name
        # copier says of which question it is, in a line that a narrow terminal cuts: not twice.
        assert question.get("choices") or " allowed " in question["validator"], name
        assert f"{name}: " not in question.get("validator", ""), name
        assert not question.get("secret"), name


def test_every_question_is_used(questionnaire: dict[str, Any]) -> None:
    files = [path for path in (ROOT / "template").rglob("*") if path.is_file()]
    text = "".join(path.relative_to(ROOT).as_posix() + path.read_text() for path in files if path.suffix != ".json")
    text += "".join(str(question) for name, question in questionnaire.items() if not name.startswith("_"))
    uses = {name: len(re.findall(rf"\b{name}\b", text)) for name in questionnaire if not name.startswith("_")}
    own = {name: len(re.findall(rf"\b{name}\b", str(questionnaire[name]))) for name in uses}
    assert [name for name in uses if uses[name] == own[name]] == []


def test_the_reference_describes_every_question(questionnaire: dict[str, Any]) -> None:
    lines = (ROOT / "docs" / "reference" / "template.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert list(rows) == QUESTIONS
    for name, row in rows.items():
        question = questionnaire[name]
        assert f"| {question['help']}" in row, name
        assert question["default"] == "" or "{{" in question["default"] or f"| `{question['default']}` |" in row, name


def test_nothing_asks_for_trust(questionnaire: dict[str, Any]) -> None:
    assert not {"_tasks", "_migrations", "_jinja_extensions", "_external_data", "_secret_questions"} & set(questionnaire)


@pytest.mark.parametrize(("question", "answers"), WRONG, ids=[f"{name}-{number}" for number, (name, _) in enumerate(WRONG)])
def test_wrong_answers_are_refused_with_what_is_allowed(complaint: Any, question: str, answers: list[str]) -> None:
    for answer in answers:
        message = complaint(question, answer)
        assert message is not None, f"{answer!r} was accepted"
        assert question in message, message
        assert "allowed" in message or "choose" in message, message


@pytest.mark.parametrize("question", FREE_TEXT)
def test_what_could_break_out_of_a_file_is_refused(complaint: Any, question: str) -> None:
    assert [answer for answer in HOSTILE if not complaint(question, answer)] == []


@pytest.mark.parametrize(("question", "answers"), RIGHT)
def test_right_answers_are_accepted(complaint: Any, question: str, answers: list[str]) -> None:
    assert {answer: complaint(question, answer) for answer in answers} == dict.fromkeys(answers)


@pytest.mark.parametrize(("question", "answers"), [case for case in RIGHT if case[0] not in ("git_host", "description", "project_name")])
def test_what_is_accepted_makes_a_valid_service_yaml(render: Any, question: str, answers: list[str]) -> None:
    extra = {"gpu": "shared"} if question == "gpu_memory" else {}
    assert service.load(render(**extra, **{question: answers[-1]})).schema_version == 1


def test_a_git_host_opens_pull_requests_for_releases_to_production(render: Any) -> None:
    plain, hosted = render(), render(pull_requests="gitlab", git_host="git.acme.example:8443")
    git, environments = service.load(hosted).git, service.load(hosted).environments
    assert (git.pull_requests, git.api) == ("gitlab", "https://git.acme.example:8443")
    assert {env: place.landing for env, place in environments.items()} == {"staging": "push", "production": "pull-request"}
    assert service.load(plain).environments["production"].landing == "push"
    names = [path.relative_to(plain) for path in plain.rglob("*") if path.is_file()]
    assert {str(name) for name in names if (plain / name).read_bytes() != (hosted / name).read_bytes()} == {
        ".copier-answers.yml",
        "README.md",  # the host
        "service.yaml",
    }


def test_names_are_computed_from_the_projects_name(render: Any) -> None:
    root = render(project_name="Fraud score_v2", example="none", k8s_host="fraud.ml.example.com")
    assert (root / "src" / "fraud_score_v2" / "model.py").is_file()
    loaded = service.load(root)
    assert loaded.name == "fraud-score-v2"
    assert [model.name for model in loaded.models] == ["fraud-score-v2"]
    assert {env: (found.namespace, found.host) for env, found in loaded.environments.items()} == {
        "staging": ("ml-staging", "fraud-staging.ml.example.com"),
        "production": ("ml", "fraud.ml.example.com"),
    }
