"""What goes into an image besides models: base image, Debian packages, GPU, port."""

from dataclasses import dataclass

from mlops_build.packaging import grammar
from mlops_build.service import Service


@dataclass(frozen=True)
class Recipe:
    """How a service's image is made. gpu: torch comes with CUDA, and the container asks for the NVIDIA driver. Every text is checked."""

    service: str
    base: str
    apt: tuple[str, ...] = ()
    gpu: bool = False
    port: int = 8080

    def __post_init__(self) -> None:
        grammar.model_name(self.service, "service name")
        grammar.base_image(self.base)
        for package in self.apt:
            grammar.apt_package(package)
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 1024 <= self.port <= 65535:
            raise grammar.BadValue(f"port: {self.port!r} is not allowed here", remedy="allowed: 1024 to 65535")


def of_service(service: Service) -> Recipe:
    """As service.yaml says."""
    return Recipe(service.name, service.image.base, tuple(sorted(set(service.image.apt))), service.gpu.mode != "none", service.serving.port)


def without_service(name: str, python: str) -> Recipe:
    """Where nothing but the registry is at hand: the official slim image of the model's Python, no Debian packages, CPU."""
    return Recipe(name, f"python:{grammar.python_version(python)}-slim")
