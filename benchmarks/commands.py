"""CPU seconds of the commands that people and agents run most, with a sqlite file and with an MLflow server, beside the `mlflow` CLI.

    .venv/bin/python benchmarks/commands.py [ROUNDS]

A service of the template is trained, registered and promoted once; then the commands run in turn, as processes, and the median of each is
compared with its goal (docs/reference/benchmarks.md). CPU seconds are user and system time, with those of child processes. The server runs
on a copy of the sqlite file; its time is not counted.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.adapters.registry.server import mlflow_server  # noqa: E402 # a script's own folder is what Python finds by itself

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
RESULT = Path(__file__).with_suffix(".json")
BIN = Path(sys.executable).parent
MLOPS_BUILD, MLFLOW = [sys.executable, "-m", "mlops_build"], [sys.executable, "-m", "mlflow"]
# name: the command, and the goals with a sqlite file and with a server.
COMMANDS: dict[str, tuple[list[str], float | None, float | None]] = {
    "lineage": ([*MLOPS_BUILD, "lineage", "models:/points/1"], 1.3, 0.6),
    "promote": ([*MLOPS_BUILD, "promote", "points", "1", "--to", "staging"], 1.3, 0.6),
    "release, no change": ([*MLOPS_BUILD, "release", "staging"], 1.3, 0.6),
    "release, a change": ([*MLOPS_BUILD, "release", "staging"], 1.9, 1.2),
    "bridge once, no change": ([*MLOPS_BUILD, "bridge", "once", "--repo", "ORIGIN"], 1.3, 0.6),
    "verify": ([*MLOPS_BUILD, "verify"], None, None),
    "doctor": ([*MLOPS_BUILD, "doctor"], 1.5, 1.5),
    "package": ([*MLOPS_BUILD, "package", "models:/points/1", "-o", "../context"], 1.5, 1.5),
    "mlflow experiments search": ([*MLFLOW, "experiments", "search"], None, None),
    "mlflow runs list": ([*MLFLOW, "runs", "list", "--experiment-id", "1"], None, None),
}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mlops-build-bench-") as scratch:
        folder = Path(scratch)
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI")}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}
        environment |= {f"GIT_{role}_{key}": "bench@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        service = prepared(folder, environment)
        embedded = {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{service / 'mlflow.db'}"}
        (folder / "server").mkdir()
        shutil.copy(service / "mlflow.db", folder / "server/server.db")
        with mlflow_server(folder / "server") as address:
            seconds = measured(service, {"sqlite": embedded, "server": {**environment, "MLFLOW_TRACKING_URI": address}})
    medians = {name: {kind: round(statistics.median(values), 2) for kind, values in kinds.items()} for name, kinds in seconds.items()}
    print(f"{'CPU seconds':<28}{'sqlite':>8}{'goal':>8}{'server':>8}{'goal':>8}")
    for name, kinds in medians.items():
        goals = [f"{goal:8.1f}" if goal else " " * 8 for goal in COMMANDS[name][1:]]
        print(f"{name:<28}{kinds['sqlite']:8.2f}{goals[0]}{kinds['server']:8.2f}{goals[1]}")
    RESULT.write_text(json.dumps({"rounds": ROUNDS, "python": sys.version.split()[0], "cpu_s": medians}, indent=2) + "\n")


def prepared(folder: Path, environment: dict[str, str]) -> Path:
    """A service with one version in staging, whose release is not written yet; its origin is `origin.git` beside it."""
    service = folder / "points"
    answers = ("project_name=Points", "model_name=points", "example=none")

    def run(*command: str, where: Path = service) -> None:
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    options = [part for answer in answers for part in ("--data", answer)]
    run(str(BIN / "copier"), "copy", "--defaults", "--quiet", "--vcs-ref=HEAD", *options, str(ROOT), str(service), where=folder)
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", "../origin.git")
    run("git", "init", "--quiet", "--initial-branch=main")
    run("git", "remote", "add", "origin", f"file://{folder}/origin.git")
    run("make", "--silent", "data", f"VENV={BIN.parent}")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message=Start")
    run("git", "push", "--quiet", "--set-upstream", "origin", "main")
    run(*MLOPS_BUILD, "train")
    run(*MLOPS_BUILD, "promote", "points", "1", "--to", "staging")
    run("git", "tag", "unreleased")
    run(*MLOPS_BUILD, "release", "staging")
    return service


def measured(service: Path, environments: dict[str, dict[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Command → kind of registry → CPU seconds of each round but the first, which fills caches."""
    seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in environments} for name in COMMANDS}
    for number in range(ROUNDS + 1):
        for name, (command, _, _) in COMMANDS.items():
            for kind, environment in environments.items():
                before = unreleased if name == "release, a change" else None
                took = cpu(command, service, environment, before)
                if number:
                    seconds[name][kind].append(took)
    return seconds


def unreleased(service: Path) -> None:
    """Take the release back, also at the origin."""
    for command in (["git", "reset", "--quiet", "--hard", "unreleased"], ["git", "push", "--quiet", "--force", "origin", "main"]):
        subprocess.run(command, cwd=service, check=True)


def cpu(command: list[str], service: Path, environment: dict[str, str], before: Callable[[Path], None] | None) -> float:
    """User and system seconds of a process and its children."""
    if before:
        before(service)
    words = [f"file://{service.parent}/origin.git" if word == "ORIGIN" else word for word in command]
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=service, env=environment, capture_output=True, text=True, check=False)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    # doctor has findings: 4. A folder of the checkout is the data remote.
    assert done.returncode == 0 or "doctor" in words, f"{words}: {done.returncode}\n{done.stderr[-2000:]}"
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


if __name__ == "__main__":
    main()
