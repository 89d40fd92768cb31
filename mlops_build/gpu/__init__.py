"""The cards of this machine: who uses them, and how to get a part of one. Needs nvidia-ml-py and nothing else.

from mlops_build import gpu
gpu.cards()        # every card: memory, who holds leases, who uses memory without one
"""

# `cards` is a function here and the name of a module, too. The import below settles it for good: the function wins, and the module is
# reached by `from mlops_build.gpu.cards import …`.
from mlops_build.gpu.cards import Card, cards
from mlops_build.gpu.nvml import NoDriver

__all__ = ["Card", "NoDriver", "cards"]
