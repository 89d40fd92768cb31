"""`ci image`: the image of every environment's release record is in the registry, and its digest stands on the model version.

Level-triggered: what is there is not built again, so it can run at every commit, and twice.
"""

import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlops_build import service as service_file
from mlops_build.ci import builder
from mlops_build.ci.builder import Builder
from mlops_build.ci.engine import BuildFailed
from mlops_build.errors import Refused
from mlops_build.git.repository import Checkout
from mlops_build.model.identity import DIGEST, IMAGE, IMAGE_NAME
from mlops_build.packaging import context, recipe
from mlops_build.packaging.name import image_name
from mlops_build.registry import Registry, tracking_uri
from mlops_build.release import record as records
from mlops_build.release.record import Record
from mlops_build.service import Service

# A folder of wheels on the agent: a build without a package index (`package --wheelhouse`).
WHEELHOUSE = "MLOPS_BUILD_WHEELHOUSE"
# What a build leaves, ignored by Git. RELEASE is what a deployment takes: the commit's files, and DOCUMENT in the same place among them.
# One file, so that a digest cannot get apart from the record it belongs to (as a variable of the build could).
FOLDER, DOCUMENT, RELEASE = "build", "image-digests.json", "release.tar"


class OtherName(Refused):
    """The record names another image than service.yaml and this mlops-build make."""


class OtherImage(Refused):
    """The registry holds another image under a name than the one that was built as it."""


@dataclass
class Image:
    """One image. reference: `repository@sha256:…`, what is deployed. built: by this run."""

    image: str
    record: Record
    environments: list[str] = field(default_factory=list)
    reference: str = ""
    built: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "reference": self.reference,
            "built": self.built,
            "environments": self.environments,
            "models": [asdict(model) for model in self.record.models],
        }


def run(root: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Build and push what the release records in the working tree name, where it is absent. Returns {"images": [...]}.

    Raises OtherName, OtherImage, EngineUnreachable and what packaging and the builder raise. Nothing released is nothing to do.
    """
    service = service_file.load(root)
    images = _named(root, service)
    if not images:
        say("image: nothing is released yet")
    if images:
        registry, chosen = Registry(tracking_uri(root)), builder.choose()
        for image in images:
            _settle(root, service, registry, chosen, image, say)
    _write_results(root, images)
    _write_release(root, say)
    return {"images": [image.as_json() for image in images]}


def reference(image: str, digest: str) -> str:
    """`repository@sha256:…` of a tag."""
    return f"{image.rpartition(':')[0]}@{digest}"


def noted(registry: Registry, record: Record) -> str | None:
    """The reference that `ci image` wrote onto the record's first model; None where it stands for another image, or for none.

    Anybody who may write to MLflow may write a tag, so only a digest in the record's own repository counts.
    """
    first = record.models[0]
    tags = registry.version(first.name, first.version).tags
    return _fitting(record, tags.get(IMAGE_NAME), tags.get(IMAGE))


def carried(root: Path, record: Record) -> str | None:
    """The reference that the build of this release wrote beside the record; None where it built another image, or where there is none."""
    try:
        document = json.loads((root / FOLDER / DOCUMENT).read_text())
        found = {str(one["image"]): one["reference"] for one in document["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _fitting(record, record.image, found.get(str(record.image)))


def _fitting(record: Record, name: object, found: object) -> str | None:
    repository, _, digest = str(found).partition("@")
    fits = name == record.image and repository == str(record.image).rpartition(":")[0]
    return str(found) if fits and DIGEST.fullmatch(digest) else None


def _named(root: Path, service: Service) -> list[Image]:
    """One Image for each name in the records, in the order of service.yaml's environments."""
    images: dict[str, Image] = {}
    for env in service.environments:
        if not (root / records.folder(env)).is_dir():
            continue
        record = records.read(root, env)
        if not record.models or record.image is None:
            continue
        computed = image_name(service, record.models)
        if computed != record.image:
            raise OtherName(
                f"the record of {env} names {record.image}, but service.yaml and this mlops-build make {computed}",
                remedy=f"write the record anew: mlops-build release {env} (or wait for the bridge), with the mlops-build that CI has",
            )
        images.setdefault(computed, Image(computed, record)).environments.append(env)
    return list(images.values())


def _settle(root: Path, service: Service, registry: Registry, chosen: Builder, image: Image, say: Callable[[str], None]) -> None:
    before = noted(registry, image.record)
    digest = chosen.digest_of(image.image)
    if digest is None:
        digest = _build(root, service, registry, chosen, image, say)
        before = None
    image.reference = reference(image.image, digest)
    if before is not None and before != image.reference:
        raise OtherImage(
            f"{image.image} is {digest} in the registry, but was built as {before.partition('@')[2]}: the tag was moved",
            remedy="find out who pushed it; delete the tag from the image registry, and `ci image` builds it again",
        )
    if before is None:
        first = image.record.models[0]
        registry.set_tag(first.name, first.version, IMAGE_NAME, image.image)
        registry.set_tag(first.name, first.version, IMAGE, image.reference)
    say(f"image: {image.image} {'built' if image.built else 'is there'}, {digest}")


def _build(root: Path, service: Service, registry: Registry, chosen: Builder, image: Image, say: Callable[[str], None]) -> str:
    say(f"image: {image.image} is absent; building it with {chosen.check_engine()}")
    (root / FOLDER).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root / FOLDER, prefix="image-") as scratch:
        folder = Path(scratch) / "context"
        sources = context.from_registry(registry, image.record.models)
        house = os.environ.get(WHEELHOUSE)
        context.write_context(recipe.of_service(service), image.image, sources, folder, house=Path(house) if house else None)
        chosen.build(folder, image.image)
    chosen.push(image.image)
    image.built = True
    digest = chosen.digest_of(image.image)
    if digest is None:
        raise BuildFailed(f"{image.image} was pushed, but its registry does not know it", remedy="check image.registry in service.yaml")
    return digest


def _write_results(root: Path, images: Sequence[Image]) -> None:
    (root / FOLDER).mkdir(exist_ok=True)
    document = {"schema": 1, "images": [image.as_json() for image in images]}
    (root / FOLDER / DOCUMENT).write_text(json.dumps(document, indent=1) + "\n")


def _write_release(root: Path, say: Callable[[str], None]) -> None:
    """RELEASE: what is committed, as it is committed, and the digests of its images."""
    checkout = Checkout.find(root)
    head = checkout.head() if checkout else None
    if checkout is None or head is None:
        say(f"image: this is no Git checkout, so there is no {FOLDER}/{RELEASE}")
        return
    with tempfile.TemporaryDirectory(dir=root / FOLDER, prefix="release-") as scratch:
        made = Path(scratch) / RELEASE
        made.write_bytes(checkout.archive(head))
        with tarfile.open(made, "a") as archive:
            archive.add(root / FOLDER / DOCUMENT, f"{FOLDER}/{DOCUMENT}")
        made.replace(root / FOLDER / RELEASE)
    say(f"image: {FOLDER}/{RELEASE} is commit {head[:12]} with its digests")
