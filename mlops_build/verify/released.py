"""Which findings a new release removes: mlops-build writes an overlay's release/ folder from service.yaml, and nobody edits it."""

from collections.abc import Sequence

from mlops_build.verify.document import Path
from mlops_build.verify.world import Fault

# Rules about what a release sets, with the field, below the fault's path, that it sets.
SET_BY_RELEASES: dict[str, Path] = {
    "startup-budget": ("failureThreshold",),
    "gpu-runtime-class": (),
    "gpu-budget": (),
    "gpu-leases": (),
    "gpu-mode": (),
    "no-memory-limit": (),
}
# Rules whose faults a new release would repeat: it does not change the other object, or service.yaml asks for the value.
REPEATED = {"contract-breaks", "hpa-cpu-gpu", "hpa-no-monitoring", "hpa-target", "pdb-no-pods"}


def removes(fault: Fault, env: str) -> bool:
    """Whether a release to the environment, whose overlay has the fault, sets what is wrong or missing."""
    file, _ = fault.about.where((*fault.path, *SET_BY_RELEASES.get(fault.rule, ())))
    if file.startswith(f"deploy/overlays/{env}/release/"):
        return fault.rule not in REPEATED
    return fault.rule in SET_BY_RELEASES and file.startswith("deploy/base/")


def remedy(environments: Sequence[str]) -> str:
    """How to write the release/ folders of these environments again."""
    commands = " and ".join(f"`mlops-build release {env}`" for env in environments)
    return f"run {commands} to write release/ from the committed service.yaml"
