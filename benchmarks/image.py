"""Our image beside the one of `mlflow models generate-dockerfile`, for the same model: size, build, and `docker run` to the first answer.

    DOCKER_HOST=… .venv/bin/python benchmarks/image.py [ROUNDS]

Needs a Docker Engine whose base image python:3.11-slim can be had; both images start from it (MLflow's names a patch release of it, and
gets a tag of that name). Goals: at most 70 % of the size and 25 % with torch left out, a warm rebuild in 10 s, the first answer in a third
of the time (docs/reference/benchmarks.md). Cold builds fetch every package from the index, once; starts take turns, and their medians are
compared.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlops_build.model import environment, files  # noqa: E402
from mlops_build.model.version import ModelVersion  # noqa: E402
from mlops_build.packaging.context import Source, write_context  # noqa: E402
from mlops_build.packaging.recipe import Recipe  # noqa: E402
from tests.packaging import world  # noqa: E402

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
RESULT = Path(__file__).with_suffix(".json")
BASE = "python:3.11-slim"
OURS, THEIRS = "mlops-build", "mlflow"
# MLflow's nginx listens at 8080, and nothing in the image changes that.
PORTS = {OURS: 8081, THEIRS: 8080}
BODY = json.dumps({"dataframe_split": {"columns": ["x", "y"], "data": [[1.0, 0.5]]}}).encode()
NETWORK = ["--network", "host"]
START_SECONDS = 180.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="image-benchmark-") as scratch:
        folder = Path(scratch)
        (folder / "world").mkdir()
        made = world.make(folder / "world")
        (made.folder / "lock").mkdir()
        made.lock = environment.lock(sorted(made.wheels.iterdir()), made.folder / "lock")
        figures: dict[str, dict[str, float]] = {OURS: {}, THEIRS: {}}
        with named_bases(theirs(folder / "mlflow", 1)):
            # No build finds anything of an earlier one, except what a new version of the same model finds of its own.
            for name, context in ((OURS, folder / "context"), (THEIRS, folder / "mlflow")):
                for number, (kind, arguments) in enumerate((("cold", ["--no-cache"]), ("warm", [])), start=1):
                    ours(made, context, number) if name == OURS else theirs(context, number)
                    figures[name][f"{kind} build, s"] = build(context, f"image-benchmark:{name}", *arguments)
                figures[name] |= sizes(f"image-benchmark:{name}")
        starts: dict[str, list[float]] = {OURS: [], THEIRS: []}
        for _ in range(ROUNDS):
            for name, seconds in starts.items():
                seconds.append(first_answer(f"image-benchmark:{name}", PORTS[name]))
        for name, seconds in starts.items():
            figures[name]["first answer, s"] = round(statistics.median(seconds), 2)
    ratios = {key: round(figures[OURS][key] / figures[THEIRS][key], 3) for key in figures[OURS]}
    for key, ratio in ratios.items():
        print(f"{key:36} {figures[OURS][key]:8.1f} {figures[THEIRS][key]:8.1f}  × {ratio:.2f}")
    versions = {name: metadata.version(name) for name in ("mlflow", "torch", "mlops-build")}
    RESULT.write_text(json.dumps({"rounds": ROUNDS, "versions": versions, "figures": figures, "ratios": ratios}, indent=1) + "\n")


def ours(made: world.World, context: Path, number: int) -> None:
    version = made.files(f"version-{number}", weight=number)
    source = Source(ModelVersion("points", number, files.digest(version)), lambda place: shutil.copytree(version, place))
    write_context(Recipe("points", BASE), None, [source], context)


def theirs(folder: Path, number: int) -> str:
    """MLflow's Dockerfile of the same predictor and weights; returns the base image that it names."""
    import mlflow
    import torch

    folder.mkdir(exist_ok=True)
    torch.save({"weights": torch.tensor([float(number), 2.0])}, folder / "weights.pt")
    (folder / "code.py").write_text(f"{world.MODEL}\n\nmlflow.models.set_model(Predictor())\n")
    rows = world.ROWS
    shutil.rmtree(folder / "model", ignore_errors=True)
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(folder / "code.py"),
        artifacts={"weights": str(folder / "weights.pt")},
        signature=mlflow.models.infer_signature(rows, rows.assign(label="plus", score=1.0)[["label", "score"]]),
        pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("mlflow", "numpy", "pandas", "torch")],
    )
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "generate-dockerfile", "-m", str(folder / "model"), "-d"]
    for generated in ("model_dir", "Dockerfile"):
        shutil.rmtree(folder / generated, ignore_errors=True)
    subprocess.run([*command, str(folder)], check=True, capture_output=True, timeout=120)
    found = re.search(r"^FROM (\S+)", (folder / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    return found[1]


@contextlib.contextmanager
def named_bases(name: str) -> Iterator[None]:
    """MLflow asks for its own Python's patch release: the same base under that name, where it is not there."""
    there = subprocess.run([*docker(), "image", "inspect", name], capture_output=True, check=False).returncode == 0
    if not there:
        subprocess.run([*docker(), "tag", BASE, name], check=True)
    yield
    if not there:
        subprocess.run([*docker(), "rmi", "--no-prune", name], check=True, capture_output=True)


def build(context: Path, tag: str, *arguments: str) -> float:
    start = time.perf_counter()
    command = [*docker(), "build", "--quiet", *NETWORK, *arguments, "--tag", tag, str(context)]
    subprocess.run(command, check=True, env={**os.environ, "DOCKER_BUILDKIT": "1"}, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 1)


def sizes(tag: str) -> dict[str, float]:
    """MB over the base image, with and without torch's own files."""
    layers = [int(inspect(image, "{{.Size}}")) for image in (tag, BASE)]
    script = "import os, torch; top = os.path.dirname(torch.__file__); "
    script += "print(sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(top) for name in names))"
    command = [*docker(), "run", "--rm", "--network", "none", "--entrypoint", "python", tag, "-c", script]
    torch = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"size, MB": round((layers[0] - layers[1]) / 1e6), "size without torch, MB": round((layers[0] - layers[1] - torch) / 1e6)}


def inspect(image: str, form: str) -> str:
    done = subprocess.run([*docker(), "image", "inspect", "--format", form, image], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def first_answer(tag: str, port: int) -> float:
    """Seconds from `docker run` to the first prediction."""
    arguments = ["--port", str(port)] if port != PORTS[THEIRS] else []
    start = time.perf_counter()
    done = subprocess.run([*docker(), "run", "--detach", "--rm", *NETWORK, tag, *arguments], check=True, capture_output=True, text=True)
    try:
        while time.perf_counter() - start < START_SECONDS:
            with contextlib.suppress(OSError):
                request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", BODY, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=30) as answer:
                    if answer.status == 200:
                        return time.perf_counter() - start
            time.sleep(0.05)
        raise SystemExit(f"{tag} does not answer within {START_SECONDS} s")
    finally:
        subprocess.run([*docker(), "stop", "--time", "5", done.stdout.strip()], check=True, capture_output=True)


def docker() -> list[str]:
    return [os.environ.get("DOCKER_CLI", "docker")]


if __name__ == "__main__":
    main()
