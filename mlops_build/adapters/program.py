"""Run a program that ends by itself: with a time limit, without input from a terminal, and with its children."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_build.errors import Unreachable

STDERR = 2  # the descriptor: progress goes to stderr, the result to stdout
PROBE_SECONDS = 15
END_SECONDS = 2  # from SIGTERM to SIGKILL

_running: "set[subprocess.Popen[bytes]]" = set()
_lock = threading.Lock()
_ending = threading.Event()


class NotInstalled(Unreachable):
    """The program is not installed."""


class DoesNotEnd(Unreachable):
    """The program did not end in time, and was stopped."""


@dataclass(frozen=True)
class Ended:
    """The result of a program. code: its exit code. output, errors: what it wrote to stdout and stderr, if that was not shown."""

    code: int
    output: bytes = b""
    errors: bytes = b""

    @property
    def text(self) -> str:
        """The output as text."""
        return self.output.decode(errors="replace")

    @property
    def message(self) -> str:
        """The errors as text, without blank space around it."""
        return self.errors.decode(errors="replace").strip()

    @property
    def last_line(self) -> str:
        """The last line of the errors, or of the output if there are none. At most 300 characters."""
        return ((self.message or self.text.strip()).splitlines() or ["no output"])[-1][:300]


def run(
    command: Sequence[str],
    *,
    seconds: float,
    remedy: str = "see why it waits: run it by hand",
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    shown: bool = False,
) -> Ended:
    """Run a program. Raises NotInstalled, and DoesNotEnd with `remedy` after `seconds`.

    environment: replaces that of this process. shown: what it writes goes to stderr of this process.
    """
    name = Path(command[0]).name
    pipe = STDERR if shown else subprocess.PIPE
    try:
        # In a new session, so that the children of the program end with it, and none of them asks a question on the terminal.
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError):
        raise NotInstalled(f"the command {name!r} is not installed", remedy=f"install {name}, or add its folder to PATH") from None
    with process, _listed(process):
        try:
            output, errors = process.communicate(stdin, timeout=seconds)
        except BaseException as error:
            _end(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise DoesNotEnd(f"`{' '.join([name, *command[1:2]])}` did not end within {seconds:g} s", remedy=remedy) from None
    return Ended(process.returncode, output or b"", errors or b"")


@contextlib.contextmanager
def _listed(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    with _lock:
        _running.add(process)
    if _ending.is_set():  # it was started after end_all had looked
        _end(process)
    try:
        yield
    finally:
        with _lock:
            _running.discard(process)


def end_all() -> None:
    """Stop the programs of all threads, also those that they start from now on. For a process that ends."""
    _ending.set()
    with _lock:
        processes = list(_running)
    for process in processes:
        _end(process)


def probe(command: Sequence[str], *, seconds: float = PROBE_SECONDS, environment: Mapping[str, str] | None = None) -> Ended | None:
    """Run a program; None if it is not installed or does not end in time."""
    try:
        return run(command, seconds=seconds, environment=environment)
    except Unreachable:
        return None


def attached(command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> int:
    """Run a program on this terminal, without a time limit; its exit code."""
    return subprocess.run(list(command), cwd=folder, env=dict(environment), check=False).returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a program and its children, first with SIGTERM, so that it removes its lock files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
