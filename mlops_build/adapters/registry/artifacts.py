"""The files of model versions: in a folder, behind the server's proxy, or on S3. Other stores are read and written by mlflow."""

import contextlib
import json
import mimetypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from mlops_build.adapters.registry import stored
from mlops_build.adapters.registry.http import Http, is_set
from mlops_build.adapters.registry.quiet import quiet_mlflow
from mlops_build.adapters.registry.records import NoFiles, StoredFile, first_line
from mlops_build.adapters.registry.stored import translated
from mlops_build.model.files import plain_files

PROXY = "api/2.0/mlflow-artifacts/artifacts"
# mlflow sends larger files in parts, straight to the store, where the server offers that.
LARGE = 500_000_000
# MLflow writes it into a local store when it downloads or loads a registered version from there.
META = "registered_model_meta"
# The most files and folders of a version that are listed: a server could name more without an end.
ENTRIES = 100_000


@dataclass(frozen=True)
class Artifacts:
    """The artifact store of an MLflow. http: the session with its server, if there is one. s3_endpoint_url: see Registry."""

    tracking_uri: str
    http: Http | None
    s3_endpoint_url: str | None = None

    def download(self, uri: str, destination: Path) -> None:
        """Copy the folder at `uri` to `destination`, which does not exist yet. Raises NoFiles."""
        with translated():
            if folder := _local(uri):
                shutil.copytree(folder, destination)
                (destination / META).unlink(missing_ok=True)
            elif uri.startswith("s3://"):
                client = self._s3()
                for path, _, request in _on_s3(client, uri):
                    (destination / path).parent.mkdir(parents=True, exist_ok=True)
                    client.download_file(request["Bucket"], request["Key"], str(destination / path), ExtraArgs=_owner())
            elif _proxy(uri, self.http):
                for path, size in self._listed(uri):
                    self._save(uri, path, size, destination / path)
            else:
                self._from_mlflow(uri, destination)

    def files(self, uri: str) -> list[StoredFile]:
        """The files of the folder at `uri`, sorted by path. Raises NoFiles, also while an opened file is read, and Refused for a link.

        Nothing is copied before a file is opened. Then a file on a local disk or on S3 is read where it is; of others, which cannot be
        read from the middle, the whole file is copied to a temporary folder.
        """
        with translated():
            if folder := _local(uri):
                files = [
                    StoredFile(path, file.stat().st_size, partial(stored.local, file)) for path, file in plain_files(folder) if path != META
                ]
                if not files:
                    raise NoFiles("there are no files")
            elif uri.startswith("s3://"):
                client = self._s3()
                files = [
                    StoredFile(path, size, partial(stored.on_s3, client, request, size)) for path, size, request in _on_s3(client, uri)
                ]
            else:
                copies = ((path, size, partial(self._save, uri, path, size)) for path, size in self._listed(uri))
                files = [StoredFile(path, size, partial(stored.copied, save, size)) for path, size, save in copies]
        return sorted(files, key=lambda file: file.path)

    def read(self, uri: str) -> bytes:
        """The bytes of the file at `uri`. Raises NoFiles."""
        with translated():
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
        with translated():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if local := _local(uri):
                shutil.copytree(folder, local, dirs_exist_ok=True)
            elif uri.startswith("s3://"):
                _to_s3(self._s3(), uri, folder, files)
            elif (proxy := _proxy(uri, self.http)) and all(file.stat().st_size < LARGE for file in files):
                for file in files:
                    proxy.http.send("PUT", proxy.url(file.relative_to(folder).as_posix()), file=file)
            else:
                with self._mlflow(uri) as repository:
                    repository.log_artifacts(str(folder))

    def _s3(self) -> Any:
        return _s3(os.environ.get("MLFLOW_S3_ENDPOINT_URL") or self.s3_endpoint_url)

    def _listed(self, uri: str) -> list[tuple[str, int]]:
        """The path and size of every file of a folder that is neither on a local disk nor on S3."""
        if proxy := _proxy(uri, self.http):
            return _walk(proxy.entries)
        with self._mlflow(uri) as repository:

            def entries(folder: str) -> Iterator[tuple[str, bool, int]]:
                for entry in repository.list_artifacts(folder or None):
                    yield entry.path.rpartition("/")[2], entry.is_dir, entry.file_size or 0

            return _walk(entries)

    def _save(self, uri: str, path: str, size: int, destination: Path) -> None:
        """Copy one of the files that `_listed` names."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        if size < LARGE and (proxy := _proxy(uri, self.http)):
            proxy.http.save(proxy.url(path), destination)
        else:
            self._from_mlflow(uri, destination, path)

    def _from_mlflow(self, uri: str, destination: Path, path: str = "") -> None:
        """Copy what is at `uri`, or one file below it."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent) as part, self._mlflow(uri) as repository:
            import mlflow.artifacts

            if path:
                copy = repository.download_artifacts(path, part)
            else:
                copy = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=part, tracking_uri=self.tracking_uri)
            Path(copy).rename(destination)

    @contextlib.contextmanager
    def _mlflow(self, uri: str) -> Iterator[Any]:
        """mlflow's own access to a store. What it prints on stdout goes to stderr."""
        quiet_mlflow()
        with contextlib.redirect_stdout(sys.stderr):
            try:
                from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

                yield get_artifact_repository(uri, tracking_uri=self.tracking_uri)
            except ModuleNotFoundError as error:
                raise NoFiles(f"mlflow needs the Python package {error.name!r} for {uri.partition(':')[0]}:, install it") from error
            except Exception as error:  # its stores raise anything for an address that they cannot split
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

    def entries(self, folder: str) -> Iterator[tuple[str, bool, int]]:
        """What is in one folder: see _walk."""
        response = self.http.send("GET", self.address, {"params": {"path": f"{self.path}/{folder}".strip("/")}})
        for entry in self.http.document(response).get("files", []):
            yield str(entry["path"]), bool(entry.get("is_dir")), int(entry.get("file_size") or 0)


def _walk(entries: Callable[[str], Iterable[tuple[str, bool, int]]]) -> list[tuple[str, int]]:
    """The path and size of every file of a store. entries: name, size and whether it is a folder, of all in one folder."""
    files: list[tuple[str, int]] = []
    folders = [""]
    count = 0
    while folders:
        folder = folders.pop()
        for name, is_folder, size in entries(folder):
            path = f"{folder}/{_checked(name or '.')}".removeprefix("/")
            if is_folder:
                folders.append(path)
            else:
                files.append((path, size))
            count += 1
            if count > ENTRIES:
                raise NoFiles(f"the store lists more than {ENTRIES} files and folders")
    if not files:
        raise NoFiles("there are no files")
    return files


def _checked(path: str) -> str:
    """A path below the folder that it is joined to; a server does not choose where files are written. One file has one path."""
    parts = PurePosixPath(path).parts
    if path and (".." in parts or path != "/".join(parts) or path.startswith("/") or "\\" in path or "\0" in path):
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


def _on_s3(client: Any, uri: str) -> list[tuple[str, int, dict[str, str]]]:
    """Every file's path below `uri`, its size, and the request that reads it as it is listed."""
    bucket, root = _bucket_and_key(uri)
    prefix = f"{root}/" if root else ""
    files = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **_owner()):
        for entry in page.get("Contents", []):
            path = entry["Key"].removeprefix(prefix)
            if path and not path.endswith("/"):  # else it is a folder's marker
                request = {"Bucket": bucket, "Key": entry["Key"], "IfMatch": entry["ETag"], **_owner()}
                files.append((_checked(path), entry["Size"], request))
    if not files:
        raise NoFiles("there are no files")
    return files


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
