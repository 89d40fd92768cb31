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
    """Run `mlops-build serve` in an empty folder, without settings for a registry or a GPU, until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    log, out = folder / "serve.log", folder / "serve.out"
    kept = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "MLOPS_DEVICE", "MLOPS_GPU_MEMORY")}
    with log.open("w") as stderr, out.open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlops_build", "serve", *arguments],
            cwd=folder,
            env={**kept, "HOLD": str(folder / "hold"), **environment},
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


@pytest.fixture(scope="session")
def server(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), str(context), "--port", "0", "--json") as running:
        _ = running.url
        yield running


def free_port() -> int:
    """A port that no process uses now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
