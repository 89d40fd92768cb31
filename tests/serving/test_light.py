"""The modules that the server does not import, checked in separate processes."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"import sys\nfrom mlops_build.serving.light import import_mlflow\nimport_mlflow()\n{code}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_server_imports_mlflow_without_unused_parts() -> None:
    loaded = "print([name for name in ('mlflow.genai', 'mlflow.gateway', 'fastapi', 'mlflow.pyfunc') if name in sys.modules])"
    assert run(loaded) == "['mlflow.pyfunc']"


@pytest.mark.parametrize(
    "code",
    [
        "import mlflow\nprint(mlflow.genai.evaluate.__name__)",
        "from mlflow.genai import evaluate\nprint(evaluate.__name__)",
        "from mlflow import genai\nprint(genai.evaluate.__name__)",
        "import mlflow.genai.scorers\nprint(mlflow.genai.evaluate.__name__)",
    ],
)
def test_a_model_can_use_these_parts(code: str) -> None:
    assert run(code) == "evaluate"


def test_an_mlflow_that_needs_them_is_imported_completely() -> None:
    code = "import mlops_build.serving.light as light\nlight.UNUSED = ('mlflow.tracking', 'mlflow.genai')\n"
    code += "for name in [name for name in sys.modules if name.partition('.')[0] == 'mlflow']:\n    del sys.modules[name]\n"
    assert run(code + "import_mlflow()\nimport mlflow\nprint(mlflow.tracking.MlflowClient.__name__, mlflow.genai.evaluate.__name__)") == (
        "MlflowClient evaluate"
    )
