"""Seed all random number generators, so that two runs on the same CPU give identical results."""

import os
import random


def fix(seed: int) -> None:
    """Seed Python, numpy and torch, and restrict torch to deterministic algorithms (it raises an error if there is none).

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
