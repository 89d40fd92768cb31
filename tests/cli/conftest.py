"""The simulated nodes of tests/gpu, for commands that look at cards."""

from tests.gpu.conftest import _package_for_processes, node, simulation

__all__ = ["_package_for_processes", "node", "simulation"]
