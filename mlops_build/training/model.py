"""Log a model so that it can be packaged: an MLflow model folder that is byte-identical for the same weights."""

import json
import shutil
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from ruamel.yaml import YAML

from mlops_build import service
from mlops_build.adapters.registry import quiet_mlflow
from mlops_build.errors import NotFound, UsageError
from mlops_build.model import files, independence
from mlops_build.model.identity import RUN_MODEL
from mlops_build.training import artifacts as artifact_files

if TYPE_CHECKING:
    import pandas as pd

# MLflow writes these at every save with other values; loading does not need them.
VOLATILE = ("utc_time_created", "model_uuid", "run_id", "model_id", "artifact_path", "prompts")
EXAMPLES = "examples/recorded.json"


def log_model(
    predictor: type[Any],
    *,
    weights: Path,
    example: "pd.DataFrame",
    folder: Path,
    artifacts: Mapping[str, Path | str] | None = None,
) -> str:
    """Write the model to `folder` and tag the open run with its digest, which is returned ("sha256:<64 hex>").

    predictor: a subclass of `mlflow.pyfunc.PythonModel` in the service's package. It is stored as three lines that import it
    (models from code), so nothing is pickled; `load_context` finds the weights at `context.artifacts["weights"]`.
    weights: a torch state_dict, saved to a file. example: a few rows as a caller sends them, at least two different ones; their predictions
    are recorded and later compared with the deployed service's answers, and the rows show whether requests may be predicted in one batch,
    which is written to stderr. folder: relative to the service's root; replaced.
    artifacts: further files of the predictor (a tokenizer, a vocabulary, a scaler's numbers): name -> a file or a folder, relative to the
    service's root. `load_context` finds the copy that belongs to the version at `context.artifacts[name]`. A name has 1 to 63 lower-case
    letters, digits and _, and starts with a letter; pickled files are refused, unless service.yaml has serving.unsafe_pickle.
    Raises UsageError, NotFound or UnsafeArtifact.
    """
    quiet_mlflow()
    import mlflow

    root = service.find_root()
    if predictor.__module__ == "__main__" or "<locals>" in predictor.__qualname__:
        raise UsageError(
            f"{predictor.__qualname__} cannot be imported from {predictor.__module__}",
            remedy="define the predictor at the top of a module of your package (model.py) and import it in train.py",
        )
    if not (root / weights).is_file():
        raise NotFound(f"{weights} does not exist", remedy="torch.save(net.state_dict(), path) before log_model")
    unsafe_pickle = service.load(root, strict=False).serving.unsafe_pickle if artifacts else None
    paths = artifact_files.named(root, weights, artifacts or {}, unsafe_pickle)
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=(root / folder).parent, prefix=".model-") as part:
        made = write_model(predictor, paths, example, root, Path(part))
        shutil.rmtree(root / folder, ignore_errors=True)
        made.rename(root / folder)
    made_digest = files.digest(root / folder)
    mlflow.set_tag(RUN_MODEL, made_digest)
    # DVC has the weights, and a registered version has its own copy. The run only shows an example request and its answer.
    for name in ("MLmodel", EXAMPLES):
        mlflow.log_artifact(str(root / folder / name), "model")
    return made_digest


def write_model(
    predictor: type[Any], artifacts: Mapping[str, Path], example: Any, root: Path | None, scratch: Path, code: Path | None = None
) -> Path:
    """The model's folder, new in `scratch`. artifacts: absolute paths. example: rows as a caller sends them. root: of the service.

    code: without a service, the file or package of the predictor, which is copied into the folder.
    """
    made = scratch / "model"
    _save(predictor, artifacts, example, made, scratch, _requirements(root), [str(code)] if code else None)
    (made / EXAMPLES).parent.mkdir()
    (made / EXAMPLES).write_text(json.dumps(_recorded(made, example), indent=1) + "\n")
    _strip(made / "MLmodel")
    files.remove_bytecode(made)  # recording loads the model, which writes bytecode
    return made


def _save(
    predictor: type[Any],
    artifacts: Mapping[str, Path],
    example: "pd.DataFrame",
    made: Path,
    scratch: Path,
    requirements: list[str],
    code_paths: list[str] | None,
) -> None:
    quiet_mlflow()
    import mlflow

    code = scratch / "predictor.py"
    name = predictor.__qualname__
    code.write_text(f"from mlflow.models import set_model\n\nfrom {predictor.__module__} import {name}\n\nset_model({name}())\n")
    instance = predictor()
    instance.load_context(_Context(artifacts))
    with warnings.catch_warnings():
        # MLflow's hint about missing values in integer columns, which appears for every integer answer.
        warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer")
        signature = mlflow.models.infer_signature(example, instance.predict(None, example))
        mlflow.pyfunc.save_model(
            path=str(made),
            python_model=str(code),
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=signature,
            input_example=example,
            pip_requirements=requirements,
            code_paths=code_paths,
        )


class _Context:
    """The argument of load_context before there is a model folder."""

    def __init__(self, artifacts: Mapping[str, Path]) -> None:
        self.artifacts = {name: str(path) for name, path in artifacts.items()}
        self.model_config: dict[str, Any] = {}


def _recorded(made: Path, example: "pd.DataFrame") -> dict[str, Any]:
    """The example as a request body for /invocations, and its answer in the format of MLflow's server."""
    from mlflow.models import convert_input_example_to_serving_input
    from mlflow.pyfunc import load_model, scoring_server

    body = convert_input_example_to_serving_input(example)
    loaded = load_model(str(made), suppress_warnings=True)  # it was created in this environment
    sys.stderr.write(f"log_model: {_batching(loaded, example)}\n")
    answer = scoring_server.invocations(body, scoring_server.CONTENT_TYPE_JSON, loaded, loaded.metadata.get_input_schema())
    return {"schema": 1, "input": json.loads(body), "predictions": json.loads(answer.response)["predictions"]}


def _batching(model: Any, example: Any) -> str:
    """Whether requests to the model will be predicted in batches, and why not. model: mlflow.pyfunc.PyFuncModel."""
    import numpy as np
    import pandas as pd

    table = isinstance(example, pd.DataFrame)
    if not table and not isinstance(example, np.ndarray):
        return "the example is neither a table nor an array, so it does not show whether its rows influence each other"
    rows: dict[str, Any] = {}
    for at in range(len(example)):
        row = example.iloc[at : at + 1] if table else example[at : at + 1]
        if len(rows) < independence.ROWS:
            rows.setdefault(repr((row.to_numpy() if table else row).tolist()), row)
    if len(rows) < 2:
        return (
            "the example has only one different row, so requests are not predicted in batches until the service has seen other rows: "
            "pass two or three different rows, such as example=rows.head(3)"
        )

    def join(parts: Any) -> Any:
        return pd.concat(parts, ignore_index=True) if table else np.concatenate(parts)

    def predict(data: Any) -> Any:
        output = model.predict(data)
        return output.to_dict(orient="records") if isinstance(output, pd.DataFrame) else getattr(output, "tolist", lambda: output)()

    verdict = independence.check(list(rows.values()), join, predict)
    if verdict.independent:
        return f"requests are predicted in batches, since {len(rows)} rows of the example do not influence each other"
    until = "" if verdict.independent is False else " until the service has seen other rows"
    return f"requests are not predicted in batches{until}, since {verdict.why}"


def _strip(mlmodel: Path) -> None:
    yaml = YAML()
    document = yaml.load(mlmodel.read_text())
    for key in VOLATILE:
        document.pop(key, None)
    # Remove the temporary paths; MLflow finds the files next to MLmodel.
    pyfunc = document["flavors"]["python_function"]
    pyfunc["model_code_path"] = Path(pyfunc["model_code_path"]).name
    for artifact in pyfunc["artifacts"].values():
        artifact["uri"] = artifact["path"]
    with mlmodel.open("w") as file:
        yaml.dump(document, file)


def _requirements(root: Path | None) -> list[str]:
    """The serving requirements ([project].dependencies in pyproject.toml), pinned to the installed versions. Without a service, torch."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"] if root else {"dependencies": ["torch"]}
    names = [Requirement(line).name for line in project.get("dependencies", [])]
    return [f"mlflow=={metadata.version('mlflow')}", *(f"{name}=={metadata.version(name).partition('+')[0]}" for name in names)]
