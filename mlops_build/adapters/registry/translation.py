"""What MLflow answers, and that it does not answer, as our errors."""

import os

from mlops_build.adapters.registry.records import RegistryUnreachable, Rejected, shown
from mlops_build.errors import Failed, NotFound, Refused

SERVER = ("http://", "https://")
# The oldest MLflow server that has aliases; all calls of Registry were tried with it.
OLDEST = "2.3"


def unreachable(uri: str, why: str) -> RegistryUnreachable:
    """The error for an MLflow without an answer."""
    if uri.startswith(SERVER):
        return RegistryUnreachable(
            f"MLflow at {shown(uri)} does not answer", remedy="check MLFLOW_TRACKING_URI and that the server runs (`mlops-build doctor`)"
        )
    return RegistryUnreachable(f"MLflow at {shown(uri)} does not answer: {why}", remedy="check the address, the network and the disk")


def translated(uri: str, error: Rejected) -> Exception:
    """The error for an answer of MLflow that is an error."""
    if error.status in (408, 429, 502, 503, 504):
        return unreachable(uri, error.text)
    if error.code in ("PERMISSION_DENIED", "UNAUTHENTICATED") or error.status in (401, 403):
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if user and error.status == 403:
            remedy = f"ask an administrator of MLflow for a permission of the user {user!r} (docs/how-to/who-may-do-what.md)"
        else:
            remedy = "set MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return Refused(f"MLflow at {shown(uri)} refused: {error.text}", remedy=remedy)
    if error.is_missing:
        return NotFound(f"MLflow at {shown(uri)}: {error.text}")
    if error.status == 404 and not error.code:
        return Failed(
            f"MLflow at {shown(uri)} does not know this request: {error.text}",
            remedy=f"check the address; aliases need MLflow {OLDEST}, webhooks 3.3 (docs/how-to/upgrade-mlflow.md)",
        )
    return Failed(f"MLflow at {shown(uri)}: {error.text}")
