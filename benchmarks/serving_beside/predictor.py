"""What MLflow's server and ours load: a predictor on a DataFrame, as the template's services are, or on an array."""

from typing import Any

import mlflow
import networks
import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model


class Predictor(mlflow.pyfunc.PythonModel):
    """A DataFrame with the columns f0 to f31, or an array -> scores."""

    def load_context(self, context: Any) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = networks.network(context.model_config["model"]).to(self.device)

    def predict(self, context: Any, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002 # MLflow reads hints
        table = isinstance(model_input, pd.DataFrame)
        array = model_input[networks.COLUMNS].to_numpy(np.float32) if table else np.asarray(model_input, np.float32)
        with torch.inference_mode():
            scores = self.network(torch.from_numpy(array).to(self.device)).cpu().numpy()
        return pd.DataFrame(scores, columns=["a", "b", "c"]) if table else scores


set_model(Predictor())
