"""The place that an address names."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from mlops_build.adapters.storage.place import Place, file_path
from mlops_build.errors import UsageError

SCHEME = re.compile(r"[A-Za-z0-9+.-]*:/")


def place(uri: str, endpoint_url: str | None = None) -> Place:
    """The place at a path, `file:///…`, `s3://BUCKET/PREFIX` or `swift://CONTAINER/PREFIX`. No list and no file is read yet.

    endpoint_url: of an S3 gateway (default: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else Amazon). Raises UsageError for another address,
    and NoPlace for a path that cannot exist.
    """
    scheme, _, rest = uri.partition("://")
    path = file_path(uri)
    if _can_be(path or uri) and (path or not SCHEME.match(uri)):
        return _folder(Path(path or uri))
    bucket, _, prefix = rest.partition("/")
    makers: dict[str, Callable[[], Place]] = {
        "s3": lambda: _s3(bucket, prefix.strip("/"), endpoint_url),
        "swift": lambda: _swift(bucket, prefix.strip("/")),
    }
    if scheme not in makers or not bucket:
        raise UsageError(f"{uri[:200]!r} is not a place for files", remedy="write a path, s3://BUCKET/PREFIX or swift://CONTAINER/PREFIX")
    return makers[scheme]()


def _can_be(path: str) -> bool:
    try:
        return bool(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def folder(uri: str, endpoint_url: str | None = None) -> Place:
    """A place that is not a single file: what is beside a file is not meant. Raises UsageError and NoPlace."""
    named = place(uri, endpoint_url)
    if not named.lists_all:
        raise UsageError(f"{uri[:200]!r} is a file", remedy="give a folder, s3://BUCKET/PREFIX or swift://CONTAINER/PREFIX")
    return named


def _folder(path: Path) -> Place:
    from mlops_build.adapters.storage.folder import Folder

    return Folder(path)


def _s3(bucket: str, prefix: str, endpoint_url: str | None) -> Place:
    from mlops_build.adapters.storage.s3 import S3

    return S3(bucket, prefix, endpoint_url)


def _swift(container: str, prefix: str) -> Place:
    from mlops_build.adapters.storage.swift import Swift

    return Swift(container, prefix)
