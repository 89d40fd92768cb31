"""A simulated GPU node: test a service that needs NVIDIA cards on a machine without cards.

    from mlops_build.gpu import testing

    with testing.Node(["24GiB", "24GiB"]) as node:
        subprocess.run([sys.executable, "-m", "my_service"], env=node.environment)

Two shared libraries replace `libnvidia-ml.so.1` (NVML) and `libcuda.so.1` (the CUDA driver) in each process that starts with the node's
environment. gcc builds them from the C sources in this package on first use. All these processes share the node's cards: they see each
other's memory, and a full card returns CUDA_ERROR_OUT_OF_MEMORY. When a process ends in any way, its memory is free. nvidia-ml-py, nvitop
and gpustat run unmodified. Nothing computes: torch cannot run kernels on a simulated card. Linux only; needs only the standard library.
"""

from mlops_build.gpu.testing.build import BuildFailed, NoCompiler, libraries
from mlops_build.gpu.testing.card import SimulatedCard
from mlops_build.gpu.testing.node import Node
from mlops_build.gpu.testing.started import SimulatedService

__all__ = ["BuildFailed", "NoCompiler", "Node", "SimulatedCard", "SimulatedService", "libraries"]
