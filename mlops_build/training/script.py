"""Run a training script that does not use mlops-build as the stage `train` of a service.

    python -m mlops_build.training.script OUTPUT -m PACKAGE.train --epochs 20 …

The arguments after -m are those of `python -m`. The script runs in a separate process, as from a shell. Its plain mlflow calls log to the
service's run, because MLflow resumes the run in MLFLOW_RUN_ID. OUTPUT is the weights file that the script writes; the run stores its
digest, with which `training.resume_run(OUTPUT)` finds the run.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlops_build import service
from mlops_build.adapters import program
from mlops_build.adapters.registry import quiet_mlflow
from mlops_build.model import files
from mlops_build.model.identity import RUN_WEIGHTS
from mlops_build.training.run import start_run

USAGE = "usage: python -m mlops_build.training.script OUTPUT -m MODULE [ARGUMENTS]"


def run_script(module: str, arguments: Sequence[str], output: Path) -> None:
    """Run `python -m MODULE ARGUMENTS` in a new run of the service's experiment. output: relative to the service's root.

    Raises SystemExit with the script's exit code, or with 1 and a message if it did not write `output`; the run is then marked as failed.
    """
    quiet_mlflow()
    import mlflow

    root = service.find_root()
    (root / output).parent.mkdir(parents=True, exist_ok=True)
    with start_run() as run:
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
            "MLFLOW_EXPERIMENT_ID": mlflow.get_run(run.run_id).info.experiment_id,
            "MLFLOW_RUN_ID": run.run_id,
        }
        code = program.attached([sys.executable, "-m", module, *arguments], folder=root, environment=environment)
        if code:
            raise SystemExit(code)
        if not (root / output).is_file():
            raise SystemExit(
                f"error: {module} succeeded, but did not write {output}: set the file that it writes in dvc.yaml (the command and outs)"
                " and as WEIGHTS in predictor.py"
            )
        mlflow.set_tag(RUN_WEIGHTS, f"sha256:{files.file_digest(root / output)}")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 3 or arguments[1] != "-m":
        raise SystemExit(USAGE)
    run_script(arguments[2], arguments[3:], Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
