"""Programs: their time limit includes their children, and each failure is one error."""

import time
from pathlib import Path

import pytest

from mlops_build.adapters.program import DoesNotEnd, NotInstalled, probe, run


def test_output_errors_and_code_are_returned() -> None:
    done = run(["sh", "-c", "cat; echo first >&2; echo last >&2; exit 3"], seconds=30, stdin=b"caf\xe9")
    assert (done.code, done.output, done.text, done.message, done.last_line) == (3, b"caf\xe9", "caf�", "first\nlast", "last")
    assert run(["sh", "-c", "echo said"], seconds=30).last_line == "said"
    assert run(["true"], seconds=30).last_line == "no output"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(NotInstalled, match="'no-such-program' is not installed"):
        run(["no-such-program"], seconds=30)
    assert probe(["no-such-program"]) is None


def test_after_the_time_limit_the_children_end_too(tmp_path: Path) -> None:
    """A grandchild that keeps the pipes open would hold the caller."""
    pid = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(DoesNotEnd, match=r"`sh -c` did not end within 0\.5 s") as caught:
        run(["sh", "-c", f"sleep 60 & echo $! > {pid}; wait"], seconds=0.5, remedy="look")
    assert caught.value.remedy == "look"
    assert time.monotonic() - began < 30
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    deadline = time.monotonic() + 20  # it is killed, but may not have been scheduled yet
    while is_running(state) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(state)


def is_running(state: Path) -> bool:
    """Whether the process of a /proc/PID/stat exists, and is not a zombie."""
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_gets_no_input_and_no_terminal() -> None:
    done = run(["sh", "-c", "cat; cut -d' ' -f6 /proc/$$/stat; echo $$"], seconds=30)
    session, pid = done.text.split()
    assert session == pid
