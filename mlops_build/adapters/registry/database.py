"""MLflow without a server: a sqlite file, or another address that mlflow's own client opens."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from mlops_build.adapters.registry import schema
from mlops_build.adapters.registry.quiet import quiet_mlflow
from mlops_build.adapters.registry.records import (
    NoAnswer,
    RegisteredModel,
    RegisteredVersion,
    Rejected,
    Run,
    first_line,
    pages,
    quoted,
    stage,
)

PAGE = 1000
# mlflow.entities.ViewType.ALL, whose import takes seconds.
_ALL = 3
SQL = re.compile(r"(?:sqlite|postgresql|mysql|mssql)(?:\+[a-z0-9]+)?://")


class Database:
    """The same calls as Server, through mlflow."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    @cached_property
    def _client(self) -> Any:
        # Not mlflow.set_tracking_uri: it writes into the environment of this process and of everything that it starts.
        quiet_mlflow()
        from mlflow import MlflowClient

        if SQL.match(self._uri):
            with _translated():
                _check_schema(self._uri)
        return MlflowClient(self._uri, registry_uri=self._uri)

    def version(self, name: str, number: str) -> RegisteredVersion:
        with _translated():
            return _model_version(self._client.get_model_version(name, number))

    def aliased(self, name: str, alias: str) -> RegisteredVersion:
        with _translated():
            return _model_version(self._client.get_model_version_by_alias(name, alias))

    def aliases(self, name: str) -> dict[str, int]:
        with _translated():
            return _aliases(self._client.get_registered_model(name))

    def models(self) -> list[RegisteredModel]:
        with _translated():
            models = _pages(lambda token: self._client.search_registered_models(max_results=PAGE, page_token=token))
        return [RegisteredModel(model.name, _aliases(model), dict(model.tags), model.description or "") for model in models]

    def version_page(self, token: str) -> tuple[list[RegisteredVersion], str]:
        with _translated():
            page = self._client.search_model_versions(max_results=PAGE, page_token=token or None)
        return [_model_version(version) for version in page], page.token or ""

    def experiment_page(self, token: str) -> tuple[list[str], str]:
        with _translated():
            page = self._client.search_experiments(_ALL, max_results=PAGE, page_token=token or None)
        return [str(experiment.experiment_id) for experiment in page], page.token or ""

    def run_page(self, experiment_ids: list[str], token: str) -> tuple[list[Run], str]:
        with _translated():
            page = self._client.search_runs(experiment_ids, run_view_type=_ALL, max_results=PAGE, page_token=token or None)
        return [_run(run) for run in page], page.token or ""

    def versions(self, name: str) -> list[RegisteredVersion]:
        wanted = f"name = '{quoted(name)}'"
        with _translated():
            versions = _pages(lambda token: self._client.search_model_versions(wanted, max_results=PAGE, page_token=token))
        return [_model_version(version) for version in versions]

    def set_alias(self, name: str, alias: str, version: str) -> None:
        with _translated():
            self._client.set_registered_model_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        with _translated():
            self._client.delete_registered_model_alias(name, alias)

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        with _translated():
            self._client.set_model_version_tag(name, version, key, value)

    def delete_tag(self, name: str, version: str, key: str) -> None:
        with _translated():
            self._client.delete_model_version_tag(name, version, key)

    def create_model(self, name: str) -> None:
        with _translated():
            self._client.create_registered_model(name)

    def create_version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        with _translated():
            made = self._client.create_model_version(name, source, run_id=run_id, tags=dict(tags), await_creation_for=0)
        return _model_version(made)

    def find_run(self, experiment_id: str, tag: str, value: str) -> Run | None:
        wanted = f"tags.`{tag}` = '{quoted(value)}'"
        with _translated():
            runs = self._client.search_runs([experiment_id], wanted, order_by=["attributes.start_time DESC"], max_results=1)
        return _run(runs[0]) if runs else None

    def run(self, run_id: str) -> Run:
        with _translated():
            return _run(self._client.get_run(run_id))

    def create_run(self, experiment_id: str, tags: Mapping[str, str]) -> str:
        with _translated():
            run = self._client.create_run(experiment_id, tags=dict(tags))
            self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def delete_version(self, name: str, version: str) -> None:
        with _translated():
            self._client.delete_model_version(name, version)

    def set_run_tag(self, run_id: str, key: str, value: str) -> None:
        with _translated():
            self._client.set_tag(run_id, key, value)

    def find_experiment(self, name: str) -> tuple[str, bool]:
        with _translated():
            known = self._client.get_experiment_by_name(name)
        if known is None:
            raise Rejected("RESOURCE_DOES_NOT_EXIST", 404, f"no experiment {name!r}")
        return str(known.experiment_id), known.lifecycle_stage == "active"

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        with _translated():
            return str(self._client.create_experiment(name, artifact_location=artifact_location))


def _check_schema(uri: str) -> None:
    """Raise OtherSchema for the database of another MLflow release: mlflow would add its tables to it when it opens it."""
    import sqlalchemy
    from alembic.migration import MigrationContext

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        revisions = MigrationContext.configure(connection).get_current_heads()
        is_empty = set(sqlalchemy.inspect(connection).get_table_names()) <= {schema.TABLE}
    schema.check(uri, revisions, is_empty=is_empty)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """mlflow's exceptions as ours. Other errors are not caught."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = first_line(error)
        if "Max retries exceeded" in text or "failed with exception" in text:
            raise NoAnswer(text) from error
        raise Rejected(str(error.error_code), int(error.get_http_status_code()), text) from error
    except Exception as error:
        # sqlalchemy is imported only where MLflow is a database.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("sqlalchemy"):
            raise
        raise NoAnswer(first_line(error)) from error


def _pages(search: Any) -> list[Any]:
    def page(token: str) -> tuple[list[Any], str]:
        answer = search(token or None)
        return answer, answer.token or ""

    return list(pages(page))


def _aliases(model: Any) -> dict[str, int]:
    return {str(alias): int(version) for alias, version in model.aliases.items()}


def _model_version(entity: Any) -> RegisteredVersion:
    return RegisteredVersion(
        name=entity.name,
        version=int(entity.version),
        run_id=entity.run_id or "",
        source=entity.source or "",
        tags=dict(entity.tags),
        created_ms=int(entity.creation_timestamp),
        status=str(entity.status),
        stage=stage(entity.current_stage),
    )


def _run(entity: Any) -> Run:
    info, data = entity.info, entity.data
    is_deleted = info.lifecycle_stage == "deleted"
    return Run(info.run_id, info.artifact_uri, dict(data.params), dict(data.metrics), dict(data.tags), is_deleted)
