"""Where the MLflow of a service is: from the environment, else from its service.yaml."""

import os
from dataclasses import dataclass
from pathlib import Path

from mlops_build.adapters.registry import Registry
from mlops_build.errors import NotFound, UsageError

SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Tracking:
    """An MLflow. s3_endpoint_url: the gateway of its artifacts on S3, where service.yaml names one."""

    uri: str
    s3_endpoint_url: str | None = None


def find(root: Path | None = None) -> Tracking:
    """MLFLOW_TRACKING_URI, else what the service at `root` (default: around the current folder) says.

    A relative sqlite file is taken from the service's root. Raises UsageError where neither exists.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return Tracking(uri)
    from mlops_build import service

    try:
        root = root or service.find_root()
    except NotFound:
        raise UsageError(
            "no MLflow: MLFLOW_TRACKING_URI is not set, and the current folder is not a service",
            remedy="set MLFLOW_TRACKING_URI=https://…, or run this inside a service",
        ) from None
    tracking = service.load(root, strict=False).tracking
    uri = tracking.uri
    if uri.startswith(SQLITE) and not uri.startswith(f"{SQLITE}/"):
        uri = f"{SQLITE}{root / uri.removeprefix(SQLITE)}"
    return Tracking(uri, tracking.s3_endpoint_url)


def registry(root: Path | None = None, *, create: bool = False) -> Registry:
    """The model registry of the service at `root`, as `find` finds it. create: a sqlite file is created if it does not exist.

    Raises UsageError and RegistryUnreachable.
    """
    found_at = find(root)
    return Registry(found_at.uri, s3_endpoint_url=found_at.s3_endpoint_url, create=create)
