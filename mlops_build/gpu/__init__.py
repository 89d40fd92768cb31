"""The cards of this machine: who uses them, and how to get a part of one. Needs the NVIDIA driver and nothing else.

from mlops_build import gpu
gpu.cards()        # every card: memory, who holds leases, who uses memory without one
with gpu.lease("4GiB", wait=120) as lease:        # chosen, promised, CUDA_VISIBLE_DEVICES set; before CUDA is started
    with lease.loading():
        model.to(lease.device)
"""

# `cards` and `lease` are functions here and the names of modules, too. The imports below settle it for good: the functions win, and the
# modules are reached by `from mlops_build.gpu.cards import …`.
from mlops_build.errors import NoRoom
from mlops_build.gpu.cards import Card, cards
from mlops_build.gpu.choice import BEST_FIT, RANDOM, WORST_FIT, pack, random, spread
from mlops_build.gpu.lease import Lease, lease
from mlops_build.gpu.nvml import NoDriver

__all__ = ["BEST_FIT", "RANDOM", "WORST_FIT", "Card", "Lease", "NoDriver", "NoRoom", "cards", "lease", "pack", "random", "spread"]
