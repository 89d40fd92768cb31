"""From process start to a chosen card, beside nvitop and gpustat; gpu.lease when 50 call it at once (docs/reference/benchmarks.md).

    .venv/bin/python benchmarks/gpu_latency.py [ROUNDS]

On a simulated node of 8 cards (mlops_build.gpu.testing): what is measured is what the programs do themselves, without the driver's own
time, which is the same for all. Bytecode is compiled. The commands take turns, so that a busy machine disturbs all of them alike; the
medians of their CPU times are compared. Goals: `gpu pick` at most 8 times the CPU time of a bare interpreter, less than nvitop's, and at
most 150 ms from start to end.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mlops_build.gpu import testing

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 25
BURSTS, PICKERS = 6, 50
RESULT = Path(__file__).with_suffix(".json")
PYTHON = sys.executable
MLOPS_BUILD = str(Path(PYTHON).with_name("mlops-build"))
SERVICE = """
import sys, time
from mlops_build.gpu.lease import lease
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter()
held = lease("1GiB")
print(1000 * (time.perf_counter() - began), flush=True)
sys.stdin.read()
"""
COMMANDS = {
    "bare interpreter": [PYTHON, "-c", "pass"],
    "import pynvml": [PYTHON, "-c", "import pynvml"],
    "mlops-build gpu pick": [MLOPS_BUILD, "gpu", "pick", "--memory", "4GiB"],
    "nvitop.select": [PYTHON, "-m", "nvitop.select", "--min-count", "1", "--max-count", "1", "--min-free-memory", "4GiB"],
    "gpustat": [PYTHON, "-m", "gpustat"],
}


def main() -> None:
    with testing.Node(["24GiB"] * 8) as node:
        environment = {name: value for name, value in node.environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
        services = [node.start("3GiB", ordinal=ordinal, environment=environment) for ordinal in (0, 0, 3, 5)]
        for service in services:
            service.wait_for("loaded")
        alone = one_at_a_time(environment)
        together = at_once(environment)
    RESULT.write_text(json.dumps({"rounds": ROUNDS, "python": sys.version.split()[0], **alone, **together}, indent=2) + "\n")


def one_at_a_time(environment: dict[str, str]) -> dict[str, object]:
    """Medians of each command's CPU time and of its time from start to end."""
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
    wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(used.ru_utime + used.ru_stime)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, command
    # The first round compiles the bytecode.
    cpu_ms, wall_ms = ({name: statistics.median(values[1:]) * 1000 for name, values in times.items()} for times in (cpu, wall))
    ratios = {name: round(median / cpu_ms["bare interpreter"], 2) for name, median in cpu_ms.items()}
    for name, median in cpu_ms.items():
        print(f"{name:<28}{median:7.1f} ms CPU  {ratios[name]:5.2f} ×  {wall_ms[name]:7.1f} ms from start to end")
    of_nvitop = round(cpu_ms["mlops-build gpu pick"] / cpu_ms["nvitop.select"], 2)
    print(f"{'gpu pick / nvitop':<28}{of_nvitop:18.2f}")
    rounded = [{name: round(median, 1) for name, median in medians.items()} for medians in (cpu_ms, wall_ms)]
    return {"cpu_ms": rounded[0], "ratio": ratios, "pick_of_nvitop": of_nvitop, "wall_ms": rounded[1]}


def at_once(environment: dict[str, str]) -> dict[str, object]:
    """Milliseconds of gpu.lease when PICKERS processes that have started call it together, BURSTS times."""
    values: list[float] = []
    for _ in range(BURSTS):
        services = [
            subprocess.Popen([PYTHON, "-c", SERVICE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(PICKERS)
        ]
        for service in services:
            assert service.stdout
            assert service.stdout.readline() == b"ready\n"
        for service in services:
            assert service.stdin
            service.stdin.write(b"\n")
            service.stdin.flush()
        for service in services:
            assert service.stdout
            values.append(float(service.stdout.readline()))
        for service in services:
            service.communicate()
    lease_ms = percentiles(values)
    print(f"{PICKERS} at once: ms of gpu.lease  " + "  ".join(f"{percent} {value}" for percent, value in lease_ms.items()))
    return {"at_once": {"pickers": PICKERS, "bursts": BURSTS, "cores": os.cpu_count(), "lease_ms": lease_ms}}


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{percent}": round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1) for percent in (50, 95, 99)}


if __name__ == "__main__":
    main()
