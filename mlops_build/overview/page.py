"""The rows as one HTML page, which needs no network and no other file."""

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops_build.overview.rows import Overview, number
from mlops_build.overview.text import age, plain
from mlops_build.quantity import show_bytes

HERE = Path(__file__).parent
Metrics = Mapping[tuple[str, int], Mapping[str, float]]


def render(overview: Overview, metrics: Metrics, source: str, now: float) -> str:
    """metrics: of all versions, for the plot. source: where the registry is. now: Unix time in seconds.

    Nothing from the registry becomes markup, code or an address: text is escaped, and the content security policy allows only the style
    and the script of this package, by their hashes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def harmless(value: object) -> object:
        return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=harmless
    )
    return environment.get_template("page.html.jinja").render(
        rows=overview.rows,
        models=_plotted(overview, metrics),
        versions=sum(map(len, overview.versions.values())),
        names=len(overview.versions),
        source=source,
        made=datetime.fromtimestamp(now, UTC),
        now=int(now),
        when=lambda seconds: datetime.fromtimestamp(seconds, UTC),
        age=age,
        show_bytes=show_bytes,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _plotted(overview: Overview, metrics: Metrics) -> list[dict[str, Any]]:
    """For page.js: each model with the values of its metrics, one for each version, and the versions of its environments."""
    listed = []
    for name, versions in overview.versions.items():
        values = [metrics.get((name, version.version), {}) for version in versions]
        names = sorted({metric for of_version in values for metric in of_version})
        listed.append(
            {
                "name": plain(name),
                "versions": [version.version for version in versions],
                "days": [f"{datetime.fromtimestamp(version.created_ms / 1000, UTC):%Y-%m-%d}" for version in versions],
                "metrics": [
                    {"name": plain(metric), "values": [number(each[metric]) if metric in each else None for each in values]}
                    for metric in names
                ],
                "environments": [[plain(row.environment), row.version] for row in overview.rows if row.model == name and row.environment],
            }
        )
    return listed


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
