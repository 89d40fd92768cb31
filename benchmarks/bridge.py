"""The bridge over many repositories: the cost of an idle pass, the time from a moved alias to its commit, and many changes at once.

    .venv/bin/python benchmarks/bridge.py [--repositories 200] [--models 1000] [--transport http|file] [--trace]

The repositories have two environments each, behind `git http-backend` (http) or in a folder (file); the registry is a real `mlflow server`,
which wakes the bridge by its webhook. CPU seconds are those of the bridge and its git processes. The servers' own time is not counted, but
it takes cores from the bridge.
--trace also prints which git commands take the most time, and slows the rest down.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mlops_build.adapters.registry import Registry  # noqa: E402 # a script's own folder is what Python finds by itself
from mlops_build.bridge import setup  # noqa: E402
from tests.adapters.registry.server import mlflow_server  # noqa: E402
from tests.githosts import bitbucket  # noqa: E402
from tests.release.world import SERVICE, service_files, tags_of  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
TOKEN, SECRET = "a" * 40, "b" * 40
INTERVAL = 30
CHANGES = 50
GOALS = {
    "idle pass: seconds": 10.0,
    "idle pass: CPU seconds": 6.0,
    "idle pass: MiB": 250.0,
    "alias to commit: seconds, median": 3.0,
    f"{CHANGES} changes at once: seconds": 60.0,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repositories", type=int, default=200)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--transport", choices=["http", "file"], default="http")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLOPS_BRIDGE_WEBHOOK_SECRET": SECRET, "GIT_CONFIG_GLOBAL": os.devnull}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlops-build-bench-")))
        names = [f"model-{number}" for number in range(options.models)]
        register(folder, names, options.repositories)
        host = stack.enter_context(bitbucket(folder / "git", TOKEN))
        bares = [make_repository(host, name) for name in names[: options.repositories]]
        urls = [bare.as_uri() if options.transport == "file" else f"{host.url}{host.CLONE}/ML/{bare.name}" for bare in bares]
        server = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
        registry = Registry(stack.enter_context(mlflow_server(folder, environment={**server, "MLFLOW_WEBHOOK_CACHE_TTL": "1"})))
        trace = folder / "trace"
        trace.mkdir()
        environment = {"GIT_TRACE2_EVENT": str(trace), "GIT_TRACE2_MAX_FILES": "0"} if options.trace else {}
        bridge, where = stack.enter_context(running(urls, registry.uri, environment))
        figures = measured(bridge, where, registry, names, bares)
        if options.trace:
            print_trace(trace)
    document = {"repositories": options.repositories, "models": options.models, "transport": options.transport, "figures": figures}
    if not options.trace:
        RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{options.repositories} repositories × 2 environments ({options.transport}), {options.models} models")
    for name, value in figures.items():
        print(f"{name:<44}{value:>10.2f}{f'   goal ≤ {GOALS[name]:g}' if name in GOALS else ''}")


def measured(bridge: int, where: str, registry: Registry, names: list[str], bares: list[Path]) -> dict[str, float]:
    figures: dict[str, float] = {}
    until(lambda: metric(where, "passes_total") >= 1, 1800, every=1.0)
    figures["first pass: seconds"] = metric(where, "pass_duration_seconds")
    figures["first pass: CPU seconds"] = cpu_seconds(bridge)
    costs, durations = [], []
    for _ in range(3):
        passes, before = metric(where, "passes_total"), cpu_seconds(bridge)
        until(lambda passes=passes: metric(where, "passes_total") > passes, 600, every=1.0)
        costs.append(cpu_seconds(bridge) - before)
        durations.append(metric(where, "pass_duration_seconds"))
    figures["idle pass: seconds"] = statistics.median(durations)
    figures["idle pass: CPU seconds"] = statistics.median(costs)
    figures["idle pass: MiB"] = resident(bridge)
    _, findings = setup.setup(registry, f"{where}/webhook")
    assert not findings, findings
    time.sleep(2)
    latencies = []
    for number in range(5):
        before, began = head(bares[number]), time.monotonic()
        registry.set_alias(names[number], "staging", 2)
        until(lambda number=number, before=before: head(bares[number]) != before, 300)
        latencies.append(time.monotonic() - began)
        time.sleep(2)
    figures["alias to commit: seconds, median"] = statistics.median(latencies)
    figures["alias to commit: seconds, longest"] = max(latencies)
    changed = min(CHANGES, len(bares) - 5)
    before, before_python = cpu_seconds(bridge), cpu_seconds(bridge, children=False)
    heads, began = [head(bare) for bare in bares[5 : 5 + changed]], time.monotonic()
    for name in names[5 : 5 + changed]:
        registry.set_alias(name, "staging", 2)
    until(lambda: all(head(bare) != old for bare, old in zip(bares[5:], heads, strict=False)), 900)
    figures[f"{CHANGES} changes at once: seconds"] = time.monotonic() - began
    figures[f"{CHANGES} changes at once: CPU seconds"] = cpu_seconds(bridge) - before
    figures[f"{CHANGES} changes at once: of these, Python"] = cpu_seconds(bridge, children=False) - before_python
    figures["MiB in the end"] = resident(bridge)
    return figures


def register(folder: Path, names: list[str], released: int) -> None:
    """Models in a sqlite file that the server will use; the first ones have two versions, and an alias for each environment."""
    from mlflow import MlflowClient

    files = folder / "files"
    files.mkdir()
    (files / "MLmodel").write_text('{"signature": {}}')
    registry = Registry(f"sqlite:///{folder / 'server.db'}", create=True)
    client = MlflowClient(registry.uri)
    for number, name in enumerate(names):
        client.create_registered_model(name)
        if number < released:
            for version in (1, 2):
                tags = {**tags_of(2 * number + version), "mlops_build.service": name}
                registry.create_version(name, files.as_uri(), f"{version:032x}", tags)
            registry.set_alias(name, "staging", 1)
            registry.set_alias(name, "live", 1)


def make_repository(host: Any, name: str) -> Path:
    """A service's repository, with a first commit and nothing released."""
    host.make("ML", f"{name}")
    bare: Path = host.bare("ML", name)
    stream = "commit refs/heads/main\ncommitter A <a@example.com> 1700000000 +0000\ndata 5\nFirst\n"
    for path, text in service_files(SERVICE.replace("digits", name)).items():
        text = text.replace("digits", name)
        stream += f"M 644 inline {path}\ndata {len(text.encode())}\n{text}\n"
    subprocess.run(["git", "-C", str(bare), "fast-import", "--quiet"], input=stream.encode(), check=True, timeout=60)
    return bare


@contextmanager
def running(urls: list[str], uri: str, environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """`mlops-build bridge run`: its process id and its address."""
    command = [sys.executable, "-m", "mlops_build", "bridge", "run", "--port", "0", "--interval", str(INTERVAL)]
    command += [word for url in urls for word in ("--repo", url)]
    variables = {**os.environ, **environment, "MLFLOW_TRACKING_URI": uri, "MLOPS_GIT_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        log: list[str] = []
        while not (address := re.search(r"listens on (http://\S+)", line := process.stderr.readline())):
            log.append(line)
            assert line, log
        threading.Thread(
            target=lambda: sys.stderr.writelines(line for line in process.stderr or [] if "failed" in line), daemon=True
        ).start()
        yield process.pid, address[1]
    finally:
        began = time.monotonic()
        process.terminate()
        process.wait(timeout=60)
        print(f"ended {time.monotonic() - began:.1f} s after SIGTERM, exit code {process.returncode}")


def metric(where: str, name: str) -> float:
    with urllib.request.urlopen(f"{where}/metrics", timeout=60) as answer:
        match = re.search(rf"^mlops_bridge_{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert match, name
    return float(match[1])


def cpu_seconds(pid: int, *, children: bool = True) -> float:
    """User and system time of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """The most memory that a process has used, in MiB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) / 1024


def head(bare: Path) -> str:
    return (bare / "refs/heads/main").read_text().strip()


def until(condition: Callable[[], bool], seconds: float, *, every: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(every)


def print_trace(folder: Path) -> None:
    """The git commands that took the most time in all; each is counted without its own children."""
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for file in folder.iterdir():
        name = ""
        for line in file.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "start":
                words = [word for word in event["argv"] if not word.startswith(("-C", "/"))]
                name = " ".join(words[:2]) if Path(event["argv"][0]).name == "git" else Path(event["argv"][0]).name
            elif event["event"] == "exit":
                times[name] += event["t_abs"]
                counts[name] += 1
    for name, seconds in times.most_common(15):
        print(f"{name:<32}{counts[name]:>8} processes{seconds:>10.1f} s (wall)")


if __name__ == "__main__":
    main()
