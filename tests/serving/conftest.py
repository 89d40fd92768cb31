"""A build context with two models, and a server of it that several tests share."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlops_build.model import files
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.context import Source, write_context
from mlops_build.packaging.recipe import Recipe
from tests.packaging.world import World, make
from tests.serving import models


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make(tmp_path_factory.mktemp("world"))
    world.register(world.files("one"))
    world.files("two", weight=3.0)
    return world


@pytest.fixture(scope="session")
def context(world: World) -> Path:
    """A build context with the models points 1, and lines 2 with other weights."""
    sources = [
        Source(
            ModelVersion(name, version, files.digest(world.folder / folder)),
            lambda target, folder=folder: shutil.copytree(world.folder / folder, target),
        )
        for name, version, folder in (("points", 1, "one"), ("lines", 2, "two"))
    ]
    write_context(Recipe("points", "python:3.11-slim"), "registry.example.com/ml/points:v1-0123456789ab", sources, world.folder / "context")
    return world.folder / "context"


class Server:
    """A running `mlops-build serve`. hold: while this file exists, a model that looks for it in $HOLD waits."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, out: Path) -> None:
        self.process, self.log, self.out = process, log, out
        self.hold = log.with_name("hold")

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let predictions wait until the end of the block."""
        self.hold.touch()
        try:
            yield
        finally:
            self.hold.unlink(missing_ok=True)

    def wait_for(self, pattern: str) -> "re.Match[str]":
        return wait_for_log(self.log, pattern, lambda: self.process.poll() is None)

    @property
    def url(self) -> str:
        return self.wait_for(r"serving .* on (http://\S+)")[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def wait_for_log(log: Path, pattern: str, alive: Callable[[], bool] = lambda: True, seconds: float = 180) -> "re.Match[str]":
    """Wait until a log matches the pattern. Returns the first match."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if match := re.search(pattern, log.read_text()):
            return match
        assert alive(), log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{pattern!r} was not logged within {seconds} s:\n{log.read_text()}")


@contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Run `mlops-build serve` on a free port in an empty folder, on the CPU and without a registry, until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    log, out = folder / "serve.log", folder / "serve.out"
    kept = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "MLOPS_DEVICE", "MLOPS_GPU_MEMORY")}
    with log.open("w") as stderr, out.open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlops_build", "serve", "--port", "0", *arguments],
            cwd=folder,
            env={**kept, "MLOPS_DEVICE": "cpu", "HOLD": str(folder / "hold"), **environment},
            stdout=stdout,
            stderr=stderr,
            text=True,
            # A shell lets background processes ignore Ctrl-C; the server would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield Server(process, log, out)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)


# The first column selects the behaviour, the second is the time of the prediction in seconds, and the third the length of the answer.
# Panic is what pyo3's PanicException is: an exception outside Exception.
BEHAVIOUR = """
    def predict(self, context, data, params=None):
        import asyncio
        import os
        import sys
        import time

        import torch

        class Panic(BaseException):
            pass

        first = data["a"].to_numpy()
        time.sleep(max(0, float(data["b"].max())))
        raised = (
            asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), SystemExit(0), StopIteration(1), Panic("panicked"),
            asyncio.TimeoutError(), BaseExceptionGroup("several", [KeyboardInterrupt()]), ValueError("a secret of the model"),
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: device-side assert triggered"),
        )
        for number, error in enumerate(raised, 1):
            if (first == -number).any():
                raise error
        while (first == -20).any() and os.path.exists(os.environ["HOLD"]):
            time.sleep(0.005)
        if (first == -21).any():
            return asyncio.CancelledError()
        if (first == -22).any():
            sys.stderr.close()
        if (first == -23).any():
            os.chdir("/")
        if (first == -24).any():
            asyncio.run(asyncio.sleep(0))
        if (first == -25).any():
            print("line\\n" * 2**20)
            print("line\\n" * 2**20, file=sys.stderr)
        if (first == -26).any():
            return [{1, 2}] * len(data)
        return ["x" * int(size) if size > 0 else float(value) for value, size in zip(first, data["c"])]
"""
FAILS, OOM, FATAL, HELD, RETURNS_ERROR, CLOSES_STDERR, CHANGES_FOLDER, RUNS_LOOP, PRINTS, SET = -9, -10, -11, *range(-20, -27, -1)
READ_SECONDS = 1.5


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with columns a, b and c, and BEHAVIOUR."""
    folder = tmp_path_factory.mktemp("behaviour") / "saved"
    models.save(folder, models.FLOATS, BEHAVIOUR)
    return folder / "model"


@pytest.fixture(scope="session")
def strict(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of that model with low limits."""
    options = ["--body-limit", "1MiB", "--max-queue", "16", "--max-batch", "8", "--read", str(READ_SECONDS), "--connections", "400"]
    with serving(tmp_path_factory.mktemp("strict"), str(folder), *options, "--rows-independent", "a function of each row") as running:
        assert running.url
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="session")
def server(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), str(context), "--json") as running:
        _ = running.url
        yield running


def free_port() -> int:
    """A port that no process uses now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
