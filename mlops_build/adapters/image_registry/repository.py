"""A repository of an image registry: manifests and blobs, by the OCI Distribution API."""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

from mlops_build.adapters.image_registry.answer import Answer, ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry
from mlops_build.errors import Failed, UsageError

if TYPE_CHECKING:
    from mlops_build.adapters.image_registry.connection import Tries

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REFERENCE = re.compile(rf"{DIGEST.pattern}|[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}")
HOST = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
PATH = re.compile(rf"{PART}(?:/{PART})*")
# OCI's and docker's formats of an image, and their lists of images for several platforms.
MEDIA_TYPES = ", ".join(
    [f"application/vnd.oci.image.{kind}.v1+json" for kind in ("manifest", "index")]
    + [f"application/vnd.docker.distribution.{kind}.v2+json" for kind in ("manifest", "manifest.list")]
)
MOST_BYTES = 4 << 20
# The registry reads a blob again, or moves it in its storage, before it answers that the blob is complete.
COMPLETE_SECONDS = 300.0
CANCEL_SECONDS = 15.0
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Manifest:
    """digest: the SHA-256 of the body ("sha256:…"). media_type: the registry's Content-Type."""

    digest: str
    media_type: str
    body: bytes


class _Forgotten(ImageRegistryUnreachable):
    """The registry does not know the upload, or what it has of it."""


class Repository:
    """One repository of an image registry, such as Repository("registry.example.com/ml/points"). For one thread.

    Only loopback hosts are used without TLS. Every method raises ImageRegistryUnreachable, LoginNeeded and RefusedByRegistry.
    """

    def __init__(self, name: str, *, sources: Sequence[str] = (), sleep: Callable[[float], None] = time.sleep) -> None:
        """sources: repositories from which blobs are mounted. sleep: waits before another try. Raises UsageError for a wrong name."""
        from mlops_build.adapters.image_registry.connection import Connection  # it imports requests

        self.name = name
        self._host, path = _split(name)
        paths = [path for host, path in map(_split, sources) if host == self._host]
        self._connection = Connection(self._host, path, paths, sleep)

    def manifest(self, reference: str) -> Manifest | None:
        """A manifest by tag or digest; None if there is none."""
        action = f"read manifest {_checked(reference)} of {self.name}"
        headers = {"Accept": MEDIA_TYPES}
        answer = self._connection.send("GET", f"manifests/{reference}", action, (200, 404), headers=headers, limit=MOST_BYTES)
        if answer.status == 404:
            return None
        digest = _digest(answer.body)
        self._confirm(digest, answer, action)
        if DIGEST.fullmatch(reference) and digest != reference:
            raise self._wrong(f"sent content of {digest}", action)
        return Manifest(digest, answer.headers.get("content-type", "").partition(";")[0].strip(), answer.body)

    def put_manifest(self, reference: str, media_type: str, body: bytes) -> str:
        """Store a manifest under a tag or its digest; returns the digest. Its blobs must be stored."""
        action = f"store manifest {_checked(reference)} in {self.name}"
        answer = self._connection.send("PUT", f"manifests/{reference}", action, (201,), headers={"Content-Type": media_type}, body=body)
        digest = _digest(body)
        if not self._confirm(digest, answer, action) and self.manifest(digest) is None:
            raise self._wrong("does not have what it accepted", action)
        return digest

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        return self._has(digest, self._connection.tries())

    def read_blob(self, digest: str) -> bytes:
        """A blob of at most 4 MiB, such as an image's configuration."""
        action = f"read blob {_checked(digest)} of {self.name}"
        address = f"blobs/{digest}"
        for _ in range(MOST_REDIRECTS):
            answer = self._connection.send("GET", address, action, (200, *REDIRECTS), limit=MOST_BYTES)
            if answer.status == 200:
                if _digest(answer.body) != digest:
                    raise self._wrong(f"sent content of {_digest(answer.body)}", action)
                return answer.body
            address = self._location(address, answer, action)
        raise self._wrong(f"redirects more than {MOST_REDIRECTS} times", action)

    def mount(self, digest: str, source: str) -> bool:
        """Take a blob over from another repository, without sending it. False if the registry does not do that, or has no such blob."""
        action = f"mount blob {_checked(digest)} of {source}"
        host, path = _split(source)
        if host != self._host:
            return False
        address = f"blobs/uploads/?mount={digest}&from={quote(path, safe='/')}"
        try:
            answer = self._connection.send("POST", address, action, (201, 202), body=b"")
        except (LoginNeeded, RefusedByRegistry):
            return False  # of the source; if it is about this repository, the upload that follows has the same answer
        if answer.status == 202 and "location" in answer.headers:
            self._cancel(self._location(address, answer, action))
        return answer.status == 201

    def upload(
        self, digest: str, size: int, content: Callable[[int], Iterator[bytes]], progress: Callable[[int], None] | None = None
    ) -> None:
        """Store a blob. content(offset) yields its bytes from there; errors that it raises are passed on.

        progress(bytes) is called with the bytes of the blob that are sent, which are fewer again after a failure. An upload that breaks is
        continued where the registry can tell what it has. Raises Failed for content of another size.
        """
        action = f"store blob {_checked(digest)} in {self.name}"
        tries, where, offset, furthest = self._connection.tries(), "", 0, 0
        is_again = False
        while True:
            try:
                if where and is_again:
                    where, offset = self._position(where, size, action)
                elif is_again and self._has(digest, None):  # a lost answer was that the blob is complete
                    return
                if not where:
                    where, offset = self._start(action), 0
                if offset > furthest:
                    furthest = offset
                    tries.renew()
                if offset < size:
                    where = self._send_rest(where, digest, offset, size, content, progress, action)
                self._complete(where, digest, action)
                return
            except _Forgotten as error:
                where = ""
                tries.failed(error)
            except ImageRegistryUnreachable as error:
                tries.failed(error)
            except Exception:
                if where:
                    self._cancel(where)
                raise
            is_again = True

    def check_push(self) -> None:
        """Start an upload and cancel it, to see whether a push is accepted; a single try."""
        self._cancel(self._start(f"accept a push to {self.name}"))

    def _has(self, digest: str, tries: "Tries | None") -> bool:
        # A redirect leads to a storage that has the blob.
        send = self._connection.send if tries else self._connection.once
        answer = send("HEAD", f"blobs/{_checked(digest)}", f"look for blob {digest} in {self.name}", (200, 302, 307, 404))
        return answer.status != 404

    def _start(self, action: str) -> str:
        """The address of a new upload."""
        answer = self._connection.once("POST", "blobs/uploads/", action, (202,), body=b"")
        return self._location("blobs/uploads/", answer, action)

    def _position(self, where: str, size: int, action: str) -> tuple[str, int]:
        """Where an upload goes on: its address, and the bytes that the registry has. Raises _Forgotten."""
        answer = self._connection.once("GET", where, action, range(200, 500))
        # "0-0" can mean nothing, or one byte; a registry that has one refuses the offset 0 then.
        has = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,15})", answer.headers.get("range", ""))
        if answer.status != 204 or not has or int(has[1]) >= size:
            raise self._forgotten(action)
        where = self._location(where, answer, action) if "location" in answer.headers else where
        return where, int(has[1]) + 1 if int(has[1]) else 0

    def _send_rest(
        self,
        where: str,
        digest: str,
        offset: int,
        size: int,
        content: Callable[[int], Iterator[bytes]],
        progress: Callable[[int], None] | None,
        action: str,
    ) -> str:
        """Send the blob from an offset; returns the address at which the upload goes on."""
        from mlops_build.adapters.image_registry.connection import Body

        def chunks() -> Iterator[bytes]:
            sent = offset
            for chunk in content(offset):
                if sent + len(chunk) > size:
                    raise Failed(f"the content of {digest} is longer than {size} bytes", remedy="run this again, and check the source")
                yield chunk
                sent += len(chunk)
                if progress:
                    progress(sent)
            if sent < size:
                raise Failed(f"the content of {digest} ended after {sent} of {size} bytes", remedy="run this again, and check the source")

        headers = {**OCTETS, **({"Content-Range": f"{offset}-{size - 1}"} if offset else {})}
        expected = (200, 201, 202, 204, 404, 416)
        answer = self._connection.once("PATCH", where, action, expected, headers=headers, body=Body(size - offset, chunks))
        if answer.status in (200, 404, 416):  # docker's registry cancels an upload that it cannot continue, and answers 200
            raise self._forgotten(action)
        return self._location(where, answer, action) if "location" in answer.headers else where

    def _complete(self, where: str, digest: str, action: str) -> None:
        address = f"{where}{'&' if '?' in where else '?'}digest={quote(digest, safe='')}"
        expected = (200, 201, 204, 404, 416)
        answer = self._connection.once("PUT", address, action, expected, headers=OCTETS, body=b"", seconds=COMPLETE_SECONDS)
        if answer.status in (200, 404, 416):
            raise self._forgotten(action)
        self._confirm(digest, answer, action)

    def _cancel(self, where: str) -> None:
        # If that fails, the registry removes the upload later.
        with contextlib.suppress(ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry):
            self._connection.once("DELETE", where, "cancel an upload", range(200, 500), seconds=CANCEL_SECONDS)

    def _location(self, address: str, answer: Answer, action: str) -> str:
        """The address in an answer's Location. address: of the request."""
        if not (location := answer.headers.get("location")):
            raise self._wrong("sent no Location", action)
        base = self._connection.address(f"{self._connection.base}{self._connection.path}/", address)
        return self._connection.address(base, urljoin(base, location))

    def _confirm(self, digest: str, answer: Answer, action: str) -> bool:
        """Whether the registry names the digest. Raises RefusedByRegistry if it names another."""
        named = answer.headers.get("docker-content-digest")
        if named not in (None, digest):
            raise self._wrong(f"names another digest than {digest}", action)
        return named is not None

    def _wrong(self, what: str, action: str) -> RefusedByRegistry:
        return RefusedByRegistry(f"{self._host} {what} ({action})", remedy="see the log of the image registry; a proxy can change answers")

    def _forgotten(self, action: str) -> _Forgotten:
        return _Forgotten(f"{self._host} lost an upload again and again ({action})", remedy="see the log of the image registry")


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
