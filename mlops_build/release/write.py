"""From aliases to a commit: what an environment should run according to the registry, and the commit with which Git records it.

The commit is deterministic: its author has a fixed name, and its date follows from the release. `mlops-build release` on a laptop and any
number of bridges create the same commit, so a second push changes nothing.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build import service as service_file
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.command import PushRejected
from mlops_build.adapters.git.objects import Identity, Objects
from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.model import identity
from mlops_build.model.identity import COMMIT, DIGEST
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.packaging.name import image_name
from mlops_build.release import gate
from mlops_build.release import hold as holds
from mlops_build.release import record as records
from mlops_build.release.changes import changes, shown
from mlops_build.release.record import Record
from mlops_build.service import Service
from mlops_build.service import pin as pins
from mlops_build.service.pin import Pin

# The author of a release. MLOPS_BRIDGE_NAME and MLOPS_BRIDGE_EMAIL replace it for a host that checks committers.
NAME_OF_BRIDGE, EMAIL_OF_BRIDGE = "mlops-build bridge", "bridge@mlops-build.invalid"
# Characters of a commit's subject.
SUBJECT = 72

Aliases = Mapping[str, Mapping[str, int]]
VersionOf = Callable[[str, int], RegisteredVersion]


class HalfPromoted(Refused):
    """Only some of a service's models have the environment's alias."""


class Held(Refused):
    """The environment is held."""


class NothingPromoted(NotFound):
    """No version has the environment's alias."""


@dataclass(frozen=True)
class Desired:
    """What an environment should run, with the versions it comes from, in the order of service.yaml. alias: that all of them have."""

    alias: str
    record: Record
    versions: tuple[RegisteredVersion, ...]


@dataclass(frozen=True)
class Made:
    """The result of `in_checkout`. before, after: models and versions, as text. commit: None if Git has this release already.

    remarks: ignored uncommitted changes, and findings and gaps of the manifests' check. changes: changes besides the models' versions.
    """

    environment: str
    before: str | None
    after: str
    commit: str | None
    pushed: bool
    remarks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.commit is None:
            return f"nothing to do: {self.environment} is released with {self.after} already"
        return f"{self.environment}: {shown(self.before, self.after, self.changes)}  commit {self.commit[:12]}"


@dataclass(frozen=True)
class Change:
    """A release's commit, and what it changes besides the models' versions (release/changes.py)."""

    commit: str
    changes: tuple[str, ...]


def in_checkout(root: Path, env: str, registry: Registry, *, despite_hold: bool = False, despite_findings: bool = False) -> Made:
    """Release `env` of the service at `root`: a commit on its branch, pushed to origin if there is one.

    Raises Held, NothingPromoted, Faulty, and what `desired`, `change` and `land` raise.
    """
    checkout, head = checkout_of(root)
    service = service_at(checkout, head)
    service.environment(env)
    hold = holds.of(checkout, head, env, service)
    if hold and not despite_hold:
        raise Held(f"{env} is held: {hold}", remedy=f"mlops-build hold {env} --remove, or add --despite-hold")
    wanted = desired(service, env, registry.alias_map(), registry.version, pin_at(checkout, head))
    there = recorded(checkout, head, env)
    before = str(there) if there and there.models else None
    made = change(checkout, head, service, wanted)
    remarks = _uncommitted(checkout)
    if made is None:
        return Made(env, before, str(wanted.record), None, pushed=False, remarks=remarks)
    remarks += tuple(gate.check(checkout, made.commit, there, wanted.record, despite_findings=despite_findings))
    pushed = land(checkout, made.commit, head, checkout.differing(head, made.commit))
    return Made(env, before, str(wanted.record), made.commit, pushed, remarks, made.changes)


def _uncommitted(checkout: Checkout) -> tuple[str, ...]:
    """A remark on uncommitted changes of what a release is made from."""
    paths = [path for path in checkout.changes() if path == service_file.FILE or path.startswith("deploy/")]
    return (f"uncommitted changes in {', '.join(paths)} are ignored: commit them, then release again",) if paths else ()


def desired(service: Service, env: str, aliases: Aliases, version_of: VersionOf, pin: Pin | None) -> Desired:
    """What `env` should run by the registry's alias map. pin: the service's, which decides the image's name.

    Raises NothingPromoted, HalfPromoted, BadVersion, and NotFound for an unknown environment or a version that was deleted meanwhile.
    """
    alias = service.alias_of(env)
    numbers = {model.name: aliases.get(model.name, {}).get(alias) for model in service.models}
    missing = [name for name, number in numbers.items() if number is None]
    if len(missing) == len(numbers):
        raise NothingPromoted(
            f"{', '.join(missing)}: no version has the alias {alias!r}", remedy=f"mlops-build promote {missing[0]} VERSION --to {env}"
        )
    if missing:
        raise HalfPromoted(
            f"{', '.join(missing)} has no alias {alias!r}, while other models of {service.name} have it",
            remedy=f"mlops-build promote {missing[0]} VERSION --to {env}: a service is released with all its models",
        )
    versions = tuple(version_of(name, number) for name, number in numbers.items() if number is not None)
    models = tuple(released(version) for version in versions)
    record = Record(env, models, versions[0].tags[identity.COMMIT_TAG], image_name(service, models, pin=pin))
    return Desired(alias, record, versions)


def released(version: RegisteredVersion) -> ModelVersion:
    """The entry of a version in a release. Raises BadVersion for a missing or invalid tag."""
    model = version.checked()
    if not model.run:
        raise BadVersion(f"{version.shown} does not have its run", remedy="train it with `mlops-build train`, which records its run")
    _check_tag(version, identity.COMMIT_TAG, COMMIT)
    if version.tags.get(identity.DATA):
        _check_tag(version, identity.DATA, DIGEST)
    return model


def _check_tag(version: RegisteredVersion, tag: str, pattern: "re.Pattern[str]") -> None:
    """Raises BadVersion if a tag of the version is missing, or does not match the pattern."""
    value = version.tags.get(tag)
    if not value:
        raise BadVersion(
            f"{version.shown} does not have the tag {tag}, so mlops-build did not create it",
            remedy="train it with `mlops-build train`, which registers a version with its files' digest, commit and run",
        )
    if not pattern.fullmatch(value):
        raise BadVersion(
            f"{version.shown}: the tag {tag} is not valid: {value[:80]!a}",
            remedy="it was changed in MLflow: promote another version, or restore the value",
        )


def service_at(objects: Objects, commit: str) -> Service:
    """The service.yaml of a commit, keys of a newer mlops-build ignored. Raises NotFound or ServiceError."""
    text = objects.read(commit, service_file.FILE)
    if text is None:
        raise NotFound(f"no {service_file.FILE} at commit {commit[:12]}", remedy="is this repository a service made from the template?")
    return service_file.parse(text.decode(errors="replace"), f"{service_file.FILE} at {commit[:12]}", strict=False)


def pin_at(objects: Objects, commit: str) -> Pin | None:
    """The service's pin of mlops-build at a commit; None if there is none, or it cannot be read."""
    text = objects.read(commit, pins.FILE)
    return pins.pin_of(text.decode(errors="replace")) if text is not None else None


def recorded(objects: Objects, commit: str, env: str) -> Record | None:
    """Git's record of an environment at a commit; None if there is none, or it cannot be read."""
    text = objects.read(commit, f"{records.folder(env)}/{records.RECORD}")
    try:
        return records.parse(text.decode(errors="replace")) if text is not None else None
    except records.BadRecord:
        return None


def change(objects: Objects, parent: str, service: Service, wanted: Desired) -> Change | None:
    """A commit on top of `parent` with this release; None if Git has it already. No ref is moved.

    Raises NotFound if the environment has no overlay.
    """
    env = wanted.record.environment
    folder = records.folder(env)
    overlay = folder.removesuffix("/release")
    if objects.read(parent, f"{overlay}/kustomization.yaml") is None:
        raise NotFound(
            f"{service_file.FILE} has the environment {env}, but {overlay}/kustomization.yaml is missing",
            remedy="copy another overlay and commit it; a release alone deploys nothing",
        )
    rendered = records.render(wanted.record, service)
    existing = {path: objects.read(parent, path) or b"" for path in objects.files(parent, folder)}
    seconds = max(objects.committed_at(parent), *(version.created_ms // 1000 for version in wanted.versions))
    before = recorded(objects, parent, env)
    changed: tuple[str, ...] = ()
    if before and before.models:
        by_name = {path.removeprefix(f"{folder}/"): content for path, content in existing.items()}
        changed = changes(by_name, rendered, other_models=str(before) != str(wanted.record))
    files: dict[str, bytes | None] = {**dict.fromkeys(existing), **records.paths(env, rendered)}
    commit = objects.commit(parent, files, message(service, wanted, before, changed), signer(seconds))
    return Change(commit, changed) if commit else None


def signer(seconds: int) -> Identity:
    """The author of a machine's commit. Raises Failed for a name that git would change."""
    name, email = os.environ.get("MLOPS_BRIDGE_NAME") or NAME_OF_BRIDGE, os.environ.get("MLOPS_BRIDGE_EMAIL") or EMAIL_OF_BRIDGE
    if re.search(r"[<>\n\0]", name + email):
        raise Failed("MLOPS_BRIDGE_NAME or MLOPS_BRIDGE_EMAIL has a line break or one of <>", remedy="set them to a plain name and address")
    return Identity(name, email, seconds)


def message(service: Service, wanted: Desired, before: Record | None, changed: Sequence[str] = ()) -> str:
    """The commit's message: a subject for people, trailers for `git log --format='%(trailers)'`; a group of them for each model."""
    alias = wanted.alias
    subject, why = f"Release {wanted.record} to {wanted.record.environment}", f"The alias {alias} says so."
    if before is not None and str(before) == str(wanted.record):
        why = "The models did not change."
        only = f"{subject}: {', '.join(changed)}"
        subject = only if len(only) <= SUBJECT else f"{subject}: {len(changed)} changes of its settings"
    if changed:
        why += "\n\nChanged settings:\n" + "\n".join(f"- {line}" for line in changed)
    trailers = []
    for model, version in zip(wanted.record.models, wanted.versions, strict=True):
        trailers += [
            f"Model: {model.name}",
            f"Version: {model.version}",
            f"Run: {model.run}",
            f"Alias: {alias}",
            f"Previous-Version: {(before.version_of(model.name) if before else None) or 'none'}",
            f"Code: {version.tags[identity.COMMIT_TAG]}",
            *([f"Data: {version.tags[identity.DATA]}"] if version.tags.get(identity.DATA) else []),
        ]
    return "\n".join([service.git.subject(subject), "", why, "", *trailers, ""])


def land(checkout: Checkout, commit: str, parent: str, paths: Iterable[str]) -> bool:
    """Make `commit` the head of a checkout, and update its files `paths`; returns whether it was pushed, which it is if there is an origin.

    It is pushed first, so a rejected push leaves the checkout unchanged. Raises PushRejected, RemoteUnreachable, or Refused if HEAD moved
    or one of these files has uncommitted changes.
    """
    paths = list(paths)
    undone = sorted(set(checkout.changes()) & set(paths))
    if undone:
        raise Refused(f"uncommitted changes in {', '.join(undone)}", remedy="commit them, or restore them with `git checkout -- FILE`")
    pushes = checkout.origin_url() is not None
    if pushes:
        try:
            checkout.push(commit)
        except PushRejected:
            if checkout.fetch(checkout.branch()) != commit:  # pushed by another process at the same time
                raise
    if checkout.head() != commit:
        checkout.advance(commit, parent, paths)
    checkout.restore(commit, paths)
    return pushes


def checkout_of(root: Path) -> tuple[Checkout, str]:
    """The checkout at a service's root, and its head. Raises NotFound if there is no commit."""
    checkout = Checkout.find(root)
    head = checkout.head() if checkout else None
    if checkout is None or head is None:
        raise NotFound(f"{root} has no Git commit", remedy="git init, git add --all, git commit: a release is a commit")
    return checkout, head
