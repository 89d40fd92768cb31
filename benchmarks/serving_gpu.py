"""What predicting requests together is worth on a card: `mlops-build serve` with growing batches, 64 clients, one 3×64×64 image each.

    .venv/bin/python benchmarks/serving_gpu.py [--device gpu] [--seconds 3] [--rounds 2]

On a machine with an NVIDIA card and torch's CUDA build; `--device cpu` shows the same on the processor. The sizes take turns; figures are
medians of the rounds. Model, requests and clients are those of serving.py (a C compiler is needed). Prints a table of Markdown: requests a
second and their ratio to one by one, p50 and p99 in ms, the mean batch, and what torch holds on the card in MiB, which is one copy of the
model and its batches however many ask.
"""

import argparse
import re
import statistics
import sys
import urllib.request
from collections import defaultdict
from typing import Any

import serving_servers as serving

SIZES = (1, 4, 16, 64)
CLIENTS = 64


def server(device: str, size: int) -> serving.Server:
    return serving.Server(
        lambda name, port: [
            *(sys.executable, "-m", "mlops_build", "serve", serving.model(name), "--port", str(port)),
            *("--device", device, "--max-batch", str(size), "--access-log", "false"),
        ],
        ("img",),
    )


def metric(port: int, name: str) -> float | None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else None


def measure(device: str, size: int, seconds: float) -> dict[str, Any]:
    with serving.Running(server(device, size), serving.model("img")) as running:
        running.load("img", 1, CLIENTS, 0.5)  # warms up
        found: dict[str, Any] = running.load("img", 1, CLIENTS, seconds)
        rows, batches = (metric(running.port, f"mlops_build_batch_rows_{what}") for what in ("sum", "count"))
        held = metric(running.port, "mlops_build_gpu_torch_bytes")
        return {**found, "batch": (rows or 0) / (batches or 1), "mib": None if held is None else held / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each size")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    serving.clients_and_models()
    runs: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for size in SIZES:
            runs[size].append(measure(arguments.device, size, arguments.seconds))
    found = {size: {what: statistics.median(run[what] or 0 for run in several) for what in several[0]} for size, several in runs.items()}
    print("| largest batch | requests a second | ÷ one by one | p50; p99, ms | mean batch | torch on the card, MiB |")
    print("| --- " * 6 + "|")
    for size, one in found.items():
        held = f"{one['mib']:.0f}" if one["mib"] else "–"
        ratio = one["rps"] / found[SIZES[0]]["rps"]
        print(f"| {size} | {one['rps']:,.0f} | {ratio:.1f} | {one['p50']:.1f}; {one['p99']:.1f} | {one['batch']:.1f} | {held} |")


if __name__ == "__main__":
    main()
