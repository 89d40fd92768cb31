"""A repository of an image registry: manifests and blobs, by the OCI Distribution API."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlops_build.adapters.image_registry.answer import ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry
from mlops_build.adapters.image_registry.connection import WAITS, Connection
from mlops_build.errors import Failed, UsageError

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REFERENCE = re.compile(rf"{DIGEST.pattern}|[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}")
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"(?:\[[0-9a-fA-F:]+\]|{LABEL}(?:\.{LABEL})*)(?::[0-9]{{1,5}})?")
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
PATH = re.compile(rf"{PART}(?:/{PART})*")
# OCI's and docker's formats of an image, and their lists of images for several platforms.
MEDIA_TYPES = [f"application/vnd.oci.image.{kind}.v1+json" for kind in ("manifest", "index")]
MEDIA_TYPES += [f"application/vnd.docker.distribution.{kind}.v2+json" for kind in ("manifest", "manifest.list")]
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
# Statuses for an upload that the registry does not know. Docker's registry answers 200 after it has cancelled one that it cannot continue.
FORGOTTEN = (200, 404, 416)


@dataclass(frozen=True)
class Manifest:
    """digest: the SHA-256 of the body ("sha256:…"). media_type: the registry's Content-Type."""

    digest: str
    media_type: str
    body: bytes


class Repository:
    """One repository of an image registry, such as Repository("registry.example.com/ml/points"). For one thread.

    Only loopback hosts are used without TLS. Every method raises ImageRegistryUnreachable, LoginNeeded and RefusedByRegistry.
    """

    def __init__(self, name: str, *, sources: Sequence[str] = (), sleep: Callable[[float], None] = time.sleep) -> None:
        """sources: repositories from which blobs are mounted. sleep: waits before another try.

        Raises UsageError for a wrong name, and ImageRegistryUnreachable for a file of certificates that has none.
        """
        self.name, self.sources = name, sources
        host, path = _split(name)
        self._connection = Connection(host, path, [path for other, path in map(_split, sources) if other == host], sleep)

    def manifest(self, reference: str) -> Manifest | None:
        """A manifest by tag or digest; None if there is none."""
        action = f"read manifest {_checked(reference)} of {self.name}"
        headers = {"Accept": ", ".join(MEDIA_TYPES)}
        answer = self._connection.send("GET", f"manifests/{reference}", action, (200, 404), headers=headers)
        if answer.status == 404:
            return None
        digest = _digest(answer.body)
        answer.confirms(digest)
        if DIGEST.fullmatch(reference) and digest != reference:
            raise answer.wrong(f"sent content of {digest}")
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if media_type not in MEDIA_TYPES:  # such as the HTML of a proxy's login page
            raise answer.wrong(f"sent {media_type[:100]!r}, which is not a manifest")
        return Manifest(digest, media_type, answer.body)

    def put_manifest(self, reference: str, media_type: str, body: bytes) -> str:
        """Store a manifest under a tag or its digest; returns the digest. Its blobs must be stored."""
        action = f"store manifest {_checked(reference)} in {self.name}"
        answer = self._connection.send("PUT", f"manifests/{reference}", action, (201,), headers={"Content-Type": media_type}, body=body)
        digest = _digest(body)
        if not answer.confirms(digest) and self.manifest(digest) is None:
            raise answer.wrong("does not have what it accepted")
        return digest

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        action = f"look for blob {_checked(digest)} in {self.name}"
        # A redirect leads to a storage that has the blob.
        return self._connection.send("HEAD", f"blobs/{digest}", action, (200, *REDIRECTS, 404)).status != 404

    def read_blob(self, digest: str) -> bytes:
        """A blob of at most 4 MiB, such as an image's configuration."""
        action, address = f"read blob {_checked(digest)} of {self.name}", f"blobs/{digest}"
        for _ in range(MOST_REDIRECTS):
            answer = self._connection.send("GET", address, action, (200, *REDIRECTS))
            if answer.status == 200:
                if _digest(answer.body) != digest:
                    raise answer.wrong(f"sent content of {_digest(answer.body)}")
                return answer.body
            address = self._connection.location(answer)
        raise answer.wrong(f"redirects more than {MOST_REDIRECTS} times")

    def mount(self, digest: str, source: str) -> bool:
        """Take a blob over from another repository, without sending it. False if the registry does not do that, or has no such blob."""
        action = f"mount blob {_checked(digest)} of {source}"
        host, path = _split(source)
        if host != self._connection.host:
            return False
        try:
            answer = self._connection.send("POST", f"blobs/uploads/?mount={digest}&from={path}", action, (201, 202), body=b"")
        except (LoginNeeded, RefusedByRegistry):
            return False  # of the source; if it is about this repository, the upload that follows has the same answer
        if answer.status == 202:
            self._connection.cancel(self._connection.location(answer))
        return answer.status == 201

    def upload(
        self, digest: str, size: int, content: Callable[[int], Iterator[bytes]], progress: Callable[[int], None] | None = None
    ) -> None:
        """Store a blob. content(offset) yields its bytes from there; errors that it raises are passed on.

        progress(bytes) is called with the bytes of the blob that are sent, which are fewer again after a failure. An upload that breaks is
        continued where the registry can tell what it has. Raises Failed for content of another size.
        """
        action = f"store blob {_checked(digest)} in {self.name}"
        upload, offset, furthest, waits = self._start(action), 0, 0, iter(WAITS)
        while True:
            try:
                self._put_blob(upload, action, _Rest(digest, size, offset, content, progress))
                return
            except ImageRegistryUnreachable as error:
                self._connection.pause(waits, error)
            except Exception as error:
                self._connection.cancel(upload)
                raise (error.args[0] if isinstance(error, _SourceFailed) else error) from None
            if self.has_blob(digest):  # only the answer was lost
                return
            upload, offset = self._position(upload, action, size)
            if offset > furthest:  # the last try achieved something
                furthest, waits = offset, iter(WAITS)

    def check_push(self) -> None:
        """Start an upload and cancel it, to see whether a push is accepted; a single try."""
        self._connection.cancel(self._start(f"accept a push to {self.name}", once=True))

    def _start(self, action: str, *, once: bool = False) -> str:
        """The address of a new upload."""
        return self._connection.location(self._connection.send("POST", "blobs/uploads/", action, (202,), body=b"", once=once))

    def _put_blob(self, upload: str, action: str, rest: "_Rest") -> None:
        """Send what the registry does not have, and complete the upload."""
        headers = {"Content-Type": "application/octet-stream"}
        if 0 < rest.offset < rest.size:
            headers["Content-Range"] = f"{rest.offset}-{rest.size - 1}"
        address, expected = f"{upload}{'&' if '?' in upload else '?'}digest={rest.digest}", (201, 204, *FORGOTTEN)
        answer = self._connection.send("PUT", address, action, expected, headers=headers, body=rest if len(rest) else b"", once=True)
        if answer.status in FORGOTTEN:
            raise ImageRegistryUnreachable(f"{answer.host} lost an upload ({action})", remedy="see the log of the image registry")
        answer.confirms(rest.digest)

    def _position(self, upload: str, action: str, size: int) -> tuple[str, int]:
        """Where an upload goes on, and the bytes that the registry has; a new upload if it does not know."""
        answer = self._connection.send("GET", upload, action, range(200, 500))
        # "0-0" can mean nothing, or one byte; a registry that has one refuses the offset 0 then.
        has = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,15})", answer.headers.get("Range", "")) if answer.status == 204 else None
        if has is None or int(has[1]) >= max(size, 1):
            return self._start(action), 0
        return self._connection.location(answer) if "Location" in answer.headers else upload, int(has[1]) and int(has[1]) + 1


class _SourceFailed(Exception):
    """An error of a blob's content. urllib3 would take an OSError for one of the connection."""


@dataclass(frozen=True)
class _Rest:
    """The body of a request: a blob from `offset` on, read while it is sent."""

    digest: str
    size: int
    offset: int
    content: Callable[[int], Iterator[bytes]]
    progress: Callable[[int], None] | None

    def __len__(self) -> int:
        return self.size - self.offset

    def __iter__(self) -> Iterator[bytes]:
        sent = self.offset
        try:
            for chunk in self.content(self.offset):
                sent += len(chunk)
                if sent > self.size:
                    break
                yield chunk
                if self.progress:
                    self.progress(sent)
        except Exception as error:
            raise _SourceFailed(error) from None
        if sent != self.size:
            raise Failed(f"the content of {self.digest} does not have {self.size} bytes", remedy="run this again, and check the source")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _checked(reference: str) -> str:
    if not REFERENCE.fullmatch(reference):
        raise UsageError(f"{reference[:100]!r} is not a valid tag or digest of an image", remedy="write a tag, or sha256: and 64 digits")
    return reference


def _split(name: str) -> tuple[str, str]:
    """The host and the path of a repository's name."""
    host, _, path = name.partition("/")
    host = "docker.io" if host == "index.docker.io" else host
    is_host = HOST.fullmatch(host) and ("." in host or ":" in host or host == "localhost")
    if not is_host or not PATH.fullmatch(path) or len(path) > 255:
        raise UsageError(
            f"{name[:100]!r} is not a repository of an image registry", remedy="write HOST/PATH: registry.example.com/ml/points"
        )
    return host, f"library/{path}" if host == "docker.io" and "/" not in path else path
