"""Files that nothing refers to, counted while a store is listed: by prefix and age, and what of it a script could delete."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlops_build.adapters.storage.place import Place, StoredObject
from mlops_build.audit.known import Say
from mlops_build.audit.policy import finding
from mlops_build.finding import Finding
from mlops_build.quantity import show_bytes

DAY_MS = 86_400_000
AGES = ((365, "older than a year"), (30, "older than 30 days"), (0, "younger than 30 days"))
# More prefixes are counted together, so that a store cannot need all memory.
MOST_PREFIXES = 1000
PROGRESS = 100_000


@dataclass
class Orphans:
    """rule: of the findings. place: that is listed. groups: prefix → age → [files, bytes]."""

    rule: str
    place: Place
    groups: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    now_ms: float = field(default_factory=lambda: time.time() * 1000)

    def add(self, prefix: str, stored: StoredObject) -> None:
        if prefix not in self.groups and len(self.groups) >= MOST_PREFIXES:
            prefix = "(others)"
        days = (self.now_ms - stored.modified_ms) / DAY_MS
        age = next((text for least, text in AGES if days >= least), AGES[-1][1])
        counted = self.groups.setdefault(prefix, {}).setdefault(age, [0, 0])
        counted[0] += 1
        counted[1] += stored.size

    def findings(self) -> Iterator[Finding]:
        for prefix, ages in sorted(self.groups.items()):
            files, size = (sum(counted[each] for counted in ages.values()) for each in (0, 1))
            detail = ", ".join(f"{ages[text][0]:,} {text}" for _, text in AGES if text in ages)
            subject = ascii(self.place.shown(prefix) if prefix else self.place.uri)[1:-1]
            yield finding(self.rule, subject, count=f"{files:,}", size=show_bytes(size), ages=detail)


def objects(place: Place, inner: list[str], say: Say) -> Iterator[StoredObject]:
    """The files of a place, without those of the places in it. inner: their paths. Raises NoPlace."""
    count = 0
    for count, each in enumerate(place.objects(), start=1):
        if count % PROGRESS == 0:
            say(f"{place.uri}: {count:,} files")
        if not any(each.path.startswith(f"{path}/") for path in inner):
            yield each
    say(f"{place.uri}: {count:,} files, all listed")
