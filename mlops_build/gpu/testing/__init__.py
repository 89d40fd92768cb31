"""A simulated GPU node: test a service that needs NVIDIA cards on a machine that has none.

    from mlops_build.gpu import testing

    with testing.Node(["24GiB", "24GiB"]) as node:
        subprocess.run([sys.executable, "-m", "my_service"], env=node.environment)

Two shared libraries, built from the C sources in this package by gcc on first use, take the places of `libnvidia-ml.so.1` (NVML) and
`libcuda.so.1` (the CUDA driver) in every process started with the node's environment. All these processes share the node's cards: what
one allocates, the others see, and a full card answers CUDA_ERROR_OUT_OF_MEMORY. What a process held is free once it is dead, whatever
killed it. nvidia-ml-py, nvitop and gpustat run against it unmodified. Nothing computes: torch cannot run its kernels on a simulated card.
Linux only, standard library only.
"""

from mlops_build.gpu.testing.build import BuildFailed, NoCompiler, libraries
from mlops_build.gpu.testing.card import SimulatedCard
from mlops_build.gpu.testing.node import Node
from mlops_build.gpu.testing.started import SimulatedService

__all__ = ["BuildFailed", "NoCompiler", "Node", "SimulatedCard", "SimulatedService", "libraries"]
