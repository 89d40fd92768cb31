"""Write a build context: checked, complete, and identical for the same model versions.

    Dockerfile .dockerignore requirements.lock code/… models/<name>/… context.json sbom.cdx.json [wheelhouse/*.whl]

It is written next to its destination and then renamed, so that there is never an incomplete context.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.errors import Failed, MlopsBuildError, NotFound, Refused
from mlops_build.finding import Finding, show
from mlops_build.model import files, openapi, scan
from mlops_build.model.identity import SERVICE
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.packaging import code, contents, grammar, sbom, wheelhouse
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.dockerfile import UV, dockerfile, environment
from mlops_build.packaging.labels import labels
from mlops_build.packaging.recipe import Recipe, without_service

DOCKERIGNORE = """\
# Only the files that the image needs.
*
!requirements.lock
!code
!wheelhouse
!models
!context.json
"""
# Files of a version that its image needs (docs/explanation/order-of-training.md).
ENVIRONMENT, LOCK, WHEELS = "environment/environment.json", "environment/requirements.lock", "environment/wheels"
FILES = "environment/files"
# Other files that are read after the build, where a mistake would be reported too late. Versions of early releases do not have all of them.
DOCUMENTS = ("lineage.json", openapi.FILE, openapi.EXAMPLES)
# The time of folders. A file's time is derived from its content (_time), so that the image's layers do not depend on when it was packaged.
TIME = 315532800


class UnsafeFiles(Refused):
    """A model version contains files that could run code when they are loaded."""

    def __init__(self, model: str, findings: Sequence[Finding]) -> None:
        super().__init__(
            f"{model} is not packaged because its files are not safe to load:\n{show(findings)}",
            remedy=scan.advice(findings),
        )
        self.findings = tuple(findings)


class NotOurs(Refused):
    """The destination contains files that are not a build context."""


@dataclass(frozen=True)
class Source:
    """A model version and the source of its files: `put` writes them into a new folder."""

    model: ModelVersion
    put: Callable[[Path], object]


@dataclass(frozen=True)
class Needs:
    """The requirements in a version's environment/. code: the service's own wheels and files, name → SHA-256 of the content.

    pickled: the version has files that run code when they are loaded, which were accepted.
    """

    python: str
    torch: str
    lock: str
    wheels: tuple[str, ...]
    code: Mapping[str, str]
    pickled: bool


@dataclass(frozen=True)
class Prepared:
    """What an image has beside the files of its models. needs: of the first model. labels: of the image. files_of: the model whose version
    contains image.files."""

    contents: Contents
    needs: Needs
    recipe: Recipe
    labels: Mapping[str, str]
    files_of: str | None


def from_registry(registry: Registry, models: Sequence[ModelVersion]) -> list[Source]:
    """Sources of released models. Raises UnknownVersion, or Refused if the registry's digest differs from the released one."""
    return [_source(registry, released(registry, model)) for model in models]


def released(registry: Registry, model: ModelVersion) -> RegisteredVersion:
    """The version of a released model. Raises UnknownVersion, or Refused if the registry's digest differs from the released one."""
    version = registry.version(model.name, model.version)
    digest = version.checked().digest
    if digest != model.digest:
        raise Refused(
            f"{version.uri} has the digest {digest}, but {model.digest} was released",
            remedy="a version's digest must not change: find out who wrote the tag, then promote a version that you trust",
        )
    return version


def write_context(
    recipe: Callable[[Needs], Recipe] | Recipe,
    image: str | None,
    sources: Sequence[Source],
    destination: Path,
    *,
    wheels: Path | None = None,
) -> Contents:
    """Write the context of these models, in this order, into `destination`. The first answers /invocations; its lock and wheels are used.

    recipe: or a function of the first model's needs, if there is no service.yaml with a base image. image: the name to build it as.
    wheels: a folder of wheels for a build without a package index. An earlier context in `destination` is replaced.
    Raises NotOurs, DigestMismatch, UnsafeFiles, BadVersion, BadValue, Incomplete, and the errors of fetching.
    """
    with _new(destination) as staged:
        unsafe_pickle = recipe.unsafe_pickle if isinstance(recipe, Recipe) else None
        given = [(source.model, _place(source, staged, unsafe_pickle)) for source in sources]
        prepared = prepare(recipe, image, given, staged)
        first = staged / contents.folder_of(given[0][0].name)
        code.unpack([first / WHEELS / wheel for wheel in prepared.needs.wheels], staged / code.FOLDER)
        _write_environment(staged, prepared.recipe, prepared.needs, wheels)
        text = dockerfile(prepared.recipe, prepared.contents, prepared.labels, files=prepared.files_of, wheelhouse=wheels is not None)
        (staged / "Dockerfile").write_text(text)
        hashed = {wheel: files.file_digest(first / WHEELS / wheel) for wheel in prepared.needs.wheels}
        bill = sbom.sbom(prepared.recipe, prepared.contents, prepared.needs.lock, hashed, prepared.labels)
        (staged / sbom.FILE).write_text(sbom.as_text(bill))
        (staged / contents.FILE).write_text(prepared.contents.as_text())
    return prepared.contents


def write_environment(recipe: Recipe, needs: Needs, destination: Path, *, wheels: Path | None = None) -> None:
    """Write a context of the image without code and model into `destination`, which must be empty or not exist.

    wheels: a folder of wheels for a build without a package index. Raises NotOurs, BadValue and Incomplete.
    """
    with _new(destination) as staged:
        _write_environment(staged, recipe, needs, wheels)
        text = environment(recipe, python=needs.python, torch=needs.torch, wheelhouse=wheels is not None)
        (staged / "Dockerfile").write_text(text)


def prepare(
    recipe: Callable[[Needs], Recipe] | Recipe, image: str | None, given: Sequence[tuple[ModelVersion, Needs]], staged: Path
) -> Prepared:
    """What an image of these versions needs, from the small files of each in `staged`: all but its weights. Writes nothing.

    Arguments as for `write_context`; given: what `needs` returned for each version. Raises BadVersion and BadValue.
    """
    _fit(given)
    model, first = given[0]
    chosen = recipe if isinstance(recipe, Recipe) else recipe(first)
    machine = wheelhouse.MACHINES[chosen.platform] if chosen.platform else ""
    for wheel in first.wheels:
        if not wheelhouse.named(Path(wheel)).fits(first.python, machine):
            raise BadVersion(
                f"{model}: {wheel} cannot be installed with Python {first.python}{machine and f' on {machine}'}",
                remedy="train and register the model with the Python of the image, and with a service's wheel for any platform",
            )
    accepted = chosen.unsafe_pickle if any(each.pickled for _, each in given) else None
    made = Contents(chosen.service, image, first.python, first.torch, tuple(model for model, _ in given), accepted)
    folders = [staged / contents.folder_of(model.name) for model in made.models]
    files_of = model.name if (folders[0] / FILES).is_dir() else None
    return Prepared(made, first, chosen, labels(chosen, made, folders), files_of)


def write_version(
    registry: Registry,
    version: RegisteredVersion,
    destination: Path,
    *,
    gpu: bool | None = None,
    platform: str | None = None,
    secrets: tuple[str, ...] = (),
    wheels: Path | None = None,
) -> Contents:
    """Write the context of one version with only the registry: the base image is for the model's Python, the service's name is in a tag."""
    service = grammar.model_name(version.tags.get(SERVICE, version.name), f"the tag {SERVICE} of {version.uri}")
    source = _source(registry, version)

    def recipe(needs: Needs) -> Recipe:
        return without_service(service, needs.python, gpu=gpu, platform=platform, secrets=secrets)

    return write_context(recipe, None, [source], destination, wheels=wheels)


def _source(registry: Registry, version: RegisteredVersion) -> Source:
    return Source(version.checked(), lambda folder: registry.fetch(version, folder))


def _place(source: Source, staged: Path, unsafe_pickle: str | None) -> Needs:
    """Write a model's files and check them: digest, scan, environment. None of them is loaded or run."""
    name, folder = str(source.model), staged / contents.folder_of(source.model.name)
    folder.parent.mkdir(exist_ok=True)
    source.put(folder)
    try:
        files.verify(folder, source.model.digest)
    except MlopsBuildError as error:
        error.message = f"{name}: {error.message.replace(str(folder), 'its files')}"
        error.args = (error.message,)
        raise
    findings = scan.scan(folder)
    if refused := scan.refused(findings, unsafe_pickle):
        raise UnsafeFiles(name, refused)
    return needs(folder, name, pickled=bool(findings))


def needs(folder: Path, name: str, *, pickled: bool) -> Needs:
    """Read and check the small files of a version. name: for messages. pickled: as in Needs. Raises BadVersion and BadValue."""
    try:
        recorded: Any = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        locked = (folder / LOCK).read_text(encoding="utf-8")
        wheels = sorted(path.name for path in (folder / WHEELS).iterdir())
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).relative_to(folder)
        raise BadVersion(f"{name} has no {missing}", remedy="register it with `mlops-build train`, which adds lock and wheels") from None
    except ValueError:
        raise BadVersion(f"{name}: {ENVIRONMENT} or {LOCK} cannot be read", remedy="train and register the model again") from None
    if not isinstance(recorded, dict) or recorded.get("schema") != 1:
        raise BadVersion(
            f"{name}: {ENVIRONMENT} does not have schema 1", remedy="it may be written by a newer mlops-build: update this installation"
        )
    for document in DOCUMENTS:
        if (folder / document).is_file() and not _is_object(folder / document):
            raise BadVersion(f"{name}: {document} cannot be read", remedy="train and register the model again")
    if not (folder / "MLmodel").is_file():
        raise BadVersion(f"{name} has no MLmodel", remedy="train and register the model again")
    for wheel in wheels:
        grammar.wheel_name(wheel, f"{name}: {WHEELS}")
    if not any(wheel.startswith("mlops_build-") for wheel in wheels):
        raise BadVersion(f"{name} has no mlops_build wheel, which serves the model", remedy="train and register the model again")
    return Needs(
        grammar.python_version(recorded.get("python"), f"{name}: python"),
        grammar.torch_version(recorded.get("torch"), f"{name}: torch"),
        grammar.lock(locked, f"{name}: {LOCK}"),
        tuple(wheels),
        {name: files.file_digest(path) for name, path in _code(folder, wheels)},
        pickled,
    )


def _is_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _code(folder: Path, wheels: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The service's own parts of a version: its wheels, and the files of its repository."""
    yield from ((wheel, folder / WHEELS / wheel) for wheel in wheels if not wheel.startswith("mlops_build-"))
    yield from ((path.relative_to(folder).as_posix(), path) for path in sorted((folder / FILES).rglob("*")) if path.is_file())


def _write_environment(staged: Path, recipe: Recipe, needs: Needs, wheels: Path | None) -> None:
    """Write what the build of the environment reads, and .dockerignore."""
    (staged / "requirements.lock").write_text(needs.lock)
    (staged / ".dockerignore").write_text(DOCKERIGNORE)
    if wheels is not None:
        exact = {"torch": needs.torch, "uv": UV}
        cuda = recipe.gpu and recipe.cuda == "wheels"
        wanted = wheelhouse.Wanted(needs.lock, exact, needs.python, recipe.platform or "linux/amd64", cuda)
        wheelhouse.fill(wheels, staged / wheelhouse.FOLDER, wanted)


def _fit(given: Sequence[tuple[ModelVersion, Needs]]) -> None:
    """An image has one environment and one copy of the service's code, so all models must have the same. Raises BadVersion."""
    if not given:
        raise BadVersion("a context needs at least one model")
    first, needed = given[0]
    wanted = {"python": needed.python, "torch": needed.torch, **grammar.pinned(needed.lock)}
    for model, other in given[1:]:
        versions = {"python": other.python, "torch": other.torch, **grammar.pinned(other.lock)}
        differing = sorted(name for name in {*wanted, *versions} if wanted.get(name) != versions.get(name))
        if differing:
            name = differing[0]
            raise BadVersion(
                f"{model} was trained with {name} {versions.get(name)}, {first} with"
                f" {wanted.get(name)} ({len(differing)} differences): an image has one environment",
                remedy="train the service's models with the same lock, then promote those versions",
            )
        # The first model's wheel is installed; it may not contain the predictor of another commit.
        if other.code != needed.code:
            raise BadVersion(
                f"{model} has other code of the service than {first}: an image has one copy",
                remedy="after a change in src/, `mlops-build train` registers a version of every model: promote those versions together",
            )


@contextmanager
def _new(destination: Path) -> Iterator[Path]:
    """A folder to be filled, which then replaces the destination. After an error, everything is as before."""
    _check_destination(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as scratch:
        staged = Path(scratch) / "context"
        staged.mkdir()
        yield staged
        _settle(staged)
        _replace(staged, destination, Path(scratch) / "before")


def _settle(folder: Path) -> None:
    """Set modes and times that depend only on the content, not on the user or the umask."""
    for path in [folder, *folder.rglob("*")]:
        # Only the code has programs, and its modes are those of the wheels.
        program = path.is_file() and folder / code.FOLDER in path.parents and path.stat().st_mode & 0o100
        path.chmod(0o755 if path.is_dir() or program else 0o644)
    for path in sorted(folder.rglob("*"), reverse=True):
        time = _time(path) if path.is_file() else TIME
        os.utime(path, (time, time))
    os.utime(folder, (TIME, TIME))


def _time(file: Path) -> int:
    """A time after 1980 that is derived from the content. BuildKit keeps a folder's files between builds and treats a file with the same
    name, size and time as unchanged: with one time for all files it would build the previous version again."""
    return TIME + int(files.file_digest(file)[:7], 16)


def _check_destination(destination: Path) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise NotOurs(f"{destination} is not a folder", remedy="give a folder that does not exist yet")
    if not destination.is_dir() or not any(destination.iterdir()):
        return
    try:
        contents.read(destination)
    except (NotFound, Refused):
        raise NotOurs(
            f"{destination} is not empty and not an earlier build context, so nothing was written",
            remedy="give a folder that does not exist yet",
        ) from None


def _replace(staged: Path, destination: Path, before: Path) -> None:
    """Rename into place. The old context is deleted with the scratch folder, and restored if the second rename fails."""
    try:
        if destination.exists():
            destination.rename(before)
        staged.rename(destination)
    except OSError as error:
        if before.exists() and not destination.exists():
            before.rename(destination)
        raise Failed(
            f"{destination} cannot be written: {error.strerror}", remedy="close programs that use it, or give another folder"
        ) from None
