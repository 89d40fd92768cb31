"""Load what is to be served: a build context, a model's folder, or a version of the registry.

Digests are checked before anything of the files is run, and before a card is leased: fetching and checking can take minutes, in which the
card's memory would wait for nobody.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.finding import show
from mlops_build.model import files
from mlops_build.model.identity import DIGEST_TAG, SERVICE, parse_uri
from mlops_build.model.openapi import Described, describe
from mlops_build.packaging import contents
from mlops_build.registry import Registry  # sets MLflow's variables for silence before mlflow is imported
from mlops_build.serving.light import import_mlflow

if TYPE_CHECKING:
    from mlops_build.serving.predictor import Predictor


COMPILER = "torch.compile needs a C++ compiler: add g++ to image.apt in service.yaml, or take serving.compile out"


class CannotLoad(Failed):
    """The model's own code, or a package it needs, fails while loading or while answering its recorded example."""


class Unsafe(Refused):
    """Files that were not packaged hold what could run code when they are read."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory. version and digest are None for a bare folder. described: its signature, and its recorded example if it has one.

    mlflow_version: the MLflow that it was saved with.
    """

    name: str
    version: int | None
    digest: str | None
    model: Any  # mlflow.pyfunc.PyFuncModel
    predictor: "Predictor"
    described: Described

    @property
    def recorded(self) -> Mapping[str, Any] | None:
        return self.described.recorded

    @property
    def mlflow_version(self) -> str:
        return str(self.model.metadata.mlflow_version)

    def __str__(self) -> str:
        return f"{self.name} v{self.version}" if self.version is not None else self.name


@dataclass(frozen=True)
class Serving:
    """Everything that is served. image: the image's name, where it is known. The first model answers /invocations."""

    service: str
    image: str | None
    models: tuple[Loaded, ...]


@dataclass(frozen=True)
class Checked:
    """What is to be served, its files checked, nothing of it run. wheels: a folder with the service's own code, where there is one."""

    service: str
    image: str | None
    models: tuple["CheckedModel", ...]
    wheels: Path


@dataclass(frozen=True)
class CheckedModel:
    """A model's files, as they were registered. version and digest as in Loaded."""

    folder: Path
    name: str
    version: int | None
    digest: str | None


def from_folder(folder: Path, say: Callable[[str], None]) -> Checked:
    """A build context, or a folder with an MLmodel. Raises NotFound, DigestMismatch, Unsafe."""
    if not folder.is_dir():
        raise NotFound(f"{folder} does not exist", remedy="name a build context (mlops-build package … -o DIR) or models:/NAME/VERSION")
    if (folder / contents.FILE).is_file():
        return _context(folder)
    if (folder / "MLmodel").is_file():
        say(f"{folder} is a bare model: nothing says which digest its files should have")
        _check(folder)
        name = folder.resolve().name
        return Checked(name, None, (CheckedModel(folder, name, None, None),), folder / "environment" / "wheels")
    raise NotFound(
        f"{folder} holds neither a {contents.FILE} nor an MLmodel",
        remedy="write a context first (mlops-build package MODEL_URI -o DIR), or name a version: models:/NAME/VERSION",
    )


def from_registry(uri: str, scratch: Path) -> Checked:
    """`models:/NAME/VERSION` or `models:/NAME@alias`, fetched into `scratch`. Raises what the registry raises, and as `from_folder`."""
    reference = parse_uri(uri)
    registry = Registry()
    version = registry.version(reference.name, reference.which)
    digest = version.tags.get(DIGEST_TAG)
    if digest is None:
        raise Refused(
            f"{version.uri} has no tag {DIGEST_TAG}: it was not registered by mlops-build", remedy="register it with `mlops-build train`"
        )
    folder = registry.fetch(version, scratch / version.name)
    files.verify(folder, digest)
    _check(folder)
    service = version.tags.get(SERVICE, version.name)
    return Checked(service, None, (CheckedModel(folder, version.name, version.version, digest),), folder / "environment" / "wheels")


def _context(folder: Path) -> Checked:
    found = contents.read(folder)
    for model in found.models:
        if not (folder / model.path / "MLmodel").is_file():
            raise NotFound(f"{folder / model.path} has no MLmodel", remedy="write the context anew: mlops-build package")
        files.verify(folder / model.path, model.digest)
    models = tuple(CheckedModel(folder / model.path, model.name, model.version, model.digest) for model in found.models)
    return Checked(found.service, found.image, models, folder / "wheels")


def load(checked: Checked, *, compile: bool = False, precision: str = "float32") -> Serving:  # noqa: A002  # the flag's name
    """Every model in memory, on the device that this process sees. compile, precision: network.prepare. Raises CannotLoad."""
    # Python would write __pycache__ beside the model's own code; the next start would then refuse the folder, whose digest has changed.
    sys.dont_write_bytecode = True
    _code(checked.wheels)
    models = tuple(_load(model) for model in checked.models)
    if compile or precision != "float32":
        from mlops_build.serving import network

        for loaded in models:
            if not network.prepare(loaded.model, compile=compile, precision=precision):
                raise CannotLoad(
                    f"{loaded} holds no torch network, so there is nothing to compile, and nothing to compute in {precision}",
                    remedy="keep the network as an attribute of the predictor, or take compile and precision out of service.yaml",
                )
    return Serving(checked.service, checked.image, models)


def _check(folder: Path) -> None:
    from mlops_build.model import scan  # not needed for a context, which was scanned when it was packaged

    findings = scan.scan(folder)
    if findings:
        raise Unsafe(f"{folder} is not served, its files are not safe to load:\n{show(findings)}", remedy="see each finding above")


def _code(wheels: Path) -> None:
    """Put the service's own wheel first on sys.path, so that the code is the one that was registered, and not what a laptop has
    installed. In an image there are no wheels beside the models: they are installed."""
    for wheel in sorted(wheels.glob("*-none-any.whl")) if wheels.is_dir() else []:
        if not wheel.name.startswith("mlops_build-"):
            sys.path.insert(0, str(wheel.resolve()))


def _load(checked: CheckedModel) -> Loaded:
    # MLflow warns about what it finds in any environment but the one it would have made itself.
    warnings.filterwarnings("ignore", module="mlflow")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    import_mlflow()
    import mlflow.pyfunc

    folder, name = checked.folder, checked.name
    try:
        with warnings.catch_warnings(record=True) as noticed:
            model = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    except Exception as error:  # the model's own code runs here
        missing = "No module named" in str(error)
        raise CannotLoad(
            f"{name} cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            remedy=f"install what it needs: {folder}/environment/requirements.lock"
            if missing
            else "run its tests at the commit that its lineage.json names; MLFLOW_LOGGING_LEVEL=DEBUG says more",
        ) from error
    for one in noticed:  # MLflow sets its own filters while it loads: its advice for training is of no use here
        if "mlflow" not in Path(one.filename).parts:
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)
    from mlops_build.serving.predictor import Predictor

    return Loaded(name, checked.version, checked.digest, model, Predictor(model), describe(name, checked.version, folder))


def warm_up(loaded: Loaded, say: Callable[[str], None]) -> None:
    """Let the model answer its recorded example, so that the first caller does not wait, and a model that cannot answer never gets
    ready. Then look whether requests may be predicted together. Raises CannotLoad."""
    if loaded.recorded is None:
        return
    from mlops_build.serving.decode import JSON, Decoder
    from mlops_build.serving.encode import Unencodable, encode
    from mlops_build.serving.refusal import Refusal

    wrong = None
    try:
        rows = Decoder(loaded.model).decode(json.dumps(loaded.recorded["input"]).encode(), JSON)
        (answer,) = loaded.predictor.predict([rows])
        if isinstance(answer, Refusal) and isinstance(cause := answer.__cause__, Exception):
            wrong = f"{type(cause).__name__}: {cause}"
            loaded.predictor.needs_gradients()
            (answer,) = loaded.predictor.predict([rows])
            if not isinstance(answer, Exception):
                wrong = None
                say(f"{loaded}: it answers only without torch.inference_mode, so it is asked without")
        if not isinstance(answer, Exception):
            encode(answer)
        elif wrong is None:
            wrong = str(answer)
    except (Refusal, Unencodable) as error:
        wrong = str(error)
    if wrong is not None:
        raise CannotLoad(
            f"{loaded} does not answer its own recorded example: {' '.join(wrong.split())[:500]}",
            remedy=COMPILER
            if "ompiler" in wrong
            else "its environment is not the one it was registered with: package it anew, or train again",
        )
    if why := loaded.predictor.check_joining(rows):
        say(f"{loaded}: each request is predicted by itself, since {why}")


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]
