"""What a release changes besides its models' versions, in the words of service.yaml: "replicas 1 → 4"."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.service import Service

# How many changes a line lists before it counts the rest.
SHOWN = 6


def changes(was: Service, now: Service, env: str) -> list[str]:
    """The differences between two service.yaml, as far as a release of `env` depends on them: one text each, without line breaks."""
    old, new = dict(_settings(was, env)), dict(_settings(now, env))
    return [f"{name} {_text(old.get(name))} → {_text(new.get(name))}"[:200] for name in {**old, **new} if old.get(name) != new.get(name)]


def shown(before: str | None, after: str, changed: tuple[str, ...]) -> str:
    """A release in one line: "digits 1 → digits 2", "digits 1, replicas 1 → 4", or both."""
    models = after if before == after else f"{before or 'nothing'} → {after}"
    more = [f"{len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return ", ".join([models, *changed[:SHOWN], *more])


def _settings(service: Service, env: str) -> Iterator[tuple[str, Any]]:
    place = service.environment(env).model_dump(exclude={"alias", "landing"})
    return _values({**place, **service.model_dump(include={"name", "gpu", "image", "serving"})}, "")


def _values(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Every value that is set, with its dotted path."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _values(value, f"{path}{key}.")
        elif value not in (None, []):
            yield f"{path}{key}", value


def _text(value: object) -> str:
    return "none" if value is None else " ".join(str(value).split())[:80]
