"""Interpret CUDA_VISIBLE_DEVICES as CUDA does: which cards may this process use?

The rules are in the CUDA programming guide, "CUDA environment variables"
(https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html). What the guide does not define (a repeated
entry, text after a number) follows torch.cuda's own parser. A mask whose meaning is not documented is refused: it could select a card of
another service.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TypeVar

from mlops_build.errors import UsageError
from mlops_build.gpu.nvml import Reading, Trouble

Seen = TypeVar("Seen", bound=Reading)
VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
UUID_PREFIXES = ("GPU-", "MIG-")


class AmbiguousMask(UsageError):
    """The meaning of CUDA_VISIBLE_DEVICES is ambiguous."""


def visible(readings: Sequence[Seen], environ: Mapping[str, str] = os.environ) -> list[Seen]:
    """The readings that the mask in `environ` selects, in the mask's order; without a mask, all of them.

    A lost card keeps its place in the numbering. A card divided by MIG stands for itself and its first instance, the one that CUDA would
    use. Several instances may be selected, although CUDA gives a process only one. Raises AmbiguousMask.
    """
    mask = environ.get(VARIABLE)
    if mask is None:
        return list(readings)
    entries = [entry.strip() for entry in mask.split(",")]
    named = [entry.startswith(UUID_PREFIXES) for entry in entries]
    if any(named) and any(_index(entry) >= 0 for entry in entries):
        raise AmbiguousMask(
            f"{VARIABLE}={mask} mixes indices and UUIDs, and it is not documented how CUDA reads that", remedy="use only UUIDs"
        )
    selected = _by_uuid(entries, readings) if named[0] else _by_index(entries, readings, environ)
    if len(selected) != len({card.uuid for card in selected}):
        return []
    return [part for card in selected for part in _usable(card, readings)]


def hidden() -> str:
    """Why a card that the mask does not select is not chosen."""
    return f"hidden by {VARIABLE}={os.environ.get(VARIABLE)!r}"


def cuda_started() -> str | None:
    """Why CUDA counts as started in this process, which makes a mask ineffective; None if it is not started."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return "torch has started CUDA"
    # cuInit opens /dev/nvidia-uvm, NVML does not. A process forked after cuInit, where CUDA cannot be used, has it open as well.
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:  # noqa: PTH112, PTH208 - pathlib costs its import
        try:
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except OSError:
            continue  # the descriptor of the listing itself, closed since
        if target.endswith("/nvidia-uvm"):
            return f"this process has {target} open"
    return None


def _by_uuid(entries: Sequence[str], readings: Sequence[Seen]) -> list[Seen]:
    entries = list(takewhile(lambda entry: entry.startswith(UUID_PREFIXES), entries))
    if len(set(entries)) < len(entries):
        return []  # CUDA shows no card if an entry is repeated
    selected: list[Seen] = []
    for entry in entries:
        matches = [card for card in readings if _matches(card, entry)]
        if len(matches) != 1:
            break  # an entry that matches no card or several hides itself and all that follow
        selected += matches
    return selected


def _matches(card: Reading, entry: str) -> bool:
    """Whether the entry is the card's UUID or a prefix of it, or MIG-GPU-<uuid>/<GPU instance>/<compute instance>."""
    if card.mig_parent and card.mig_instance and entry == "MIG-{}/{}/{}".format(card.mig_parent, *card.mig_instance):
        return True
    return len(entry) > len("GPU-") and card.uuid.startswith(entry)


def _by_index(entries: Sequence[str], readings: Sequence[Seen], environ: Mapping[str, str]) -> list[Seen]:
    cards = [card for card in readings if card.mig_parent is None]
    # "", "-1" or "none" hides itself and all that follow.
    ordinals = list(takewhile(lambda ordinal: ordinal >= 0, map(_index, entries)))
    if len(set(ordinals)) < len(ordinals):
        return []  # CUDA shows no card if an entry is repeated
    ordinals = list(takewhile(lambda ordinal: ordinal < len(cards), ordinals))
    if all(card.bus_id for card in cards):
        cards.sort(key=lambda card: (card.bus_id or "", card.index))
    if environ.get(ORDER) != "PCI_BUS_ID" and not _identical(cards) and 0 < len(ordinals) < len(cards):
        # CUDA puts the fastest card first, by an undocumented rule. Identical cards are in bus order.
        raise AmbiguousMask(
            f"{VARIABLE}={environ[VARIABLE]} counts cards in CUDA's order, fastest first, and this machine has different cards",
            remedy=f"set {ORDER}=PCI_BUS_ID to count them as nvidia-smi does, or use UUIDs (nvidia-smi -L)",
        )
    return [cards[ordinal] for ordinal in ordinals]


def _index(entry: str) -> int:
    """Parse an index like strtoul: text after the digits is ignored. -1: not an index."""
    number = re.match(r"\+?([0-9]{1,9})", entry, re.ASCII)
    return int(number[1]) if number else -1


def _identical(cards: Sequence[Reading]) -> bool:
    # A card that does not answer is assumed to be like the others.
    known = [card for card in cards if card.name != "unknown"]
    memory = {round(card.total_bytes / 2**30) for card in known if card.total_bytes is not None}
    return len({(card.name, card.compute_capability) for card in known}) <= 1 and len(memory) <= 1


def _usable(card: Seen, readings: Sequence[Seen]) -> list[Seen]:
    if card.trouble is not Trouble.MIG_PARENT:
        return [card]
    return [card, *[part for part in readings if part.mig_parent == card.uuid][:1]]
