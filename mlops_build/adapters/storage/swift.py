"""A prefix of a container of Swift, as of OpenStack or Ceph, by python-swiftclient. Read only.

Credentials are those of the `swift` command: ST_AUTH, ST_USER and ST_KEY, or the variables OS_… of Keystone.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject, checked
from mlops_build.errors import UsageError

PAGE = 10_000
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
        with self._translated(path):
            _, body = self._client.get_object(self._container, self._name(path), resp_chunk_size=CHUNK)
            for chunk in body:
                content += chunk
                if len(content) > most:
                    raise self.too_large(path, most)
        return content

    def save(self, path: str, destination: Path) -> None:
        with self._translated(path), destination.open("wb") as file:
            _, body = self._client.get_object(self._container, self._name(path), resp_chunk_size=CHUNK)
            for chunk in body:
                file.write(chunk)

    @cached_property
    def _client(self) -> Any:
        from swiftclient import Connection

        if os.environ.get("ST_AUTH"):
            return Connection(
                authurl=os.environ["ST_AUTH"], user=os.environ.get("ST_USER"), key=os.environ.get("ST_KEY"), auth_version="1", timeout=60
            )
        if not os.environ.get("OS_AUTH_URL"):
            raise UsageError(
                f"{self.uri}: there are no credentials for Swift", remedy="set ST_AUTH, ST_USER and ST_KEY; or OS_AUTH_URL and …"
            )
        options = {name: os.environ[f"OS_{name.upper()}"] for name in KEYSTONE if os.environ.get(f"OS_{name.upper()}")}
        return Connection(
            authurl=os.environ["OS_AUTH_URL"],
            user=os.environ.get("OS_USERNAME"),
            key=os.environ.get("OS_PASSWORD"),
            auth_version="3",
            os_options=options,
            timeout=60,
        )

    def _name(self, path: str) -> str:
        return f"{self._prefix}/{checked(path)}".lstrip("/")

    def _object(self, entry: dict[str, Any]) -> StoredObject:
        path = entry["name"][len(self._prefix) :].lstrip("/") if self._prefix else entry["name"]
        modified = datetime.fromisoformat(entry["last_modified"]).replace(tzinfo=UTC)
        return StoredObject(path, int(entry["bytes"]), int(modified.timestamp() * 1000), str(entry.get("hash", "")) or None)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            from swiftclient.exceptions import ClientException
        except ImportError as error:
            raise NoPlace(f"{self.uri}: python-swiftclient is not installed", remedy="pip install 'mlops-build[swift]'") from error
        try:
            yield
        except (ClientException, OSError) as error:
            where = self.shown(path) if path else self.uri
            raise NoPlace(
                f"{where}: {str(error).splitlines()[0][:300]}",
                remedy="check ST_AUTH, ST_USER and ST_KEY (or OS_…), and the container's name",
            ) from error
