"""MLflow's tracking server and registry: the only package that talks to them.

Aliases only, since stages are deprecated. Every failure is raised as one of our errors: for a server that does not answer within seconds
(MLflow's own default is seven retries over minutes). With a server, mlflow is not imported: the import takes longer than most commands.
"""

import contextlib
import functools
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from mlops_build.adapters.registry.quiet import quiet_mlflow
from mlops_build.adapters.registry.records import (
    NoAnswer,
    NoDatabase,
    NoFiles,
    RegisteredModel,
    RegisteredVersion,
    RegistryUnreachable,
    Rejected,
    Run,
    StoredFile,
    UnknownVersion,
    pages,
    shown,
)
from mlops_build.adapters.registry.stored import opened, unreadable
from mlops_build.adapters.registry.translation import SERVER, translated, unreachable
from mlops_build.errors import Failed, Refused, UsageError

if TYPE_CHECKING:
    from mlops_build.adapters.registry.artifacts import Artifacts
    from mlops_build.adapters.registry.database import Database
    from mlops_build.adapters.registry.http import Http
    from mlops_build.adapters.registry.server import Server
    from mlops_build.adapters.registry.webhooks import Webhook

__all__ = [
    "NoDatabase",
    "RegisteredModel",
    "RegisteredVersion",
    "Registry",
    "RegistryUnreachable",
    "Run",
    "StoredFile",
    "UnknownVersion",
    "checked_address",
    "quiet_mlflow",
]

# The most experiments in one request for their runs.
EXPERIMENTS = 100
# The source of a version that MLflow's copy_model_version made.
COPY = re.compile(r"models:/([^/]+)/([0-9]{1,9})")
MOST_COPIES = 10
SQLITE = "sqlite:///"
# A host without http://, which MLflow would take for a folder.
HOST = re.compile(r"[A-Za-z0-9-]+(?:(?:\.[A-Za-z0-9-]+)*:[0-9]+|(?:\.[A-Za-z0-9-]+){2,})(?:/.*)?")

P = ParamSpec("P")
T = TypeVar("T")


def _translating(method: Callable[Concatenate["Registry", P], T]) -> Callable[Concatenate["Registry", P], T]:
    """MLflow's errors as ours; what mlflow prints on stdout goes to stderr, or --json would break."""

    @functools.wraps(method)
    def wrapped(self: "Registry", /, *args: P.args, **kwargs: P.kwargs) -> T:
        # Another thread must not exchange it: the last one to end would leave its own in place.
        is_main = threading.current_thread() is threading.main_thread()
        try:
            with contextlib.redirect_stdout(sys.stderr) if is_main else contextlib.nullcontext():
                return method(self, *args, **kwargs)
        except NoAnswer as error:
            raise unreachable(self.uri, str(error)) from error
        except Rejected as error:
            raise translated(self.uri, error) from error

    return wrapped


def checked_address(uri: str) -> str:
    """The address of an MLflow, unless it is a host without http://. Raises UsageError."""
    if HOST.fullmatch(uri) and not Path(uri).exists():
        raise UsageError(
            f"{uri[:200]!r} is not the address of an MLflow server: it does not begin with http:// or https://",
            remedy=f"write http://{uri[:200]} (MLFLOW_TRACKING_URI or --tracking-uri)",
        )
    return uri


class Registry:
    """A connection to MLflow at `uri`.

    s3_endpoint_url: the gateway of its artifacts on S3, if the environment (MLFLOW_S3_ENDPOINT_URL) names none.
    Raises UsageError for an address without http://, and RegistryUnreachable for a sqlite file that does not exist, unless `create`: a
    misspelt path must not make an empty database that then knows no model.
    """

    def __init__(self, uri: str, *, s3_endpoint_url: str | None = None, create: bool = False) -> None:
        self.uri = checked_address(uri)
        self._s3_endpoint_url = s3_endpoint_url
        self._store, self._http = self._connect(create)

    @_translating
    def _connect(self, create: bool) -> "tuple[Server | Database, Http | None]":
        if self.uri.startswith(SERVER):
            from mlops_build.adapters.registry.server import Server

            server = Server(self.uri)
            return server, server.http
        if self.uri.startswith(SQLITE):
            from mlops_build.adapters.registry.sqlite import create_database, no_database, open_database

            file = Path(self.uri.removeprefix(SQLITE))
            if not file.is_file():
                if not create:
                    raise no_database(file)
                create_database(file)
            return open_database(self.uri, file), None
        from mlops_build.adapters.registry.database import Database

        return Database(self.uri), None

    @property
    def shown(self) -> str:
        """Its address without user and password."""
        return shown(self.uri)

    @_translating
    def server_version(self) -> str | None:
        """The version of the server, such as "3.10.1"; None for a database, or where the server does not say it."""
        return self._http.version() if self._http else None

    @_translating
    def version(self, name: str, which: int | str) -> RegisteredVersion:
        """The version with this number ("3" or 3), or the one that this alias points at. Raises UnknownVersion, naming what exists."""
        try:
            if isinstance(which, int) or which.isdecimal():
                return self._store.version(name, str(which))
            return self._store.aliased(name, which)
        except Rejected as error:
            if not error.is_missing:
                raise
        raise self._unknown(name, which)

    @_translating
    def aliases(self, name: str) -> dict[str, int]:
        """Alias → version of one registered model. Raises UnknownVersion for an unknown model."""
        try:
            return self._store.aliases(name)
        except Rejected as error:
            if not error.is_missing:
                raise
        raise self._unknown(name, None)

    @_translating
    def alias_map(self) -> dict[str, dict[str, int]]:
        """Model → alias → version for the whole registry: one request per 1,000 models."""
        return {model.name: dict(model.aliases) for model in self._store.models()}

    @_translating
    def models(self) -> list[RegisteredModel]:
        """Every registered model, without prompts."""
        return self._store.models()

    def every_version(self) -> Iterator[RegisteredVersion]:
        """Every version of every model, in the order of the store; only one page of 1,000 is in memory."""
        yield from self._pages(self._version_page)

    def every_run(self) -> Iterator[Run]:
        """Every run of every experiment, also deleted ones; only one page of 1,000 is in memory."""
        experiments = list(self._pages(self._experiment_page))
        for first in range(0, len(experiments), EXPERIMENTS):
            yield from self._pages(partial(self._run_page, experiments[first : first + EXPERIMENTS]))

    def _pages(self, page: Callable[[str], tuple[list[T], str]]) -> Iterator[T]:
        try:
            yield from pages(page)
        except Rejected as error:
            raise translated(self.uri, error) from error

    @_translating
    def _version_page(self, token: str) -> tuple[list[RegisteredVersion], str]:
        return self._store.version_page(token)

    @_translating
    def _experiment_page(self, token: str) -> tuple[list[str], str]:
        return self._store.experiment_page(token)

    @_translating
    def _run_page(self, experiment_ids: list[str], token: str) -> tuple[list[Run], str]:
        return self._store.run_page(experiment_ids, token)

    @_translating
    def versions(self, name: str) -> list[RegisteredVersion]:
        """Every version of a model, newest first; empty for an unknown model."""
        return sorted(self._store.versions(name), key=lambda version: -version.version)

    @_translating
    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        self._store.set_alias(name, alias, str(version))

    @_translating
    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; an unknown alias is not an error."""
        self._store.delete_alias(name, alias)

    @_translating
    def set_tag(self, name: str, version: int, key: str, value: str) -> None:
        """Set one tag on a model version."""
        self._store.set_tag(name, str(version), key, value)

    @_translating
    def delete_tag(self, name: str, version: int, key: str) -> None:
        """Remove one tag of a model version."""
        self._store.delete_tag(name, str(version), key)

    @_translating
    def create_version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """Register `source` as the next version of `name`, with all its tags in one call; makes the registered model where needed.

        One call makes one version, also where the server commits it and the response is lost.
        """
        try:
            self._store.create_model(name)
        except Rejected as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self._store.create_version(name, source, run_id, tags)

    @_translating
    def webhooks(self) -> "list[Webhook]":
        """The webhooks of the MLflow server. Raises UsageError if MLflow is a database without a server."""
        from mlops_build.adapters.registry import webhooks

        return webhooks.listed(self._server())

    @_translating
    def save_webhook(self, name: str, url: str, events: list[str], secret: str, existing: "Webhook | None" = None) -> "Webhook":
        """Create a webhook, or change an existing one. events: such as "model_version.created". Raises Failed for a refused address."""
        from mlops_build.adapters.registry import webhooks

        try:
            return webhooks.save(self._server(), name, url, events, secret, existing)
        except Rejected as error:
            raise Failed(f"MLflow at {shown(self.uri)}: {error.text}", remedy=webhooks.remedy(error.text)) from error

    @_translating
    def test_webhook(self, webhook: "Webhook") -> tuple[str, str] | None:
        """Let MLflow deliver a test event; None if it succeeded, else why not and a remedy."""
        from mlops_build.adapters.registry import webhooks

        try:
            why = webhooks.delivered(self._server(), webhook)
        except Rejected as error:
            why = error.text
        return (why, webhooks.remedy(why)) if why else None

    def _server(self) -> "Http":
        if self._http is None:
            raise UsageError(f"{shown(self.uri)} is a database, which sends no webhooks", remedy="set MLFLOW_TRACKING_URI=https://…")
        return self._http

    @_translating
    def upload(self, run_id: str, folder: Path, artifact_path: str) -> str:
        """Put a folder's files under `artifact_path` of a run; returns the URI of that place."""
        uri = f"{self._store.run(run_id).artifact_uri.rstrip('/')}/{artifact_path}"
        try:
            self._artifacts().upload(folder, uri)
        except NoFiles as error:
            raise Failed(
                f"the files cannot be written to {shown(uri)}: {error}",
                remedy="check that the artifact store answers (`mlops-build doctor`)",
            ) from error
        return uri

    @_translating
    def fetch(self, version: RegisteredVersion, destination: Path) -> Path:
        """Download a version's files into `destination`, which is made and must be empty. Nothing is loaded or checked here."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as part:
            folder = Path(part) / "files"
            try:
                self._artifacts().download(self._source(version), folder)
            except NoFiles as error:
                raise unreadable(version, "its files", error) from error
            folder.rename(destination)
        return destination

    @_translating
    def files(self, version: RegisteredVersion) -> list[StoredFile]:
        """A version's files, sorted by path. Raises UnknownVersion where they cannot be read, also while an opened file is read.

        Nothing is copied before a file is opened; files of some stores are then copied to a temporary folder, one at a time. Open a file
        once and seek, where that is possible. Raises Refused for a symbolic link in a local store.
        """
        try:
            return [replace(file, open=partial(opened, version, file)) for file in self._artifacts().files(self._source(version))]
        except NoFiles as error:
            raise unreadable(version, "its files", error) from error

    @_translating
    def read(self, version: RegisteredVersion, path: str) -> bytes:
        """One of a version's files. Raises UnknownVersion where it does not exist."""
        try:
            return self._artifacts().read(f"{self._source(version)}/{path}")
        except NoFiles as error:
            raise UnknownVersion(
                f"{version.uri}: {path} cannot be read from {shown(version.source)}: {error}",
                remedy="was it registered by `mlops-build train`? check that the artifact store answers (`mlops-build doctor`)",
            ) from error

    def _source(self, version: RegisteredVersion) -> str:
        """Where its files are: a version that MLflow copied names the other one as its source. Raises UnknownVersion."""
        for _ in range(MOST_COPIES):
            if not (copied := COPY.fullmatch(version.source)):
                break
            version = self.version(copied[1], int(copied[2]))
        return version.source

    @_translating
    def find_run(self, experiment: str, tag: str, value: str) -> Run | None:
        """The newest run of an experiment whose tag has this value."""
        try:
            experiment_id, _ = self._store.find_experiment(experiment)
        except Rejected as error:
            if not error.is_missing:
                raise
            return None
        return self._store.find_run(experiment_id, tag, value)

    @_translating
    def run(self, run_id: str) -> Run | None:
        """A run by its id; None when it was deleted."""
        try:
            return self._store.run(run_id)
        except Rejected as error:
            if not error.is_missing:
                raise
        return None

    @_translating
    def set_run_tag(self, run_id: str, key: str, value: str) -> None:
        """Set one tag on a run."""
        self._store.set_run_tag(run_id, key, value)

    @_translating
    def experiment(self, name: str, artifact_root: Path | None = None) -> str:
        """The id of the experiment `name`, created if it does not exist; its artifacts then go under `artifact_root`."""
        try:
            return self._active(name)
        except Rejected as error:
            if not error.is_missing:
                raise
        try:
            return self._store.create_experiment(name, artifact_root.as_uri() if artifact_root else None)
        except Rejected as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self._active(name)  # made meanwhile, or by a request whose response was lost

    def _artifacts(self) -> "Artifacts":
        from mlops_build.adapters.registry.artifacts import Artifacts

        return Artifacts(self.uri, self._http, self._s3_endpoint_url)

    def _active(self, name: str) -> str:
        experiment_id, is_active = self._store.find_experiment(name)
        if not is_active:
            raise Refused(
                f"MLflow's experiment {name!r} is deleted", remedy="restore it: mlflow experiments restore, or rename the service"
            )
        return experiment_id

    def _unknown(self, name: str, which: int | str | None) -> UnknownVersion:
        versions = [str(version.version) for version in self.versions(name)]
        if not versions:
            models = sorted(self.alias_map())
            known = ", ".join(models[:20]) if models else "none yet"
            return UnknownVersion(f"no registered model {name!r} at {shown(self.uri)}", remedy=f"registered models: {known}")
        aliases = self.aliases(name)
        kind = f"version {which}" if isinstance(which, int) or str(which).isdecimal() else f"alias {which!r}"
        known = ", ".join(f"{alias} → {version}" for alias, version in sorted(aliases.items())) or "none"
        return UnknownVersion(f"{name} has no {kind}", remedy=f"versions: {', '.join(versions[:20])}; aliases: {known}")
