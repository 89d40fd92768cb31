"""The items of the checklist for one service, from items.toml and its CI system, and the list as Markdown."""

import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from mlops_build.checklist.names import Names

WIDTH = 120


@dataclass(frozen=True)
class Item:
    """One item. where: its heading. what: the requirement. how: what to do, in Markdown. ask: who knows, if there is no check.

    check: the name of its check in checks.py, or empty. when, each: see items.toml. values: those of the service, for texts and check.
    """

    id: str
    where: str
    what: str
    how: str
    check: str = ""
    ask: str = ""
    when: str = ""
    each: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


def items(names: Names) -> list[Item]:
    """The items that this service needs, in order."""
    conditions, values, repeated = _conditions(names), _values(names), _repeated(names)
    return [
        _filled(template, {**values, **more})
        for template in (*_templates(names.plans.items), *_templates(_document()))
        if not template.when or conditions[template.when]
        for more in (repeated[template.each] if template.each else [{}])
    ]


def markdown(names: Names) -> str:
    """The list for people, as Markdown."""
    return "\n".join([f"# To set up before the plans of {names.service.name} run", "", *section(names, "##")]) + "\n"


def section(names: Names, heading: str) -> Iterator[str]:
    """The lines of the list. heading: the marker of its headings, such as `##`."""
    where = None
    for item in items(names):
        if item.where != where:
            where = item.where
            yield from (f"{heading} {where}", "")
        hint = "" if item.check else f" *An agent cannot check this: ask {item.ask}.*"
        yield f"- [ ] **`{item.id}`** {item.what}{hint}"
        yield textwrap.fill(item.how, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        yield ""


@cache
def _document() -> str:
    return files("mlops_build.checklist").joinpath("items.toml").read_text(encoding="utf-8")


@cache
def _templates(document: str) -> Sequence[Item]:
    table = tomllib.loads(document)
    entries: list[dict[str, Any]] = [{key: " ".join(text.split()) for key, text in entry.items()} for entry in table["item"]]
    return [Item(**entry) for entry in entries]


def _filled(template: Item, values: Mapping[str, str]) -> Item:
    texts = {key: Template(getattr(template, key)).substitute(values) for key in ("id", "what", "how", "ask")}
    return replace(template, **texts, values=values)


def _conditions(names: Names) -> dict[str, bool]:
    service = names.service
    has_server = service.tracking.uri.startswith("http")
    return {
        "secrets": bool(secrets(names)),
        "commit-prefix": bool(service.git.commit_prefix),
        "no-commit-prefix": not service.git.commit_prefix,
        "pull-requests": service.git.opens_pull_requests,
        "gpu-exclusive": service.gpu.mode == "exclusive",
        "gpu-shared": service.gpu.mode == "shared",
        "gpu-runtime-class": service.gpu.mode == "shared" and bool(service.gpu.runtime_class),
        "tracking-server": has_server,
        "no-tracking-server": not has_server,
    }


def _repeated(names: Names) -> dict[str, list[dict[str, str]]]:
    """The values of each repetition, by the name in `each`."""
    environments = names.service.environments
    priority_classes = {env: place.priority_class for env, place in environments.items() if place.priority_class}
    return {
        "capability": [{"capability": capability} for capability in names.plans.capabilities],
        "namespace": [{"namespace": namespace} for namespace in _namespaces(names)],
        "env": [{"env": env, "priority_class": name} for env, name in priority_classes.items()],
    }


def _values(names: Names) -> dict[str, str]:
    service, environments = names.service, names.service.environments
    lease_volumes = [
        f"`kubectl --namespace {place.namespace} apply --filename deploy/overlays/{env}/release/gpu-leases.yaml`"
        for env, place in environments.items()
    ]
    return {
        **names.plans.values,
        "ci": names.plans.system,
        "commit_prefix": service.git.commit_prefix or "",
        "git_api": str(service.git.api),
        "hosts": _code(place.host for place in environments.values()),
        "image": names.image,
        "image_host": names.image_host,
        "lease_dir": service.gpu.lease_dir,
        "lease_volume_commands": ", ".join(lease_volumes),
        "models": _code(model.name for model in service.models),
        "namespaces": _code(_namespaces(names)),
        "origin": names.origin or "this repository",
        "python": names.python,
        "remote": names.remote or "which is not set",
        "repository": f"`{names.repository}`" if names.repository else f"<{names.origin or 'the repository'}>",
        "runtime_class": service.gpu.runtime_class or "",
        "secrets": _code(secrets(names)),
        "service": service.name,
        "team": service.team,
        "tracking_uri": service.tracking.uri,
    }


def secrets(names: Names) -> list[str]:
    """The variables with the credentials that agents need."""
    variables = ["MLOPS_GIT_TOKEN"] if names.wants_token else []
    if names.service.tracking.uri.startswith("http"):
        variables += ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    if (names.remote or "").startswith("s3:"):
        variables += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    return variables


def _namespaces(names: Names) -> list[str]:
    return list(dict.fromkeys(place.namespace for place in names.service.environments.values()))


def _code(words: "Iterator[str] | Sequence[str]") -> str:
    return ", ".join(f"`{word}`" for word in words)
