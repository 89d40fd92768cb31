"""Simulated nodes for the tests of this folder."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mlops_build.gpu import testing
from tests.gpu.holder import lease as lease
from tests.gpu.holder import start as start
from tests.gpu.nodes import Shared, shared_node

ROOT = Path(__file__).parents[2]
MakeNode = Callable[..., testing.Node]
RunPython = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def _package_for_processes() -> Iterator[None]:
    """Processes started by tests import the same package as the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield


@pytest.fixture(scope="session")
def simulation() -> Path:
    """The folder of the simulated libraries. Skips the test if they cannot be built."""
    try:
        return testing.libraries()
    except testing.NoCompiler as error:
        pytest.skip(f"{error.message}; {error.remedy}")


@pytest.fixture
def node(simulation: Path, tmp_path: Path) -> Iterator[MakeNode]:
    """Creates nodes: `node("24GiB", "24GiB")` or `node(SimulatedCard(…), context=0)`. They are closed after the test."""
    with ExitStack() as made:
        count = 0

        def make(*cards: testing.SimulatedCard | str, **options: Any) -> testing.Node:
            nonlocal count
            count += 1
            options.setdefault("directory", tmp_path / f"node{count}")
            return made.enter_context(testing.Node(cards, **options))

        yield make


@pytest.fixture
def shared(simulation: Path) -> Iterator[Shared]:
    """A node with two cards, which other users and other containers can use too."""
    with tempfile.TemporaryDirectory(prefix="mlops-gpu-") as folder:
        Path(folder).chmod(0o755)  # for other uids, which cannot enter pytest's tmp_path
        with shared_node(Path(folder), cards=2) as node:
            yield node


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Runs a script on a node (`run_python(script, node.environment, *arguments)`) and returns its stdout; it must not fail."""

    def run(script: str, environment: Mapping[str, str], *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=dict(environment), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
