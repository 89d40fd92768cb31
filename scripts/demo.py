"""`make demo`: run the whole pipeline with embedded defaults, and print for each step the command that a user would type.

It uses sqlite for MLflow, folders for artifacts and DVC's remote, a bare repository as the Git host, and the CPU. It writes
DEMO_DIR/demo-report.json. The exit code is 1 if a step fails, and 4 if DEMO_DIR is a folder that the demo did not create.
"""

import base64
import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mlops_build.__main__ import main as mlops_build

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# Marks a folder that this script created: it never removes another one.
MARKER = ".mlops-demo"
COMMAND_SECONDS = 300
START_SECONDS = 60
MODEL = "digits"


class StepFailed(Exception):
    """A command failed, or its result is not the expected one."""


@dataclass
class Demo:
    """The folder of the demo, and the results of its steps."""

    root: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    model_uri: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    prediction: list[Any] = field(default_factory=list)
    lineage: dict[str, Any] = field(default_factory=dict)
    released: str = ""

    @property
    def scratch(self) -> Path:
        return self.root / ".demo"

    @property
    def origin(self) -> str:
        return (self.scratch / "origin.git").as_uri()

    @property
    def log(self) -> Path:
        return self.scratch / "demo.log"

    def run(self, *command: str) -> str:
        """Run a command in the service and return its stdout. Its stderr goes to the log."""
        where = self.root if (self.root / ".git").exists() else REPOSITORY
        with self.log.open("a") as log:
            print(f"\n$ {' '.join(command)}", file=log, flush=True)
            done = subprocess.run(command, cwd=where, stdout=subprocess.PIPE, stderr=log, text=True, timeout=COMMAND_SECONDS)
            log.write(done.stdout)
        if done.returncode:
            raise StepFailed(f"`{' '.join(command)}` ended with exit code {done.returncode}:\n{self.last_words()}")
        return done.stdout

    def build(self, *arguments: str) -> Any:
        """Run `mlops-build … --json` in this process and return its result: importing MLflow takes seconds, and happens once."""
        printed = io.StringIO()
        with self.log.open("a") as log, contextlib.chdir(self.root):
            print(f"\n$ mlops-build {' '.join(arguments)} --json", file=log, flush=True)
            with contextlib.redirect_stdout(printed), stderr_to(log):
                code = mlops_build([*arguments, "--json"])
            log.write(printed.getvalue())
        if code:
            raise StepFailed(f"`mlops-build {' '.join(arguments)}` ended with exit code {code}:\n{self.last_words()}")
        return json.loads(printed.getvalue())

    def last_words(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-15:])

    def release(self) -> str:
        """The Git tree of staging's release record on the Git host's main branch: the same hash means the same content."""
        return self.run("git", "--git-dir", str(self.scratch / "origin.git"), "rev-parse", "main:deploy/overlays/staging/release").strip()


@contextlib.contextmanager
def stderr_to(log: TextIO) -> Iterator[None]:
    """Redirect stderr of this process and its children to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def settings(demo: Demo) -> dict[str, str]:
    """The environment of every step: programs of this environment first, the demo's own MLflow, no personal settings."""
    return {
        "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
        "PYTHONPATH": str(demo.root / "src"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{demo.root / 'mlflow.db'}",
        "DVC_NO_ANALYTICS": "1",
        "COPIER_SETTINGS_PATH": str(demo.scratch / "copier-settings.yml"),
        **{
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in (("NAME", "Demo"), ("EMAIL", "demo@example.com"))
        },
    }


def prepare(root: Path) -> None:
    """Create an empty folder for the demo. Refuses a folder that the demo did not create."""
    if root.exists() and any(root.iterdir()) and not (root / MARKER).exists():
        raise SystemExit(
            refuse(f"{root} is not empty, and `make demo` did not create it", "choose another folder: make demo DEMO_DIR=/tmp/demo-service")
        )
    inside = root == REPOSITORY or REPOSITORY in root.parents
    if root == REPOSITORY or (inside and git_exit_code(root, "check-ignore", "--quiet") != 0 and git_exit_code(root, "rev-parse") == 0):
        remedy = f"add /{root.relative_to(REPOSITORY)}/ to .gitignore, or choose a folder elsewhere: make demo DEMO_DIR=/tmp/demo-service"
        raise SystemExit(
            refuse(f"{root} is inside this repository and not ignored by Git, so the demo would become part of the template", remedy)
        )
    shutil.rmtree(root, ignore_errors=True)
    (root / ".demo").mkdir(parents=True)
    (root / ".demo/copier-settings.yml").write_text("{}\n")  # no personal defaults
    (root / MARKER).touch()


def git_exit_code(root: Path, *arguments: str) -> int:
    # A file in the folder: a pattern that ends in a slash does not match a folder that does not exist yet.
    operands = [str(root / "file")] if arguments[0] == "check-ignore" else ["--git-dir"]
    return subprocess.run(["git", *arguments, *operands], cwd=REPOSITORY, capture_output=True).returncode


def refuse(what: str, remedy: str) -> int:
    print(f"demo: {what}\n    {remedy}", file=sys.stderr)
    return 4


def scaffold(demo: Demo) -> str:
    answers = [f"--data={key}={value}" for key, value in {"project_name": "Demo service", "model_name": MODEL, "example": "image"}.items()]
    demo.run(
        str(BIN / "copier"), "copy", "--defaults", "--overwrite", "--quiet", "--vcs-ref=HEAD", *answers, str(REPOSITORY), str(demo.root)
    )
    demo.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(demo.scratch / "origin.git"))
    demo.run("git", "-C", str(demo.root), "init", "--quiet", "--initial-branch=main")
    (demo.root / ".git/info/exclude").write_text(f"/.demo/\n/{MARKER}\n/demo-report.json\n")
    demo.run("git", "remote", "add", "origin", demo.origin)
    demo.run("git", "add", "--all")
    demo.run("git", "commit", "--quiet", "--message", "Start from the template")
    demo.run("git", "push", "--quiet", "--set-upstream", "origin", "main")
    return f"{len(demo.run('git', 'ls-files').splitlines())} files"


def track_data(demo: Demo) -> str:
    demo.run("make", "--silent", "data", f"VENV={BIN.parent}")
    demo.run("git", "add", "data")
    demo.run("git", "commit", "--quiet", "--message", "Track the data")
    return ", ".join(str(path.relative_to(demo.root)) for path in sorted(demo.root.glob("data/*.dvc")))


def train(demo: Demo) -> str:
    trained = demo.build("train")["models"][0]
    demo.model_uri, demo.metrics = trained["model_uri"], trained["metrics"]
    return f"{demo.model_uri}, accuracy {demo.metrics['accuracy']:.3f}"


def promote(demo: Demo) -> str:
    moved = demo.build("promote", MODEL, demo.model_uri.rpartition("/")[2], "--to", "staging")
    return f"staging → version {moved['after']}"


def bridge(demo: Demo) -> str:
    before = demo.release()
    demo.build("bridge", "once", "--repo", demo.origin)
    after = demo.release()
    if before == after:
        raise StepFailed("the alias moved, but the bridge wrote no commit")
    return demo.run("git", "--git-dir", str(demo.scratch / "origin.git"), "log", "-1", "--format=%h %s", "main").strip()


def first_bridge(demo: Demo) -> str:
    commit = bridge(demo)
    demo.released = demo.release()
    return commit


def package(demo: Demo) -> str:
    demo.run("git", "pull", "--quiet", "--ff-only")
    context = demo.scratch / "context"
    demo.build("package", "staging", "-o", str(context))
    demo.lineage = json.loads((context / "models" / MODEL / "lineage.json").read_text())
    size = sum(path.stat().st_size for path in context.rglob("*") if path.is_file())
    return f"{sum(1 for _ in context.rglob('*'))} files, {size / 2**20:.1f} MiB"


def serve(demo: Demo) -> str:
    rows = pictures(demo.root / "data/raw/digits.csv", 3)
    with serving(demo) as url:
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[picture] for picture, _ in rows]}}).encode()
        request = urllib.request.Request(f"{url}/invocations", data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            demo.prediction = json.load(answer)["predictions"]
    labels = [row["label"] for row in demo.prediction]
    return f"{len(rows)} PNG pictures of {', '.join(label for _, label in rows)} → {', '.join(map(str, labels))}"


def pictures(file: Path, count: int) -> list[tuple[str, str]]:
    """The first scans as PNG files in base64, as a client sends them, each with its digit."""
    from PIL import Image

    rows = []
    with file.open(newline="") as lines:
        for row, _ in zip(csv.DictReader(lines), range(count), strict=False):
            label = row.pop("label")
            scan = Image.frombytes("L", (8, 8), bytes(min(255, int(float(value)) * 16) for value in row.values()))
            png = io.BytesIO()
            scan.save(png, "PNG")
            rows.append((base64.b64encode(png.getvalue()).decode(), label))
    return rows


@contextlib.contextmanager
def serving(demo: Demo) -> Iterator[str]:
    """Serve the build context on a free loopback port; yields its URL."""
    serve_log = demo.scratch / "serve.log"
    command = [str(BIN / "mlops-build"), "serve", str(demo.scratch / "context"), "--port", "0"]
    # Without registry and source tree: the build context must contain everything.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    with serve_log.open("w") as log:
        server = subprocess.Popen(command, cwd=demo.scratch, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(START_SECONDS * 10):
            if url := re.search(r"http://127\.0\.0\.1:\d+", serve_log.read_text()):
                yield url[0]
                break
            if server.poll() is not None:
                raise StepFailed(f"the server ended:\n{serve_log.read_text()[-2000:]}")
            time.sleep(0.1)
        else:
            raise StepFailed(f"the server was not ready within {START_SECONDS} s:\n{serve_log.read_text()[-2000:]}")
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            code = server.wait()
    if code != 0:
        raise StepFailed(f"the server stopped with exit code {code}")


def second_version(demo: Demo) -> str:
    params = demo.root / "params.yaml"
    text = params.read_text()
    params.write_text(re.sub(r"(?m)^seed: .*$", "seed: 7", text))
    demo.run("git", "commit", "--quiet", "--all", "--message", "Try another seed")
    return train(demo)


def promote_second(demo: Demo) -> str:
    return f"{promote(demo)}; {bridge(demo)}"


def roll_back(demo: Demo) -> str:
    moved = demo.build("rollback", MODEL, "--env", "staging")
    demo.build("bridge", "once", "--repo", demo.origin)
    if demo.release() != demo.released:
        raise StepFailed("after the rollback, the release record in Git is not the first one")
    return f"staging → version {moved['after']}; Git's release record is {demo.released[:12]} again"


Step = tuple[str, Callable[[Demo], str], str, str]
STEPS: list[Step] = [
    ("scaffold", scaffold, "service.yaml, src/, dvc.yaml", "copier copy URL my-service"),
    ("track data", track_data, "data/raw.dvc", "make data"),
    ("train", train, "dvc.lock, metrics.json", "mlops-build train"),
    ("promote", promote, "make ui", f"mlops-build promote {MODEL} 1 --to staging"),
    ("bridge", first_bridge, "deploy/overlays/staging/release", "mlops-build bridge once --repo URL"),
    ("package", package, ".demo/context/Dockerfile", "mlops-build package staging -o build/context"),
    ("serve", serve, ".demo/serve.log", "mlops-build serve build/context"),
    ("second version", second_version, "params.yaml, git log", "mlops-build lineage models:/digits/2"),
    ("promote it", promote_second, "git log origin/main", f"mlops-build promote {MODEL} 2 --to staging"),
    ("roll back", roll_back, "git log origin/main", f"mlops-build rollback {MODEL} --env staging"),
]


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-service").absolute()
    prepare(root)
    demo = Demo(root)
    os.environ.update(settings(demo))
    print(f"demo: running the whole pipeline in {root}")
    rows, failed = [], None
    for index, (name, step, look, command) in enumerate(STEPS, 1):
        print(f"[{index:>2}/{len(STEPS)}] {name:<15}", end="", flush=True)
        start = time.monotonic()
        try:
            outcome = step(demo)
        except (StepFailed, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as error:
            failed, outcome = name, f"failed: {error}"
        seconds = round(time.monotonic() - start, 1)
        demo.steps.append({"name": name, "seconds": seconds, "ok": failed is None})
        print(f"{seconds:5.1f} s  {outcome}", flush=True)
        rows.append((name, f"{seconds:.1f}", "failed" if failed else "ok", look, command))
        if failed:
            break
    report = {
        "steps": demo.steps,
        "model_uri": demo.model_uri,
        "metrics": demo.metrics,
        "prediction": demo.prediction,
        "lineage": demo.lineage,
    }
    (root / "demo-report.json").write_text(json.dumps(report, indent=2) + "\n")
    show(rows)
    total = sum(step["seconds"] for step in demo.steps)
    print("\nAll steps ran in one process. A command that you type starts its own process, which takes longer.")
    print(f"\n{'FAILED at ' + failed if failed else 'Everything worked'} in {total:.0f} s")
    print(f"Report: {root / 'demo-report.json'}, log: {demo.log}")
    if not failed:
        print(f"Next: cd {root} && . {BIN}/activate && mlops-build doctor")
    return 1 if failed else 0


def show(rows: list[tuple[str, ...]]) -> None:
    header = ("step", "seconds", "result", "where to look", "command")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print()
    for row in [header, tuple("-" * width for width in widths), *rows]:
        print(
            "  ".join(
                cell.rjust(width) if column == 1 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())
