"""Write a build context: checked, complete, and the same bytes for the same model versions.

    Dockerfile .dockerignore requirements.lock wheels/*.whl models/<name>/… context.json sbom.cdx.json [wheelhouse/*.whl]

It is staged beside its destination and renamed into place, so that there is never half a context.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.errors import Failed, MlopsBuildError, NotFound, Refused
from mlops_build.finding import Finding, show
from mlops_build.model import files, scan
from mlops_build.model.identity import DIGEST_TAG, SERVICE
from mlops_build.packaging import contents, grammar, sbom, wheelhouse
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.dockerfile import UV, dockerfile
from mlops_build.packaging.labels import labels
from mlops_build.packaging.name import Released
from mlops_build.packaging.recipe import Recipe, without_service
from mlops_build.registry import ModelVersion, Registry

DOCKERIGNORE = """\
# Only what the image is made of; whatever else comes to lie here stays out.
*
!requirements.lock
!wheels
!wheelhouse
!models
!context.json
"""
# What a version brings for its image (docs/explanation/order-of-training.md).
ENVIRONMENT, LOCK, WHEELS = "environment/environment.json", "environment/requirements.lock", "environment/wheels"
FILES = "environment/files"
# Of folders. A file's time is made from its content (_time), or the image's layers would differ with the hour of packaging.
TIME = 315532800


class UnsafeFiles(Refused):
    """A model version holds files that could run code when they are read."""

    def __init__(self, model: str, findings: Sequence[Finding]) -> None:
        super().__init__(f"{model} is not packaged, its files are not safe to load:\n{show(findings)}", remedy="see each finding above")
        self.findings = tuple(findings)


class BadVersion(Refused):
    """A model version that lacks what packaging needs, or whose parts do not fit together."""


class NotOurs(Refused):
    """The destination holds something that is no build context."""


@dataclass(frozen=True)
class Source:
    """One model version and where its files come from: `put` writes them into a folder that does not exist yet."""

    name: str
    version: int
    digest: str
    put: Callable[[Path], object]


@dataclass(frozen=True)
class Needs:
    """What a version's environment/ asks for. code: the service's own wheels and files by name, each with the SHA-256 of its bytes."""

    python: str
    torch: str
    lock: str
    wheels: tuple[str, ...]
    code: Mapping[str, str]


def from_registry(registry: Registry, models: Sequence[Released]) -> list[Source]:
    """Sources of released models. Raises UnknownVersion, or Refused where the registry's digest is not the one that was released."""
    return [_registered(registry, registry.version(one.name, one.version), one.digest) for one in models]


def registered_digest(version: ModelVersion) -> str:
    """The digest that a version was registered with. Raises BadVersion for one that mlops-build did not register."""
    found = version.tags.get(DIGEST_TAG)
    if found is None:
        raise BadVersion(
            f"{version.uri} has no tag {DIGEST_TAG}: it was not registered by mlops-build",
            remedy="register it with `mlops-build train`, so that it brings its lock and its wheels",
        )
    return grammar.digest(found, f"the tag {DIGEST_TAG} of {version.uri}")


def write_context(
    recipe: Callable[[Needs], Recipe] | Recipe,
    image: str | None,
    sources: Sequence[Source],
    destination: Path,
    *,
    house: Path | None = None,
) -> Contents:
    """Write the context of these models, in this order, into `destination`; the first answers /invocations and brings lock and wheels.

    recipe: or a function of what the first model needs, where no service.yaml says a base image. image: the name to be built as.
    house: a folder of wheels for a build without a package index. An earlier context in `destination` is replaced.
    Raises NotOurs, DigestMismatch, UnsafeFiles, BadVersion, BadValue, Incomplete, and what fetching raises.
    """
    _check_destination(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as scratch:
        staged = Path(scratch) / "context"
        (staged / "models").mkdir(parents=True)
        needs = [_place(source, staged) for source in sources]
        _fit(sources, needs)
        chosen = recipe if isinstance(recipe, Recipe) else recipe(needs[0])
        models = tuple(contents.Model(one.name, one.version, one.digest) for one in sources)
        made = Contents(chosen.service, image, needs[0].python, needs[0].torch, models)
        first = staged / models[0].path
        (staged / "requirements.lock").write_text(needs[0].lock)
        (staged / "wheels").mkdir()
        for wheel in needs[0].wheels:
            shutil.copyfile(first / WHEELS / wheel, staged / "wheels" / wheel)
        if house is not None:
            wheelhouse.fill(house, staged / wheelhouse.FOLDER, _wanted(chosen, needs[0]))
        said = labels(chosen, made, [staged / model.path for model in models])
        files_of = models[0].name if (first / FILES).is_dir() else None
        (staged / "Dockerfile").write_text(dockerfile(chosen, made, said, files=files_of, wheelhouse=house is not None))
        hashed = {wheel: files.file_digest(first / WHEELS / wheel) for wheel in needs[0].wheels}
        (staged / sbom.FILE).write_text(sbom.as_text(sbom.sbom(chosen, made, needs[0].lock, hashed, said)))
        (staged / ".dockerignore").write_text(DOCKERIGNORE)
        (staged / contents.FILE).write_text(json.dumps(made.as_json(), indent=1) + "\n")
        _settle(staged)
        _replace(staged, destination, Path(scratch) / "before")
    return made


def write_version(
    registry: Registry,
    version: ModelVersion,
    destination: Path,
    *,
    gpu: bool | None = None,
    platform: str | None = None,
    secrets: tuple[str, ...] = (),
    house: Path | None = None,
) -> Contents:
    """The context of one version where nothing but the registry is at hand: base image by the model's Python, service by its tag."""
    service = grammar.model_name(version.tags.get(SERVICE, version.name), f"the tag {SERVICE} of {version.uri}")
    source = _registered(registry, version, registered_digest(version))

    def recipe(needs: Needs) -> Recipe:
        return without_service(service, needs.python, gpu=gpu, platform=platform, secrets=secrets)

    return write_context(recipe, None, [source], destination, house=house)


def _registered(registry: Registry, version: ModelVersion, digest: str) -> Source:
    if registered_digest(version) != digest:
        raise Refused(
            f"{version.uri} has the digest {registered_digest(version)}, released was {digest}",
            remedy="a version's digest never changes: find out who wrote the tag, then promote a version you trust",
        )
    return Source(grammar.model_name(version.name), version.version, digest, lambda folder: registry.fetch(version, folder))


def _place(source: Source, staged: Path) -> Needs:
    """Put one model's files in place and look at them: digest, scan, environment. Nothing of them is loaded or run."""
    name = f"{grammar.model_name(source.name)} {grammar.version(source.version)}"
    folder = staged / "models" / source.name
    source.put(folder)
    try:
        files.verify(folder, grammar.digest(source.digest))
    except MlopsBuildError as error:
        error.message = f"{name}: {error.message.replace(str(folder), 'its files')}"
        error.args = (error.message,)
        raise
    findings = scan.scan(folder)
    if findings:
        raise UnsafeFiles(name, findings)
    return _needs(folder, name)


def _needs(folder: Path, name: str) -> Needs:
    try:
        found: Any = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        locked = (folder / LOCK).read_text(encoding="utf-8")
        wheels = sorted(path.name for path in (folder / WHEELS).iterdir())
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).relative_to(folder)
        raise BadVersion(
            f"{name} has no {missing}", remedy="register it with `mlops-build train`, so that it brings lock and wheels"
        ) from None
    except ValueError:
        raise BadVersion(f"{name}: {ENVIRONMENT} or {LOCK} cannot be read", remedy="train and register it again") from None
    if not isinstance(found, dict) or found.get("schema") != 1:
        raise BadVersion(f"{name}: {ENVIRONMENT} does not say schema 1", remedy="a newer mlops-build may have written it: update this one")
    if not (folder / "MLmodel").is_file():
        raise BadVersion(f"{name} has no MLmodel", remedy="train and register it again")
    for wheel in wheels:
        grammar.wheel_name(wheel, f"{name}: {WHEELS}")
    if not any(wheel.startswith("mlops_build-") for wheel in wheels):
        raise BadVersion(f"{name} brings no mlops_build wheel, so nothing could serve it", remedy="train and register it again")
    return Needs(
        grammar.python_version(found.get("python"), f"{name}: python"),
        grammar.torch_version(found.get("torch"), f"{name}: torch"),
        grammar.lock(locked, f"{name}: {LOCK}"),
        tuple(wheels),
        {name: files.file_digest(path) for name, path in _code(folder, wheels)},
    )


def _code(folder: Path, wheels: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """What of a version is the service's own: its wheels, and the files of its repository."""
    yield from ((wheel, folder / WHEELS / wheel) for wheel in wheels if not wheel.startswith("mlops_build-"))
    yield from ((path.relative_to(folder).as_posix(), path) for path in sorted((folder / FILES).rglob("*")) if path.is_file())


def _wanted(recipe: Recipe, needs: Needs) -> wheelhouse.Wanted:
    exact = {"torch": needs.torch, "uv": UV}
    return wheelhouse.Wanted(needs.lock, exact, needs.python, recipe.platform or "linux/amd64", recipe.gpu and recipe.cuda == "wheels")


def _fit(sources: Sequence[Source], needs: Sequence[Needs]) -> None:
    """One image is one environment with one copy of the service's code: every model must come with the first one's. Raises BadVersion."""
    if not sources:
        raise BadVersion("a context needs at least one model")
    wanted = {"python": needs[0].python, "torch": needs[0].torch, **grammar.pinned(needs[0].lock)}
    for source, other in zip(sources[1:], needs[1:], strict=True):
        found = {"python": other.python, "torch": other.torch, **grammar.pinned(other.lock)}
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        if differing:
            name = differing[0]
            raise BadVersion(
                f"{source.name} {source.version} was trained with {name} {found.get(name)}, {sources[0].name} {sources[0].version} with"
                f" {wanted.get(name)} ({len(differing)} such differences): one image has one environment",
                remedy="train the service's models with the same lock, then promote those versions",
            )
        # The first model's wheel is what is installed; a predictor of another commit's code might not even be in it.
        if other.code != needs[0].code:
            raise BadVersion(
                f"{source.name} {source.version} comes with other code of the service than {sources[0].name} {sources[0].version}:"
                " one image holds one copy",
                remedy="after a change in src/, `mlops-build train` registers a version of every model: promote those versions together",
            )


def _settle(folder: Path) -> None:
    """The same modes and times for the same content, whoever packages and with what umask."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in sorted(folder.rglob("*"), reverse=True):
        time = _time(path) if path.is_file() else TIME
        os.utime(path, (time, time))
    os.utime(folder, (TIME, TIME))


def _time(file: Path) -> int:
    """Seconds from 1980 on, by content. BuildKit keeps a folder's files from one build to the next and takes one of the same name, size and
    time for unchanged: with one time for all it would build the last version again under this version's name."""
    return TIME + int(files.file_digest(file)[:7], 16)


def _check_destination(destination: Path) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise NotOurs(f"{destination} is not a folder", remedy="name a folder that does not exist yet")
    if not destination.is_dir() or not any(destination.iterdir()):
        return
    try:
        contents.read(destination)
    except (NotFound, Refused):
        raise NotOurs(
            f"{destination} is not empty, and no earlier build context: it is left alone", remedy="name a folder that does not exist yet"
        ) from None


def _replace(staged: Path, destination: Path, before: Path) -> None:
    """Rename into place. What was there goes with the scratch folder; it comes back if the second rename fails."""
    try:
        if destination.exists():
            destination.rename(before)
        staged.rename(destination)
    except OSError as error:
        if before.exists() and not destination.exists():
            before.rename(destination)
        raise Failed(f"{destination} cannot be written: {error.strerror}", remedy="close what uses it, or name another folder") from None
