"""The order of training: pipeline → gate → commit → push data → push code → register a version that names that commit.

Each step can be killed and run again: finished stages are kept, an empty commit is not created, a repeated push does nothing, and the
same content is never registered twice. Data is pushed before the commit that refers to it, and both before the version that refers to
them, so that a reference is always resolvable.
"""

import contextlib
import json
import os
import shlex
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mlops_build import finding, tracking
from mlops_build.adapters import dvc, dvc_remote
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry import quiet_mlflow
from mlops_build.errors import NotFound, Refused
from mlops_build.model import identity, openapi
from mlops_build.service import Service, load, tasks
from mlops_build.training import code_tag, origin, register, thresholds
from mlops_build.training.run import params as read_params

MODELS = "models"


class GateClosed(Refused):
    """The metrics do not meet the thresholds in params.yaml."""


class DirtyTree(Refused):
    """There are uncommitted changes, so a version's commit would not be its origin."""


@dataclass(frozen=True)
class Trained:
    """A trained version. `new` is False if the same content was already registered."""

    model_uri: str
    name: str
    version: int
    new: bool
    commit: str
    run: str
    metrics: Mapping[str, float]
    dirty: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """The result of all steps. models: in the order of service.yaml. warnings: problems that did not stop the training, as sentences."""

    models: tuple[Trained, ...]
    warnings: tuple[str, ...]


def train(
    root: Path,
    *,
    say: Callable[[str], None],
    force: bool = False,
    allow_dirty: bool = False,
    branch: str | None = None,
    pull: bool = False,
) -> Outcome:
    """Run all steps for the service at `root`. `say` receives a line at the start of each step, and each warning.

    branch: the branch for the commit, created if there is something to commit; only this branch is pushed. Default: the current one.
    pull: fetch missing data from the DVC remote.

    Raises OpenTasks, DirtyTree and DataMissing before the pipeline; PipelineFailed, GateClosed, DirtyTree for a change during the run; and
    the errors of the DVC remote, Git and the registry.
    """
    service = load(root)
    checkout = Checkout.find(root)
    if checkout is None or checkout.head() is None:
        raise NotFound(
            f"{root} has no Git commit yet",
            remedy="run git init, git add --all, git commit: a version records the commit that it was trained from",
        )
    tasks.check(root)
    check_dirt(root, allow_dirty)
    if not allow_dirty:
        check_outputs_are_ignored(checkout, root)
    if not pull:
        dvc_remote.check_present(root)
    quiet_mlflow()  # for the stages, too, whose code imports mlflow first
    # The pipeline runs in another process; meanwhile this one imports mlflow, which takes two seconds, for the registration.
    threading.Thread(target=_import_mlflow, daemon=True).start()
    say("[1/6] pipeline: dvc repro")
    run_pipeline(root, force, pull)
    say("[2/6] gate: metrics against params.yaml")
    metrics = check_gate(root)
    dirt = check_dirt(root, allow_dirty, has_run=True)
    say("[3/6] commit: dvc.lock, metrics, plots and openapi.json")
    commit = commit_results(checkout, root, service, metrics, dirty=bool(dirt), branch=branch)
    say("[4/6] push data")
    push_data(root, say)
    warnings = [warning] if (warning := unshared_data(checkout, root)) else []
    for warning in warnings:
        say(f"      warning: {warning}")
    say("[5/6] push code")
    push_code(checkout, say, dirty=bool(dirt), branch=branch)
    say("[6/6] register")
    models = register_models(checkout, root, service, commit, metrics, dirty=bool(dirt), say=say)
    for model in [] if dirt else models:  # the commit of a dirty version stays on this machine
        if remark := code_tag.push(checkout, tracking.find(root).uri, model.name, model.commit):
            warnings.append(remark)
            say(f"      warning: {remark}")
    return Outcome(tuple(models), tuple(warnings))


def run_pipeline(root: Path, force: bool, pull: bool) -> None:
    dvc.repro(root, force=force, pull=pull)


def check_gate(root: Path) -> dict[str, float]:
    """The metrics of all files in dvc.yaml, if they meet the thresholds. Raises GateClosed.

    A metric in two files is refused: with several models, one would hide the other from the gate.
    """
    metrics: dict[str, float] = {}
    source: dict[str, str] = {}
    for path in dvc.metric_files(root):
        try:
            values = dict(json.loads((root / path).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise Refused(f"{path} is not a valid metrics file: {error}", remedy="let evaluate.py write a JSON object of numbers") from None
        for name in values:
            if name in source:
                raise Refused(
                    f"{source[name]} and {path} both have the metric {name!r}, so a threshold in params.yaml would be ambiguous",
                    remedy=f"rename one of them, for example to MODEL_{name}",
                )
            source[name] = path
        metrics.update(values)
    failed = finding.show(thresholds.failures(metrics, thresholds.of(read_params(root))))
    if failed:
        raise GateClosed(
            f"not registered, because the model does not meet its thresholds:\n{failed}",
            remedy="the run is in MLflow; nothing was committed or pushed",
        )
    return metrics


def check_dirt(root: Path, allow_dirty: bool, *, has_run: bool = False) -> list[str]:
    """The uncommitted changes, without the files that the pipeline writes. Raises DirtyTree for any change without `allow_dirty`.

    has_run: the pipeline has run, so the changes were made during the run.
    """
    dirt = origin.dirt(root)
    if dirt and not allow_dirty:
        shown = ", ".join(dirt[:5]) + (f" and {len(dirt) - 5} more" if len(dirt) > 5 else "")
        if has_run:
            what = f"the run is logged, but no version is registered: files changed while the pipeline ran: {shown}"
            remedy = "commit them and run this again (finished stages are kept), or use --allow-dirty, which marks the version as dirty"
        else:
            what = f"uncommitted changes in {shown}: a version records the commit that it was trained from, so nothing was run"
            remedy = (
                'commit them: git add --all && git commit --message "Describe the change"\n'
                "    or run the pipeline without registering a version: dvc repro\n"
                "    or register a version that is marked as dirty: mlops-build train --allow-dirty"
            )
        raise DirtyTree(what, remedy=remedy)
    return dirt


def _import_mlflow() -> None:
    with contextlib.suppress(ImportError):  # reported where it is used
        import_module("mlflow")


def check_outputs_are_ignored(checkout: Checkout, root: Path) -> None:
    """Check that Git ignores all outputs. Otherwise DVC would add them to a .gitignore, an uncommitted change. Raises DirtyTree."""
    if missing := checkout.not_ignored(dvc.cached_outputs(root)):
        lines = " ".join(shlex.quote(f"/{path}") for path in missing)
        raise DirtyTree(
            f"Git does not ignore {', '.join(missing)}, which {dvc.PIPELINE} lists as an output that DVC keeps",
            remedy=f'printf "%s\\n" {lines} >> .gitignore && git commit --message "Ignore outputs" .gitignore',
        )


def commit_results(
    checkout: Checkout, root: Path, service: Service, metrics: Mapping[str, float], *, dirty: bool, branch: str | None = None
) -> str:
    """Commit only the files that the pipeline writes; returns the commit. A dirty tree is not committed but stored as a patch."""
    if not dirty:
        write_contract(root, service)
        summary = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()) if isinstance(value, int | float))
        present = [path for path in dvc.machine_files(root) if (root / path).exists()]
        subject = service.git.subject(f"Train {service.name}: {summary}")
        checkout.commit_paths(present, f"{subject}\n\nWritten by mlops-build train.\n", branch=branch)
    head = checkout.head()
    assert head is not None  # noqa: S101  (train() checked it)
    return head


def write_contract(root: Path, service: Service) -> None:
    """Write openapi.json in the service's root: the inputs and outputs of all its models."""
    folders = {model.name: root / MODELS / model.name for model in service.models}
    if all((folder / "MLmodel").is_file() for folder in folders.values()):  # else registering reports it
        put_contract(root, service, [openapi.describe(name, None, folder) for name, folder in folders.items()])


def put_contract(root: Path, service: Service, described: Sequence[openapi.Described]) -> None:
    text = openapi.as_text(openapi.openapi(service.name, described, service.contract))
    part = root / f".{openapi.FILE}.{os.getpid()}"
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(root / openapi.FILE)
    finally:
        part.unlink(missing_ok=True)


def push_data(root: Path, say: Callable[[str], None]) -> None:
    try:
        dvc.push(root)
    except dvc.NoRemote:
        say("      no DVC remote is configured: the data stays on this machine (dvc remote add --default NAME URL)")


def unshared_data(checkout: Checkout, root: Path) -> str | None:
    """A warning if the DVC remote is a folder in this checkout, so that a clone would have the commit but not its data."""
    remote = dvc_remote.default_remote(root)
    if remote is None or not checkout.origin_url() or not remote.is_inside(root):
        return None
    return f"the data is on this machine only: {remote.in_checkout(root)}, which no clone has. {dvc_remote.SHARE.format(name=remote.name)}"


def push_code(checkout: Checkout, say: Callable[[str], None], *, dirty: bool, branch: str | None = None) -> None:
    if dirty:
        say("      the tree is dirty: nothing is pushed, the changes go into the version's patch")
    elif branch and checkout.branch() != branch:
        say(f"      the pipeline wrote nothing new: no commit, and no branch {branch}")
    elif checkout.origin_url():
        checkout.push()
    else:
        say("      no Git remote called origin: the commit stays on this machine")


def register_models(
    checkout: Checkout, root: Path, service: Service, commit: str, metrics: Mapping[str, float], *, dirty: bool, say: Callable[[str], None]
) -> list[Trained]:
    registry = tracking.registry(root, create=True)
    params = read_params(root)
    trained = []
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        tree = Path(scratch) / "tree"
        patch = None
        if dirty:
            patch = checkout.export_dirty(tree)
        else:
            checkout.export(commit, tree)
        origin_ = register.Origin(service.name, checkout.origin_url() or "", commit, tree, patch, service.contract)
        for model in service.models:
            folder = root / MODELS / model.name
            if not (folder / "MLmodel").is_file():
                raise NotFound(
                    f"service.yaml lists the model {model.name}, but the pipeline did not write {MODELS}/{model.name}",
                    remedy=f"call training.log_model(…, folder=Path('{MODELS}/{model.name}')), and add the same path to dvc.yaml's outs",
                )
            version, new = register.register(registry, root, model.name, folder, origin_, params, metrics)
            say(f"      {version.uri} " + ("registered" if new else "was registered before with the same content"))
            named = version.tags.get(identity.COMMIT_TAG, commit)
            trained.append(Trained(version.uri, model.name, version.version, new, named, version.run_id, metrics, dirty))
    return trained
