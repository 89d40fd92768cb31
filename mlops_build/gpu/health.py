"""What is wrong with the cards of this node, and with the folder where their leases are: findings, for `mlops-build doctor`."""

import os
import stat
import time
from pathlib import Path

from mlops_build.finding import Finding
from mlops_build.gpu.cards import Card, cards
from mlops_build.gpu.declared import BadConfig
from mlops_build.gpu.ledger import DIRECTORY, DIRECTORY_VARIABLE, Ledger, LockHeld, NoLedger
from mlops_build.gpu.nvml import DriverTrouble, NoDriver, Trouble

# A file of the lease directory that is so much younger than now, in seconds, was written by another clock, or before this one was set back.
CLOCK_SECONDS = 60.0
LOCK_SECONDS = 0.5
REMEDIES = {
    Trouble.LOST: "drain the node and reset the card (`nvidia-smi --gpu-reset`) or reboot; `dmesg` has the Xid",
    Trouble.MIG_PARENT: "make instances (`nvidia-smi mig -cgi …`), or turn MIG off",
    Trouble.SLOW: "read `dmesg` for NVRM and Xid lines; a card that hangs needs a reset or a reboot",
    Trouble.DENIED: "let this user open /dev/nvidia*, or look as one who may",
    Trouble.FAULT: "run `nvidia-smi`, and read `dmesg` for NVRM and Xid lines",
}
MAKE = "as root: `install --directory --mode 1777 {path}`; in /run at each start, by /etc/tmpfiles.d: `d {path} 1777 root root -`"


def look() -> tuple[str, list[Finding]]:
    """What is there, and what is wrong with it. No driver at all is nothing wrong: the CPU does everything here."""
    try:
        found = cards()
    except NoDriver as error:
        if error.reason is DriverTrouble.NO_LIBRARY:
            return "no NVIDIA driver: everything runs on the CPU", []
        return error.message, [Finding("gpu driver", "gpu-driver", error.message, error.remedy or "run `nvidia-smi`")]
    except BadConfig as error:
        return error.message, [Finding("gpu", "gpu-config", error.message, error.remedy or "mend it")]
    if not found:
        return "a driver, but no card", []
    seen = ", ".join(card.name for card in found)
    return seen, [*of_cards(found), *of_directory(Path(os.environ.get(DIRECTORY_VARIABLE) or DIRECTORY))]


def of_cards(found: list[Card]) -> list[Finding]:
    """Each card that cannot be chosen, or that has lost memory contents."""
    divided = {card.mig_parent for card in found}
    findings = []
    for card in found:
        subject = f"gpu {card.index} ({card.name}, {card.uuid})"
        # A card that shares the host's memory is as it should be, and so is one that is divided into instances.
        fine = card.trouble in (None, Trouble.NO_MEMORY) or (card.trouble is Trouble.MIG_PARENT and card.uuid in divided)
        if card.trouble and not fine:
            findings.append(Finding(subject, "gpu-card", card.why or str(card.trouble), REMEDIES[card.trouble]))
        if card.ecc_errors:
            why = f"{card.ecc_errors} uncorrected memory errors since the driver was loaded: results may be wrong"
            findings.append(
                Finding(subject, "gpu-ecc", why, "`nvidia-smi --query --display=ECC,ROW_REMAPPER` says whether it must be replaced")
            )
    return findings


def of_directory(path: Path) -> list[Finding]:
    """The lease directory: there, everybody's, and nobody sits on its lock."""
    subject, make = "gpu leases", MAKE.format(path=path)
    try:
        with Ledger.open(path) as ledger:
            findings = _lock(ledger)
    except NoLedger as error:
        lost = "services on this node choose without knowing of each other"
        return [Finding(subject, "gpu-leases", f"{error.message}: {lost}", make)]
    mode = stat.S_IMODE(path.stat().st_mode)
    # 1777, or 1770 of a group: who is not of the group is kept out on purpose.
    writable = mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writable and not mode & stat.S_ISVTX:
        findings.append(
            Finding(
                subject, "gpu-leases", f"{path} has the mode {mode:04o}: anybody may remove another's lease", f"as root: chmod +t {path}"
            )
        )
    elif not writable:
        why = f"{path} has the mode {mode:04o}: services of other users cannot write a lease"
        findings.append(Finding(subject, "gpu-leases", why, f"as root: chmod 1777 {path}"))
    newest = max((entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(path)), default=0.0)
    if newest > time.time() + CLOCK_SECONDS:
        why = f"a file in {path} is {newest - time.time():.0f} s younger than this machine's clock: peaks of neighbours decay wrongly"
        findings.append(
            Finding("clock", "gpu-clock", why, "set the clock (`timedatectl`, chrony); the files right themselves as time goes by")
        )
    return findings


def _lock(ledger: Ledger) -> list[Finding]:
    try:
        return ledger.decide(list)
    except LockHeld:
        why = f"the lock of {ledger.path} has been held for {LOCK_SECONDS} s, and a decision takes milliseconds: each now waits 2 s in vain"
        return [Finding("gpu leases", "gpu-lock", why, f"`fuser --verbose {ledger.path}/lock` says by whom; end that process")]
