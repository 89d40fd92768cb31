"""Checks that DVC's remote is writable: on S3 a multipart upload is started and cancelled; of a folder the permissions are read."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from mlops_build.checklist.names import Names
from mlops_build.checklist.result import SECONDS, Result, no, ok, unseen

KEY = "mlops-build-doctor"


def write(names: Names) -> Result:
    """Whether DVC's default remote is writable."""
    if not names.remote:
        return no("DVC has no default remote")
    address = urlsplit(names.remote)
    if address.scheme == "s3":
        return _s3(address.netloc, address.path.strip("/"), names.endpoint)
    if address.scheme:
        return unseen(f"{names.remote}: only S3 and folders are checked")
    folder = (names.root / ".dvc" / names.remote).resolve()
    existing = next((candidate for candidate in (folder, *folder.parents) if candidate.exists()), Path("/"))
    return ok(f"{folder} is writable") if os.access(existing, os.W_OK) else no(f"{folder} is not writable")


def _s3(bucket: str, prefix: str, endpoint: str | None) -> Result:
    from boto3.session import Session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    quick = Config(
        connect_timeout=SECONDS,
        read_timeout=SECONDS,
        retries={"max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    key = f"{prefix}/{KEY}" if prefix else KEY
    try:
        client = Session().client("s3", endpoint_url=endpoint, config=quick)
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an error")
        return no(f"s3://{bucket}/{prefix} at {endpoint or 'Amazon'}: {code}")
    except BotoCoreError as error:
        return no(f"s3://{bucket}/{prefix} at {endpoint or 'Amazon'}: {str(error)[:200]}")
    return ok(f"s3://{bucket}/{prefix} accepts an upload")
