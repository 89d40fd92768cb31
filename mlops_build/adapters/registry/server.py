"""An MLflow server, by its documented REST API."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mlops_build.adapters.registry.http import TRANSIENT, Http
from mlops_build.adapters.registry.records import NoAnswer, RegisteredModel, RegisteredVersion, Rejected, Run, pages, quoted, stage

PAGE = 1000
T = TypeVar("T")
# How often a version is looked for whose creation was not answered; the waits add up to 31 s.
LOOKS = 5


class Server:
    """The calls of Registry. Each is safe to repeat; raises Rejected and NoAnswer."""

    def __init__(self, uri: str) -> None:
        self.http = Http(uri)

    def version(self, name: str, number: str) -> RegisteredVersion:
        return _read(_model_version, self.http.call("GET", "model-versions/get", {"name": name, "version": number}), "model_version")

    def aliased(self, name: str, alias: str) -> RegisteredVersion:
        return _read(_model_version, self.http.call("GET", "registered-models/alias", {"name": name, "alias": alias}), "model_version")

    def aliases(self, name: str) -> dict[str, int]:
        return _read(_aliases, self.http.call("GET", "registered-models/get", {"name": name}), "registered_model")

    def models(self) -> list[RegisteredModel]:
        models = self._pages("registered-models/search", {}, "registered_models")
        return [_read(_registered_model, {"model": model}, "model") for model in models]

    def version_page(self, token: str) -> tuple[list[RegisteredVersion], str]:
        page = self._page("GET", "model-versions/search", {}, token)
        return [_read(_model_version, {"version": each}, "version") for each in _entries(page, "model_versions")], _next(page)

    def experiment_page(self, token: str) -> tuple[list[str], str]:
        page = self._page("POST", "experiments/search", {"view_type": "ALL"}, token)
        return [_read(_experiment, {"experiment": each}, "experiment")[0] for each in _entries(page, "experiments")], _next(page)

    def run_page(self, experiment_ids: list[str], token: str) -> tuple[list[Run], str]:
        page = self._page("POST", "runs/search", {"experiment_ids": experiment_ids, "run_view_type": "ALL"}, token)
        return [_read(_run, {"run": each}, "run") for each in _entries(page, "runs")], _next(page)

    def versions(self, name: str) -> list[RegisteredVersion]:
        return [
            _read(_model_version, {"version": version}, "version")
            for version in self._pages("model-versions/search", {"filter": f"name = '{quoted(name)}'"}, "model_versions")
        ]

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.http.call("POST", "registered-models/alias", {"name": name, "alias": alias, "version": version})

    def delete_alias(self, name: str, alias: str) -> None:
        self.http.call("DELETE", "registered-models/alias", {"name": name, "alias": alias})

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.http.call("POST", "model-versions/set-tag", {"name": name, "version": version, "key": key, "value": value})

    def delete_tag(self, name: str, version: str, key: str) -> None:
        self.http.call("DELETE", "model-versions/delete-tag", {"name": name, "version": version, "key": key})

    def create_model(self, name: str) -> None:
        self.http.call("POST", "registered-models/create", {"name": name})

    def create_version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """Sent again only if the first request is known to be finished. Otherwise the version is looked for, and after that it is an error.

        A gateway may answer 502 or 504 while the server still works, so a second request could create a second version.
        """
        fields = {"name": name, "source": source, "run_id": run_id, "tags": [{"key": key, "value": value} for key, value in tags.items()]}
        for attempt in range(self.http.tries):
            try:
                return _read(_model_version, self.http.call("POST", "model-versions/create", fields, repeat=False), "model_version")
            except (Rejected, NoAnswer) as error:
                if isinstance(error, Rejected) and error.status not in TRANSIENT:
                    raise
                failure: Exception = error
            # MLflow's own error has a code. A gateway answers 429 and 503 for requests that it has not passed on.
            is_finished = isinstance(failure, Rejected) and (failure.code or failure.status in (429, 503))
            for look in range(1 if is_finished else LOOKS):
                time.sleep(self.http.wait(attempt if is_finished else look))
                for version in self.versions(name):
                    if version.source == source and version.run_id == run_id and tags.items() <= version.tags.items():
                        return version
            if not is_finished:
                break
        raise failure

    def find_run(self, experiment_id: str, tag: str, value: str) -> Run | None:
        fields = {
            "experiment_ids": [experiment_id],
            "filter": f"tags.`{tag}` = '{quoted(value)}'",
            "run_view_type": "ACTIVE_ONLY",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        runs = self.http.call("POST", "runs/search", fields).get("runs", [])
        return _read(_run, {"run": runs[0]}, "run") if runs else None

    def run(self, run_id: str) -> Run:
        return _read(_run, self.http.call("GET", "runs/get", {"run_id": run_id}), "run")

    def create_run(self, experiment_id: str, tags: Mapping[str, str]) -> str:
        """A finished run. Not sent again: two runs do no harm, but cost files."""
        fields = {"experiment_id": experiment_id, "start_time": int(time.time() * 1000)}
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        run = _read(_run, self.http.call("POST", "runs/create", {**fields, "tags": pairs}, repeat=False), "run")
        self.http.call("POST", "runs/update", {"run_id": run.run_id, "status": "FINISHED", "end_time": fields["start_time"]})
        return run.run_id

    def delete_version(self, name: str, version: str) -> None:
        self.http.call("DELETE", "model-versions/delete", {"name": name, "version": version})

    def set_run_tag(self, run_id: str, key: str, value: str) -> None:
        self.http.call("POST", "runs/set-tag", {"run_id": run_id, "key": key, "value": value})

    def find_experiment(self, name: str) -> tuple[str, bool]:
        document = self.http.call("GET", "experiments/get-by-name", {"experiment_name": name})
        return _read(_experiment, document, "experiment")

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        location = {"artifact_location": artifact_location} if artifact_location else {}
        return _read(str, self.http.call("POST", "experiments/create", {"name": name, **location}), "experiment_id")

    def _pages(self, endpoint: str, fields: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        def page(token: str) -> tuple[list[dict[str, Any]], str]:
            answer = self._page("GET", endpoint, fields, token)
            return _entries(answer, key), _next(answer)

        return list(pages(page))

    def _page(self, method: str, endpoint: str, fields: Mapping[str, Any], token: str) -> Mapping[str, Any]:
        return self.http.call(method, endpoint, {**fields, "max_results": PAGE, **({"page_token": token} if token else {})})


def _entries(page: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = page.get(key) or []
    if not isinstance(entries, list):
        raise Rejected("", 200, f"{key} is not a list in its response")
    return entries


def _next(page: Mapping[str, Any]) -> str:
    return str(page.get("next_page_token") or "")


def _read(parse: Callable[[Any], T], document: Mapping[str, Any], key: str) -> T:
    """`parse` of the value of a key. Raises Rejected for a document that MLflow does not send."""
    try:
        return parse(document[key])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise Rejected("", 200, f"the response has no valid {key!r}: this is not an MLflow server") from None


def _aliases(model: Mapping[str, Any]) -> dict[str, int]:
    return {str(alias["alias"]): int(alias["version"]) for alias in model.get("aliases", [])}


def _registered_model(entity: Mapping[str, Any]) -> RegisteredModel:
    return RegisteredModel(str(entity["name"]), _aliases(entity), _tags(entity), str(entity.get("description") or ""))


def _experiment(entity: Mapping[str, Any]) -> tuple[str, bool]:
    """Its id, and whether it is active."""
    return str(entity["experiment_id"]), entity.get("lifecycle_stage", "active") == "active"


def _tags(entity: Mapping[str, Any]) -> dict[str, str]:
    return {str(tag["key"]): str(tag.get("value", "")) for tag in entity.get("tags", [])}


def _model_version(entity: Mapping[str, Any]) -> RegisteredVersion:
    return RegisteredVersion(
        name=str(entity["name"]),
        version=int(entity["version"]),
        run_id=str(entity.get("run_id", "")),
        source=str(entity.get("source", "")),
        tags=_tags(entity),
        created_ms=int(entity.get("creation_timestamp", 0)),
        status=str(entity.get("status", "READY")),
        stage=stage(entity.get("current_stage")),
    )


def _run(entity: Mapping[str, Any]) -> Run:
    info, data = entity["info"], entity.get("data", {})
    return Run(
        run_id=str(info["run_id"]),
        artifact_uri=str(info.get("artifact_uri", "")),
        params={str(param["key"]): str(param.get("value", "")) for param in data.get("params", [])},
        metrics={str(metric["key"]): float(metric.get("value", 0)) for metric in data.get("metrics", [])},
        tags=_tags(data),
        is_deleted=info.get("lifecycle_stage") == "deleted",
    )
