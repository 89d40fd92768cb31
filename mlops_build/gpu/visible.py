"""CUDA_VISIBLE_DEVICES: which cards this process may use, as CUDA itself would read it.

The rules: CUDA programming guide, "CUDA environment variables"
(https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html); what it leaves out (a repeated entry, text
after a number) is as in torch.cuda's own reading of the variable. Where nobody says what CUDA would do, the mask is refused: the card that
it would mean is perhaps a neighbour's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

from mlops_build.errors import UsageError
from mlops_build.gpu.nvml import Reading, Trouble

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from typing import TypeVar

    Seen = TypeVar("Seen", bound=Reading)

VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


class AmbiguousMask(UsageError):
    """CUDA_VISIBLE_DEVICES does not say for certain which cards it means."""


def visible(readings: Sequence[Seen], environ: Mapping[str, str] = os.environ) -> list[Seen]:
    """The readings that the mask in `environ` lets this process use, in the mask's order; all of them without one.

    Raises AmbiguousMask. A lost card keeps its place in the numbering: whoever wrote an index counted it. A card divided by MIG stands for
    itself and its first instance, the one that CUDA would take. Several instances may be named; CUDA gives a process one of them.
    """
    mask = environ.get(VARIABLE)
    if mask is None:
        return list(readings)
    entries = [entry.strip() for entry in mask.split(",")]
    named = [entry.startswith(("GPU-", "MIG-")) for entry in entries]
    if any(named) and any(_index(entry) is not None for entry in entries):
        raise AmbiguousMask(
            f"{VARIABLE}={mask} mixes indices and UUIDs, and nothing says how CUDA reads that", remedy="name every card by its UUID"
        )
    found = _by_uuid(entries, readings) if named[0] else _by_index(entries, readings, environ)
    if len(found) != len({card.uuid for card in found}):
        return []
    return [part for card in found for part in _usable(card, readings)]


def cuda_started() -> str | None:
    """How we know that CUDA is already started in this process, where a mask comes too late; None if it is not."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return "torch has started CUDA"
    # cuInit opens it, NVML does not. It is there in a process forked after cuInit as well, where CUDA cannot be used at all.
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:  # noqa: PTH112, PTH208 - pathlib costs its import
        try:
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except OSError:
            continue  # closed since: the listing's own
        if target.endswith("/nvidia-uvm"):
            return f"this process has {target} open"
    return None


def _by_uuid(entries: Sequence[str], readings: Sequence[Seen]) -> list[Seen]:
    if len(set(entries)) < len(entries):
        return []  # a repeated entry: CUDA shows no card at all
    found: list[Seen] = []
    for entry in entries:
        meant = [card for card in readings if _named(card, entry)]
        if len(meant) != 1:
            break  # the first one that names no card, or several, hides itself and what follows
        found.append(meant[0])
    return found


def _named(card: Reading, entry: str) -> bool:
    """Whether the entry is the card's UUID or its beginning, or MIG-GPU-<uuid>/<GPU instance>/<compute instance>."""
    if card.mig_parent and card.mig_instance and entry == "MIG-{}/{}/{}".format(card.mig_parent, *card.mig_instance):
        return True
    return len(entry) > len("GPU-") and card.uuid.startswith(entry)


def _by_index(entries: Sequence[str], readings: Sequence[Seen], environ: Mapping[str, str]) -> list[Seen]:
    cards = [card for card in readings if card.mig_parent is None]
    ordinals: list[int] = []
    for entry in entries:
        ordinal = _index(entry)
        if ordinal is None:
            break  # "", "-1", "none": it hides itself and what follows
        ordinals.append(ordinal)
    if len(set(ordinals)) < len(ordinals):
        return []  # a repeated entry: CUDA shows no card at all
    known = [ordinal < len(cards) for ordinal in ordinals]
    ordinals = ordinals[: known.index(False)] if False in known else ordinals
    ordered = sorted(cards, key=lambda card: (card.bus_id or "", card.index)) if all(card.bus_id for card in cards) else cards
    if environ.get(ORDER) != "PCI_BUS_ID" and not _alike(cards) and 0 < len(set(ordinals)) < len(cards):
        # CUDA puts the fastest card first, by a rule it does not tell; among cards that are alike the order of the bus is left.
        raise AmbiguousMask(
            f"{VARIABLE}={environ[VARIABLE]} counts cards in CUDA's order, fastest first, and this machine's cards are not alike",
            remedy=f"set {ORDER}=PCI_BUS_ID to count them as nvidia-smi does, or name them by UUID (nvidia-smi -L)",
        )
    return [ordered[ordinal] for ordinal in ordinals]


def _index(entry: str) -> int | None:
    """As strtoul reads it: what follows the digits does not count."""
    number = re.match(r"\+?([0-9]{1,9})", entry, re.ASCII)
    return int(number[1]) if number else None


def _alike(cards: Sequence[Reading]) -> bool:
    # A card that does not answer is taken for one of the others.
    known = [card for card in cards if card.name != "unknown"]
    memory = {round(card.total_bytes / 2**30) for card in known if card.total_bytes is not None}
    return len({(card.name, card.compute_capability) for card in known}) <= 1 and len(memory) <= 1


def _usable(card: Seen, readings: Sequence[Seen]) -> list[Seen]:
    if card.trouble is not Trouble.MIG_PARENT:
        return [card]
    return [card, *[part for part in readings if part.mig_parent == card.uuid][:1]]
