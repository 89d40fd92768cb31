"""BentoML, with its adaptive batching: `bentoml serve bento:Scores`. MODEL is in the environment.

It gets the numbers as {"inputs": …} for tables too: it batches methods of one argument only.
"""

import os

import bentoml
import networks
import numpy as np
import torch


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024})
class Scores:
    def __init__(self) -> None:
        self.network = networks.network(os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=128, max_latency_ms=60000)
    def invocations(self, inputs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]  # BentoML reads the hints
        with torch.inference_mode():
            return self.network(torch.from_numpy(np.asarray(inputs, np.float32))).numpy()  # type: ignore[no-any-return]
