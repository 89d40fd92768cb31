"""Who released what to which environment, when and why, and how long it took: from Git alone, except for the time of images."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from mlops_build.adapters.git.objects import Objects
from mlops_build.adapters.registry import Registry
from mlops_build.release import image_time
from mlops_build.release.past import Commit, Past
from mlops_build.release.tree import Tree, recorded

DAY, HOUR, MINUTE = 86400, 3600, 60


@dataclass(frozen=True)
class Entry:
    """A commit that changed what an environment runs. at, lead: Unix time in seconds.

    by, why: of the promotion, or of the commit if a person made it. lead: for each model that is new here, when its code was committed,
    when it was registered, and when it was first released to each environment; without what Git does not have. image_seconds: from this
    commit until the image registry had its image; None if it is not known, or was not asked for.
    """

    environment: str
    commit: str
    at: int
    models: Mapping[str, int]
    by: str
    why: str
    promotion: str | None
    is_current: bool
    lead: Mapping[str, Mapping[str, int]]
    image_seconds: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        models = ", ".join(f"{name} {version}" for name, version in self.models.items()) or "nothing"
        mark = "  (current)" if self.is_current else ""
        lines = [f"{_date(self.at)}  {models}  by {self.by}  commit {self.commit[:12]}{mark}"]
        lines += [f"    {self.why}"] if self.why else []
        for name, times in self.lead.items():
            begin = min(times.values())
            steps = [f"{step} {f'+{span(at - begin)}' if at > begin else _date(at)}" for step, at in times.items()]
            lines.append(f"    {name} {self.models[name]}: {', '.join(steps)}")
        lines += [] if self.image_seconds is None else [f"    image +{span(self.image_seconds)}"]
        return "\n".join(lines)


def read(objects: Objects, head: str, env: str | None = None) -> dict[str, list[Entry]]:
    """The entries of `env`, or of each environment, newest first, up to the commit `head`. Raises NotFound for an unknown environment."""
    tree = Tree.at(objects, head)
    environments = list(tree.service.environments)
    if env is not None:
        tree.service.environment(env)
    pasts = {name: Past(objects, head, name) for name in environments}
    first = _first_released(pasts)
    return {name: _entries(objects, name, pasts[name], first) for name in environments if env in (None, name)}


def with_images(objects: Objects, entries: Iterable[Entry], registry: Registry) -> list[Entry]:
    """The entries with the times of their images. Raises RegistryUnreachable."""
    times = ((each, image_time.read(registry, recorded(objects, each.commit, each.environment))) for each in entries)
    return [replace(each, image_seconds=made.since(each.at) if made else None) for each, made in times]


def _first_released(pasts: Mapping[str, Past]) -> dict[tuple[str, int], dict[str, int]]:
    """(model, version) → environment → the time of its first release there."""
    first: dict[tuple[str, int], dict[str, int]] = {}
    for env, past in pasts.items():
        for commit in past.commits:  # newest first, so the oldest one stays
            for model in commit.numbers if commit.follows_aliases else ():
                first.setdefault(model, {})[env] = commit.at
    return first


def _entries(objects: Objects, env: str, past: Past, first: Mapping[tuple[str, int], dict[str, int]]) -> list[Entry]:
    entries: list[Entry] = []
    for commit, older in zip(past.commits, [*past.commits[1:], None], strict=True):
        record = None if commit.numbers else recorded(objects, commit.id, env)
        models = dict(commit.numbers or (record.numbers if record else ()))
        if not models and older is None:
            continue  # the new service
        before = dict(older.numbers) if older else {}
        new = {name for name, version in models.items() if before.get(name) != version and commit.follows_aliases}
        entries.append(
            Entry(
                env,
                commit.id,
                commit.at,
                models,
                by=(commit.values("Promoted-By") or [commit.author])[0],
                why=_why(commit),
                promotion=next(iter(commit.values("Promotion")), None),
                is_current=not entries,
                lead={name: _lead(objects, commit, name, first[name, models[name]]) for name in models if name in new},
            )
        )
    return entries


def _why(commit: Commit) -> str:
    """The promotion's reason; what else the commit says, if it is not a release of new versions."""
    why = (commit.values("Why") or [""])[0]
    if commit.follows_aliases and commit.values("Promoted-By"):
        return why
    return f"{commit.subject}: {why}" if why else commit.subject


def _lead(objects: Objects, commit: Commit, model: str, first: Mapping[str, int]) -> dict[str, int]:
    index = commit.values("Model").index(model)
    times: dict[str, int] = {}
    code = commit.values("Code")[index : index + 1]
    if code and objects.has(code[0]):
        times["committed"] = objects.committed_at(code[0])
    with contextlib.suppress(ValueError, IndexError):
        times["registered"] = int(datetime.strptime(commit.values("Registered")[index], "%Y-%m-%dT%H:%M:%S%z").timestamp())
    return {**times, **{f"released to {env}": at for env, at in sorted(first.items(), key=lambda entry: entry[1])}}


def _date(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def span(seconds: int) -> str:
    """A duration in its two largest units."""
    days, hours, minutes = seconds // DAY, seconds % DAY // HOUR, seconds % HOUR // MINUTE
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
