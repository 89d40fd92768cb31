"""The most memory that those without a lease were seen to use: they grow after a decision, and nobody asks them.

A peak fades over seven days, so that a neighbour that shrank for good gives its room back. What was in use at one look only is no peak: a
lease's memory outlives the lease for a moment when its process dies, and would be held against the card for a week. Who looks often, looks
for everybody: the lease directory keeps the peaks (ledger.py), one file for each uid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mlops_build.gpu.frozen import dataclass, replace

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from typing import Any

FADE_SECONDS = 7 * 86400.0
# Freeing the memory of a process that was killed takes the driver a second or two.
SETTLE_SECONDS = 5.0
# A peak's time need not be newer than this: it saves writing the file at every look.
REFRESH_SECONDS = 3600.0
MOST_KEYS = 64  # for one card: the lease directory's files are bounded, and commands can be made up
MOST_BYTES = 1 << 50

ALL = "*"  # everything on the card that belongs to no lease
REST = "?"  # of that, what belongs to no process that can be seen
EACH = " each"  # after a neighbour's key: its largest process


@dataclass(frozen=True, slots=True)
class Peak:
    """bytes: the most that was in use for some seconds, last seen at `at` (unix s). last_bytes: the least since `last_at`."""

    bytes: int
    at: float
    last_bytes: int
    last_at: float

    def faded(self, now: float) -> int:
        """What is left of it, bytes."""
        return max(0, round(self.bytes * (1 - max(0.0, now - self.at) / FADE_SECONDS)))


# By the card's UUID and the neighbour's key (neighbours.py).
Peaks = Mapping[str, Mapping[str, Peak]]


def counted(peaks: Peaks, uuid: str, key: str, used: int, now: float) -> int:
    """What to count for somebody who uses `used` bytes now."""
    peak = peaks.get(uuid, {}).get(key)
    return max(used, peak.faded(now)) if peak else used


def counted_group(peaks: Peaks, uuid: str, key: str, used: int, processes: int, now: float) -> int:
    """What to count for several processes of one name, which use `used` bytes together now.

    Not their peak, if they were more then: ten notebooks of one user, of which nine are closed, will hardly grow to what the ten had.
    """
    together = counted(peaks, uuid, key, used, now)
    each = peaks.get(uuid, {}).get(key + EACH)
    return together if each is None else max(used, min(together, processes * each.faded(now)))


def observe(peaks: Peaks, seen: Mapping[str, Mapping[str, int]], now: float) -> Peaks:
    """The peaks after one more look. seen: bytes in use, by UUID and key. The very same object where nothing worth writing has changed."""
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
    held = min(peak.last_bytes, used)  # in use from then until now, as far as anybody looked
    if now - min(peak.last_at, now) < SETTLE_SECONDS:
        return replace(peak, last_bytes=held)
    if held < peak.faded(now) or held == 0:
        return peak if used == peak.last_bytes else replace(peak, last_bytes=used, last_at=now)
    if held == peak.bytes and used == peak.last_bytes and now - peak.at < REFRESH_SECONDS:
        return peak
    return Peak(held, now, used, now)


def merge(several: Iterable[Peaks], now: float) -> Peaks:
    """Of several observers, the greater peak of each neighbour."""
    merged: dict[str, dict[str, Peak]] = {}
    for peaks in several:
        for uuid, keys in peaks.items():
            card = merged.setdefault(uuid, {})
            for key, peak in keys.items():
                if key not in card or peak.faded(now) > card[key].faded(now):
                    card[key] = peak
    return merged


def as_document(peaks: Peaks) -> dict[str, Any]:
    """For a JSON file."""
    return {
        "schema": 1,
        "cards": {
            uuid: {key: [peak.bytes, round(peak.at, 1), peak.last_bytes, round(peak.last_at, 1)] for key, peak in keys.items()}
            for uuid, keys in peaks.items()
        },
    }


def from_document(document: object, now: float) -> Peaks:
    """What a JSON file says. What makes no sense is left out: these are observations, and the next look makes new ones."""
    cards = document.get("cards") if isinstance(document, dict) and document.get("schema") == 1 else None
    found: dict[str, dict[str, Peak]] = {}
    for uuid, keys in cards.items() if isinstance(cards, dict) else ():
        for key, numbers in keys.items() if isinstance(keys, dict) else ():
            peak = _peak(numbers, now)
            if peak is not None:
                found.setdefault(uuid, {})[key] = peak
    return found


def _peak(numbers: object, now: float) -> Peak | None:
    if not isinstance(numbers, list) or len(numbers) != 4 or any(type(number) not in (int, float) for number in numbers):
        return None
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or max(numbers[0], numbers[2]) > MOST_BYTES:
        return None
    # A time to come (a clock was put back) would never fade.
    return Peak(int(numbers[0]), min(float(numbers[1]), now), int(numbers[2]), min(float(numbers[3]), now))
