"""The files of model versions: in a folder, behind the server's proxy, or on S3. Other stores are read and written by mlflow."""

import contextlib
import json
import mimetypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from mlops_build.adapters.registry.http import Http, is_set
from mlops_build.adapters.registry.quiet import quiet_mlflow
from mlops_build.adapters.registry.records import NoAnswer, NoFiles, Rejected, first_line

PROXY = "api/2.0/mlflow-artifacts/artifacts"
# mlflow sends larger files in parts, straight to the store, where the server offers that.
LARGE = 500_000_000


@dataclass(frozen=True)
class Artifacts:
    """The artifact store of an MLflow. http: the session with its server, if there is one. s3_endpoint_url: see Registry."""

    tracking_uri: str
    http: Http | None
    s3_endpoint_url: str | None = None

    def download(self, uri: str, destination: Path) -> None:
        """Copy the folder at `uri` to `destination`, which does not exist yet. Raises NoFiles."""
        with _translated():
            if folder := _local(uri):
                shutil.copytree(folder, destination)
            elif uri.startswith("s3://"):
                _from_s3(self._s3(), uri, destination)
            elif not ((proxy := _proxy(uri, self.http)) and proxy.download(destination)):
                self._from_mlflow(uri, destination)

    def read(self, uri: str) -> bytes:
        """The bytes of the file at `uri`. Raises NoFiles."""
        with _translated():
            if file := _local(uri):
                return file.read_bytes()
            if uri.startswith("s3://"):
                bucket, key = _bucket_and_key(uri)
                return bytes(self._s3().get_object(Bucket=bucket, Key=key, **_owner())["Body"].read())
            if proxy := _proxy(uri, self.http):
                return proxy.http.send("GET", proxy.url()).content
            with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
                self._from_mlflow(uri, Path(scratch) / "file")
                return (Path(scratch) / "file").read_bytes()

    def upload(self, folder: Path, uri: str) -> None:
        """Copy a folder's files to `uri`, over those of the same names. Raises NoFiles."""
        with _translated():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if local := _local(uri):
                shutil.copytree(folder, local, dirs_exist_ok=True)
            elif uri.startswith("s3://"):
                _to_s3(self._s3(), uri, folder, files)
            elif (proxy := _proxy(uri, self.http)) and all(file.stat().st_size < LARGE for file in files):
                for file in files:
                    proxy.http.send("PUT", proxy.url(file.relative_to(folder).as_posix()), file=file)
            else:
                quiet_mlflow()
                from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

                with contextlib.redirect_stdout(sys.stderr):
                    get_artifact_repository(uri, tracking_uri=self.tracking_uri).log_artifacts(str(folder))

    def _s3(self) -> Any:
        return _s3(os.environ.get("MLFLOW_S3_ENDPOINT_URL") or self.s3_endpoint_url)

    def _from_mlflow(self, uri: str, destination: Path) -> None:
        quiet_mlflow()
        import mlflow.artifacts

        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent) as part, contextlib.redirect_stdout(sys.stderr):
            try:
                copy = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=part, tracking_uri=self.tracking_uri)
            except ModuleNotFoundError as error:
                raise NoFiles(f"mlflow needs the Python package {error.name!r} for {uri.partition(':')[0]}:, install it") from error
            except Exception as error:  # its stores raise anything for an address that they cannot split
                raise NoFiles(first_line(error)) from error
            Path(copy).rename(destination)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the stores as NoFiles. Other errors are not caught."""
    try:
        yield
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        if not isinstance(error, (OSError, Rejected, NoAnswer, shutil.Error)) and module not in ("mlflow", "botocore", "boto3"):
            raise
        raise NoFiles(first_line(error)) from error


def _local(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    return Path(uri) if not parts.scheme and uri else None


def _proxy(uri: str, http: Http | None) -> "_Proxy | None":
    """Where the server hands out these files itself. None where the user wants them in parts, which mlflow can."""
    in_parts = is_set("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD") or is_set("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD")
    if http is None or not uri.startswith("mlflow-artifacts:") or in_parts:
        return None
    parts, server = urlsplit(uri), urlsplit(http.uri)
    root = f"{server.scheme}://{parts.netloc}{server.path}" if parts.netloc else http.uri
    return _Proxy(http, f"{root}/{PROXY}", _checked(parts.path.removeprefix(f"/{PROXY}").strip("/")))


@dataclass(frozen=True)
class _Proxy:
    """The server's artifact service at `address`, and the path of a file or folder in it."""

    http: Http
    address: str
    path: str

    def url(self, below: str = "") -> str:
        return f"{self.address}/{quote(f'{self.path}/{below}'.strip('/'))}"

    def download(self, destination: Path) -> bool:
        """Whether the folder's files were copied; not where one is so large that mlflow should do it."""
        files: list[str] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            response = self.http.send("GET", self.address, {"params": {"path": f"{self.path}/{folder}".strip("/")}})
            for entry in self.http.document(response).get("files", []):
                path = f"{folder}/{_checked(str(entry['path']))}".strip("/")
                if entry.get("is_dir"):
                    folders.append(path)
                elif int(entry.get("file_size") or 0) >= LARGE:
                    return False
                else:
                    files.append(path)
        if not files:
            raise NoFiles("there are no files")
        for path in files:
            (destination / path).parent.mkdir(parents=True, exist_ok=True)
            self.http.save(self.url(path), destination / path)
        return True


def _checked(path: str) -> str:
    """A path below the folder that it is joined to; a server does not choose where files are written."""
    if path and (".." in PurePosixPath(path).parts or path.startswith("/") or "\\" in path or "\0" in path):
        raise NoFiles(f"the store lists {path[:200]!r}, which is not a path below the version's folder")
    return path


def _bucket_and_key(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.strip("/")


def _to_s3(client: Any, uri: str, folder: Path, files: list[Path]) -> None:
    bucket, root = _bucket_and_key(uri)
    extra = {**_owner(), **json.loads(os.environ.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS") or "{}")}
    for file in files:
        content_type, encoding = mimetypes.guess_type(file.name)
        described = {"ContentType": content_type or "application/octet-stream", **({"ContentEncoding": encoding} if encoding else {})}
        key = f"{root}/{file.relative_to(folder).as_posix()}".lstrip("/")
        client.upload_file(str(file), bucket, key, ExtraArgs={**described, **extra})


def _from_s3(client: Any, uri: str, destination: Path) -> None:
    owner = _owner()
    bucket, root = _bucket_and_key(uri)
    prefix = f"{root}/" if root else ""
    count = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **owner):
        for entry in page.get("Contents", []):
            path = _checked(entry["Key"].removeprefix(prefix))
            if not path or path.endswith("/"):  # a folder's marker
                continue
            (destination / path).parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(destination / path), **({"ExtraArgs": owner} if owner else {}))
            count += 1
    if not count:
        raise NoFiles("there are no files")


def _owner() -> dict[str, str]:
    owner = os.environ.get("MLFLOW_S3_EXPECTED_BUCKET_OWNER")
    return {"ExpectedBucketOwner": owner} if owner else {}


def _s3(endpoint: str | None) -> Any:
    """boto3's client with the settings that MLflow's own reads."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.client import Config
    except ImportError as error:
        raise NoFiles("boto3 is not installed: pip install boto3") from error

    signature: Any = os.environ.get("MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION", "s3v4")
    config = Config(
        signature_version=UNSIGNED if signature.lower() == "unsigned" else signature,
        s3={"addressing_style": os.environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")},
        connect_timeout=10,
        read_timeout=30,
    )
    verify = False if is_set("MLFLOW_S3_IGNORE_TLS") else None
    return boto3.client("s3", config=config, endpoint_url=endpoint, verify=verify)
