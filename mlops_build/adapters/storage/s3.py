"""A prefix of a bucket of S3, as of Amazon, Ceph or MinIO. Credentials are boto3's: the environment, or its files."""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject, checked

# A part of a multipart upload has a digest of its own, so the object's ETag is not its MD5.
PARTS = "-"
ATTEMPTS = 5
QUICK_SECONDS = 15


class S3(Place):
    """endpoint_url: of a gateway. Objects whose key ends with / are left out: they are markers of folders."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str | None) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._endpoint_url = endpoint_url
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def objects(self, below: str = "") -> Iterator[StoredObject]:
        if below:
            checked(below)
        folder = "/".join(part for part in (self._prefix, below) if part)
        with self._translated(below):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{folder}/" if folder else ""):
                for entry in page.get("Contents", []):
                    if not entry["Key"].endswith("/"):
                        yield self._object(entry)

    def read(self, path: str, most: int) -> bytes:
        with self._translated(path), contextlib.closing(self._object_body(path, most)) as body:
            return bytes(body.read())  # the whole body: then botocore notices a response that ends early

    def _object_body(self, path: str, most: int) -> Any:
        response = self._client.get_object(Bucket=self._bucket, Key=self._key(path))
        if response["ContentLength"] > most:
            response["Body"].close()
            raise self.too_large(path, most)
        return response["Body"]

    def save(self, path: str, destination: Path) -> None:
        with self._translated(path):
            self._client.download_file(self._bucket, self._key(path), str(destination))

    def put(self, path: str, file: Path) -> None:
        with self._translated(path):
            self._client.upload_file(str(file), self._bucket, self._key(path))

    def delete(self, path: str) -> None:
        with self._translated(path):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(path))

    @cached_property
    def _client(self) -> Any:
        return _client(self._endpoint_url, connect_timeout=10, read_timeout=60, retries={"mode": "standard", "max_attempts": ATTEMPTS})

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{checked(path)}" if self._prefix else checked(path)

    def _object(self, entry: dict[str, Any]) -> StoredObject:
        etag = str(entry.get("ETag", "")).strip('"')
        path = entry["Key"].removeprefix(f"{self._prefix}/") if self._prefix else entry["Key"]
        return StoredObject(path, int(entry["Size"]), int(entry["LastModified"].timestamp() * 1000), None if PARTS in etag else etag)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise NoPlace(f"{self.uri}: boto3 is not installed", remedy="pip install 'mlops-build[operate]'") from error
        from boto3.exceptions import Boto3Error

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "an error"))
            raise NoPlace(f"{self.shown(path) if path else self.uri}: the store answers {code}", remedy=_remedy(code)) from error
        except (BotoCoreError, Boto3Error, OSError, ValueError) as error:  # ValueError: of an endpoint
            where = self.shown(path) if path else self.uri
            raise NoPlace(
                f"{where}: {str(error).splitlines()[0][:300]}",
                remedy="check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_CA_BUNDLE and the network",
            ) from error


def refuses_upload(bucket: str, key: str, endpoint_url: str | None) -> str | None:
    """Start a multipart upload, and cancel it, so that no object is made: why that is refused; None if it is not."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = _client(endpoint_url, connect_timeout=QUICK_SECONDS, read_timeout=QUICK_SECONDS, retries={"max_attempts": 1})
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
    except ClientError as error:
        return str(error.response.get("Error", {}).get("Code", "an error"))
    except BotoCoreError as error:
        return str(error)[:200]
    return None


def _client(endpoint_url: str | None, **limits: Any) -> Any:
    from boto3.session import Session
    from botocore.config import Config

    # Since 1.36 boto3 sends checksums that older gateways of Ceph refuse over https.
    checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return Session().client("s3", endpoint_url=endpoint_url, config=Config(**limits, **checksums))


def _remedy(code: str) -> str:
    if code in ("404", "NoSuchBucket", "NoSuchKey"):
        return "check the name of the bucket and the prefix, and AWS_ENDPOINT_URL"
    return "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what this user may do with the bucket"
