"""What it costs to bring a service from its first release up to this template: `copier update` beside `mlops-build update`.

    .venv/bin/python benchmarks/update.py [ROUNDS]

The same service and the same template, behind an address as a Git host has one (file://, so that no network is measured); copier's own
cache of the template is warm. The two take turns, so that a busy machine disturbs both alike; the median of each is compared. CPU seconds
count every child process.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 9
RESULT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).resolve().parents[1]
RELEASE = "0.1.0"
BIN = Path(sys.executable).parent
COMMANDS = {
    "copier update": [str(BIN / "copier"), "update", "--defaults", "--quiet"],
    "mlops-build update": [sys.executable, "-m", "mlops_build", "update"],
}
WRAPPER = '#!/bin/sh\necho x >> "{log}"\nexec {git} "$@"\n'


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def template(folder: Path) -> Path:
    """This repository with the release tagged, and the working tree as the newest one."""
    subprocess.run(["git", "clone", "--quiet", "--no-tags", str(ROOT), str(folder)], check=True)
    row = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith(f"| {RELEASE} |"))
    git(folder, "tag", RELEASE, row.split("|")[3].strip())
    shutil.rmtree(folder / "template")
    shutil.copytree(ROOT / "template", folder / "template")
    shutil.copy(ROOT / "copier.yml", folder)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=The working tree")
    git(folder, "tag", "99.0.0")
    return folder


def once(command: list[str], service: Path, environment: dict[str, str]) -> tuple[float, float]:
    """CPU and wall seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=service, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    os.environ.update({f"GIT_{role}_{what}": "bench@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")})
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "settings.yml"
        settings.write_text("{}\n")
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            "COPIER_SETTINGS_PATH": str(settings),
            "COPIER_CACHE_DIR": f"{scratch}/copier",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        source, service = template(Path(scratch) / "template"), Path(scratch) / "service"
        copy = [str(BIN / "copier"), "copy", "--defaults", "--quiet", "--vcs-ref", RELEASE, f"git+{source.as_uri()}", str(service)]
        subprocess.run(copy, env=environment, check=True)
        for command in (["init", "--quiet", "--initial-branch=main"], ["add", "--all"], ["commit", "--quiet", "--message=Start"]):
            git(service, *command)

        def start_again() -> None:
            git(service, "reset", "--quiet", "--hard")
            git(service, "clean", "-fdq")

        trees, processes = {}, {}
        for name, command in COMMANDS.items():
            log, wrappers = Path(scratch) / "log", Path(scratch) / "bin"
            log.write_text("")
            wrappers.mkdir(exist_ok=True)
            (wrappers / "git").write_text(WRAPPER.format(log=log, git=shutil.which("git")))
            (wrappers / "git").chmod(0o755)
            once(command, service, {**environment, "PATH": f"{wrappers}{os.pathsep}{environment['PATH']}"})
            processes[name] = len(log.read_text().splitlines())
            git(service, "add", "--all")
            trees[name] = git(service, "write-tree")
            start_again()
        assert len(set(trees.values())) == 1, f"the results differ: {trees}"
        cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
        wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(ROUNDS):
            for name, command in COMMANDS.items():
                used, passed = once(command, service, environment)
                cpu[name].append(used)
                wall[name].append(passed)
                start_again()
    for name in COMMANDS:
        print(
            f"{name:<20}{statistics.median(cpu[name]):6.2f} CPU s {statistics.median(wall[name]):7.2f} s {processes[name]:5} git processes"
        )
    document = {
        "rounds": ROUNDS,
        "python": sys.version.split()[0],
        "git": git(ROOT, "--version").split()[2],
        "cpu_s": {name: round(statistics.median(values), 2) for name, values in cpu.items()},
        "wall_s": {name: round(statistics.median(values), 2) for name, values in wall.items()},
        "git_processes": processes,
    }
    RESULT.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
