"""The Python API of a service's train.py and evaluate.py. It is stable for years.

    from mlops_build import training

    with training.start_run() as run:
        ...                                   # plain torch, plain mlflow.log_metric
        training.log_model(Predictor, weights=WEIGHTS, artifacts={"vocabulary": VOCABULARY}, example=rows, folder=FOLDER)

Before a function is removed, it warns for two minor releases.
"""

from mlops_build.training.model import log_model
from mlops_build.training.recorded import recorded_answers, recorded_example
from mlops_build.training.run import Run, params, resume_run, start_run

__all__ = ["Run", "log_model", "params", "recorded_answers", "recorded_example", "resume_run", "start_run"]
