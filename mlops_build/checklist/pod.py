"""Whether the credentials of this environment, which are those of a pod, can change data or artifacts. A pod only reads its image."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from mlops_build import service, tracking
from mlops_build.adapters.dvc_remote import default_remote
from mlops_build.adapters.storage.s3 import refuses_upload
from mlops_build.doctor import Check
from mlops_build.errors import MlopsBuildError
from mlops_build.finding import Finding

KEY = "mlops-build-doctor"
# Variables with credentials that a pod has no use for.
VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLOPS_GIT_TOKEN", "MLOPS_BRIDGE_WEBHOOK_SECRET")
# What S3 answers to somebody who may not write: an upload was refused, or there are no valid credentials.
REFUSALS = ("AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Unable to locate credentials")
REMEDY = "give the pod's user no permission to write there, or remove its keys from the pod (docs/how-to/who-may-do-what.md)"


def examine(root: Path) -> list[Check]:
    """A check of the environment, of DVC's default remote and of the artifacts of each model of the service at `root`."""
    checks = [_variables()]
    remote = default_remote(root)
    if remote:
        checks.append(_place("data remote", str(remote.folder or remote.url), remote.endpoint))
    for model in service.load(root).models:
        checks.append(_artifacts(root, model.name))
    return checks


def _variables() -> Check:
    present = [name for name in VARIABLES if os.environ.get(name)]
    findings = [
        Finding(name, "pod-secret", f"{name} is set, but a pod does not need it", f"remove {name} from the pod") for name in present
    ]
    return Check("environment", f"has {', '.join(present)}" if present else "has no secret that a pod does not need", findings)


def _artifacts(root: Path, model: str) -> Check:
    name = f"artifacts of {model}"
    try:
        newest = tracking.registry(root).versions(model)[:1]
    except MlopsBuildError as error:
        return Check(name, f"where they are is not known: {error.message}", absent=True)
    if not newest:
        return Check(name, "there is no version yet", absent=True)
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or tracking.find(root).s3_endpoint_url
    return _place(name, newest[0].source, endpoint)


def _place(name: str, address: str, endpoint: str | None) -> Check:
    """Whether files can be written to an address. Nothing is written: on S3 an upload is started and cancelled."""
    parts = urlsplit(address)
    if parts.scheme in ("", "file"):
        folder = Path(parts.path)
        if not os.access(folder, os.W_OK):
            return Check(name, f"{folder} is not writable" if folder.exists() else f"{folder} does not exist here")
        return Check(name, f"{folder} is writable", [Finding(name, "pod-writes", f"{folder} is writable", REMEDY)])
    if parts.scheme != "s3":
        return Check(name, f"{address}: only S3 and folders are checked", absent=True)
    refused = refuses_upload(parts.netloc, f"{parts.path.strip('/')}/{KEY}".lstrip("/"), endpoint)
    if refused is None:
        return Check(name, f"{address} accepts an upload", [Finding(name, "pod-writes", f"{address} accepts an upload", REMEDY)])
    if not refused.startswith(REFUSALS):
        why = f"{address} at {endpoint or 'Amazon'} does not say whether it accepts an upload: {refused}"
        return Check(name, why, [Finding(name, "pod-writes", why, "check the address, the bucket and the network")])
    return Check(name, f"{address} refuses an upload: {refused}")
