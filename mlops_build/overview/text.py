"""The rows as text for a terminal, and the words for ages and sizes."""

from collections.abc import Mapping, Sequence

from mlops_build.overview.rows import Row
from mlops_build.quantity import show_bytes
from mlops_build.release.history import span

COLUMNS = ("model", "environment", "version", "age", "service", "owner", "size", "last release", "data", "metrics")
# Of each version, in a terminal.
MOST_METRICS = 3
MOST_TEXT = 100  # characters of a name


def plain(text: str) -> str:
    """The text with a mark instead of each character that could change how a terminal or a browser shows the others; shortened."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text[: MOST_TEXT + 1])
    return shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]}…"


def age(then: int | None, now: float) -> str:
    """The time since `then` in its largest unit; empty if it is not known."""
    return " ".join(span(max(0, int(now) - then)).split()[:2]) if then is not None else ""


def cells(row: Row, now: float) -> tuple[str, ...]:
    """A row's values for people, in the order of COLUMNS. now: Unix time in seconds."""
    newer = f" (newest {row.newest})" if row.version != row.newest else ""
    other = f" ({row.released_version})" if row.released_version not in (None, row.version) else ""
    return (
        plain(row.model),
        plain(row.environment),
        f"{row.version or ''}{newer}",
        age(row.registered_at, now),
        plain(row.service),
        plain(row.owner),
        show_bytes(row.size_bytes) if row.size_bytes is not None else "",
        f"{age(row.released_at, now)} ago{other}" if row.released_at is not None else "",
        plain(row.data.removeprefix("sha256:")[:12]),
        named(row.metrics, MOST_METRICS),
    )


def named(metrics: Mapping[str, float], most: int) -> str:
    shown = [f"{plain(name)[:40]} {value:.4g}" for name, value in sorted(metrics.items())]
    return ", ".join(shown[:most]) + (f", {len(shown) - most} more" if len(shown) > most else "")


def table(rows: Sequence[Row], now: float) -> str:
    """The rows as columns; a column that would be empty is left out. now: Unix time in seconds."""
    if not rows:
        return ""
    columns = [
        (head, column) for head, column in zip(COLUMNS, zip(*(cells(row, now) for row in rows), strict=True), strict=True) if any(column)
    ]
    widths = [max(map(len, (head, *column))) for head, column in columns]
    lines = zip(*((head, *column) for head, column in columns), strict=True)
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
