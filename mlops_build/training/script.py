"""Run a training script that knows nothing of mlops-build, as the stage `train` of a service.

    python -m mlops_build.training.script OUTPUT -m PACKAGE.train --epochs 20 …

What follows -m is what would follow `python -m`. The script runs in a process of its own, exactly as from a shell; what it logs by plain
mlflow goes into the service's run, since MLflow resumes the run that MLFLOW_RUN_ID names. OUTPUT is the file with the weights that the
script leaves; the run remembers its digest, by which `training.resume_run(OUTPUT)` finds it again.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlops_build import service
from mlops_build.model import files
from mlops_build.model.identity import RUN_WEIGHTS
from mlops_build.training.run import start_run

USAGE = "usage: python -m mlops_build.training.script OUTPUT -m MODULE [ARGUMENTS]"


def run_script(module: str, arguments: Sequence[str], output: Path) -> None:
    """Run `python -m MODULE ARGUMENTS` in a new run of the service's experiment. output: relative to the service's root.

    Raises SystemExit with the script's own exit code, or with 1 and a sentence where it left no `output`; the run is then marked as failed.
    """
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
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=root, env=environment, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        if not (root / output).is_file():
            raise SystemExit(
                f"error: {module} ended well, but left no {output}: name the file it writes in dvc.yaml (the command and outs)"
                " and as WEIGHTS in predictor.py"
            )
        mlflow.set_tag(RUN_WEIGHTS, f"sha256:{files.file_digest(root / output)}")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 3 or arguments[1] != "-m":
        raise SystemExit(USAGE)
    run_script(arguments[2], arguments[3:], Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
