"""`ci image`: make the image of every environment's release record, and write its digest onto the model version.

Existing images are not made again, so it can run at every commit and more than once.
"""

import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlops_build import fleet, tracking
from mlops_build import service as service_file
from mlops_build.adapters.engine.command import BuildFailed
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry import Registry, RegistryUnreachable
from mlops_build.ci import make_image
from mlops_build.ci.make_image import Way
from mlops_build.errors import Failed, MlopsBuildError, NotFound, Refused
from mlops_build.fleet import rules
from mlops_build.model.identity import DIGEST, IMAGE, IMAGE_NAME
from mlops_build.model.version import BadVersion
from mlops_build.packaging.name import image_name, is_valid
from mlops_build.release import image_time
from mlops_build.release import record as records
from mlops_build.release.record import Record
from mlops_build.service import Service

# The results of a build, ignored by Git. A deployment uses RELEASE: the commit's files, and DOCUMENT at the same path among them. It is a
# single file, so that a digest is always together with its record.
FOLDER, DOCUMENT, RELEASE = "build", "image-digests.json", "release.tar"
# The copy of the company's fleet.yaml in a release, for an agent that cannot read it when it deploys.
FLEET = f"{FOLDER}/{fleet.FILE}"
# A run that is killed leaves its folders. No run takes longer than this.
FORGOTTEN_SECONDS = 86400.0


class OtherName(Refused):
    """No release of mlops-build computes the record's image name from the record and service.yaml."""


class OtherImage(Refused):
    """The image in the registry is not the one that was built with its name."""


@dataclass
class Image:
    """An image. reference: `repository@sha256:…`, which is deployed. built: made by this run.

    refusal: why it is not made; None if service.yaml gives this name.
    """

    image: str
    record: Record
    refusal: OtherName | None = None
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
    """Make the missing images of the release records in the working tree. Returns {"images": [...]}.

    While MLflow is down, existing images are taken as they are (a rollback by Git must work). Raises OtherName, OtherImage,
    EngineUnreachable, RegistryUnreachable, and the errors of packaging and of the builder.
    """
    try:
        return _run(root, say)
    except OSError as error:
        place = error.filename or root / FOLDER
        raise Failed(f"{place}: {error.strerror or error}", remedy="check the disk, and who may write there") from None
    except RecursionError:
        raise BadVersion("a document of a released version is nested too deeply", remedy="train and register the model again") from None


def _run(root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    service = service_file.load(root)
    images = _named(root, service)
    if not images:
        say("image: nothing is released yet")
    if images:
        registry, way = _registry(root, say), make_image.choose(service, say)
        for image in images:
            _settle(root, service, registry, way, image, say)
    _write_results(root, images)
    _write_fleet(root, say)
    _write_release(root, say)
    return {"images": [image.as_json() for image in images]}


def _registry(root: Path, say: Callable[[str], None]) -> Registry | None:
    """The registry; None if it does not answer."""
    try:
        registry = tracking.registry(root)
        registry.alias_map()
    except RegistryUnreachable as error:
        say(f"image: {error.message}; existing images are taken as they are")
        return None
    return registry


def reference(image: str, digest: str) -> str:
    """`repository@sha256:…` of a tag."""
    return f"{image.rpartition(':')[0]}@{digest}"


def of_version(registry: Registry, record: Record) -> str | None:
    """The reference that `ci image` wrote onto the record's first model; None if there is none, or it is for another image.

    Everybody with write access to MLflow can write a tag, so only a digest in the record's own repository is accepted.
    """
    first = record.models[0]
    tags = registry.version(first.name, first.version).tags
    return _checked(record, tags.get(IMAGE_NAME), tags.get(IMAGE))


def of_build(root: Path, record: Record) -> str | None:
    """The reference that the build of this release wrote to a file; None if there is none, or it is for another image."""
    try:
        document = json.loads((root / FOLDER / DOCUMENT).read_text())
        references = {str(entry["image"]): entry["reference"] for entry in document["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _checked(record, record.image, references.get(str(record.image)))


def _checked(record: Record, name: object, reference: object) -> str | None:
    repository, _, digest = str(reference).partition("@")
    fits = name == record.image and repository == str(record.image).rpartition(":")[0]
    return str(reference) if fits and DIGEST.fullmatch(digest) else None


def _named(root: Path, service: Service) -> list[Image]:
    """An Image for each name in the records, in the order of service.yaml's environments."""
    images: dict[str, Image] = {}
    for env in service.environments:
        if not (root / records.folder(env)).is_dir():
            continue
        record = records.read(root, env)
        if not record.models or record.image is None:
            continue
        refusal = None
        if not is_valid(record.image, service, record.models):
            computed = image_name(service, record.models)
            refusal = OtherName(
                f"the record of {env} has the image {record.image}, but its models and service.yaml give {computed}",
                remedy=f"run `mlops-build release {env}` (or wait for the bridge)",
            )
            if not _is_restored(root, record):
                raise refusal
        images.setdefault(record.image, Image(record.image, record, refusal)).environments.append(env)
    return list(images.values())


def _is_restored(root: Path, record: Record) -> bool:
    """Whether a rollback from Git restored the record from a commit whose service.yaml gave it this name."""
    # They import what writes and checks releases, which an image with its own name does not need.
    from mlops_build.release import restore
    from mlops_build.release.tree import service_at

    checkout = Checkout.find(root)
    head = checkout.head() if checkout else None
    source = restore.source_of(checkout, head, record.environment) if checkout and head else None
    try:
        return checkout is not None and source is not None and is_valid(record.image, service_at(checkout, source), record.models)
    except (NotFound, Refused):
        return False


def _settle(root: Path, service: Service, registry: Registry | None, way: Way, image: Image, say: Callable[[str], None]) -> None:
    before = of_version(registry, image.record) if registry else None
    digest = way.digest_of(image.image)
    if digest is None and image.refusal:
        raise image.refusal
    if digest is None:
        registry = registry or tracking.registry(root)
        (root / FOLDER).mkdir(exist_ok=True)
        _remove_forgotten(root / FOLDER)
        with tempfile.TemporaryDirectory(dir=root / FOLDER, prefix="image-") as scratch:
            way.make(service, registry, image.record, Path(scratch), say)
        image.built, before = True, None
        digest = way.digest_of(image.image)
    if digest is None:
        raise BuildFailed(f"{image.image} was pushed, but is not in its registry", remedy="check image.registry in service.yaml")
    image.reference = reference(image.image, digest)
    if before is not None and before != image.reference:
        raise OtherImage(
            f"{image.image} is {digest} in the registry, but was built as {before.partition('@')[2]}: the tag was moved",
            remedy="find out who pushed it, delete the tag from the image registry, and run `mlops-build ci image` again",
        )
    if before is None and registry:
        _write_tags(root, registry, image)
        # Another agent can have pushed another build of the same meanwhile. Whoever writes last writes what the registry has.
        if (last := make_image.digest_by_api(image.image)) not in (None, digest):
            image.reference = reference(image.image, str(last))
            _write_tags(root, registry, image)
    say(f"image: {image.image} {'made' if image.built else 'exists'}, {image.reference.partition('@')[2]}")


def _remove_forgotten(folder: Path) -> None:
    """Remove what killed runs left. A newer folder may be that of a run which goes on at the same time."""
    for left in (*folder.glob("image-*/"), *folder.glob("release-*/")):
        if left.is_dir() and time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _write_tags(root: Path, registry: Registry, image: Image) -> None:
    first = image.record.models[0]
    registry.set_tag(first.name, first.version, IMAGE_NAME, image.image)
    registry.set_tag(first.name, first.version, IMAGE, image.reference)
    checkout = Checkout.find(root)
    head = checkout.head() if checkout else None
    if checkout and head:
        image_time.write(registry, image.record, int(time.time()), checkout.committed_at(head))


def _write_results(root: Path, images: Sequence[Image]) -> None:
    (root / FOLDER).mkdir(exist_ok=True)
    document = {"schema": 1, "images": [image.as_json() for image in images]}
    (root / FOLDER / DOCUMENT).write_text(json.dumps(document, indent=1) + "\n")


def _write_fleet(root: Path, say: Callable[[str], None]) -> None:
    """Write FLEET, if a fleet.yaml is configured."""
    where = os.environ.get(rules.VARIABLE)
    (root / FLEET).unlink(missing_ok=True)
    if where:
        try:
            (root / FLEET).write_text(rules.text_of(where), encoding="utf-8")
        except MlopsBuildError as error:
            say(f"image: the release has no copy of {fleet.FILE}: {error.message}")


def _write_release(root: Path, say: Callable[[str], None]) -> None:
    """Write RELEASE: the files of the commit and the digests of its images."""
    checkout = Checkout.find(root)
    head = checkout.head() if checkout else None
    if checkout is None or head is None:
        say(f"image: this is not a Git checkout, so it does not write {FOLDER}/{RELEASE}")
        return
    with tempfile.TemporaryDirectory(dir=root / FOLDER, prefix="release-") as scratch:
        made = Path(scratch) / RELEASE
        made.write_bytes(checkout.archive(head))
        with tarfile.open(made, "a") as archive:
            for path in (f"{FOLDER}/{DOCUMENT}", FLEET):
                if (root / path).exists():
                    archive.add(root / path, path)
        made.replace(root / FOLDER / RELEASE)
    say(f"image: {FOLDER}/{RELEASE} contains commit {head[:12]} and its digests")
