"""List the GPUs of this machine and reserve memory on one. Needs the NVIDIA driver and nothing else.

from mlops_build import gpu
gpu.cards()        # every card: memory, leases, processes without a lease
with gpu.lease("4GiB", wait=120) as lease:        # before CUDA starts: chooses a card, reserves, sets CUDA_VISIBLE_DEVICES
    model.to(lease.device)
"""

# `cards` and `lease` are both functions and module names. After these imports the names mean the functions;
# `from mlops_build.gpu.cards import …` imports from the modules.
from mlops_build.errors import NoRoom
from mlops_build.gpu.cards import Card, cards
from mlops_build.gpu.choice import BEST_FIT, RANDOM, WORST_FIT, pack, random, spread
from mlops_build.gpu.lease import CudaStarted, Lease, Released, lease
from mlops_build.gpu.nvml import NoDriver
from mlops_build.gpu.search import Nested

__all__ = [
    "BEST_FIT",
    "RANDOM",
    "WORST_FIT",
    "Card",
    "CudaStarted",
    "Lease",
    "Nested",
    "NoDriver",
    "NoRoom",
    "Released",
    "cards",
    "lease",
    "pack",
    "random",
    "spread",
]
