"""Python processes that are told and read line by line, and such processes that hold a lease."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import pytest

# A process that takes a lease, prints it, and then executes each line of its input.
HOLDER = """
import contextlib, json, os, sys, time
from mlops_build import gpu
from mlops_build.errors import MlopsBuildError
def allocate(size):
    from tests.gpu.tenant import allocate
    assert allocate(size) == 0, "out of memory"
def say(**what): print(json.dumps(what), flush=True)
try:
    lease = gpu.lease(**eval(sys.argv[1]))
except MlopsBuildError as error:
    say(error=type(error).__name__, code=error.exit_code, message=error.message, remedy=error.remedy)
    sys.exit(error.exit_code)
say(uuids=lease.uuids, mask=os.environ.get("CUDA_VISIBLE_DEVICES"), order=os.environ.get("CUDA_DEVICE_ORDER"), cpu=lease.cpu, id=lease.id)
for line in sys.stdin:
    try:
        exec(line)
    except BaseException as error:
        say(error=type(error).__name__, message=str(error), remedy=getattr(error, "remedy", None), code=getattr(error, "exit_code", None))
    else:
        say(done=True)
"""


class Script(subprocess.Popen[str]):
    """A process with pipes for text. answer: of a HOLDER, the lease or the error."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]
    answer: dict[str, Any]

    def line(self) -> str:
        """The next line of its output; without one, the test fails with its errors."""
        line = self.stdout.readline()
        assert line, self.communicate()[1]
        return line.strip()

    def tell(self, line: str) -> None:
        self.stdin.write(line + "\n")
        self.stdin.flush()

    def do(self, line: str) -> dict[str, Any]:
        """Let a HOLDER run a line of Python, and return its first answer."""
        self.tell(line)
        answer: dict[str, Any] = json.loads(self.line())
        if "done" not in answer and "error" not in answer:
            assert "done" in json.loads(self.line())
        return answer

    def end(self) -> str:
        """End it, and return its stderr."""
        return self.communicate()[1]


Start = Callable[..., Script]


@contextlib.contextmanager
def started() -> Iterator[Start]:
    """start(script, environment, *arguments, before=…) starts a Python script, or a command, which ends with the block. before: a
    command that runs it."""
    processes: list[Script] = []

    def start(script: str | Sequence[str], environment: Mapping[str, str], *arguments: str, before: Sequence[str] = ()) -> Script:
        command = [*before, *([sys.executable, "-c", script] if isinstance(script, str) else script), *arguments]
        pipe = subprocess.PIPE
        process = Script(command, env=dict(environment), stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.communicate()


@pytest.fixture
def start() -> Iterator[Start]:
    with started() as start:
        yield start


@pytest.fixture
def lease(start: Start) -> Start:
    """Start a process with a lease: lease(environment, memory="4GiB", …). expression: more arguments, as Python's text."""

    def begin(
        environment: Mapping[str, str], *, script: str = HOLDER, expression: str = "", before: Sequence[str] = (), **arguments: object
    ) -> Script:
        holder = start(script, environment, f"{{**{arguments!r}, **{expression or {}}}}", before=before)
        holder.answer = json.loads(holder.line())
        return holder

    return begin


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for an effect of another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)
