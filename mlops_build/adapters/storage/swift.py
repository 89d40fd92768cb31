"""A prefix of a container of Swift, as of OpenStack or Ceph, by python-swiftclient. Read only.

Credentials are those of the `swift` command: ST_AUTH, ST_USER and ST_KEY, or the variables OS_… of Keystone.
OS_CACERT is the file of a private CA.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject, checked
from mlops_build.errors import UsageError

PAGE = 10_000
RETRIES = 3  # with waits of 1, 2 and 4 s
# The options of Keystone, and the variables that have them.
KEYSTONE = ("user_domain_name", "project_name", "project_domain_name", "region_name")
CHUNK = 1 << 20


class Swift(Place):
    """The files of a container below a prefix."""

    def __init__(self, container: str, prefix: str) -> None:
        self._container = container
        self._prefix = prefix
        self.uri = f"swift://{container}/{prefix}".rstrip("/")

    def objects(self, below: str = "") -> Iterator[StoredObject]:
        if below:
            checked(below)
        folder = "/".join(part for part in (self._prefix, below) if part)
        marker = ""
        while True:
            with self._translated(below):
                _, entries = self._client.get_container(self._container, prefix=f"{folder}/" if folder else None, marker=marker, limit=PAGE)
            for entry in entries:
                if not entry["name"].endswith("/"):
                    yield self._object(entry)
            if not entries:
                return
            marker = entries[-1]["name"]

    def read(self, path: str, most: int) -> bytes:
        content = b""
        for chunk in self._chunks(path):
            content += chunk
            if len(content) > most:
                raise self.too_large(path, most)
        return content

    def save(self, path: str, destination: Path) -> None:
        with self._translated(path), destination.open("wb") as file:
            for chunk in self._chunks(path):
                file.write(chunk)

    def _chunks(self, path: str) -> Iterator[bytes]:
        """The content, in parts. swiftclient does not notice a response that ends early."""
        with self._translated(path):
            headers, body = self._client.get_object(self._container, self._name(path), resp_chunk_size=CHUNK)
            missing = int(headers["content-length"])
            for chunk in body:
                missing -= len(chunk)
                yield chunk
            if missing:
                raise OSError(f"the response lacks {missing} bytes")

    @cached_property
    def _client(self) -> Any:
        from swiftclient import Connection

        # It logs names as the store sends them, and tracebacks of errors that are translated here.
        logging.getLogger("swiftclient").setLevel(logging.CRITICAL)
        common = {"timeout": 60, "retries": RETRIES, "cacert": os.environ.get("OS_CACERT")}
        if os.environ.get("ST_AUTH"):
            user, key = os.environ.get("ST_USER"), os.environ.get("ST_KEY")
            return Connection(authurl=os.environ["ST_AUTH"], user=user, key=key, auth_version="1", **common)
        if not os.environ.get("OS_AUTH_URL"):
            remedy = "set ST_AUTH, ST_USER and ST_KEY; or OS_AUTH_URL, OS_USERNAME, OS_PASSWORD and OS_PROJECT_NAME"
            raise UsageError(f"{self.uri}: there are no credentials for Swift", remedy=remedy)
        options = {name: os.environ[f"OS_{name.upper()}"] for name in KEYSTONE if os.environ.get(f"OS_{name.upper()}")}
        return Connection(
            authurl=os.environ["OS_AUTH_URL"],
            user=os.environ.get("OS_USERNAME"),
            key=os.environ.get("OS_PASSWORD"),
            auth_version="3",
            os_options=options,
            **common,
        )

    def _name(self, path: str) -> str:
        return f"{self._prefix}/{checked(path)}" if self._prefix else checked(path)

    def _object(self, entry: dict[str, Any]) -> StoredObject:
        path = entry["name"].removeprefix(f"{self._prefix}/") if self._prefix else entry["name"]
        modified = datetime.fromisoformat(entry["last_modified"]).replace(tzinfo=UTC)
        return StoredObject(path, int(entry["bytes"]), int(modified.timestamp() * 1000), str(entry.get("hash", "")) or None)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            from swiftclient.exceptions import ClientException
            from urllib3.exceptions import HTTPError
        except ImportError as error:
            raise NoPlace(f"{self.uri}: python-swiftclient is not installed", remedy="pip install 'mlops-build[swift]'") from error
        try:
            yield
        except (ClientException, HTTPError, OSError) as error:
            where = self.shown(path) if path else self.uri
            raise NoPlace(
                f"{where}: {str(error).splitlines()[0][:300]}",
                remedy="check ST_AUTH, ST_USER and ST_KEY (or OS_…), and the container's name",
            ) from error
