"""How long `mlops-build` takes to start, as multiples of a bare interpreter. Goal for --help: at most 4 (docs/reference/benchmarks.md).

    .venv/bin/python benchmarks/startup.py [ROUNDS]

The commands take turns, so that a busy machine disturbs all of them alike; the median of each is compared.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 25
RESULT = Path(__file__).with_suffix(".json")
PYTHON = sys.executable
COMMANDS = {
    "bare interpreter": [PYTHON, "-c", "pass"],
    "import argparse": [PYTHON, "-c", "import argparse"],
    "mlops-build --version": [str(Path(PYTHON).with_name("mlops-build")), "--version"],
    "mlops-build --help": [str(Path(PYTHON).with_name("mlops-build")), "--help"],
    "mlops-build train --help": [str(Path(PYTHON).with_name("mlops-build")), "train", "--help"],
}


def main() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            # No timeout: with one, Popen.wait polls, and every figure becomes 16, 32 or 64 ms.
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first round warms the caches
    bare = medians["bare interpreter"]
    ratios = {name: round(median / bare, 2) for name, median in medians.items()}
    for name, median in medians.items():
        print(f"{name:<28}{median * 1000:7.1f} ms  {ratios[name]:5.2f} ×")
    milliseconds = {name: round(median * 1000, 1) for name, median in medians.items()}
    document = {"rounds": ROUNDS, "python": sys.version.split()[0], "ms": milliseconds, "ratio": ratios}
    RESULT.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
