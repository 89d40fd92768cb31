"""The modules that the server does not import, checked in processes of their own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.real_python

FORMS = [
    "import mlflow\nevaluate = mlflow.genai.evaluate",
    "from mlflow.genai import evaluate",
    "from mlflow import genai\nevaluate = genai.evaluate",
    "import mlflow.genai.scorers\nevaluate = mlflow.genai.evaluate",
]


def run(code: str, *arguments: str) -> list[str]:
    """The lines that a new Python process prints."""
    command = [sys.executable, "-W", "ignore", "-c", f"import os, sys\nfrom mlops_build.serving import light\n{code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("forms", [FORMS[:2], pytest.param(FORMS[2:], marks=pytest.mark.slow)], ids=["usual", "others"])
def test_the_server_imports_mlflow_without_unused_parts_and_a_model_can_use_them(forms: list[str]) -> None:
    code = """
light.import_mlflow()
print([name for name in ("mlflow.genai", "mlflow.gateway", "fastapi", "mlflow.pyfunc") if name in sys.modules], flush=True)
for form in sys.argv[1:]:
    if os.fork() == 0:  # each form in a process that has not used them yet
        exec(form)
        print(evaluate.__name__, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    assert run(code, *forms) == ["['mlflow.pyfunc']", *["evaluate"] * len(forms)]


def test_an_mlflow_that_needs_them_is_imported_completely() -> None:
    code = """
light.UNUSED = ("mlflow.tracking", "mlflow.genai")
light.import_mlflow()
import mlflow
print(mlflow.tracking.MlflowClient.__name__, mlflow.genai.evaluate.__name__)
"""
    assert run(code) == ["MlflowClient evaluate"]
