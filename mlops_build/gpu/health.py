"""Check the cards of this node and the lease directory, for `mlops-build doctor`."""

import os
import stat
from pathlib import Path

from mlops_build.finding import Finding
from mlops_build.gpu.cards import Card, cards
from mlops_build.gpu.declared import BadConfig
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import DIRECTORY, DIRECTORY_VARIABLE, Ledger
from mlops_build.gpu.nvml import REMEDIES, DriverTrouble, NoDriver, Trouble, read
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
    return ", ".join(card.name for card in observed) or f"{NONE}, but a driver", of_cards(observed)


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
    if observed and not any(card.visible for card in observed):
        why = f"no card can be chosen: each is {hidden()}, or its value is ambiguous"
        findings.append(Finding("gpu", "gpu-mask", why, f"unset {VARIABLE}, or set it to UUIDs (nvidia-smi -L)"))
    return findings


def _no_gpu() -> bool:
    try:
        return not read()
    except NoDriver as error:
        return error.reason is DriverTrouble.NO_LIBRARY


def leases() -> tuple[str, list[Finding]]:
    """The lease directory in one line, and whether it exists, is writable for all users, and its lock is free.

    A missing one is not a finding without a GPU."""
    path, findings = Path(os.environ.get(DIRECTORY_VARIABLE) or DIRECTORY), list[Finding]()
    try:
        with Ledger.open(path) as ledger, ledger.turn(LOCK_SECONDS) as locked:
            count = len(ledger.promises())
    except NoLedger as error:
        if not os.path.exists(path) and _no_gpu():  # noqa: PTH110 -- Path.exists raises PermissionError
            return f"{NONE}, and no lease directory", []
        why = f"{error.message}: services on this node choose cards without knowing each other's leases"
        return error.message, [Finding("gpu leases", "gpu-leases", why, str(error.remedy))]
    if not locked:
        why = f"the lock of {path} has been held for {LOCK_SECONDS} s, which delays each decision by 4 s (normal: milliseconds)"
        findings.append(Finding("gpu leases", "gpu-lock", why, f"find the process with `fuser --verbose {path}/lock`, and end it"))
    mode = stat.S_IMODE(path.stat().st_mode)
    # 1777, or 1770 to exclude users outside the group.
    writable = mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not writable or not mode & stat.S_ISVTX:
        why = "every user can remove another user's lease" if writable else "services of other users cannot write a lease"
        remedy = f"run as root: chmod {'+t' if writable else '1777'} {path}"
        findings.append(Finding("gpu leases", "gpu-leases", f"{path} has the mode {mode:04o}: {why}", remedy))
    return f"{path}, mode {mode:04o}, {count} in use", findings
