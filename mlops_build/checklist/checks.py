"""The checks of the checklist's items that an agent can run, by the names in items.toml. Those of the CI system are in mlops_build/ci."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from mlops_build import doctor
from mlops_build.checklist import agent, cluster, host, image_registry, storage
from mlops_build.checklist.items import Item, items, secrets
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import Result, no, ok, unseen
from mlops_build.errors import MlopsBuildError
from mlops_build.service import assembling

# Most checks wait for a server.
MAX_PARALLEL = 8

CHECKS: Mapping[str, Callable[[Names, Mapping[str, str]], Result]] = {
    "programs": lambda names, _: agent.programs([names.python, "git", "make", "tar"]),
    "engine": lambda names, _: _engine(names),
    "package-index": lambda *_: agent.package_index(),
    "secrets": lambda names, _: agent.variables(secrets(names)),
    "lock": lambda names, _: _doctor(doctor.lock(names.root)),
    "push": lambda names, _: host.push(names),
    "identity": lambda names, _: host.identity(names),
    "pull-requests": lambda names, _: host.pull_requests(names),
    "images-push": lambda names, _: image_registry.push(names),
    "cluster": lambda *_: cluster.reachable(),
    "namespace": lambda _, values: cluster.exists("namespace", values["namespace"]),
    "pull-secret": lambda _, values: cluster.exists("secret", "registry-credentials", values["namespace"]),
    "permissions": lambda names, _: cluster.rights(names),
    "hosts": lambda names, _: cluster.addresses([place.host for place in names.service.environments.values()]),
    "priority-class": lambda _, values: cluster.exists("priorityclass", values["priority_class"]),
    "gpus": lambda *_: cluster.gpus(),
    "runtime-class": lambda _, values: cluster.exists("runtimeclass", values["runtime_class"]),
    "lease-volumes": lambda names, _: _lease_volumes(names),
    "mlflow": lambda names, _: _mlflow(names),
    "data-write": lambda names, _: storage.write(names),
}


@dataclass(frozen=True)
class CheckedItem:
    """An item with the result of its check."""

    item: Item
    result: Result

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.item.id,
            "where": self.item.where,
            "what": self.item.what,
            "state": self.result.state,
            "seen": self.result.detail,
        }


def examine(names: Names) -> list[CheckedItem]:
    """Check every item, several at once. A check that cannot run has the state `unseen`."""
    with ThreadPoolExecutor(MAX_PARALLEL) as pool:
        return list(pool.map(lambda item: CheckedItem(item, _check(names, item)), items(names)))


def failed(checked: Sequence[CheckedItem]) -> list[CheckedItem]:
    """The items whose requirement is not met."""
    return [item for item in checked if item.result.state == "no"]


def _check(names: Names, item: Item) -> Result:
    if not item.check:
        return unseen(f"cannot be checked from an agent: ask {item.ask}")
    try:
        if check := names.plans.checks.get(item.check):
            return check(item.values)
        return CHECKS[item.check](names, item.values)
    except MlopsBuildError as error:
        return no(error.message)
    except ModuleNotFoundError as error:
        return unseen(f"the Python package {error.name!r} is not installed")


def _lease_volumes(names: Names) -> Result:
    files = [names.root / "deploy/overlays" / env / "release/gpu-leases.yaml" for env in names.service.environments]
    return cluster.volumes([file for file in files if file.is_file()])


def _mlflow(names: Names) -> Result:
    check = doctor.registry(names.root)
    if check.ok and "sqlite:" in check.seen:
        return no(f"{check.seen}: a file, which other agents do not see")
    return _doctor(check)


def _engine(names: Names) -> Result:
    """An engine is required only where images are not assembled."""
    engine = doctor.engine(required=True)
    why = assembling.refusal(names.service)
    if why is not None:
        return _doctor(replace(engine, seen=f"{engine.seen}; images are built: {why.message}"))
    return ok(f"images are assembled at {names.service.image.registry}; for environment images: {engine.seen}")


def _doctor(check: doctor.Check) -> Result:
    return ok(check.seen) if check.ok else no("; ".join(finding.why for finding in check.findings))
