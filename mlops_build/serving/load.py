"""Load the models to serve: a build context, a model's folder, or a version of the registry.

Digests are checked before any code of the files runs, and before a card is leased: fetching and checking can take minutes, during which the
lease would reserve memory for nothing.
"""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_build import tracking
from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.finding import Finding, show
from mlops_build.model import files, scan
from mlops_build.model.identity import SERVICE, parse_uri
from mlops_build.model.independence import TOLERANCES, Tolerance, Verdict
from mlops_build.model.openapi import Described, describe
from mlops_build.model.version import BadVersion
from mlops_build.packaging import contents
from mlops_build.serving.light import import_mlflow
from mlops_build.serving.sigterm import Terminated

if TYPE_CHECKING:
    from mlops_build.serving.predictor import Predictor


# In a version's files, which its digest covers.
WHEELS = "environment/wheels"
COMPILER = "torch.compile needs a C++ compiler: add g++ to image.apt in service.yaml, or remove serving.compile"


class CannotLoad(Failed):
    """The model's code, or a package that it needs, fails during loading or while it predicts its recorded example."""


class Unsafe(Refused):
    """Files that were not packaged could run code when they are loaded."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    version, digest: None for a folder without them. described: its signature, and its recorded example if it has one. mlflow_version: the
    MLflow version that saved it.
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
    """The loaded models of a service. image: the image's name, if known. The first model answers /invocations."""

    service: str
    image: str | None
    models: tuple[Loaded, ...]


@dataclass(frozen=True)
class Checked:
    """The models to serve, with their files checked and no code run.

    installed: the service's code is installed, as in an image. unsafe_pickle: the reason why pickled files are accepted; else empty.
    """

    service: str
    image: str | None
    models: tuple["CheckedModel", ...]
    installed: bool = False
    unsafe_pickle: str = ""


@dataclass(frozen=True)
class CheckedModel:
    """The checked files of a model. version, digest: as in Loaded."""

    folder: Path
    name: str
    version: int | None
    digest: str | None


def from_folder(folder: Path, say: Callable[[str], None], unsafe_pickle: str = "") -> Checked:
    """Check a build context, or a folder with an MLmodel. Raises NotFound, DigestMismatch, Unsafe.

    unsafe_pickle: the reason why pickled files are accepted; a context has its own.
    """
    if not folder.is_dir():
        raise NotFound(f"{folder} does not exist", remedy="name a build context (mlops-build package … -o DIR) or models:/NAME/VERSION")
    if (folder / contents.FILE).is_file():
        return _context(folder)
    if (folder / "MLmodel").is_file():
        say(f"{folder} is a model without a recorded digest, so its files cannot be verified")
        _check(str(folder), scan.scan(folder), unsafe_pickle)
        name = folder.resolve().name
        return Checked(name, None, (CheckedModel(folder, name, None, None),), unsafe_pickle=unsafe_pickle)
    raise NotFound(
        f"{folder} contains neither a {contents.FILE} nor an MLmodel",
        remedy="create a build context (mlops-build package MODEL_URI -o DIR), or name a version: models:/NAME/VERSION",
    )


def from_registry(uri: str, scratch: Path, unsafe_pickle: str = "") -> Checked:
    """Fetch `models:/NAME/VERSION` or `models:/NAME@ALIAS` into `scratch`, and check it.

    Raises the registry's errors, and those of `from_folder`.
    """
    reference = parse_uri(uri)
    registry = tracking.registry()
    version = registry.version(reference.name, reference.which)
    try:
        digest = version.checked().digest
    except BadVersion as error:
        raise Refused(
            error.message,
            remedy=f"download it (`mlflow artifacts download --artifact-uri {version.uri} --dst-path old`), and serve the folder `old`; "
            "or register it with `mlops-build train`",
        ) from None
    folder = registry.fetch(version, scratch / version.name)
    files.verify(folder, digest)
    _check(version.uri, scan.scan(folder), unsafe_pickle)
    service = version.tags.get(SERVICE, version.name)
    return Checked(service, None, (CheckedModel(folder, version.name, version.version, digest),), unsafe_pickle=unsafe_pickle)


def _context(folder: Path) -> Checked:
    context = contents.read(folder)
    models = []
    for model in context.models:
        files_of = folder / contents.folder_of(model.name)
        if not (files_of / "MLmodel").is_file():
            raise NotFound(f"{files_of} has no MLmodel", remedy="create the context again: mlops-build package MODEL_URI -o DIR")
        files.verify(files_of, model.digest)
        # `package` has scanned the files, but releases before 0.6 did not look at the paths in MLmodel.
        _check(str(files_of), scan.mlmodel(files_of), context.unsafe_pickle)
        models.append(CheckedModel(files_of, model.name, model.version, model.digest))
    # An image has the code in another folder. A context has it beside the models, for the build alone; until 0.9 as wheels.
    installed = not any((folder / name).exists() for name in ("code", "wheels"))
    return Checked(context.service, context.image, tuple(models), installed, context.unsafe_pickle or "")


def load(
    checked: Checked,
    *,
    compile: bool = False,  # noqa: A002  # the flag's name
    precision: str = "float32",
    rows_independent: str = "",
) -> Serving:
    """Load every model onto the device that this process sees. Raises CannotLoad.

    compile, precision: see network.prepare. rows_independent: see Settings.
    """
    # Python would write __pycache__ beside the model's own code; the next start would then refuse the folder, whose digest has changed.
    sys.dont_write_bytecode = True
    if not checked.installed:
        _add_code(checked.models[0].folder / WHEELS)
    models = tuple(_load(model, TOLERANCES[precision], rows_independent) for model in checked.models)
    if compile or precision != "float32":
        from mlops_build.serving import network

        for loaded in models:
            if not network.prepare(loaded.model, compile=compile, precision=precision):
                given = [name for name, changed in (("compile", compile), ("precision", precision != "float32")) if changed]
                settings = " and ".join(f"--{name} (serving.{name} in service.yaml)" for name in given)
                raise CannotLoad(
                    f"{loaded} contains no torch network for {settings}",
                    remedy=f"keep the network as an attribute of the predictor, or remove {settings}",
                )
    return Serving(checked.service, checked.image, models)


def _check(model: str, findings: Sequence[Finding], unsafe_pickle: str | None) -> None:
    if refused := scan.refused(findings, unsafe_pickle):
        only = all(finding.rule in scan.PICKLED for finding in refused)
        raise Unsafe(
            f"{model} contains files that are not safe to load:\n{show(refused)}",
            remedy="fix each finding above"
            + ('; if you trust these pickles, say why: serving.unsafe_pickle in service.yaml, or --unsafe-pickle="REASON"' if only else ""),
        )


def _add_code(wheels: Path) -> None:
    """Put the service's wheel first on sys.path, so that the registered code runs, and not the code that is installed on this machine."""
    for wheel in sorted(wheels.glob("*-none-any.whl")):
        if not wheel.name.startswith("mlops_build-"):
            sys.path.insert(0, str(wheel.resolve()))


def _load(checked: CheckedModel, tolerance: Tolerance, rows_independent: str) -> Loaded:
    # MLflow warns in every environment that it did not create itself.
    warnings.filterwarnings("ignore", module="mlflow")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    import_mlflow()
    import mlflow.pyfunc

    folder, name = checked.folder, checked.name
    try:
        with warnings.catch_warnings(record=True) as caught:
            model = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    except (Terminated, KeyboardInterrupt):
        raise
    except BaseException as error:  # the model's own code runs here, and may call sys.exit
        missing = "No module named" in str(error)
        raise CannotLoad(
            f"{name} cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            remedy="add the package to `dependencies` in pyproject.toml (an own module: to `packages`), and train again; "
            "on this machine only: install it"
            if missing
            else "run the model's tests at the commit in its lineage.json; MLFLOW_LOGGING_LEVEL=DEBUG gives more details",
        ) from error
    for warning in caught:  # MLflow resets the filters during loading; its advice for training does not apply here
        if "mlflow" not in Path(warning.filename).parts:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    from mlops_build.serving.predictor import Predictor

    try:
        described = describe(name, checked.version, folder)
    except ValueError as error:
        raise CannotLoad(
            f"{name}: its MLmodel or its recorded example cannot be read: {_first_line(error)}",
            remedy="register the model again with `mlops-build train`",
        ) from error
    loaded = Loaded(
        name, checked.version, checked.digest, model, Predictor(model, tolerance=tolerance, declared=rows_independent), described
    )
    loaded.predictor.joining.name = str(loaded)
    return loaded


def warm_up(loaded: Loaded, say: Callable[[str], None]) -> None:
    """Predict the recorded example, and check whether requests may be predicted in one batch. Raises CannotLoad.

    After this the first request does not have to wait, and a model that cannot predict never becomes ready.
    """
    if loaded.recorded is None:
        _report(loaded, Verdict(None, "training.log_model has recorded no example"), say)
        return
    from mlops_build.serving.encode import encode
    from mlops_build.serving.input.decode import JSON, Decoder
    from mlops_build.serving.joining import joined, key_of, part
    from mlops_build.serving.refusal import Refusal

    predictor = loaded.predictor
    try:
        rows = Decoder(loaded.model).decode(json.dumps(loaded.recorded["input"]).encode(), JSON)
        began = time.perf_counter()
        (answer,) = predictor.predict([rows])
        if isinstance(answer, Refusal) and answer.__cause__:
            predictor.needs_gradients()
            (answer,) = predictor.predict([rows])
            if not isinstance(answer, Exception):
                say(f"{loaded}: it fails with torch.inference_mode, so the service does not use it")
        if isinstance(answer, Exception):
            raise answer
        encode(answer)
    except Exception as error:
        problem = f"{type(error.__cause__).__name__}: {error.__cause__}" if error.__cause__ else str(error)
        raise CannotLoad(
            f"{loaded} fails on its own recorded example: {' '.join(problem.split())[:500]}",
            remedy=COMPILER
            if "ompiler" in problem
            else "its environment differs from the one that it was registered with: package it again, or train again",
        ) from None
    expected = (time.perf_counter() - began) / max(rows.count, 1)
    if key_of(rows):  # torch.compile compiles again for one row, and for another number of them
        predictor.predict([joined([rows, rows]), part(rows, 0, 1)])
    _report(loaded, predictor.joining.check(rows, expected), say)


def _report(loaded: Loaded, verdict: Verdict, say: Callable[[str], None]) -> None:
    """Say whether and why requests are not predicted in batches."""
    declared, refuted = loaded.predictor.declared, loaded.predictor.joining.refuted
    if refuted is not None:
        although = f", although rows_independent says: {declared}" if declared else ""
        say(f"{loaded}: requests are not predicted in batches, since {refuted}{although}")
    elif verdict.independent is None and declared:
        say(f"{loaded}: requests are predicted in batches, since rows_independent says: {declared}")
    elif verdict.why:
        say(
            f"{loaded}: requests are not predicted in batches until the rows of requests show that they do not influence each other, since "
            f"{verdict.why}. To batch at once, log the model with training.log_model and rows with different answers as `example`, or say "
            'why rows are independent: serving.rows_independent in service.yaml, or --rows-independent="REASON"'
        )


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]
