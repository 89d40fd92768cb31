"""An image in a registry to which layers are added: its manifest and configuration (OCI's image specification 1.1, Docker's schema 2)."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field

from mlops_build.adapters.image_registry import Manifest, Repository
from mlops_build.errors import Refused
from mlops_build.model.identity import DIGEST
from mlops_build.packaging.layer import Hashed, Hashing, Layer

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
# The kinds of manifests, and the type of an uncompressed layer in each.
LAYERS = {
    "application/vnd.oci.image.manifest.v1+json": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.distribution.manifest.v2+json": "application/vnd.docker.image.rootfs.diff.tar",
}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
CREATED = "1980-01-01T00:00:00Z"  # of added layers: the time of a build would give each agent another digest
MIB = 1 << 20
PROGRESS_SECONDS = 5.0
MOST_LAYERS = 127  # of overlayfs


Digest = Annotated[str, Field(pattern=f"^{DIGEST.pattern}$")]


class _Descriptor(BaseModel):
    digest: Digest
    size: Annotated[int, Field(ge=0)]


class _Manifest(BaseModel):
    """What is used of an image's manifest."""

    config: _Descriptor
    layers: list[_Descriptor]


class _Settings(BaseModel):
    Env: list[str] | None = None
    Labels: dict[str, str] | None = None


class _Filesystem(BaseModel):
    diff_ids: list[Digest]


class _Config(BaseModel):
    """What is used of an image's configuration."""

    os: str
    architecture: str
    config: _Settings
    rootfs: _Filesystem
    history: list[dict[str, Any]] | None = None


class _OtherContent(Exception):
    """A layer has another digest than expected."""


class NotAnImage(Refused):
    """An image in the registry cannot be added to."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}", remedy="delete this tag from the image registry, and run `mlops-build ci image` again")


@dataclass
class Appended:
    """An image with added layers. say: receives a line for each layer. sent: bytes that the registry did not have."""

    repository: Repository
    kind: str
    manifest: dict[str, Any]
    config: dict[str, Any]
    say: Callable[[str], None]
    sent: int = 0

    @classmethod
    def onto(cls, repository: Repository, base: Manifest, name: str, say: Callable[[str], None], for_platform: str | None) -> "Appended":
        """Begin with the image `base`, which is called `name`. for_platform: which image of an index. Raises NotAnImage."""
        wanted = for_platform or f"linux/{MACHINES.get(platform.machine(), platform.machine())}"
        try:
            if base.media_type in INDEXES:
                digest = _of_platform(_read(base.body), wanted)
                chosen = repository.manifest(digest)
                if chosen is None:
                    raise NotAnImage(name, f"the image {digest} of its index does not exist")
                base = chosen
            document = _read(base.body)
            _Manifest.model_validate(document)
            config = _read(repository.read_blob(document["config"]["digest"]))
            _Config.model_validate(config)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise NotAnImage(name, f"its manifest or configuration is not valid ({type(error).__name__})") from None
        if base.media_type not in LAYERS or len(config["rootfs"]["diff_ids"]) != len(document["layers"]):
            raise NotAnImage(name, f"it is not an image with layers, but {base.media_type[:100]}")
        if (built := f"{config['os']}/{config['architecture']}") != wanted:
            raise NotAnImage(name, f"it is for {built[:50]}, and not for {wanted}")
        return cls(repository, base.media_type, document, config, say)

    def add(self, label: str, layer: Layer, expected: str | None = None) -> Hashed:
        """Add a layer, and send it if the registry does not have it. Raises the errors of the registry and of the layer's files.

        expected: its digest, as its origin says. Then it is read once to be sent, instead of once to be hashed and once to be sent.
        """
        before, hashed = self.sent, self._sent_once(label, layer, expected)
        if hashed is None:
            hashed = layer.hashed()
            if not self._has(hashed.digest):
                self.repository.upload(hashed.digest, layer.size, layer.content, self._progress(label, layer.size))
                self.sent += layer.size
        self.say(f"image: {label}: {mib(layer.size)} {'sent' if self.sent > before else 'already there'}")
        if len(self.manifest["layers"]) == MOST_LAYERS:
            raise NotAnImage(self.repository.name, f"with it, the image has over {MOST_LAYERS} layers")
        self.manifest["layers"].append({"mediaType": LAYERS[self.kind], "digest": hashed.digest, "size": layer.size})
        self.config["rootfs"]["diff_ids"].append(hashed.digest)
        self.config["history"] = self.config.get("history") or []
        self.config["history"].append({"created": CREATED, "created_by": f"mlops-build: {label}"})
        return hashed

    def _sent_once(self, label: str, layer: Layer, expected: str | None) -> Hashed | None:
        """Hash a layer while it is sent; None if the registry has it, or if its digest is another one."""
        if expected is None or self._has(expected):
            return None
        hashing = Hashing(layer)

        def content(offset: int) -> Iterator[bytes]:
            yield from hashing.content(offset)
            if hashing.result.digest != expected:
                raise _OtherContent

        try:
            self.repository.upload(expected, layer.size, content, self._progress(label, layer.size))
        except _OtherContent:
            return None
        self.sent += layer.size
        return hashing.result

    def _has(self, digest: str) -> bool:
        """Whether the repository has a layer, or has taken it over from another one."""
        return self.repository.has_blob(digest) or any(self.repository.mount(digest, source) for source in self.repository.sources)

    def _progress(self, label: str, size: int) -> Callable[[int], None]:
        """Says how much is sent, every few seconds."""
        last, before = time.monotonic(), 0

        def progress(sent: int) -> None:
            nonlocal last, before
            if sent < before:
                self.say(f"image: {label}: interrupted after {mib(before)}; goes on")
            before = sent
            if time.monotonic() - last >= PROGRESS_SECONDS:
                last = time.monotonic()
                self.say(f"image: {label}: {mib(sent)} of {mib(size)}")

        return progress

    def put(self, tag: str, labels: Mapping[str, str], variables: Mapping[str, str]) -> str:
        """Name the image, and return its digest. labels, variables: of the image, besides those of the base.

        A name that another agent has written meanwhile stays: its environment image can be another build of the same.
        """
        settings = self.config["config"]
        settings["Labels"] = {**(settings.get("Labels") or {}), **labels}
        settings["Env"] = [*(settings.get("Env") or []), *(f"{name}={value}" for name, value in variables.items())]
        body = _canonical(self.config)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if not self.repository.has_blob(digest):
            self.repository.upload(digest, len(body), lambda offset: iter([body[offset:]]))
            self.sent += len(body)
        self.manifest["config"] = {**self.manifest["config"], "digest": digest, "size": len(body)}
        manifest = _canonical({key: value for key, value in self.manifest.items() if key != "annotations"})
        if meanwhile := self.repository.manifest(tag):
            return meanwhile.digest
        self.sent += len(manifest)
        return self.repository.put_manifest(tag, self.kind, manifest)


def blobs(image: Manifest) -> list[str]:
    """The digests of an image's configuration and layers. Raises NotAnImage for an index, and for what is not an image."""
    try:
        manifest = _Manifest.model_validate(_read(image.body))
        return [each.digest for each in (manifest.config, *manifest.layers)]
    except (ValueError, RecursionError):
        raise NotAnImage(image.digest, "it is not an image for a single platform") from None


def _of_platform(index: Any, wanted: str) -> str:
    """The digest of the image for a platform (linux/amd64)."""
    for entry in index["manifests"]:
        described = entry.get("platform") or {}
        if f"{described.get('os')}/{described.get('architecture')}" == wanted:
            return str(entry["digest"])
    raise LookupError(wanted)


def _read(body: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN: it would be written again, and is not JSON

    return json.loads(body, parse_constant=refuse)


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def mib(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / MIB:.2f} MiB" if size < MIB else f"{size / MIB:.0f} MiB"
