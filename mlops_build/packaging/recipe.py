"""The inputs of an image besides models: base image, Debian packages, GPU, port, and how its parts are fetched."""

from dataclasses import dataclass
from typing import Literal

from mlops_build.packaging import bases, grammar
from mlops_build.service import Service


@dataclass(frozen=True)
class Recipe:
    """The inputs of a service's image. Every text is checked.

    base: with its digest, if it is known. gpu: torch has CUDA, and the container requests the NVIDIA driver. cuda: whether CUDA's libraries
    come with torch's wheels or are in the base image. platform: of the base image; None: the builder's own. secrets: ids of the secrets
    that the builder provides during the build. unsafe_pickle: the reason why pickled files are accepted; it is not part of the name.
    """

    service: str
    base: str
    apt: tuple[str, ...] = ()
    gpu: bool = False
    port: int = 8080
    cuda: Literal["wheels", "base"] = "wheels"
    platform: str | None = None
    secrets: tuple[str, ...] = ()
    unsafe_pickle: str | None = None

    def __post_init__(self) -> None:
        grammar.model_name(self.service, "service name")
        grammar.base_image(self.base)
        for package in self.apt:
            grammar.apt_package(package)
        for secret in self.secrets:
            grammar.secret(secret)
        if self.platform is not None:
            grammar.platform(self.platform)
        if self.cuda not in ("wheels", "base"):
            raise grammar.BadValue(f"image.cuda: {self.cuda!r} is not allowed here", remedy="allowed: wheels, base")
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 1024 <= self.port <= 65535:
            raise grammar.BadValue(f"port: {self.port!r} is not allowed here", remedy="allowed: 1024 to 65535")


def of_service(service: Service, *, gpu: bool | None = None, platform: str | None = None, secrets: tuple[str, ...] = ()) -> Recipe:
    """The recipe in service.yaml, overridden by the arguments; secrets are added to those of service.yaml. Raises BadValue."""
    return Recipe(
        service.name,
        bases.pinned(service.image.base),
        tuple(sorted(set(service.image.apt))),
        service.gpu.mode != "none" if gpu is None else gpu,
        service.serving.port,
        service.image.cuda,
        platform,
        tuple(sorted({*service.image.secrets, *secrets})),
        service.serving.unsafe_pickle,
    )


def without_service(
    name: str, python: str, *, gpu: bool | None = None, platform: str | None = None, secrets: tuple[str, ...] = ()
) -> Recipe:
    """The recipe without a service.yaml: the official slim image of the model's Python, no Debian packages, CPU."""
    base = bases.pinned(f"python:{grammar.python_version(python)}-slim")
    return Recipe(name, base, gpu=bool(gpu), platform=platform, secrets=tuple(sorted(set(secrets))))
