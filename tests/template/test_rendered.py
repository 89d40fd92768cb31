"""What a service gets: exactly these files, with nothing of the template left in them, tidy from the first commit on."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service

ROOT = Path(__file__).parents[2]
EXAMPLES, GPUS, MONITORINGS = (
    ["image", "tabular", "none", "text"],
    ["none", "shared", "exclusive"],
    ["annotations", "prometheus-operator", "none"],
)
# Every pair of values occurs; the full product would tell no more.
MATRIX = [
    {"example": example, "gpu": gpu, "monitoring": MONITORINGS[(row + column) % 3]}
    for row, example in enumerate(EXAMPLES)
    for column, gpu in enumerate(GPUS)
]
MATRIX[1] |= {"project_name": "A service with quite a long name indeed", "python_version": "3.12"}
MATRIX[3] |= {
    "dvc_remote_url": "s3://data/tabular",
    "s3_endpoint_url": "https://s3.example.com",
    "mlflow_tracking_uri": "https://mlflow.example.com",
}
MATRIX[7] |= {"ci": "gitlab"}
MATRIX[8] |= {"project_name": "ab", "dvc_remote_url": "/mnt/dvc"}

FILES = """
.copier-answers.yml .dockerignore .dvc/.gitignore .dvc/config .dvcignore .editorconfig .gitignore .mlops-build/service.schema.json
.pre-commit-config.yaml CODEOWNERS Makefile README.md bamboo-specs/bamboo.yaml ci/install ci/mlops-build
deploy/base/deployment.yaml deploy/base/ingress.yaml deploy/base/kustomization.yaml deploy/base/networkpolicy.yaml
deploy/base/service.yaml deploy/base/serviceaccount.yaml deploy/overlays/production/kustomization.yaml
deploy/overlays/production/release/kustomization.yaml deploy/overlays/production/release/record.yaml
deploy/overlays/staging/kustomization.yaml deploy/overlays/staging/release/kustomization.yaml
deploy/overlays/staging/release/record.yaml dvc.yaml params.yaml pyproject.toml requirements-mlops-build.txt service.yaml
src/PACKAGE/__init__.py src/PACKAGE/data.py src/PACKAGE/evaluate.py src/PACKAGE/model.py src/PACKAGE/train.py tests/test_data.py
tests/test_model.py
"""


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def expected_files(answers: dict[str, str]) -> set[str]:
    """What a service with these answers holds, and nothing else."""
    package = answers.get("project_name", "Digits").lower().replace(" ", "_")
    expected = set(FILES.replace("PACKAGE", package).split())
    if answers.get("ci") == "gitlab":
        expected = expected - {"bamboo-specs/bamboo.yaml"} | {".gitlab-ci.yml"}
    if answers["monitoring"] == "prometheus-operator":
        expected.add("deploy/base/servicemonitor.yaml")
    if "s3_endpoint_url" in answers:
        expected.add(".dvc/s3.conf")
    return expected


@pytest.mark.parametrize("answers", [MATRIX[1], MATRIX[3], MATRIX[8]], ids=["long name", "S3", "short name"])
def test_other_answers_give_the_same_files_that_are_tidy(render: Any, answers: dict[str, str]) -> None:
    """test_matrix.py has all choices."""
    root = render(**answers)
    assert files(root) == expected_files(answers)
    assert service.load(root).gpu.mode == answers["gpu"]
    for command in (["check"], ["format", "--check", "--diff"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", str(root)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("ci/install", "ci/mlops-build"):
        assert (root / name).stat().st_mode & 0o111, name
        subprocess.run(["sh", "-n", str(root / name)], check=True)


def test_only_two_of_copiers_own_values_are_rendered() -> None:
    # Others differ between copy and update (vcs_ref) or name a temporary clone (src_path), so that each update would conflict.
    allowed = {"_copier_conf.vcs_ref_hash", "_copier_answers._src_path"}
    for path in (ROOT / "template").rglob("*"):
        found = set(re.findall(r"_copier_\w+(?:\.\w+)?", path.name))
        if path.is_file() and "_copier_conf.answers_file" not in path.name:
            found |= set(re.findall(r"_copier_\w+(?:\.\w+)?", path.read_text()))
        assert found <= allowed | ({"_copier_conf.answers_file"} if path.name.startswith("{{ _copier_conf.answers_file") else set()), path


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("gh:team/mlops-build", "https://github.com/team/mlops-build"),
        ("gl:team/mlops-build", "https://gitlab.com/team/mlops-build"),
        ("https://git.example.com/scm/ml/mlops-build.git", "https://git.example.com/scm/ml/mlops-build.git"),
        ("git+https://git.example.com/mlops-build", "https://git.example.com/mlops-build"),
        ("git+ssh://git@git.example.com/mlops-build.git", "ssh://git@git.example.com/mlops-build.git"),
        ("git@git.example.com:ml/mlops-build.git", "ssh://git@git.example.com/ml/mlops-build.git"),
        ("/srv/mlops-build", "file:///srv/mlops-build"),
        ("/srv/our templates/mlops-build", "file:///srv/our%20templates/mlops-build"),
    ],
)
def test_the_pin_is_a_line_that_pip_reads(source: str, url: str) -> None:
    from jinja2 import Environment, StrictUndefined

    text = (ROOT / "template" / "requirements-mlops-build.txt.jinja").read_text()
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701  (no HTML)
    lines = (
        environment.from_string(text)
        .render(_copier_answers={"_src_path": source}, _copier_conf={"vcs_ref_hash": "0" * 40}, package_source="template")
        .splitlines()
    )
    assert [line for line in lines if not line.startswith("#")] == [f"git+{url}@{'0' * 40}#egg=mlops-build"]


def test_what_is_served_needs_no_training_tools(render: Any) -> None:
    needs = {
        example: tomllib.loads((render(example=example) / "pyproject.toml").read_text())["project"]["dependencies"] for example in EXAMPLES
    }
    names = {example: {re.split(r"[<>=~ ]", line)[0] for line in lines} for example, lines in needs.items()}
    assert names == {
        "image": {"numpy", "pandas", "pillow", "torch"},
        "tabular": {"numpy", "pandas", "torch"},
        "text": {"numpy", "pandas", "torch"},
        "none": {"numpy", "pandas", "torch"},
    }


def test_the_install_script_finds_the_torch_requirement(render: Any) -> None:
    root = render(example="image")
    line = next(line for line in (root / "ci" / "install").read_text().splitlines() if line.startswith("torch="))
    found = subprocess.run(["sh", "-c", f'{line}; printf %s "$torch"'], cwd=root, capture_output=True, text=True, check=True).stdout
    assert found in tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]


def test_ml_code_imports_nothing_of_mlops_build_but_what_is_promised(render: Any) -> None:
    for example in EXAMPLES:
        for path in (render(example=example) / "src").rglob("*.py"):
            imports = re.findall(r"^\s*(?:from|import) mlops_build.*$", path.read_text(), re.MULTILINE)
            assert {line.strip().partition("  #")[0] for line in imports} <= {
                "from mlops_build import training",
                "from mlops_build import gpu, training",
            }, path


def test_the_places_to_change_are_four(render: Any) -> None:
    text = "".join(path.read_text() for path in sorted((render(example="none") / "src").rglob("*.py")))
    assert sorted(re.findall(r"# CHANGE (\d/\d):", text)) == ["1/4", "2/4", "3/4", "4/4"]
    assert "CHANGE" not in "".join(path.read_text() for path in (render(example="image") / "src").rglob("*.py"))


def test_a_relative_remote_lies_in_the_service_and_git_ignores_it(render: Any) -> None:
    root = render(example="none", dvc_remote_url="state/dvc")
    assert "    url = ../state/dvc\n" in (root / ".dvc" / "config").read_text()
    assert "\n/state/dvc\n" in (root / ".gitignore").read_text()


def test_an_s3_remote_has_its_gateway_and_todays_checksums_off(render: Any) -> None:
    root = render(**MATRIX[3])
    config = (root / ".dvc" / "config").read_text()
    assert "url = s3://data/tabular\n" in config
    assert "endpointurl = https://s3.example.com\n" in config
    assert "configpath = .dvc/s3.conf\n" in config
    assert "request_checksum_calculation = when_required" in (root / ".dvc" / "s3.conf").read_text()


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("sqlite:///mlflow.db", "/env/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db --port 5001"),
        ("https://mlflow.example.com", 'echo "The MLflow server shows them: https://mlflow.example.com"'),
    ],
)
def test_make_ui_shows_the_runs(render: Any, uri: str, command: str) -> None:
    root = render(example="none", mlflow_tracking_uri=uri)
    made = ["make", "--dry-run", "ui", "UI_PORT=5001", "VENV=/env"]
    assert subprocess.run(made, cwd=root, capture_output=True, text=True, check=True).stdout.strip() == command
