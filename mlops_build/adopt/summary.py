"""adopt.csv as a small table: files and bytes by kind."""

from collections.abc import Sequence
from typing import Any

from mlops_build.adopt import table
from mlops_build.adopt.table import Row
from mlops_build.quantity import show_bytes


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts for --json."""
    kinds: dict[str, dict[str, int]] = {}
    for row in rows:
        entry = kinds.setdefault(row.kind, {"files": 0, "bytes": 0})
        entry["files"] += 1
        entry["bytes"] += row.size
    known = [row.sha256 for row in rows if row.sha256]
    return {
        "files": len(rows),
        "bytes": sum(row.size for row in rows),
        "kinds": kinds,
        "duplicates": len(known) - len(set(known)),
        "unsafe": sum(row.details.startswith("unsafe: ") for row in rows),
        "undecided": sum(not row.action for row in rows),
        "adopt": sum(row.action == table.ADOPT for row in rows),
    }


def text(rows: Sequence[Row]) -> str:
    """The same for people."""
    counts = document(rows)
    lines = [f"{entry['files']:7}  {show_bytes(entry['bytes']):>10}  {kind}" for kind, entry in sorted(counts["kinds"].items())]
    duplicates = counts["duplicates"]
    more = f"{duplicates} duplicate{'s' * (duplicates != 1)}, {counts['unsafe']} unsafe, {counts['undecided']} without an action"
    return "\n".join([*lines, f"{counts['files']:7}  {show_bytes(counts['bytes']):>10}  in all: {more}"])
