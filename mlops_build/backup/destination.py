"""The place of the backups: objects/ has every content once, by its SHA-256; backups/ the manifests; running/ who writes at this time."""

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject
from mlops_build.backup import manifest
from mlops_build.backup.manifest import Manifest, Tampered
from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.model.files import file_digest

MOST_RUNNING_MS = 6 * 3_600_000  # an older marker is that of a killed backup
PRUNING_MS = 60_000  # the same for a deletion, which renews its marker more often
RENEW_SECONDS = 20.0
PRUNE = "running/prune-"
AGAIN = "delete this object and back up again, which copies it if the registry still has it; or use another copy of the backups"


class Destination:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.secret = manifest.key()
        self._renewed = 0.0

    def held(self) -> Iterator[StoredObject]:
        """Every object; its name is its SHA-256."""
        return (entry for entry in self.place.objects("objects") if manifest.SHA256.fullmatch(entry.path.rpartition("/")[2]))

    def put(self, file: Path, sha256: str) -> None:
        """Store a file whose SHA-256 this is, and read it back."""
        self.place.put(_path(sha256), file)
        with self.opened(sha256):
            pass

    @contextlib.contextmanager
    def opened(self, sha256: str) -> Iterator[Path]:
        """A file with this content. Raises Tampered if it is another one."""
        with self.place.opened(_path(sha256)) as file:
            if (actual := file_digest(file)) != sha256:
                raise Tampered(f"{self.place.shown(_path(sha256))} has another content: its SHA-256 is {actual}", remedy=AGAIN)
            yield file

    def wrong(self, sha256: str) -> Tampered | None:
        """Why an object does not have this content; None if it does."""
        try:
            with self.opened(sha256):
                return None
        except Tampered as error:
            return error

    def names(self) -> list[str]:
        """The backups, oldest first."""
        names = (entry.path.rpartition("/")[2].removesuffix(".json") for entry in self.place.objects("backups"))
        return sorted(name for name in names if manifest.ID.fullmatch(name))

    def manifest(self, name: str | None = None) -> Manifest:
        """That of a backup, or of the newest one. Raises NotFound and Tampered."""
        names = self.names()
        chosen = name or (names[-1] if names else "")
        if chosen not in names:
            raise NotFound(
                f"{self.place.uri} has no backup {name!a}" if name else f"{self.place.uri} has no backup",
                remedy=f"mlops-build backup {self.place.uri} --list" if names else f"mlops-build backup {self.place.uri}",
            )
        try:
            content = self.place.read(f"backups/{chosen}.json", manifest.MOST_BYTES)
        except Failed as error:
            raise Tampered(error.message, remedy="delete it, or use another backup") from None
        return manifest.read(content, chosen, self.secret)

    def save(self, made: Manifest) -> None:
        self._put(f"backups/{made.id}.json", manifest.written(made, self.secret))

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Say that a backup is being written, so that no object is deleted; wait for a deletion that had begun before."""
        self._put(f"running/{name}", name.encode())
        try:
            end = time.monotonic() + 2 * PRUNING_MS / 1000
            while any(path.startswith(PRUNE) for path, _ in self._markers(name)):
                if time.monotonic() > end:
                    raise Refused(f"old backups in {self.place.uri} are being deleted", remedy="run it again later")
                time.sleep(1)
                self._put(f"running/{name}", name.encode())
            yield
        finally:
            with contextlib.suppress(NoPlace):  # an error before it is the one to report
                self.place.delete(f"running/{name}")

    @contextlib.contextmanager
    def pruning(self) -> Iterator[tuple[str, list[str]]]:
        """Say that objects are being deleted. The values: the marker of this, and the other markers, while which none may be deleted."""
        marker = f"{PRUNE}{secrets.token_hex(4)}"
        self._renewed = 0.0
        self.renew(marker)
        try:
            yield marker, [path.rpartition("/")[2] for path, _ in self._markers(marker.rpartition("/")[2])]
        finally:
            self.place.delete(marker)

    def renew(self, marker: str) -> None:
        """Make a marker new again, if it is old enough for that."""
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            self._put(marker, b"")
            self._renewed = time.monotonic()

    def _markers(self, own: str) -> list[tuple[str, int]]:
        """The other markers, and how much older than the own one they are, in ms of the store's clock; without those that are too old."""
        found = {entry.path: entry.modified_ms for entry in self.place.objects("running")}
        now = found.pop(f"running/{own}", 0)
        ages = {path: now - modified for path, modified in found.items()}
        return [(path, age) for path, age in ages.items() if age < (PRUNING_MS if path.startswith(PRUNE) else MOST_RUNNING_MS)]

    def _put(self, path: str, content: bytes) -> None:
        descriptor, name = tempfile.mkstemp(prefix="mlops-build-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            self.place.put(path, Path(name))
        finally:
            Path(name).unlink()


def _path(sha256: str) -> str:
    return f"objects/{sha256[:2]}/{sha256}"
