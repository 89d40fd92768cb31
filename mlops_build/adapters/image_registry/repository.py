"""A repository of an image registry: manifests and blobs, by the OCI Distribution API."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlops_build.adapters.image_registry.answer import LoginNeeded, RefusedByRegistry
from mlops_build.errors import UsageError

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REFERENCE = re.compile(rf"{DIGEST.pattern}|[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}")
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"(?:\[[0-9a-fA-F:]+\]|{LABEL}(?:\.{LABEL})*)(?::[0-9]{{1,5}})?")
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
PATH = re.compile(rf"{PART}(?:/{PART})*")
# OCI's and docker's formats of an image, and their lists of images for several platforms.
MEDIA_TYPES = [f"application/vnd.oci.image.{kind}.v1+json" for kind in ("manifest", "index")]
MEDIA_TYPES += [f"application/vnd.docker.distribution.{kind}.v2+json" for kind in ("manifest", "manifest.list")]
MOST_BYTES = 4 << 20
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)


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
        from mlops_build.adapters.image_registry.connection import Connection  # it imports requests

        self.name, self.sources = name, sources
        host, path = _split(name)
        self._connection = Connection(host, path, [path for other, path in map(_split, sources) if other == host], sleep)

    def manifest(self, reference: str) -> Manifest | None:
        """A manifest by tag or digest; None if there is none."""
        action = f"read manifest {_checked(reference)} of {self.name}"
        headers = {"Accept": ", ".join(MEDIA_TYPES)}
        answer = self._connection.send("GET", f"manifests/{reference}", action, (200, 404), headers=headers, limit=MOST_BYTES)
        if answer.status == 404:
            return None
        digest = _digest(answer.body)
        self._connection.confirms(digest, answer, action)
        if DIGEST.fullmatch(reference) and digest != reference:
            raise self._connection.wrong(f"sent content of {digest}", action)
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
        if media_type not in MEDIA_TYPES:  # such as the HTML of a proxy's login page
            raise self._connection.wrong(f"sent {media_type[:100]!r}, which is not a manifest", action)
        return Manifest(digest, media_type, answer.body)

    def put_manifest(self, reference: str, media_type: str, body: bytes) -> str:
        """Store a manifest under a tag or its digest; returns the digest. Its blobs must be stored."""
        action = f"store manifest {_checked(reference)} in {self.name}"
        answer = self._connection.send("PUT", f"manifests/{reference}", action, (201,), headers={"Content-Type": media_type}, body=body)
        digest = _digest(body)
        if not self._connection.confirms(digest, answer, action) and self.manifest(digest) is None:
            raise self._connection.wrong("does not have what it accepted", action)
        return digest

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        return self._has(digest, once=False)

    def read_blob(self, digest: str) -> bytes:
        """A blob of at most 4 MiB, such as an image's configuration."""
        action, address = f"read blob {_checked(digest)} of {self.name}", f"blobs/{digest}"
        for _ in range(MOST_REDIRECTS):
            answer = self._connection.send("GET", address, action, (200, *REDIRECTS), limit=MOST_BYTES)
            if answer.status == 200:
                if _digest(answer.body) != digest:
                    raise self._connection.wrong(f"sent content of {_digest(answer.body)}", action)
                return answer.body
            address = self._connection.location(answer, action)
        raise self._connection.wrong(f"redirects more than {MOST_REDIRECTS} times", action)

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
            self._connection.cancel(self._connection.location(answer, action))
        return answer.status == 201

    def upload(
        self, digest: str, size: int, content: Callable[[int], Iterator[bytes]], progress: Callable[[int], None] | None = None
    ) -> None:
        """Store a blob. content(offset) yields its bytes from there; errors that it raises are passed on.

        progress(bytes) is called with the bytes of the blob that are sent, which are fewer again after a failure. An upload that breaks is
        continued where the registry can tell what it has. Raises Failed for content of another size.
        """
        from mlops_build.adapters.image_registry.upload import Upload

        action = f"store blob {_checked(digest)} in {self.name}"
        Upload(self._connection, action, digest, size, content, progress, lambda: self._has(digest, once=True)).run()

    def check_push(self) -> None:
        """Start an upload and cancel it, to see whether a push is accepted; a single try."""
        from mlops_build.adapters.image_registry.upload import start

        self._connection.cancel(start(self._connection, f"accept a push to {self.name}"))

    def _has(self, digest: str, *, once: bool) -> bool:
        action = f"look for blob {_checked(digest)} in {self.name}"
        # A redirect leads to a storage that has the blob.
        return self._connection.send("HEAD", f"blobs/{digest}", action, (200, 302, 307, 404), once=once).status != 404


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
