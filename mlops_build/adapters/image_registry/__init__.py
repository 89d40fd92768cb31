"""A client of the OCI Distribution API, for image registries of any kind. It needs no container engine."""

from mlops_build.adapters.image_registry.answer import ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry
from mlops_build.adapters.image_registry.repository import Manifest, Repository

__all__ = ["ImageRegistryUnreachable", "LoginNeeded", "Manifest", "RefusedByRegistry", "Repository"]
