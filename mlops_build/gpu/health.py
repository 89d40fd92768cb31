"""Check the cards of this node and the lease directory, for `mlops-build doctor`."""

import os
import stat
from pathlib import Path

from mlops_build.finding import Finding
from mlops_build.gpu.cards import Card, cards
from mlops_build.gpu.declared import BadConfig
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import DIRECTORY, DIRECTORY_VARIABLE, Ledger
from mlops_build.gpu.nvml import REMEDIES, DriverTrouble, NoDriver, Trouble
from mlops_build.gpu.visible import VARIABLE, hidden

LOCK_SECONDS = 0.5
NONE = "no GPU"


def look() -> tuple[str, list[Finding]]:
    """The cards in one line, and the findings. A missing driver is not a finding: everything then runs on the CPU."""
    try:
        observed = cards()
    except NoDriver as error:
        if error.reason is DriverTrouble.NO_LIBRARY:
            return f"{NONE}: {error.message}; everything runs on the CPU", []
        return error.message, [Finding("gpu driver", "gpu-driver", error.message, error.remedy or "run `nvidia-smi`")]
    except BadConfig as error:
        return error.message, [Finding("gpu", "gpu-config", error.message, error.remedy or "fix the file")]
    if not observed:
        return f"{NONE}, but a driver", []
    return ", ".join(card.name for card in observed), of_cards(observed)


def of_cards(observed: list[Card]) -> list[Finding]:
    """A finding for each card that cannot be chosen, or that has memory errors."""
    divided = {card.mig_parent for card in observed}
    findings = []
    for card in observed:
        subject = f"gpu {card.index} ({card.name}, {card.uuid})"
        # Normal: a card that shares the host's memory, and one that is divided into instances.
        normal = card.trouble in (None, Trouble.NO_MEMORY) or (card.trouble is Trouble.MIG_PARENT and card.uuid in divided)
        if card.trouble and not normal:
            findings.append(Finding(subject, "gpu-card", card.why or str(card.trouble), REMEDIES[card.trouble]))
        if card.ecc_errors:
            why = f"{card.ecc_errors} uncorrected memory errors since the driver was loaded: results may be wrong"
            findings.append(
                Finding(subject, "gpu-ecc", why, "run `nvidia-smi --query --display=ECC,ROW_REMAPPER` to see whether it must be replaced")
            )
    if not any(card.visible for card in observed):
        why = f"no card can be chosen: each is {hidden()}, or its value is ambiguous"
        findings.append(Finding("gpu", "gpu-mask", why, f"unset {VARIABLE}, or set it to UUIDs (nvidia-smi -L)"))
    return findings


def leases() -> tuple[str, list[Finding]]:
    """The lease directory in one line, and whether it exists, is writable for all users, and its lock is free.

    A missing one is not a finding without a GPU."""
    path, subject = Path(os.environ.get(DIRECTORY_VARIABLE) or DIRECTORY), "gpu leases"
    try:
        with Ledger.open(path) as ledger:
            findings, count = _lock(ledger), len(ledger.promises())
    except NoLedger as error:
        if not os.path.exists(path) and look()[0].startswith(NONE):  # noqa: PTH110 -- Path.exists raises PermissionError
            return f"{NONE}, and no lease directory", []
        why = f"{error.message}: services on this node choose cards without knowing each other's leases"
        return error.message, [Finding(subject, "gpu-leases", why, str(error.remedy))]
    mode = stat.S_IMODE(path.stat().st_mode)
    # 1777, or 1770 to exclude users outside the group.
    writable = mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writable and not mode & stat.S_ISVTX:
        findings.append(
            Finding(
                subject,
                "gpu-leases",
                f"{path} has the mode {mode:04o}: every user can remove another user's lease",
                f"run as root: chmod +t {path}",
            )
        )
    elif not writable:
        why = f"{path} has the mode {mode:04o}: services of other users cannot write a lease"
        findings.append(Finding(subject, "gpu-leases", why, f"run as root: chmod 1777 {path}"))
    return f"{path}, mode {mode:04o}, {count} in use", findings


def _lock(ledger: Ledger) -> list[Finding]:
    with ledger.turn(LOCK_SECONDS) as locked:
        if locked:
            return []
    why = f"the lock of {ledger.path} has been held for {LOCK_SECONDS} s, which delays each decision by 4 s (normal: milliseconds)"
    return [Finding("gpu leases", "gpu-lock", why, f"find the process with `fuser --verbose {ledger.path}/lock`, and end it")]
