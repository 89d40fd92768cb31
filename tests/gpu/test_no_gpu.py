"""Why no card is visible: each cause that can be found from inside a container, in one line."""

from pathlib import Path

import pynvml
import pytest

from mlops_build.gpu import device, no_gpu
from mlops_build.gpu.nvml import NoDriver

OURS = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """The parts of a container's root file system that are checked."""
    (tmp_path / "dev").mkdir()
    (tmp_path / ".dockerenv").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "the image does not set NVIDIA_VISIBLE_DEVICES"),
        ({**OURS, "NVIDIA_VISIBLE_DEVICES": "void"}, "NVIDIA_VISIBLE_DEVICES is 'void'"),
        ({**OURS, "NVIDIA_VISIBLE_DEVICES": ""}, "NVIDIA_VISIBLE_DEVICES is ''"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, "lacks `compute`"),
        ({**OURS, "NVIDIA_DRIVER_CAPABILITIES": "graphics"}, "is 'graphics' and lacks `compute` and `utility`"),
        ({**OURS, "NVIDIA_DRIVER_CAPABILITIES": "all"}, "was not started with the NVIDIA runtime"),
        (OURS, "was not started with the NVIDIA runtime"),
    ],
)
def test_the_reason_for_a_container_without_a_driver(container: Path, environment: dict[str, str], expected: str) -> None:
    reason = no_gpu.no_driver(environment, container)
    assert expected in reason
    assert "\n" not in reason


def test_the_reason_for_devices_without_libraries_and_outside_a_container(container: Path, tmp_path: Path) -> None:
    (container / "dev/nvidiactl").touch()
    assert "the devices /dev/nvidia* exist, but the driver's libraries are missing" in no_gpu.no_driver(OURS, container)
    assert no_gpu.no_driver({}, tmp_path / "elsewhere") == "no NVIDIA driver is installed on this machine"
    assert "was not started" in no_gpu.no_driver({**OURS, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path / "elsewhere")


def test_the_reason_for_a_driver_without_a_card_and_a_card_without_cuda() -> None:
    assert no_gpu.no_card({"CUDA_VISIBLE_DEVICES": ""}) == "CUDA_VISIBLE_DEVICES is empty, which hides every card"
    assert "'-1', which selects none" in no_gpu.no_card({"CUDA_VISIBLE_DEVICES": "-1"})
    assert "NVIDIA_VISIBLE_DEVICES is 'void'" in no_gpu.no_card({"NVIDIA_VISIBLE_DEVICES": "void"})
    assert "lacks `compute`" in no_gpu.no_cuda({**OURS, "NVIDIA_DRIVER_CAPABILITIES": "utility"})
    assert "CUDA version is newer than the driver" in no_gpu.no_cuda(OURS)


def test_the_service_reports_the_reason_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the device line for the CPU, and in the error if a GPU is requested."""

    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(pynvml, "CDLL", missing)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MLOPS_GPU_MEMORY", raising=False)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "void")
    assert (
        device.requested("auto").why
        == "the CPU (libnvidia-ml.so.1 is not found: NVIDIA_VISIBLE_DEVICES is 'void', which requests no card from the container runtime)"
    )
    with pytest.raises(NoDriver, match=r"but libnvidia-ml\.so\.1 is not found: NVIDIA_VISIBLE_DEVICES is 'void'"):
        device.requested("gpu")
