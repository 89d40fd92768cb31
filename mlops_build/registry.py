"""MLflow's tracking server and registry: the only file that talks to them.

Aliases only, since stages are deprecated. Every failure comes back as one of our errors: a dead server within seconds
(MLflow's own default is seven retries over minutes).
"""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from mlops_build.errors import Failed, NotFound, Refused, Unreachable, UsageError

# Read by mlflow when it is imported. What the user has set wins.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

PAGE = 1000

P = ParamSpec("P")
T = TypeVar("T")


class RegistryUnreachable(Unreachable):
    """MLflow does not answer, or its database is not there."""


class UnknownVersion(NotFound):
    """A registered model, a version or an alias that does not exist."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model. `source` is the artifact folder with its files; `created_ms` is Unix time in ms."""

    name: str
    version: int
    run_id: str
    source: str
    tags: Mapping[str, str]
    created_ms: int

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Run:
    """An MLflow run: what was logged, as text and floats."""

    run_id: str
    artifact_uri: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def tracking_uri(root: Path | None = None) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else what the service at `root` (default: around the current folder) says.

    A relative sqlite file is taken from the service's root. Raises UsageError where neither is there.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    from mlops_build import service

    try:
        root = root or service.find_root()
    except NotFound:
        raise UsageError(
            "no MLflow: MLFLOW_TRACKING_URI is not set, and this is no service's folder",
            remedy="set MLFLOW_TRACKING_URI=https://…, or run this inside a service",
        ) from None
    tracking = service.load(root, strict=False).tracking
    if tracking.s3_endpoint_url:
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", tracking.s3_endpoint_url)
    prefix = "sqlite:///"
    if tracking.uri.startswith(prefix) and not tracking.uri.startswith(f"{prefix}/"):
        return f"{prefix}{root / tracking.uri.removeprefix(prefix)}"
    return tracking.uri


def _translating(method: Callable[Concatenate["Registry", P], T]) -> Callable[Concatenate["Registry", P], T]:
    """MLflow's exceptions as ours; what it prints on stdout goes to stderr, or --json would break."""

    @functools.wraps(method)
    def wrapped(self: "Registry", /, *args: P.args, **kwargs: P.kwargs) -> T:
        from mlflow.exceptions import MlflowException

        try:
            with contextlib.redirect_stdout(sys.stderr):
                return method(self, *args, **kwargs)
        except MlflowException as error:
            raise self._translated(error) from error
        except Exception as error:
            # sqlalchemy is there only where MLflow is a database; over HTTP a pod has none.
            if not isinstance(error, OSError) and not type(error).__module__.startswith("sqlalchemy"):
                raise
            raise RegistryUnreachable(
                f"MLflow at {_shown(self.uri)} does not answer: {_first_line(error)}", remedy="check the address, the network and the disk"
            ) from error

    return wrapped


class Registry:
    """A connection to MLflow at `uri` (default: `tracking_uri()`).

    Raises RegistryUnreachable for a sqlite file that is not there, unless `create`: a misspelt path must not make an
    empty database that then knows no model.
    """

    def __init__(self, uri: str | None = None, *, create: bool = False) -> None:
        self.uri = uri or tracking_uri()
        if self.uri.startswith("sqlite:///") and not create:
            file = Path(self.uri.removeprefix("sqlite:///"))
            if not file.is_file():
                raise RegistryUnreachable(
                    f"MLflow's database {file} does not exist",
                    remedy="train a first model with `mlops-build train`, or set MLFLOW_TRACKING_URI to where your models are",
                )
        # Not mlflow.set_tracking_uri: it writes into the environment of this process and of everything that it starts.
        from mlflow import MlflowClient

        self._client = MlflowClient(self.uri, registry_uri=self.uri)

    @_translating
    def version(self, name: str, which: int | str) -> ModelVersion:
        """The version with this number ("3" or 3), or the one that this alias points at. Raises UnknownVersion, naming what exists."""
        try:
            if isinstance(which, int) or which.isdecimal():
                return _model_version(self._client.get_model_version(name, str(which)))
            return _model_version(self._client.get_model_version_by_alias(name, which))
        except Exception as error:
            if not _is_missing(error):
                raise
        raise self._unknown(name, which)

    @_translating
    def aliases(self, name: str) -> dict[str, int]:
        """Alias → version of one registered model. Raises UnknownVersion for an unknown model."""
        try:
            return _aliases(self._client.get_registered_model(name))
        except Exception as error:
            if not _is_missing(error):
                raise
        raise self._unknown(name, None)

    @_translating
    def alias_map(self) -> dict[str, dict[str, int]]:
        """Model → alias → version for the whole registry: one request per 1,000 models."""
        found: dict[str, dict[str, int]] = {}
        token = None
        while True:
            page = self._client.search_registered_models(max_results=PAGE, page_token=token)
            found.update({model.name: _aliases(model) for model in page})
            token = page.token
            if not token:
                return found

    @_translating
    def versions(self, name: str) -> list[ModelVersion]:
        """Every version of a model, newest first; empty for an unknown model."""
        found: list[ModelVersion] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{_quoted(name)}'", max_results=PAGE, page_token=token)
            found += map(_model_version, page)
            token = page.token
            if not token:
                break
        return sorted(found, key=lambda version: -version.version)

    @_translating
    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        self._client.set_registered_model_alias(name, alias, str(version))

    @_translating
    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; nothing happens where there is none."""
        self._client.delete_registered_model_alias(name, alias)

    @_translating
    def set_tag(self, name: str, version: int, key: str, value: str) -> None:
        """Set one tag on a model version."""
        self._client.set_model_version_tag(name, str(version), key, value)

    @_translating
    def delete_tag(self, name: str, version: int, key: str) -> None:
        """Remove one tag of a model version."""
        self._client.delete_model_version_tag(name, str(version), key)

    @_translating
    def create_version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Register `source` as the next version of `name`, with all its tags in one call; makes the registered model where needed."""
        try:
            self._client.create_registered_model(name)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
        return _model_version(self._client.create_model_version(name, source, run_id=run_id, tags=dict(tags), await_creation_for=0))

    @_translating
    def upload(self, run_id: str, folder: Path, artifact_path: str) -> str:
        """Put a folder's files under `artifact_path` of a run; returns the URI of that place."""
        self._client.log_artifacts(run_id, str(folder), artifact_path)
        return f"{self._client.get_run(run_id).info.artifact_uri.rstrip('/')}/{artifact_path}"

    @_translating
    def fetch(self, version: ModelVersion, destination: Path) -> Path:
        """Download a version's files into `destination`, which is made and must be empty. Nothing is loaded or checked here."""
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException

        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as part:
            try:
                found = Path(mlflow.artifacts.download_artifacts(artifact_uri=version.source, dst_path=part, tracking_uri=self.uri))
            except (MlflowException, OSError) as error:
                raise UnknownVersion(
                    f"{version.uri}: its files cannot be read from {_shown(version.source)}: {_first_line(error)}",
                    remedy="check that the artifact store answers and still has them (`mlops-build doctor`)",
                ) from error
            found.rename(destination)
        return destination

    @_translating
    def read(self, version: ModelVersion, path: str) -> bytes:
        """One of a version's files. Raises UnknownVersion where it is not there."""
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
            try:
                found = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{version.source}/{path}", dst_path=scratch, tracking_uri=self.uri
                )
                return Path(found).read_bytes()
            except (MlflowException, OSError) as error:
                raise UnknownVersion(
                    f"{version.uri}: {path} cannot be read from {_shown(version.source)}: {_first_line(error)}",
                    remedy="was it registered by `mlops-build train`? check that the artifact store answers (`mlops-build doctor`)",
                ) from error

    @_translating
    def find_run(self, experiment: str, tag: str, value: str) -> Run | None:
        """The newest run of an experiment whose tag has this value."""
        known = self._client.get_experiment_by_name(experiment)
        if known is None:
            return None
        runs = self._client.search_runs(
            [known.experiment_id], f"tags.`{tag}` = '{_quoted(value)}'", order_by=["attributes.start_time DESC"], max_results=1
        )
        return _run(runs[0]) if runs else None

    @_translating
    def run(self, run_id: str) -> Run | None:
        """A run by its id; None when it was deleted."""
        try:
            return _run(self._client.get_run(run_id))
        except Exception as error:
            if not _is_missing(error):
                raise
        return None

    @_translating
    def set_run_tag(self, run_id: str, key: str, value: str) -> None:
        """Set one tag on a run."""
        self._client.set_tag(run_id, key, value)

    @_translating
    def experiment(self, name: str, artifact_root: Path | None = None) -> str:
        """The id of the experiment `name`, made where there is none; its artifacts then go under `artifact_root`."""
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise Refused(
                    f"MLflow's experiment {name!r} is deleted", remedy="restore it: mlflow experiments restore, or rename the service"
                )
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifact_root.as_uri() if artifact_root else None))

    def _unknown(self, name: str, which: int | str | None) -> UnknownVersion:
        versions = [str(version.version) for version in self.versions(name)]
        if not versions:
            models = sorted(self.alias_map())
            known = ", ".join(models[:20]) if models else "none yet"
            return UnknownVersion(f"no registered model {name!r} at {_shown(self.uri)}", remedy=f"registered models: {known}")
        aliases = self.aliases(name)
        kind = f"version {which}" if isinstance(which, int) or str(which).isdecimal() else f"alias {which!r}"
        known = ", ".join(f"{alias} → {version}" for alias, version in sorted(aliases.items())) or "none"
        return UnknownVersion(f"{name} has no {kind}", remedy=f"versions: {', '.join(versions[:20])}; aliases: {known}")

    def _translated(self, error: Any) -> Exception:
        text, code = _first_line(error), getattr(error, "error_code", "")
        status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 500
        if "Max retries exceeded" in text or "failed with exception" in text or "Connection" in text or status in (429, 502, 503, 504):
            return RegistryUnreachable(
                f"MLflow at {_shown(self.uri)} does not answer",
                remedy="check MLFLOW_TRACKING_URI and that the server runs (`mlops-build doctor`)",
            )
        if code in ("PERMISSION_DENIED", "UNAUTHENTICATED") or status in (401, 403):
            return Refused(
                f"MLflow at {_shown(self.uri)} refused: {text}",
                remedy="set MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN",
            )
        if _is_missing(error):
            return NotFound(f"MLflow at {_shown(self.uri)}: {text}")
        return Failed(f"MLflow at {_shown(self.uri)}: {text}")


def _is_missing(error: Exception) -> bool:
    if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
        return True
    # The SQL store answers an unknown alias with INVALID_PARAMETER_VALUE.
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE" and "not found" in str(error)


def _aliases(model: Any) -> dict[str, int]:
    return {str(alias): int(version) for alias, version in model.aliases.items()}


def _model_version(found: Any) -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        run_id=found.run_id or "",
        source=found.source or "",
        tags=dict(found.tags),
        created_ms=int(found.creation_timestamp),
    )


def _run(found: Any) -> Run:
    return Run(found.info.run_id, found.info.artifact_uri, dict(found.data.params), dict(found.data.metrics), dict(found.data.tags))


def _quoted(text: str) -> str:
    """For MLflow's filter language, which has no escape for a quote."""
    if "'" in text or "\n" in text:
        raise UsageError(f"{text[:100]!r} cannot be searched for", remedy="leave out quotes and line breaks")
    return text


def _shown(uri: str) -> str:
    """The address without user and password."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else uri


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
