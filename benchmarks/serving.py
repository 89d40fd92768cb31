"""`mlops-build serve` beside MLflow's server, LitServe, BentoML, and a bare server that checks nothing: requests a second, latency,
memory, start.

    .venv/bin/python benchmarks/serving.py [--seconds 2] [--rounds 3] [--server NAME] [--resume] [--draw]

One worker and one torch thread each, the same payloads, access logs as each server has them by default. The servers take turns in
each round, and each round begins with another one; a figure is the median of the rounds. The clients are a C program
(serving_beside/load.c; a C compiler is needed). MLflow runs in this environment. Ours runs as in an image, with what
mlops-build[serve] installs and no more; LitServe and BentoML have an environment too. Both are made on the first run, in the user's
cache (uv, a package index). Memory is measured once per server, under the limit of a control group (only as root on Linux; otherwise
without a limit).

About 15 minutes. Each server's figures are kept as they come; --resume continues a run that was interrupted.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import serving_servers as servers
from serving_servers import BARE, BENTOML, CACHE, LITSERVE, MLFLOW, OURS, SERVERS, Running

ROOT = servers.ROOT
RESULT = Path(__file__).with_suffix(".json")
PICTURE = ROOT / "docs/reference/serving.svg"
CLIENTS = (1, 8, 64)
# tab: 32 named columns. tabt: the same network, one tensor. img: a conv net on 3×64×64.
CELLS = {"row": ("tab", 1), "rows32": ("tab", 32), "tensor row": ("tabt", 1), "tensor rows32": ("tabt", 32), "image": ("img", 1)}


def measure(server: str, name: str, seconds: float) -> dict[str, Any]:
    one = SERVERS[server]
    with Running(one, name) as running:
        found: dict[str, Any] = {"start_s": round(running.seconds, 2), "started": running.memory(), "cells": {}}
        for cell, (of, rows) in CELLS.items():
            if of == name:
                payload = one.payload if name == "tab" else name
                running.load(payload, rows, 1, 0.3)  # warms up
                for clients in CLIENTS:
                    found["cells"][f"{cell}, {clients}"] = running.load(payload, rows, clients, seconds)
        found["loaded"] = running.memory()
    return found


# ── the rounds, and what they come to ──


def rounds(arguments: argparse.Namespace, kept: Path) -> list[dict[str, Any]]:
    names = [name for name in SERVERS if not arguments.server or name in arguments.server]
    runs: list[dict[str, Any]] = json.loads(kept.read_text()) if arguments.resume and kept.is_file() else []
    for number in range(arguments.rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        for server, name in itertools.chain.from_iterable(((one, name) for name in SERVERS[one].models) for one in order):
            if any((one["round"], one["server"], one["model"]) == (number, server, name) for one in runs):
                continue
            one = {"round": number, "server": server, "model": name, **measure(server, name, arguments.seconds)}
            runs.append(one)
            kept.write_text(json.dumps(runs))
            rates = "  ".join(f"{cell} {found['rps']:.0f}" for cell, found in one["cells"].items())
            print(f"{number + 1}  {server:<12}{name:<5}start {one['start_s']:.1f} s  {one['loaded']['rss']} MiB  {rates}", flush=True)
    return runs


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for server in dict.fromkeys(run["server"] for run in runs):
        mine = [run for run in runs if run["server"] == server]
        cells: dict[str, list[Any]] = {}
        for run in mine:
            for cell, figures in run["cells"].items():
                cells.setdefault(cell, []).append(figures)
        tab = [run for run in mine if run["model"] == "tab"]
        found[server] = {
            "start_s": median(run["start_s"] for run in tab),
            **{
                f"{what}_mib_{when}": median(run[when][what] for run in tab)
                for when in ("started", "loaded")
                for what in ("rss", "pss")
            },
            "cells": {
                cell: {what: median(one[what] for one in several) for what in ("rps", "p50", "p99", "cpu_ms")}
                for cell, several in cells.items()
            },
        }  # fmt: skip
    return found


def median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)


def goals(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was aimed at, and what came of it."""

    def rate(server: str, cell: str, clients: int) -> float:
        return float(found[server]["cells"][f"{cell}, {clients}"]["rps"])

    for text, cell, clients, other, their, least in (
        ("one row ÷ MLflow", "row", 64, MLFLOW, "row", 80),
        ("one row ÷ MLflow with a tensor signature", "row", 64, MLFLOW, "tensor row", 12),
        ("one row ÷ LitServe", "row", 64, LITSERVE, "row", 8),
        ("one row ÷ BentoML", "row", 64, BENTOML, "row", 8),
        ("one row ÷ bare, batched", "row", 64, BARE, "row", 0.6),
        ("one image ÷ MLflow", "image", 64, MLFLOW, "image", 12),
        ("one image ÷ BentoML", "image", 64, BENTOML, "image", 2.5),
        ("one tensor row ÷ bare, one client", "tensor row", 1, BARE, "tensor row", 0.6),
        ("one tensor row ÷ MLflow, one client", "tensor row", 1, MLFLOW, "tensor row", 2.5),
    ):
        if other in found:
            value = rate(OURS, cell, clients) / rate(other, their, clients)
            yield {"goal": text, "at least": least, "is": round(value, 2), "met": value >= least}
    for cell in ("row", "image"):
        figures = found[OURS]["cells"][f"{cell}, 64"]
        value = figures["p99"] / figures["p50"]
        yield {"goal": f"one {cell}, p99 ÷ p50", "at most": 3, "is": round(value, 2), "met": value <= 3}
    if MLFLOW in found:
        for text, what, most in (("RSS under load ÷ MLflow's", "rss_mib_loaded", 0.5), ("start to ready ÷ MLflow's", "start_s", 1 / 3)):
            value = found[OURS][what] / found[MLFLOW][what]
            yield {"goal": text, "at most": round(most, 2), "is": round(value, 2), "met": value <= most}


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """Markdown, as it stands in docs/reference/benchmarks.md."""
    columns = [(cell, clients) for cell in CELLS for clients in CLIENTS if clients != 8]
    yield "| server | " + " | ".join(f"{cell}, {clients}" for cell, clients in columns) + " | start, s | RSS, MiB (PSS) |"
    yield "| --- " * (len(columns) + 3) + "|"
    for server, one in document["servers"].items():
        shown = []
        for cell, clients in columns:
            figures = one["cells"].get(f"{cell}, {clients}")
            shown.append(f"{figures['rps']:,.0f} ({figures['p50']:.3g}; {figures['p99']:.3g})" if figures else "–")
        yield f"| {server} | {' | '.join(shown)} | {one['start_s']:.1f} | {one['rss_mib_loaded']:.0f} ({one['pss_mib_loaded']:.0f}) |"
    yield ""
    yield "| with 64 clients, unless stated | goal | measured | |"
    yield "| --- | --- | --- | --- |"
    for goal in document["goals"]:
        bound = f"≥ {goal['at least']:g}" if "at least" in goal else f"≤ {goal['at most']:g}"
        yield f"| {goal['goal']} | {bound} | {goal['is']:g} | {'met' if goal['met'] else '**not met**'} |"


def memory_table(document: Mapping[str, Any]) -> Iterator[str]:
    limit = f"limit of {servers.LIMIT_MIB} MiB" if all(row["limit"] for row in document["memory"].values()) else "without a limit"
    yield ""
    yield f"| memory, {limit} | RSS at start, MiB | RSS after {servers.BODIES} bodies of 7 MiB, {servers.AT_ONCE} at one time | answers |"
    yield "| --- | --- | --- | --- |"
    for server, row in document["memory"].items():
        answers = ", ".join(f"{number} × {status}" for status, number in sorted(row["answers"].items()))
        yield f"| {server} | {row['started']} | {'killed' if row['after'] is None else row['after']} | {answers} |"


def write_docs(document: Mapping[str, Any]) -> None:
    """Write the tables to docs/reference/benchmarks.md, and the plot and figures to the README, between the marks."""
    head = (
        "Requests per second (p50; p99 in ms) by number of clients,",
        f"medians of {document['rounds']} rounds of {document['seconds']:g} s at commit",
        f"{document['commit']}, MLflow {document['versions']['mlflow']}, torch {document['versions']['torch']}, {document['cores']} cores",
        "([serving.json](../../benchmarks/serving.json)):",
        "",
    )
    between(ROOT / "docs/reference/benchmarks.md", "\n".join([*head, *table(document), *memory_table(document)]))
    measured = document["servers"]
    row, image = (
        {name: measured[OURS]["cells"][f"{cell}, 64"]["rps"] / one["cells"][f"{cell}, 64"]["rps"] for name, one in measured.items()}
        for cell in ("row", "image")
    )
    figures = measured[OURS]["cells"]["row, 64"]
    lines = (
        "![Requests per second of mlops-build serve, MLflow's server, LitServe, BentoML and a bare server](docs/reference/serving.svg)",
        "",
        (
            f"With 64 clients, `mlops-build serve` answers {figures['rps']:,.0f} rows per second (p50 {figures['p50']:.0f} ms, "
            f"p99 {figures['p99']:.0f} ms): {row[MLFLOW]:.0f} times MLflow's"
        ),
        (
            f"server, {row[LITSERVE]:.0f} times LitServe, {row[BENTOML]:.0f} times BentoML, and {row[BARE]:.0%} of a bare Starlette server "
            "without validation. With images it answers"
        ),
        (
            f"{image[MLFLOW]:.0f}, {image[LITSERVE]:.1f} and {image[BENTOML]:.1f} times as many "
            "([method](docs/reference/benchmarks.md#serving))."
        ),
    )
    between(ROOT / "README.md", "\n".join(lines))


def between(page: Path, text: str) -> None:
    before, begin, rest = page.read_text().partition("<!-- written by benchmarks/serving.py -->\n")
    _, end, after = rest.partition("<!-- until here -->\n")
    page.write_text(f"{before}{begin}{text}\n{end}{after}")


def draw(document: Mapping[str, Any]) -> None:
    """A bar a server, requests a second with 64 clients, for a row, 32 rows and an image."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "serving", "font.size": 9, "font.family": "sans-serif", "svg.fonttype": "none"})
    from matplotlib import pyplot

    measured = document["servers"]
    titles = {"row": "one row of 32 columns", "rows32": "32 rows of 32 columns", "image": "one image, 3×64×64"}
    figure, axes = pyplot.subplots(1, len(titles), figsize=(11, 2.6), sharey=True)
    names = [name for name in (BARE, OURS, BENTOML, LITSERVE, MLFLOW) if name in measured][::-1]
    for axis, (cell, title) in zip(axes, titles.items(), strict=True):
        rates = [measured[name]["cells"][f"{cell}, 64"]["rps"] for name in names]
        colours = ["#3f7fd9" if name == OURS else "#c8c8c8" if name == BARE else "#d98c3f" for name in names]
        axis.barh(["bare, checks nothing" if name == BARE else name for name in names], rates, color=colours)
        for place, rate in enumerate(rates):
            axis.text(rate + max(rates) * 0.015, place, f"{rate:,.0f}", va="center", fontsize=8)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlim(0, max(rates) * 1.18)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("requests a second, 64 clients, one worker, one torch thread", fontsize=9)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell; up to three times that where answers are slow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", action="append", choices=SERVERS, help="only these; the result's file is then left as it is")
    parser.add_argument("--resume", action="store_true", help="go on after what the last run has measured")
    parser.add_argument("--draw", action="store_true", help="only the tables and the picture, from the last result")
    arguments = parser.parse_args()
    if arguments.draw:
        document = json.loads(RESULT.read_text())
    else:
        began, busy = time.monotonic(), os.getloadavg()[0]
        servers.prepare()
        runs = rounds(arguments, CACHE / "runs.json")
        commit = subprocess.run(
            ["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        found = {name: figures for name, figures in medians(runs).items() if not arguments.server or name in arguments.server}
        document = {
            "commit": commit,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "cores": os.cpu_count(),
            "load_before": round(busy, 2),
            "minutes": round((time.monotonic() - began) / 60, 1),
            "versions": {name: importlib.metadata.version(name) for name in ("mlflow", "torch")} | {"rivals": servers.RIVALS},
            "servers": found,
            "goals": list(goals(found)) if OURS in found else [],
            "memory": {name: servers.small_memory(name) for name in found},
        }
        if not arguments.server:
            RESULT.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    print("\n".join([*table(document), *memory_table(document)]))
    if not arguments.server:
        write_docs(document)
        draw(document)


if __name__ == "__main__":
    main()
