"""How long programs under `mlops-build gpu run` take to start when many are started at once, and what `gpu run` costs while they run.

    .venv/bin/python benchmarks/gpu_start_latency.py [--limit 300] [--idle-seconds 30] [--only NAME]

On a simulated node of 8 cards (mlops_build.gpu.testing): the driver's own time is not included. The program is a small C program (a C
compiler is needed), so that its own start does not count: it writes the time, allocates its memory through libcuda, and waits. A start
that has not happened after `--limit` seconds counts as that. --only measures one scenario, and writes no result.

Goals: the last of 200 starts within 1.5 × 200 × the CPU time of one `gpu pick` / cores, and one `gpu run` whose program runs uses at most
0.1 % of a core. CPU time of `gpu run` is that of all processes of the node except the programs.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlops_build.gpu import testing

RESULT = Path(__file__).with_suffix(".json")
MLOPS_BUILD = str(Path(sys.executable).with_name("mlops-build"))
MIB = 1 << 20
CONTEXT = 100 * MIB
PICKS, POLL_SECONDS = 10, 0.1
PROGRAM = r"""
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* program FILE BYTES: append the time (monotonic, in s) to FILE, allocate BYTES and a context on device 0 (0: nothing), and wait. */
int main(int count, char **arguments) {
    struct timespec now;
    char line[64];
    int file = open(arguments[1], O_WRONLY | O_APPEND | O_CREAT, 0666);
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (write(file, line, snprintf(line, sizeof line, "%ld.%09ld\n", now.tv_sec, now.tv_nsec)) < 0) return 1;
    unsigned long long bytes = strtoull(arguments[2], 0, 10), address;
    if (count > 2 && bytes) {
        void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *context;
        int device;
        if (!cuda) return 2;
        int (*init)(unsigned) = dlsym(cuda, "cuInit"), (*get)(int *, int) = dlsym(cuda, "cuDeviceGet");
        int (*retain)(void **, int) = dlsym(cuda, "cuDevicePrimaryCtxRetain"), (*set)(void *) = dlsym(cuda, "cuCtxSetCurrent");
        int (*allocate)(unsigned long long *, size_t) = dlsym(cuda, "cuMemAlloc_v2");
        if (init(0) || get(&device, 0) || retain(&context, device) || set(context) || allocate(&address, bytes)) return 77;
    }
    for (;;) pause();
}
"""


@dataclass(frozen=True)
class Scenario:
    """services: started at once. memory: the budget of each, in MiB. allocates: whether the program uses it."""

    name: str
    services: int
    memory: int
    allocates: bool = True


SCENARIOS = (
    Scenario("40 services", 40, 3584),
    Scenario("200 services", 200, 320),
    Scenario("40 programs that allocate nothing", 40, 3584, allocates=False),
)


@contextlib.contextmanager
def simulated() -> Iterator[tuple[testing.Node, dict[str, str], str]]:
    """A node, the environment of its processes, and the program. All processes of the node end with it."""
    with tempfile.TemporaryDirectory() as scratch, testing.Node(["24GiB"] * 8, context=CONTEXT) as node:
        program = f"{scratch}/program"
        subprocess.run(["cc", "-O2", "-x", "c", "-", "-o", program, "-ldl"], input=PROGRAM.encode(), check=True)
        try:
            yield node, {name: value for name, value in node.environment.items() if name != "PYTHONDONTWRITEBYTECODE"}, program
        finally:
            for pid in processes(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)


def processes(node: testing.Node) -> list[int]:
    """The pids of this node's processes, by their environment."""
    variable = f"MLOPS_SIMULATED_NODE={node.environment['MLOPS_SIMULATED_NODE']}\0".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and int(entry.name) != os.getpid() and variable in (entry / "environ").read_bytes() + b"\0":
                pids.append(int(entry.name))
    return pids


def start(scenario: Scenario, environment: dict[str, str], program: str, times: Path) -> list["subprocess.Popen[bytes]"]:
    size = scenario.memory * MIB - CONTEXT if scenario.allocates else 0
    command = [MLOPS_BUILD, "gpu", "run", "--memory", f"{scenario.memory}MiB", "--wait", "60", "--", program, str(times), str(size)]
    return [
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(scenario.services)
    ]


def wait_for(times: Path, number: int, limit: float) -> list[float]:
    """The programs' start times, once there are `number`, or after `limit` seconds. Monotonic, s."""
    deadline = time.monotonic() + limit
    while True:
        lines = times.read_text().split() if times.exists() else []
        if len(lines) >= number or time.monotonic() > deadline:
            return sorted(map(float, lines))
        time.sleep(POLL_SECONDS)


def cpu_of_pick(environment: dict[str, str]) -> float:
    """Median CPU seconds of one `gpu pick` with nothing else on the node."""
    seconds = []
    for _ in range(PICKS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([MLOPS_BUILD, "gpu", "pick", "--memory", "1GiB"], env=environment, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds[1:])  # the first one compiles bytecode


def burst(scenario: Scenario, limit: float) -> dict[str, object]:
    """Seconds from the first start to each program's start, and the ratio to the CPU time of as many `gpu pick`.

    cpu_of_start_s: CPU time of one start, including that of the parent so far. share_of_cores: the part of the cores that the starts got;
    with other work on the machine the seconds are longer.
    """
    with simulated() as (node, environment, program):
        times = node.directory / "times"
        pick = cpu_of_pick(environment)
        began = time.monotonic()
        started = start(scenario, environment, program, times)
        seconds = [at - began for at in wait_for(times, scenario.services, limit)]
        used, wall = cpu(processes(node)), time.monotonic() - began
        refused = sum(process.poll() not in (None, 77) for process in started)
        failed = sum(process.poll() == 77 for process in started)
    cores = len(os.sched_getaffinity(0))
    seconds += [limit] * (scenario.services - len(seconds) - refused)
    return {
        "services": scenario.services,
        "median_s": round(statistics.median(seconds), 2),
        "p90_s": round(seconds[len(seconds) * 9 // 10], 2),
        "max_s": round(seconds[-1], 2),
        "refused": refused,
        "out_of_memory": failed,
        "cpu_of_pick_s": round(pick, 4),
        "cpu_of_start_s": round(used / scenario.services, 4),
        "share_of_cores": round(used / wall / cores, 2),
        "max_of_picks": round(seconds[-1] / (scenario.services * pick / cores), 2),
    }


def idle(services: int, seconds: float, limit: float) -> dict[str, object]:
    """CPU time of `services` times `gpu run` whose programs run and allocate nothing, in percent of a core."""
    with simulated() as (node, environment, program):
        times = node.directory / "times"
        start(Scenario("", services, 1024, allocates=False), environment, program, times)
        running = len(wait_for(times, services, limit))
        time.sleep(2)
        measured = [pid for pid in processes(node) if Path(f"/proc/{pid}/exe").resolve() != Path(program)]
        before, began = cpu(measured), time.monotonic()
        time.sleep(seconds)
        used = cpu(measured) - before
        took = time.monotonic() - began
    return {"services": services, "running": running, "percent_of_a_core": round(100 * used / took, 3), "processes": len(measured)}


def cpu(pids: list[int]) -> float:
    """CPU seconds of all threads of these processes, to the nanosecond."""
    total = 0
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(file.read_text().split()[0])
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=300.0, help="the longest time to wait for the last start, in seconds")
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--only", choices=[scenario.name for scenario in SCENARIOS] + ["idle"])
    arguments = parser.parse_args()
    document: dict[str, object] = {"python": sys.version.split()[0], "cores": len(os.sched_getaffinity(0)), "bursts": {}, "idle": []}
    for scenario in SCENARIOS:
        if arguments.only in (None, scenario.name):
            document["bursts"][scenario.name] = result = burst(scenario, arguments.limit)  # type: ignore[index]
            print(f"{scenario.name}: {result}")
    for services in (1, 19):
        if arguments.only in (None, "idle"):
            document["idle"].append(result := idle(services, arguments.idle_seconds, 30.0))  # type: ignore[attr-defined]
            print(f"idle: {result}")
    if not arguments.only:
        RESULT.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
