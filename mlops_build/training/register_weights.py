"""A new version with the weights of another and today's code and lock: for a fix that needs no training.

fetch and check → rebuild with today's code → the recorded example answered as before? → the contract kept? → commit openapi.json → push →
register. Lineage names the version whose weights they are; what they were trained from is carried over. Killed anywhere, it is run again.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build import __version__, data
from mlops_build import service as service_file
from mlops_build.errors import Failed, NotFound, Refused, UsageError
from mlops_build.finding import show
from mlops_build.git.repository import Checkout
from mlops_build.model import contract, environment, files, identity, openapi, scan
from mlops_build.model.answers import differences
from mlops_build.registry import ModelVersion, Registry, tracking_uri
from mlops_build.service import Service
from mlops_build.training import origin, pipeline
from mlops_build.training.model import EXAMPLES
from mlops_build.training.register import PATCH, NoRun, Origin, publish

REBUILD_SECONDS = 1800
LINEAGE = "lineage.json"


class OtherAnswers(Refused):
    """Today's code answers the recorded example otherwise."""


class CannotRebuild(Failed):
    """Today's code does not load the weights, or fails at the recorded example."""


class NotOurs(Refused):
    """A version that lacks what `mlops-build train` gives it, or whose files are not to be trusted."""


@dataclass(frozen=True)
class Registered:
    """What came out. `new` is False when this content had been registered before. weights_from: the version that the weights are of."""

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

    Raises BadModelUri, UsageError, DirtyTree, DigestMismatch, NotOurs, CannotRebuild, OtherAnswers, BreaksCallers, and what Git and the
    registry raise.
    """
    reference = identity.parse_uri(uri)
    service = service_file.load(root)
    if reference.name not in [model.name for model in service.models]:
        known = ", ".join(model.name for model in service.models)
        raise UsageError(f"{service.name} has no model {reference.name}", remedy=f"its models: {known}")
    checkout = _checkout(root)
    registry = Registry(tracking_uri(root))
    version = registry.version(reference.name, reference.which)
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        say(f"[1/5] fetch and check {version.uri}")
        old, lineage = _fetched(registry, version, Path(scratch) / "old")
        say("[2/5] rebuild it with today's code, and ask it the recorded example")
        new = _rebuilt(root, old, Path(scratch) / "new")
        remarks = [*_answers(old, new, allow_changed_answers), *_contract(version, service, old, new)]
        say(f"[3/5] commit: {openapi.FILE}")
        commit = _commit(checkout, root, service, version, new)
        say("[4/5] push code")
        pipeline.push_code(checkout, say, dirty=False)
        say("[5/5] register")
        tree = Path(scratch) / "tree"
        checkout.export(commit, tree)
        # Weights that nobody can make again stay so, whatever code is around them.
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
    return Registered(made.uri, made.name, made.version, is_new, named, version.uri, tuple(remarks))


def _checkout(root: Path) -> Checkout:
    checkout = Checkout.find(root)
    if checkout is None or checkout.head() is None:
        raise NotFound(
            f"{root} has no Git commit yet", remedy="git init, git add --all, git commit: a version names the commit it was made from"
        )
    if dirt := origin.dirt(root):
        shown = ", ".join(dirt[:5]) + (f" and {len(dirt) - 5} more" if len(dirt) > 5 else "")
        raise pipeline.DirtyTree(f"no version is registered: uncommitted changes in {shown}", remedy="commit them and run this again")
    return checkout


def _fetched(registry: Registry, version: ModelVersion, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The version's files, checked, and its lineage. Nothing of them has run."""
    digest = version.tags.get(identity.DIGEST_TAG, "")
    if not identity.DIGEST.fullmatch(digest):
        raise NotOurs(f"{version.uri} has no tag {identity.DIGEST_TAG}", remedy="train it with `mlops-build train`")
    if registry.run(version.run_id) is None:
        raise NoRun(f"the run {version.run_id} of {version.uri} was deleted, and a version's files stand with its run", remedy="train anew")
    registry.fetch(version, folder)
    files.verify(folder, digest)
    if findings := scan.scan(folder):
        raise NotOurs(f"the files of {version.uri} are not safe to load:\n{show(findings)}", remedy="see each finding above")
    try:
        lineage = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
        recorded = json.loads((folder / EXAMPLES).read_text(encoding="utf-8"))
        whole = lineage["schema"] == 1 and lineage["code"]["commit"] and "input" in recorded and "predictions" in recorded
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise NotOurs(f"{version.uri} lacks its {LINEAGE} or {EXAMPLES}", remedy="train it with `mlops-build train`")
    return folder, lineage


def _rebuilt(root: Path, old: Path, scratch: Path) -> Path:
    """In a process of its own: the code is the service's, as it is now."""
    scratch.mkdir()
    command = [sys.executable, "-m", "mlops_build.training.rebuild", str(old), str(scratch)]
    done = subprocess.run(
        command, cwd=root, env=data.environment(root), capture_output=True, text=True, timeout=REBUILD_SECONDS, check=False
    )
    if done.returncode or not (scratch / "model" / "MLmodel").is_file():
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("error: ")
        raise CannotRebuild(
            f"today's code does not take the weights: {said[:800]}", remedy="mend the code; or train again, if it needs other weights"
        )
    return scratch / "model"


def _answers(old: Path, new: Path, allow_changed: bool) -> list[str]:
    """How today's code answers the recorded example otherwise. Raises OtherAnswers unless that is allowed."""
    before, after = (json.loads((folder / EXAMPLES).read_text(encoding="utf-8"))["predictions"] for folder in (old, new))
    found = differences(before, after)
    if found and not allow_changed:
        shown = "\n".join(f"  {line}" for line in found[:5]) + (f"\n  and {len(found) - 5} more" if len(found) > 5 else "")
        raise OtherAnswers(
            f"today's code answers the recorded example otherwise:\n{shown}",
            remedy="mend the code; if other answers are what you want, say --allow-changed-answers",
        )
    return [f"answers changed: {line}" for line in found[:5]]


def _contract(version: ModelVersion, service: Service, old: Path, new: Path) -> list[str]:
    before = contract.of_folder(version.name, old)
    after = contract.Contract(service.contract, contract.of_folder(version.name, new).models)
    return contract.check(f"{version.uri} with today's code", before, after)


def _commit(checkout: Checkout, root: Path, service: Service, version: ModelVersion, new: Path) -> str:
    """The commit that the version names: HEAD, or one on top of it where openapi.json changed."""
    described = {version.name: openapi.describe(version.name, None, new)}
    for one in _described_before(root):
        described.setdefault(one.name, one)
    if all(model.name in described for model in service.models):
        pipeline.put_contract(root, service, [described[model.name] for model in service.models])
        subject = service.git.subject(f"Register {version.name} with the weights of version {version.version}")
        checkout.commit_paths([openapi.FILE], f"{subject}\n\nWritten by mlops-build register.\n")
    head = checkout.head()
    assert head is not None  # noqa: S101  (_checkout looked)
    return head


def _described_before(root: Path) -> list[openapi.Described]:
    """The other models stay as openapi.json has them."""
    try:
        return openapi.parse(json.loads((root / openapi.FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _carried(version: ModelVersion) -> dict[str, str]:
    """Tags that follow the weights, and the one that says whose they are."""
    kept = {tag: version.tags[tag] for tag in (identity.DATA, identity.PARAMS) if tag in version.tags}
    return {**kept, identity.WEIGHTS_FROM: version.uri}


def _lineage(before: Mapping[str, Any], root: Path, origin_: Origin, version: ModelVersion) -> dict[str, Any]:
    """Data, stages, parameters, metrics and run are those of the weights; code and environment are today's."""
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
