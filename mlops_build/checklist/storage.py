"""Checks that DVC's remote is writable: on S3 a multipart upload is started and cancelled; of a folder the permissions are read."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from mlops_build.adapters.storage.s3 import refuses_upload
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import Result, no, ok, unseen

KEY = "mlops-build-doctor"


def write(names: Names) -> Result:
    """Whether DVC's default remote is writable."""
    if not names.remote:
        return no("DVC has no default remote")
    address = urlsplit(names.remote)
    if address.scheme == "s3":
        prefix = address.path.strip("/")
        where = f"s3://{address.netloc}/{prefix}"
        refused = refuses_upload(address.netloc, f"{prefix}/{KEY}" if prefix else KEY, names.endpoint)
        return no(f"{where} at {names.endpoint or 'Amazon'}: {refused}") if refused else ok(f"{where} accepts an upload")
    if address.scheme:
        return unseen(f"{names.remote}: only S3 and folders are checked")
    folder = (names.root / ".dvc" / names.remote).resolve()
    existing = next((candidate for candidate in (folder, *folder.parents) if candidate.exists()), Path("/"))
    return ok(f"{folder} is writable") if os.access(existing, os.W_OK) else no(f"{folder} is not writable")
