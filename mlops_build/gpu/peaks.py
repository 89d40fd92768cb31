"""Observed peak memory of processes without a lease, which can grow after a decision.

A peak fades over seven days, so that room becomes available again if a neighbour stays smaller. Memory that was in use at only one read is
not a peak: when a process with a lease ends, its memory stays in use for a moment, and would count for a week. The lease directory keeps
the peaks for all observers, in a file for each uid (ledger.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from mlops_build.gpu.promise import MAX_BYTES

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


def counted(peaks: Peaks, uuid: str, key: str, used: int, now: float, processes: int = 1) -> int:
    """The bytes to count for a neighbour's processes, which use `used` bytes together now.

    Less than their common peak if there were more processes then: if a user closes nine of ten notebooks, the tenth will hardly grow to the
    memory of ten.
    """
    card = peaks.get(uuid, {})
    peak = card[key].faded(now) if key in card else 0
    if key + EACH in card:
        peak = min(peak, processes * card[key + EACH].faded(now))
    return max(used, peak)


def observe(peaks: Peaks, seen: Mapping[str, Mapping[str, int]], now: float) -> Peaks:
    """The peaks after another read. seen: bytes in use, by UUID and key. Returns the same object if nothing worth writing has changed."""
    now = round(now, 1)  # less text in the file
    after = {}
    for uuid in peaks.keys() | seen.keys():
        card = dict(peaks.get(uuid, {}))
        for key, used in seen.get(uuid, {}).items():
            if used or key in card:
                card[key] = _after(card.get(key), used, now)
        kept = [key for key, peak in card.items() if peak.faded(now) or (peak.last_bytes and now - peak.last_at < FADE_SECONDS)]
        kept.sort(key=lambda key: (-card[key].faded(now), -card[key].last_at))
        if kept:
            after[uuid] = {key: card[key] for key in kept[:MOST_KEYS]}
    return peaks if after == peaks else after


def _after(peak: Peak | None, used: int, now: float) -> Peak:
    if peak is None:
        return Peak(0, now, used, now)
    held = min(peak.last_bytes, used)  # in use at each read since last_at
    if now - peak.last_at < SETTLE_SECONDS:
        return replace(peak, last_bytes=held)
    if held < peak.faded(now) or held == 0:
        return peak if used == peak.last_bytes else replace(peak, last_bytes=used, last_at=now)
    if held == peak.bytes and used == peak.last_bytes and now - peak.at < REFRESH_SECONDS:
        return peak
    return Peak(held, now, used, now)


def as_document(peaks: Peaks) -> dict[str, Any]:
    """The peaks as a JSON document."""
    cards = {uuid: {key: astuple(peak) for key, peak in card.items()} for uuid, card in peaks.items()}
    return {"schema": 1, "cards": cards}


def from_documents(documents: Iterable[Mapping[str, Any]], now: float) -> Peaks:
    """The peaks of several observers: the greater one of each neighbour. Invalid entries are left out, and observed again."""
    peaks: dict[str, dict[str, Peak]] = {}
    for document in documents:
        for uuid, card in _items(document.get("cards") if document.get("schema") == 1 else None):
            for key, numbers in _items(card):
                peak = _peak(numbers, now)
                known = peaks.get(uuid, {}).get(key)
                if peak is not None and (known is None or peak.faded(now) > known.faded(now)):
                    peaks.setdefault(uuid, {})[key] = peak
    return peaks


def _items(value: object) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _peak(numbers: object, now: float) -> Peak | None:
    if not isinstance(numbers, list) or len(numbers) != 4:
        return None
    if not all(type(number) in (int, float) and 0 <= number <= MAX_BYTES for number in numbers):
        return None
    size, at, last_size, last_at = numbers
    # A time in the future (the clock was set back) would not fade.
    return Peak(int(size), min(at, now), int(last_size), min(last_at, now))
