"""Leases on disk, with real processes: lifetimes, trust, and hostile directories."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlops_build.gpu import decisions
from mlops_build.gpu import ledger as leases
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import new
from tests.gpu.holder import Script, Start, wait_until

root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
HOLD = """
import os, sys, time
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import new
if sys.argv[2] != "-": os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
os.umask(0o077)
ledger = Ledger.open(sys.argv[1])
held = ledger.hold(new(["GPU-a"], 1 << 30, sys.argv[3]))
exec(sys.argv[4])
print("held", held.promise.id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below pytest's own folder, which is private to its user, and made private again whenever another pytest starts."""
    with tempfile.TemporaryDirectory(prefix="leases-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "leases"
        path.mkdir()
        path.chmod(0o1777)
        yield path


@pytest.fixture
def holder(directory: Path, start: Start) -> Start:
    """Starts a process that holds a lease until its standard input ends: holder(uid=…, service=…, then="code")."""

    def begin(*, uid: int | None = None, service: str = "a", then: str = "") -> Script:
        process = start(HOLD, os.environ, str(directory), "-" if uid is None else str(uid), service, then)
        assert process.line().startswith("held")
        return process

    return begin


def services(directory: Path) -> list[str]:
    with Ledger.open(directory) as ledger:
        return [promise.service for promise in ledger.promises()]


def test_a_lease_is_what_its_owner_promised_and_others_can_read_it(directory: Path, holder) -> None:
    holder(service="ranker")
    with Ledger.open(directory) as ledger:
        (promise,) = ledger.promises()
        assert (promise.uuids, promise.bytes, promise.exclusive, promise.service) == (("GPU-a",), 1 << 30, False, "ranker")
        assert (promise.seen, promise.loaded, promise.uid) == ({}, False, os.geteuid())
        ledger.report(promise.id, {"GPU-a": 5, "GPU-other": 7}, loaded=True)
        (promise,) = ledger.promises()
        assert (promise.seen, promise.loaded) == ({"GPU-a": 5}, True)


@pytest.mark.parametrize("end", ["exit", "kill -9", "crash"])
def test_the_kernel_ends_a_lease_with_its_owner(directory: Path, holder, end: str) -> None:
    process = holder()
    assert services(directory) == ["a"]
    if end == "exit":
        process.communicate("")
    else:
        process.send_signal(signal.SIGKILL if end == "kill -9" else signal.SIGSEGV)
    process.wait()
    assert services(directory) == []
    assert list(directory.glob("*.lease")) == [], "a reader removes the files of ended processes"


def test_a_lease_survives_its_master_in_forked_workers_and_not_in_a_subprocess(directory: Path, holder) -> None:
    process = holder(then="child = os.fork() or time.sleep(600); print('held', flush=True); print(child, flush=True)")
    worker = int(process.line())
    process.kill()
    process.wait()
    assert services(directory) == ["a"], "the worker inherited it"
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: services(directory) == [])
    process = holder(then="import subprocess; subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)")
    process.kill()
    process.wait()
    assert services(directory) == []


def test_other_files_do_not_hide_a_lease(directory: Path, holder) -> None:
    for number in range(20_000):
        (directory / f"junk{number}").touch()
    holder()
    assert services(directory) == ["a"]


@root
def test_another_user_cannot_keep_a_lease_alive(directory: Path, holder, start: Start) -> None:
    process = holder()
    (file,) = directory.glob("*.lease")
    locks = f"""
import fcntl, os, struct, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
file = open({str(file)!r})
try:
    fcntl.flock(file, fcntl.LOCK_SH)  # waits until the owner has ended
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
finally:
    print("locked", flush=True)
sys.stdin.read()
"""
    hostile = start(locks, os.environ)
    process.kill()
    process.wait()
    assert hostile.line() == "locked"
    assert services(directory) == []


def test_withdrawing_ends_the_lease_for_all_that_inherited_it(directory: Path) -> None:
    with Ledger.open(directory) as ledger:
        held = ledger.hold(new(["GPU-a"], 1, "a"))
        inherited = os.dup(held.descriptor)
        ledger.withdraw(held)
        assert ledger.promises() == []
        assert list(directory.iterdir()) == []
        os.close(inherited)


@root
def test_all_users_can_use_the_lock_that_any_of_them_created(directory: Path) -> None:
    decide = "with ledger.turn() as locked: print('decided' if locked else 'not decided')"
    assert as_user(directory, decide) == "decided", "created by 65534, umask 077"
    with Ledger.open(directory) as ledger, ledger.turn():
        pass
    (directory / "lock").unlink()
    with Ledger.open(directory) as ledger, ledger.turn():
        pass
    assert as_user(directory, decide) == "decided", "created by root"


@root
def test_only_reports_of_the_owner_and_peaks_of_trusted_users_count(directory: Path) -> None:
    with Ledger.open(directory) as ledger:
        held = ledger.hold(new(["GPU-a"], 1 << 30, "a"))
        as_user(directory, f"ledger.report({held.promise.id!r}, {{'GPU-a': 1 << 40}}, loaded=True); ledger.write_peaks({{'a': 1}})")
        (promise,) = ledger.promises()
        assert (promise.seen, promise.loaded) == ({}, False)
        ledger.write_peaks({"b": 2})
        assert ledger.peaks() == [{"b": 2}]
        assert as_user(directory, "print(sorted(map(str, ledger.peaks())))") == "[\"{'a': 1}\", \"{'b': 2}\"]"
        ledger.withdraw(held)


def as_user(directory: Path, code: str, uid: int = 65534, *, reading: bool = False) -> str:
    # Imports come first, since the other user may not be able to read this interpreter's folder.
    become = f"import os; os.umask(0o077); os.setgroups([]); os.setgid({uid}); os.setuid({uid})"
    imports = "from mlops_build.gpu.ledger import Ledger\nfrom mlops_build.gpu.promise import new"
    program = f"{imports}\n{become}\nledger = Ledger.open({str(directory)!r}, reading={reading})\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def symlink(target: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(target)


def content(written: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(written)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "endless": symlink("/dev/zero"),
    "symlink to a secret": symlink("/etc/shadow"),
    "dangling symlink": symlink("/nowhere/at/all"),
    "symlink to itself": lambda file: file.symlink_to(file.name),
    "directory": lambda file: file.mkdir(),
    "huge": lambda file: os.truncate(os.open(file, os.O_CREAT | os.O_WRONLY), 1 << 40),
    "unreadable": lambda file: os.close(os.open(file, os.O_CREAT, 0)),
    "no text": content(b"\xff\xfe\x00" * 1000),
    "deep": content(b"[" * 100_000),
    "a long number": content(b"1" * 50_000),
    "not an object": content(b"[1, 2]"),
    "infinite": content(b'{"bytes": Infinity, "uuids": [NaN], "seen": {"x": -1e999}, "pid": NaN}'),
    "wrong types": content(b'{"bytes": "4GiB", "uuids": {"a": 1}, "service": 3, "created": [], "seen": 7, "exclusive": "yes"}'),
}
LEASE = "0123456789abcdef.lease"
NAMES = (LEASE, LEASE.replace(".lease", ".seen"), "peaks-0.json", "peaks-12001.json", "decisions-0.jsonl", "decisions-12001.jsonl")


@pytest.mark.parametrize("name", [*NAMES, "lock"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_object_in_place_of_a_file_blocks_no_process(directory: Path, what: str, name: str) -> None:
    HOSTILE[what](directory / name)
    with Ledger.open(directory) as ledger:
        held = ledger.hold(new(["GPU-a"], 1, "a"))
        assert [promise.service for promise in ledger.promises()] == ["a"]
        ledger.peaks()
        decisions.read(ledger)
        with ledger.turn() as locked:
            assert locked or name == "lock", "decisions are made without the lock, and safely"
        with contextlib.suppress(NoLedger):
            ledger.append("decisions-0.jsonl", b"{}\n", 1024)
        ledger.withdraw(held)


GOOD = {"uuids": ["GPU-a"], "bytes": 5, "exclusive": False, "service": "a", "pid": 1, "pid_namespace": 2, "created": 3.0}
WRONG = [
    b"",
    b"\0" * 300,
    b"[" * 60000,
    b'{"bytes": ' + b"9" * 60000 + b"}",
    b'"text"',
    b"\xff\xfe",
    *(
        json.dumps(GOOD | change).encode()
        for change in (
            {"bytes": -1},
            {"bytes": float("nan")},
            {"bytes": 1e300},
            {"bytes": True},
            {"bytes": "5"},
            {"bytes": 1 << 60},
            {"uuids": "GPU-a"},
            {"uuids": []},
            {"uuids": [5]},
            {"uuids": ["GPU-a"] * 5000},
            {"uuids": ["GPU a\n"]},
            {"created": float("inf")},
            *({name: time} for name in ("created", "boot", "until") for time in (10**400, -1e308, -1)),
            {"created": None},
            {"pid": -5},
        )
    ),
    json.dumps(GOOD).replace("3.0", "1e400").encode(),
]


@pytest.mark.parametrize("content", WRONG)
def test_a_locked_corrupt_lease_is_ignored_with_a_warning(directory: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    path = directory / ("f" * 16 + ".lease")
    path.write_bytes(content)
    with Ledger.open(directory) as ledger, path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert ledger.promises() == []
        assert ledger.promises() == []
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(path) in message
    assert f"uid {os.geteuid()}" in message


def test_a_lease_that_cannot_be_opened_does_not_count_as_absent(directory: Path, holder) -> None:
    holder()
    (file,) = directory.glob("*.lease")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Ledger.open(directory) as ledger:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with pytest.raises(NoLedger, match="Too many open files"):
                ledger.lease(file.stem)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert ledger.lease(file.stem)


def test_text_of_other_users_is_printable(directory: Path) -> None:
    path = directory / ("f" * 16 + ".lease")
    path.write_text(json.dumps(GOOD | {"service": "evil\x1b[2J\nname\u202e" + "x" * 5000, "uuids": ["GPU-a", "GPU-a"]}))
    with Ledger.open(directory) as ledger, path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (promise,) = ledger.promises()
    assert promise.service.startswith("evil?[2J?name?xxx")
    assert len(promise.service) == 100
    assert promise.uuids == ("GPU-a",)


@root
def test_many_files_of_one_user_do_not_hide_another_users_lease(directory: Path, start: Start) -> None:
    flood = f"""
import fcntl, os, resource, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
held = []
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
for number in range(3000):
    file = open(f"{directory}/{{number:016x}}.lease", "w")
    file.write({json.dumps(GOOD)!r}); file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    held.append(file)
print("ready", flush=True)
sys.stdin.read()
"""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("needs 4096 open files")
    assert start(flood, os.environ).line() == "ready"
    with Ledger.open(directory) as ledger:
        held = ledger.hold(new(["GPU-a"], 1, "ours"))
        promises = ledger.promises()
        assert "ours" in [promise.service for promise in promises]
        assert len(promises) == leases.FILES_PER_UID + 1
        ledger.withdraw(held)


def test_decisions_are_made_one_at_a_time(directory: Path) -> None:
    guard = threading.Lock()

    def decide(_: int) -> None:
        with Ledger.open(directory) as ledger, ledger.turn(30) as locked:
            assert locked
            assert guard.acquire(blocking=False), "another decides"
            time.sleep(0.005)
            guard.release()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decide, range(8)))


def test_a_lock_file_that_was_replaced_is_not_taken_for_the_lock(directory: Path) -> None:
    """The file is removed while a process waits for it, so the file that it then locks is not the lock any more."""
    with Ledger.open(directory) as ledger:
        with ledger.turn():
            pass
        old = os.open(directory / "lock", os.O_RDONLY)
        fcntl.flock(old, fcntl.LOCK_EX)
        entered = threading.Event()

        def decide() -> None:
            with ledger.turn(30) as locked:
                assert locked
                entered.set()

        thread = threading.Thread(target=decide)
        thread.start()
        # Replaced atomically, and locked already: the thread may not have started yet.
        new = os.open(directory / "replacement", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(new, fcntl.LOCK_EX)
        (directory / "replacement").rename(directory / "lock")
        os.close(old)
        assert not entered.wait(0.2), "both decisions would run"
        os.close(new)
        thread.join(20)
        assert entered.is_set()


def test_a_missing_directory_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(NoLedger, match="No such file") as caught:
        Ledger.open(tmp_path / "absent")
    assert "1777" in caught.value.remedy
    assert not (tmp_path / "absent").exists(), "a directory created here would not be shared"
    (tmp_path / "file").touch()
    with pytest.raises(NoLedger, match="Not a directory"):
        Ledger.open(tmp_path / "file")


@root
def test_a_read_only_directory(directory: Path, holder) -> None:
    holder(service="ours")
    directory.chmod(0o755)
    said = as_user(directory, "print([promise.service for promise in ledger.promises()])", reading=True)
    assert said == "['ours']"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        as_user(directory, "")
    assert "uid 65534 may not write to the lease directory" in refused.value.stderr


def test_files_of_other_users_are_opened_without_o_creat(directory: Path) -> None:
    """With O_CREAT, fs.protected_regular refuses to open them in a sticky directory, even if the file is writable."""
    program = f"""
import os, sys
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import new
def look(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT and not arguments[2] & os.O_EXCL:
        print(arguments)
for _ in range(2):
    ledger = Ledger.open({str(directory)!r})
    if _: sys.addaudithook(look)
    with ledger.turn():
        held = ledger.hold(new(["GPU-a"], 1, "a"))
    ledger.report(held.promise.id, {{}}, loaded=True)
    ledger.write_peaks({{}})
    ledger.append("decisions-0.jsonl", b"{{}}\\n", 10)
    os.close(ledger.slot(["load-GPU-a-0"]))
    ledger.promises(), ledger.peaks()
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == ""
