"""Make an image: assemble it in its registry, or build it with an engine. A release record does not say which."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlops_build.adapters import engine as builder
from mlops_build.adapters.engine import Builder
from mlops_build.adapters.engine.command import BuildFailed, EngineUnreachable
from mlops_build.adapters.image_registry import ImageRegistryUnreachable, LoginNeeded, Manifest, RefusedByRegistry, Repository
from mlops_build.adapters.registry import Registry
from mlops_build.errors import MlopsBuildError, UsageError
from mlops_build.model.identity import IMAGE
from mlops_build.packaging import assemble, context, environment, recipe
from mlops_build.packaging.appended import Appended, NotAnImage, blobs, mib
from mlops_build.release.record import Record
from mlops_build.service import Service

# A folder of wheels on the agent: a build without a package index (`package --wheelhouse`).
WHEELHOUSE = "MLOPS_BUILD_WHEELHOUSE"
Say = Callable[[str], None]
UNUSABLE = (ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry)


class Way(Protocol):
    """How images are made."""

    def digest_of(self, image: str) -> str | None: ...
    def make(self, service: Service, registry: Registry, record: Record, scratch: Path, say: Say) -> None: ...


def choose(service: Service, say: Say) -> Way:
    """The way for this service. Raises UsageError for another name in MLOPS_BUILD_ENGINE."""
    if service.image.assemble:
        return InRegistry()
    say("image: not assembled, because service.yaml has image.assemble: false")
    return ByEngine(builder.choose(), None)


@dataclass(frozen=True)
class ByEngine:
    """Build the image from its context, and push it. refusal: why it is not assembled, which is the error if there is no engine."""

    engine: Builder
    refusal: MlopsBuildError | None

    def digest_of(self, image: str) -> str | None:
        try:
            return self.engine.digest_of(image)
        except EngineUnreachable as error:
            raise self.refusal or error from None

    def make(self, service: Service, registry: Registry, record: Record, scratch: Path, say: Say) -> None:
        image = str(record.image)
        try:
            engine = self.engine.check_engine()
        except EngineUnreachable as error:
            raise self.refusal or error from None
        say(f"image: {image} does not exist; building it with {engine}")
        sources = context.from_registry(registry, record.models)
        made = context.write_context(recipe.of_service(service), image, sources, scratch / "context", wheels=wheelhouse())
        _say_accepted(made.unsafe_pickle, say)
        self.engine.build(scratch / "context", image)
        self.engine.push(image)


@dataclass(frozen=True)
class InRegistry:
    """Add layers to the environment image, in the registry. Only an environment image that is absent is built."""

    def digest_of(self, image: str) -> str | None:
        try:
            return _tagged(image)
        except UNUSABLE as error:  # the engine can have a login or a mirror of its own
            return ByEngine(builder.choose(), error).digest_of(image)

    def make(self, service: Service, registry: Registry, record: Record, scratch: Path, say: Say) -> None:
        image = str(record.image)
        say(f"image: {image} does not exist; assembling it")
        name, _, tag = image.rpartition(":")
        repository, wanted = Repository(name, sources=_sources(name, registry, record)), recipe.of_service(service)
        staged = assemble.stage(wanted, image, record.models, registry, scratch / "files")
        of_environment = environment.tag(wanted, staged.prepared.needs, service.image.revision)
        try:
            base = repository.manifest(of_environment) or _taken_over(repository, of_environment)
            if base is None:
                base = _environment(repository, f"{name}:{of_environment}", staged, record, scratch, say)
            appended = Appended.onto(repository, base, f"{name}:{of_environment}", say, wanted.platform)
            _, accepted = assemble.push(appended, staged, tag)
        except UNUSABLE as error:
            say(f"image: not assembled, because {error.message}")
            ByEngine(builder.choose(), error).make(service, registry, record, scratch, say)
            return
        _say_accepted(accepted, say)
        say(f"image: {mib(appended.sent)} sent")


def digest_by_api(image: str) -> str | None:
    """The digest of a tag; None if there is none, or if the registry's API cannot be used here."""
    with contextlib.suppress(*UNUSABLE):
        return _tagged(image)
    return None


def _tagged(image: str) -> str | None:
    repository, _, tag = image.rpartition(":")
    manifest = Repository(repository).manifest(tag)
    return manifest.digest if manifest else None


def _sources(name: str, registry: Registry, record: Record) -> list[str]:
    """The repository of the same image registry that has another image of the same version: its layers need not be sent."""
    first = record.models[0]
    other = registry.version(first.name, first.version).tags.get(IMAGE, "").partition("@")[0]
    if other == name or other.partition("/")[0] != name.partition("/")[0]:
        return []
    with contextlib.suppress(UsageError):  # anybody with write access to MLflow can write the tag
        Repository(other)
        return [other]
    return []


def _taken_over(repository: Repository, tag: str) -> Manifest | None:
    """The environment image of another repository, whose layers are mounted; None if there is none, or it cannot be mounted."""
    for source in repository.sources:
        there = Repository(source).manifest(tag)
        with contextlib.suppress(NotAnImage):  # such as an index; then a new one is built
            if there and all(repository.mount(digest, source) for digest in blobs(there)):
                repository.put_manifest(tag, there.media_type, there.body)
                return there
    return None


def _environment(repository: Repository, image: str, staged: assemble.Staged, record: Record, scratch: Path, say: Say) -> Manifest:
    """Build and push the environment image. Raises EngineUnreachable, BuildFailed."""
    chosen = builder.choose()
    try:
        engine = chosen.check_engine()
    except EngineUnreachable as error:
        package = f"mlops-build package {record.environment} -o build/context"
        raise EngineUnreachable(
            f"the environment image {image} does not exist, and this agent cannot build it: {error.message}",
            remedy=f"on a machine with Docker: {package} && docker build --target environment --tag {image} build/context"
            f" && docker push {image}",
        ) from None
    say(f"image: the environment image {image} does not exist; building it with {engine}")
    context.write_environment(staged.prepared.recipe, staged.prepared.needs, scratch / "environment", wheels=wheelhouse())
    chosen.build(scratch / "environment", image)
    chosen.push(image)
    made = repository.manifest(image.rpartition(":")[2])
    if made is None:
        raise BuildFailed(f"{image} was pushed, but is not in its registry", remedy="check image.registry in service.yaml")
    return made


def wheelhouse() -> Path | None:
    """The agent's folder of wheels."""
    folder = os.environ.get(WHEELHOUSE)
    return Path(folder) if folder else None


def _say_accepted(reason: str | None, say: Say) -> None:
    if reason:
        say(f"image: the model contains pickled files, which are accepted (serving.unsafe_pickle): {reason}")
