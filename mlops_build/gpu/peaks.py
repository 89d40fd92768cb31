"""Observed peak memory of processes without a lease, which can grow after a decision.

A peak fades over seven days, so that room becomes available again if a neighbour stays smaller. Memory that was in use at only one read is
not a peak: when a process with a lease ends, its memory stays in use for a moment, and would count for a week. The lease directory keeps
the peaks for all observers, in a file for each uid (ledger.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlops_build.gpu.promise import MAX_BYTES

if TYPE_CHECKING:
    from typing import Any

FADE_SECONDS = 7 * 86400.0
# The driver needs a second or two to free the memory of a killed process.
SETTLE_SECONDS = 5.0
# A peak's time is updated only once per hour, so that not every read writes the file.
REFRESH_SECONDS = 3600.0
MOST_KEYS = 64  # for each card: the number of commands is not limited, the size of the file is

ALL = "*"  # key: all use of the card without a lease
REST = "?"  # key: the part of ALL that belongs to no visible process
EACH = " each"  # suffix of a neighbour's key: its largest process


@dataclass(frozen=True, slots=True)
class Peak:
    """bytes: the most memory in use for SETTLE_SECONDS, last observed at `at` (unix s). last_bytes: the minimum since `last_at`."""

    bytes: int
    at: float
    last_bytes: int
    last_at: float

    def faded(self, now: float) -> int:
        """The faded peak at `now` (unix s), bytes."""
        return max(0, round(self.bytes * (1 - max(0.0, now - self.at) / FADE_SECONDS)))


# By card UUID and neighbour key (neighbours.py).
Peaks = Mapping[str, Mapping[str, Peak]]


def counted(peaks: Peaks, uuid: str, key: str, used: int, now: float) -> int:
    """The bytes to count for a neighbour that uses `used` bytes now."""
    peak = peaks.get(uuid, {}).get(key)
    return max(used, peak.faded(now)) if peak else used


def counted_group(peaks: Peaks, uuid: str, key: str, used: int, processes: int, now: float) -> int:
    """The bytes to count for `processes` processes with the same name, which use `used` bytes together now.

    Less than their common peak if there were more processes then: if a user closes nine of ten notebooks, the tenth will hardly grow to the
    memory of ten.
    """
    together = counted(peaks, uuid, key, used, now)
    each = peaks.get(uuid, {}).get(key + EACH)
    return together if each is None else max(used, min(together, processes * each.faded(now)))


def observe(peaks: Peaks, seen: Mapping[str, Mapping[str, int]], now: float) -> Peaks:
    """The peaks after another read. seen: bytes in use, by UUID and key. Returns the same object if nothing worth writing has changed."""
    after = {uuid: dict(keys) for uuid, keys in peaks.items()}
    for uuid, keys in seen.items():
        card = after.setdefault(uuid, {})
        for key, used in keys.items():
            if used or key in card:
                card[key] = _after(card.get(key), used, now)
    for uuid, card in after.items():
        kept = [key for key, peak in card.items() if peak.faded(now) or (peak.last_bytes and now - peak.last_at < FADE_SECONDS)]
        kept = sorted(kept, key=lambda key: (-card[key].faded(now), -card[key].last_at))[:MOST_KEYS]
        after[uuid] = {key: peak for key, peak in card.items() if key in kept}
    after = {uuid: card for uuid, card in after.items() if card}
    return peaks if after == peaks else after


def _after(peak: Peak | None, used: int, now: float) -> Peak:
    if peak is None:
        return Peak(0, now, used, now)
    held = min(peak.last_bytes, used)  # in use at each read since last_at
    if now - min(peak.last_at, now) < SETTLE_SECONDS:
        return replace(peak, last_bytes=held)
    if held < peak.faded(now) or held == 0:
        return peak if used == peak.last_bytes else replace(peak, last_bytes=used, last_at=now)
    if held == peak.bytes and used == peak.last_bytes and now - peak.at < REFRESH_SECONDS:
        return peak
    return Peak(held, now, used, now)


def merge(several: Iterable[Peaks], now: float) -> Peaks:
    """Merge the peaks of several observers: the greater peak of each neighbour."""
    merged: dict[str, dict[str, Peak]] = {}
    for peaks in several:
        for uuid, keys in peaks.items():
            card = merged.setdefault(uuid, {})
            for key, peak in keys.items():
                if key not in card or peak.faded(now) > card[key].faded(now):
                    card[key] = peak
    return merged


def as_document(peaks: Peaks) -> dict[str, Any]:
    """The peaks as a JSON document."""
    return {
        "schema": 1,
        "cards": {
            uuid: {key: [peak.bytes, round(peak.at, 1), peak.last_bytes, round(peak.last_at, 1)] for key, peak in keys.items()}
            for uuid, keys in peaks.items()
        },
    }


def from_document(document: object, now: float) -> Peaks:
    """The peaks in a JSON document. Invalid entries are left out: the next read observes them again."""
    cards = document.get("cards") if isinstance(document, dict) and document.get("schema") == 1 else None
    peaks: dict[str, dict[str, Peak]] = {}
    for uuid, keys in cards.items() if isinstance(cards, dict) else ():
        for key, numbers in keys.items() if isinstance(keys, dict) else ():
            peak = _peak(numbers, now)
            if peak is not None:
                peaks.setdefault(uuid, {})[key] = peak
    return peaks


def _peak(numbers: object, now: float) -> Peak | None:
    if not isinstance(numbers, list) or len(numbers) != 4 or any(type(number) not in (int, float) for number in numbers):
        return None
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or max(numbers[0], numbers[2]) > MAX_BYTES:
        return None
    # A time in the future (the clock was set back) would not fade.
    return Peak(int(numbers[0]), min(float(numbers[1]), now), int(numbers[2]), min(float(numbers[3]), now))
