"""Register a new version with the weights of another version and the current code and lock: for a fix without training.

fetch and check → rebuild with the current code → compare the recorded answers → check the contract → commit openapi.json → push →
register. The lineage records the version of the weights and keeps their origin. After an interruption it can be run again.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build import __version__, tracking
from mlops_build import service as service_file
from mlops_build.adapters import dvc, program
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.errors import Failed, NotFound, Refused, UsageError
from mlops_build.finding import show
from mlops_build.model import contract, environment, files, identity, openapi, scan
from mlops_build.model.answers import differences
from mlops_build.service import Service
from mlops_build.training import code_tag, origin, pipeline
from mlops_build.training.model import EXAMPLES
from mlops_build.training.register import PATCH, NoRun, Origin, publish

REBUILD_SECONDS = 1800
LINEAGE = "lineage.json"
# Tags of a version that belong to its weights.
CARRIED = (
    identity.DATA,
    identity.PARAMS,
    identity.ORIGIN,
    identity.FILE_TAG,
    identity.DECIDED_BY,
    identity.EXCEPTION_BY,
    identity.EXCEPTION_REASON,
    identity.EXCEPTION_UNTIL,
)


class OtherAnswers(Refused):
    """The current code gives other answers to the recorded example."""


class CannotRebuild(Failed):
    """The current code does not load the weights, or fails with the recorded example."""


class NotOurs(Refused):
    """A version without the files of `mlops-build train`, or with unsafe files."""


@dataclass(frozen=True)
class Registered:
    """The registered version. `new` is False if the same content was already registered. weights_from: the version of the weights."""

    model_uri: str
    name: str
    version: int
    new: bool
    commit: str
    weights_from: str
    remarks: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run(root: Path, uri: str, *, allow_changed_answers: bool, say: Callable[[str], None]) -> Registered:
    """uri: `models:/NAME/VERSION` or `models:/NAME@ALIAS`, of a model of the service at `root`.

    Raises BadModelUri, UsageError, DirtyTree, DigestMismatch, NotOurs, CannotRebuild, OtherAnswers, BreaksCallers, and the errors of Git
    and the registry.
    """
    reference = identity.parse_uri(uri)
    service = service_file.load(root)
    if reference.name not in [model.name for model in service.models]:
        known = ", ".join(model.name for model in service.models)
        raise UsageError(f"{service.name} has no model {reference.name}", remedy=f"its models: {known}")
    checkout = _checkout(root)
    registry = tracking.registry(root)
    version = registry.version(reference.name, reference.which)
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        say(f"[1/5] fetch and check {version.uri}")
        old, lineage = _fetched(registry, version, Path(scratch) / "old", service.serving.unsafe_pickle)
        say("[2/5] rebuild with the current code, and check the recorded example")
        new = _rebuilt(root, old, Path(scratch) / "new")
        remarks = [*_answers(old, new, allow_changed_answers), *_contract(version, service, old, new)]
        say(f"[3/5] commit: {openapi.FILE}")
        commit = _commit(checkout, root, service, version, new)
        say("[4/5] push code")
        pipeline.push_code(checkout, say, dirty=False)
        say("[5/5] register")
        tree = Path(scratch) / "tree"
        checkout.export(commit, tree)
        # A version with weights from a dirty tree stays marked as dirty.
        patch = (old / PATCH).read_bytes() if (old / PATCH).is_file() else None
        origin_ = Origin(service.name, checkout.origin_url() or "", commit, tree, patch, service.contract)
        made, is_new = publish(
            registry,
            version.name,
            new,
            origin_,
            version.run_id,
            lambda: _lineage(lineage, root, origin_, version),
            {**_carried(version), identity.TEMPLATE: origin.template_version(root)},
        )
    named = made.tags.get(identity.COMMIT_TAG, commit)
    if remark := code_tag.push(checkout, registry.uri, made.name, named):
        remarks.append(remark)
    return Registered(made.uri, made.name, made.version, is_new, named, version.uri, tuple(remarks))


def _checkout(root: Path) -> Checkout:
    checkout = Checkout.find(root)
    if checkout is None or checkout.head() is None:
        raise NotFound(
            f"{root} has no Git commit yet",
            remedy="run git init, git add --all, git commit: a version records the commit that it was trained from",
        )
    if dirt := origin.dirt(root):
        shown = ", ".join(dirt[:5]) + (f" and {len(dirt) - 5} more" if len(dirt) > 5 else "")
        raise pipeline.DirtyTree(f"no version is registered: uncommitted changes in {shown}", remedy="commit them and run this again")
    return checkout


def _fetched(registry: Registry, version: RegisteredVersion, folder: Path, unsafe_pickle: str | None) -> tuple[Path, dict[str, Any]]:
    """The version's checked files and its lineage. None of the files is run."""
    digest = version.checked().digest
    if registry.run(version.run_id) is None:
        raise NoRun(f"the run {version.run_id} of {version.uri} was deleted, and with it the version's files", remedy="train again")
    registry.fetch(version, folder)
    files.verify(folder, digest)
    if findings := scan.refused(scan.scan(folder), unsafe_pickle):
        raise NotOurs(f"the files of {version.uri} are not safe to load:\n{show(findings)}", remedy=scan.advice(findings))
    try:
        lineage = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
        recorded = json.loads((folder / EXAMPLES).read_text(encoding="utf-8"))
        whole = lineage["schema"] == 1 and lineage["code"]["commit"] and "input" in recorded and "predictions" in recorded
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise NotOurs(f"{version.uri} has no valid {LINEAGE} or {EXAMPLES}", remedy="train it with `mlops-build train`")
    return folder, lineage


def _rebuilt(root: Path, old: Path, scratch: Path) -> Path:
    """Rebuild in a separate process with the service's current code."""
    scratch.mkdir()
    command = [sys.executable, "-m", "mlops_build.training.rebuild", str(old), str(scratch)]
    done = program.run(command, folder=root, environment=dvc.environment(root), seconds=REBUILD_SECONDS)
    if done.code or not (scratch / "model" / "MLmodel").is_file():
        reason = (done.message.splitlines() or ["no output"])[-1].removeprefix("error: ")
        raise CannotRebuild(
            f"the current code does not load the weights: {reason[:800]}", remedy="fix the code; or train again if it needs other weights"
        )
    return scratch / "model"


def _answers(old: Path, new: Path, allow_changed: bool) -> list[str]:
    """The differences to the recorded answers with the current code. Raises OtherAnswers unless they are allowed."""
    before, after = (json.loads((folder / EXAMPLES).read_text(encoding="utf-8"))["predictions"] for folder in (old, new))
    changed = differences(before, after)
    if changed and not allow_changed:
        shown = "\n".join(f"  {line}" for line in changed[:5]) + (f"\n  and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise OtherAnswers(
            f"the current code gives other answers to the recorded example:\n{shown}",
            remedy="fix the code; if the new answers are right, add --allow-changed-answers",
        )
    return [f"answers changed: {line}" for line in changed[:5]]


def _contract(version: RegisteredVersion, service: Service, old: Path, new: Path) -> list[str]:
    before = contract.of_folder(version.name, old)
    after = contract.Contract(service.contract, contract.of_folder(version.name, new).models)
    return contract.check(f"{version.uri} with the current code", before, after)


def _commit(checkout: Checkout, root: Path, service: Service, version: RegisteredVersion, new: Path) -> str:
    """The commit of the version: HEAD, or a new one on top of it if openapi.json changed."""
    described = {version.name: openapi.describe(version.name, None, new)}
    for description in _described_before(root):
        described.setdefault(description.name, description)
    if all(model.name in described for model in service.models):
        pipeline.put_contract(root, service, [described[model.name] for model in service.models])
        subject = service.git.subject(f"Register {version.name} with the weights of version {version.version}")
        checkout.commit_paths([openapi.FILE], f"{subject}\n\nWritten by mlops-build register.\n")
    head = checkout.head()
    assert head is not None  # noqa: S101  (_checkout checked it)
    return head


def _described_before(root: Path) -> list[openapi.Described]:
    """The other models in the current openapi.json."""
    try:
        return openapi.parse(json.loads((root / openapi.FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _carried(version: RegisteredVersion) -> dict[str, str]:
    """The tags that belong to the weights, and the tag with the version of the weights."""
    kept = {tag: version.tags[tag] for tag in CARRIED if tag in version.tags}
    return {**kept, identity.WEIGHTS_FROM: version.uri}


def _lineage(before: Mapping[str, Any], root: Path, origin_: Origin, version: RegisteredVersion) -> dict[str, Any]:
    """Data, stages, parameters, metrics and run are those of the weights; code and environment are the current ones."""
    return {
        **before,
        "service": origin_.service,
        "code": {"repository": origin_.repository, "commit": origin_.commit, "dirty": origin_.patch is not None},
        "weights": {
            "version": version.uri,
            "digest": version.tags.get(identity.DIGEST_TAG),
            "commit": before["code"]["commit"],
        },
        "environment": {
            "python": environment.python_version(),
            "torch": environment.torch_version(),
            "mlops-build": __version__,
            "template": origin.template_version(root),
        },
    }
