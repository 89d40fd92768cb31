"""One seed for everything that draws random numbers, so that two runs on one CPU give the same bits."""

import os
import random


def fix(seed: int) -> None:
    """Seed Python, numpy and torch, and hold torch to deterministic algorithms (it raises where it has none).

    CUBLAS_WORKSPACE_CONFIG: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    """
    import numpy as np
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # The same flag as use_deterministic_algorithms(True), which also imports torch's compiler: 1.7 s.
    torch.set_deterministic_debug_mode("error")
