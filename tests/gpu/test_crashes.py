"""Killed and stopped processes, full disks and hostile files: the next service gets a card or a reason, and no stale lease remains."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.nodes import GIB, PATIENCE, ROOT, Shared
from tests.gpu.test_namespaces import UNSHARE, needs_namespaces, needs_root

SOAK = int(os.environ.get("SOAK_EXAMPLES", "400"))


# ── killed ──


def killed_at_random_moments(shared: Shared, times: int, seed: int) -> None:
    """Start services that each take half a card, and kill each at a random time: nothing remains."""
    dice = random.Random(seed)  # noqa: S311
    bystander = shared.tenant("4GiB", size=2 * GIB)
    for _ in range(times):
        crowd = [shared.tenant("8GiB", size=6 * GIB, seconds=0.05, until=set()) for _ in range(3)]
        for tenant in crowd:
            leased = dice.random() < 0.6
            if leased:
                tenant.until({"leased", "refused"})
            # At a random time, while it loads, or while it starts, reads and decides.
            time.sleep(dice.uniform(0, 0.1 if leased else 0.4))
            tenant.kill()
            shared.tenants.remove(tenant)
            tenant.errors.close()
        assert len(shared.leased()) == 1, "only the bystander's lease is left"
    whole = shared.tenant("23GiB", size=22 * GIB)
    assert "loaded" in whole.events, "a whole card is free, in the ledger and on the card"
    assert whole.events["leased"]["uuids"] != bystander.events["leased"]["uuids"]
    assert len(list(shared.leases.glob("*.lease"))) == 2, "files of ended processes are removed"


def test_killed_at_random_moments_of_deciding_and_loading(shared: Shared) -> None:
    killed_at_random_moments(shared, 6, seed=10)


@pytest.mark.soak
def test_killed_at_random_moments_many_times(shared: Shared) -> None:
    killed_at_random_moments(shared, SOAK, seed=int.from_bytes(os.urandom(4), "big"))


def test_a_waiting_service_gets_the_room_of_a_killed_one(shared: Shared) -> None:
    holders = [shared.tenant("20GiB") for _ in range(2)]
    waiting = shared.tenant("20GiB", wait=PATIENCE, until=set())
    while "wait" not in waiting.warnings().lower() and waiting.process.poll() is None:
        time.sleep(0.01)
    holders[1].kill()
    waiting.until({"leased", "refused"})
    assert waiting.events["leased"]["uuids"] == holders[1].events["leased"]["uuids"]


# ── the lock is held ──


@needs_root
def test_a_hostile_user_who_keeps_the_lock_blocks_no_other(shared: Shared) -> None:
    shared.tenant("1GiB").end()  # creates the lock file
    with subprocess.Popen(
        ["flock", str(shared.leases / "lock"), "sh", "-c", "echo held; exec cat"], user=12666, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as hostile:
        assert hostile.stdout
        assert hostile.stdout.readline() == b"held\n"
        tenant = shared.tenant("4GiB", size=GIB)
        assert "loaded" in tenant.events
        assert "lock" in tenant.warnings().lower()
        hostile.communicate(b"")


# ── the disk ──


@needs_namespaces
def test_a_full_disk_gives_a_warning_and_a_card(shared: Shared) -> None:
    """The lease directory is a small, full tmpfs in a mount namespace; later it has space again."""
    script = f"""
        mount -t tmpfs -o size=64k,mode=1777 none {shared.leases}
        head -c 1m /dev/zero > {shared.leases}/filler 2>/dev/null
        exec "$@"
    """
    tenant = shared.tenant("4GiB", size=GIB, wrapper=[*UNSHARE, "sh", "-c", script, "sh"])
    assert "loaded" in tenant.events
    assert str(shared.leases) in tenant.warnings()


@needs_namespaces
def test_a_disk_without_inodes_gives_a_warning_and_a_card(shared: Shared) -> None:
    script = f"""
        mount -t tmpfs -o nr_inodes=2,mode=1777 none {shared.leases}
        touch {shared.leases}/filler
        exec "$@"
    """
    tenant = shared.tenant("4GiB", size=GIB, wrapper=[*UNSHARE, "sh", "-c", script, "sh"])
    assert "loaded" in tenant.events
    assert str(shared.leases) in tenant.warnings()


@needs_namespaces
def test_a_disk_that_fills_up_loses_no_lease(shared: Shared) -> None:
    """The first service has a lease, and its reports fail on the full disk: its promise still counts."""
    inner = f"""
import os, sys, subprocess
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.gpu.nodes import GIB, Shared
from mlops_build import gpu
first = gpu.lease("20GiB")
filler = open({str(shared.leases)!r} + "/filler", "wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    print("full", flush=True)
os.environ.pop("CUDA_VISIBLE_DEVICES")
print(sorted(len(card.leases) for card in gpu.cards()), flush=True)
first.report()
first.release()
print(sorted(len(card.leases) for card in gpu.cards()), flush=True)
"""
    script = f'mount -t tmpfs -o size=64k,mode=1777 none {shared.leases} && exec "$@"'
    command = [*UNSHARE, "sh", "-c", script, "sh", sys.executable, "-c", inner]
    done = subprocess.run(command, env=shared.environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.splitlines() == ["full", "[0, 1]", "[0, 0]"], done.stderr


def test_a_file_size_limit_gives_a_warning_and_a_card(shared: Shared) -> None:
    """RLIMIT_FSIZE also sends SIGXFSZ, which Python ignores."""
    command = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", sys.executable, "-m", "tests.gpu.tenant", '{"memory": "4GiB"}', str(GIB)]
    done = subprocess.run(
        command, env=shared.environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert '"loaded"' in done.stdout, done.stderr
    assert str(shared.leases) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_directory_gives_a_warning_and_a_card(shared: Shared) -> None:
    tenant = shared.tenant("4GiB", size=GIB, environment={"MLOPS_GPU_LEASE_DIR": str(shared.folder / "nowhere")})
    assert "loaded" in tenant.events
    assert "nowhere" in tenant.warnings()


def test_a_directory_that_is_removed_while_in_use(shared: Shared) -> None:
    first = shared.tenant("4GiB", size=GIB)
    for file in shared.leases.iterdir():
        file.unlink()
    shared.leases.rmdir()
    assert "loaded" in shared.tenant("4GiB", size=GIB).events
    assert first.end() == 0


# ── hostile files ──


def symlink(target: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(target)


def content(written: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(written)


def sparse(file: Path) -> None:
    with file.open("wb") as huge:
        huge.truncate(1 << 40)


def unreadable(file: Path) -> None:
    file.write_bytes(b"{}")
    file.chmod(0)


LEASE = "0123456789abcdef.lease"
SHAPES: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "endless": symlink("/dev/zero"),
    "symlink to a secret": symlink("/etc/shadow"),
    "dangling symlink": symlink("/nowhere/at/all"),
    "symlink to itself": lambda file: file.symlink_to(file.name),
    "directory": lambda file: file.mkdir(),
    "huge": sparse,
    "unreadable": unreadable,
    "empty": content(b""),
    "no text": content(b"\xff\xfe\x00" * 1000),
    "deep": content(b"[" * 100_000),
    "a long number": content(b"1" * 50_000),
    "not an object": content(b"[1, 2]"),
    "infinite": content(b'{"bytes": Infinity, "uuids": [NaN], "seen": {"x": -1e999}, "pid": NaN}'),
    "wrong types": content(
        b'{"bytes": "4GiB", "uuids": {"a": 1}, "service": 3, "created": [], "seen": 7, "time": null, "exclusive": "yes"}'
    ),
}
NAMES = (LEASE, LEASE.replace(".lease", ".seen"), "peaks-0.json", "peaks-12001.json", "decisions-0.jsonl", "decisions-12001.jsonl")


def drop(shared: Shared, name: str, shape: str) -> None:
    SHAPES[shape](shared.leases / name)
    os.chown(shared.leases / name, 12666, 12666, follow_symlinks=False)


@needs_root
@pytest.mark.parametrize("shape", SHAPES)
def test_hostile_files_neither_break_nor_block_services(shared: Shared, shape: str) -> None:
    """Another user created them, under all names that are used, before the first lease."""
    for name in NAMES:
        drop(shared, name, shape)
    first = shared.tenant("20GiB", uid=12001)
    assert "leased" in first.events, first.warnings()
    second = shared.tenant("20GiB")
    assert second.events["leased"]["uuids"] != first.events["leased"]["uuids"], second.warnings()
    assert "Traceback" not in first.warnings() + second.warnings()
    assert len(shared.leased()) == 2
    assert first.end() == second.end() == 0


@needs_root
@pytest.mark.parametrize("shape", ["fifo", "endless", "symlink to a secret", "dangling symlink", "directory", "huge", "unreadable"])
def test_a_hostile_lock_blocks_no_service(shared: Shared, shape: str) -> None:
    """Anything but a regular file counts as a missing directory. A regular file works as the lock, with any content."""
    drop(shared, "lock", shape)
    first = shared.tenant("20GiB", uid=12001)
    assert "leased" in first.events, first.warnings()
    assert "Traceback" not in first.warnings()
    assert (shared.leases / "lock").is_symlink() or len(shared.cards(uid=12001)) == 2
    assert first.end() == 0


LIES = {
    "more than the card": {"bytes": 1 << 60},
    "less than nothing": {"bytes": -(1 << 40)},
    "a card that is not there": {"uuids": ["GPU-00000000-0000-0000-0000-000000000000"]},
    "a thousand cards": {"uuids": [f"GPU-{n}" for n in range(1000)]},
    "another user's": {"uid": 0, "pid": 1},
    "letters that move a terminal": {"service": "\x1b[2J\x1b[31mroot\n" * 1000},
}


@needs_root
@pytest.mark.parametrize("lie", LIES)
def test_a_lease_with_false_content_blocks_no_service(shared: Shared, lie: str) -> None:
    """Its owner is alive and keeps its lock, so it cannot be removed; its content must not be trusted."""
    honest = shared.tenant("1GiB", uid=12666)
    file = next(shared.leases.glob("*.lease"))
    document = json.loads(file.read_bytes())
    document |= LIES[lie]
    file.write_text(json.dumps(document))
    first = shared.tenant("20GiB", uid=12001)
    second = shared.tenant("20GiB", uid=12002)
    assert first.events["leased"]["uuids"] != second.events["leased"]["uuids"], (first.warnings(), second.warnings())
    listed = [lease for card in shared.cards(uid=12001) for lease in card["leases"]]
    assert all(lease["uid"] in (12001, 12002, 12666) for lease in listed)
    assert all("\x1b" not in lease["service"] and "\n" not in lease["service"] for lease in listed)
    assert all(card["committed_bytes"] >= 20 * GIB for card in shared.cards()), "false content does not create room"
    honest.kill()


@needs_root
def test_the_lease_of_another_user_is_not_shared(shared: Shared) -> None:
    """The ids of leases are public, and any process can have one in its environment."""
    shared.tenant("20GiB")
    lease_id = next(shared.leases.glob("*.lease")).stem
    taken = [shared.tenant("20GiB", uid=12001, environment={"MLOPS_GPU_LEASE": lease_id}) for _ in range(2)]
    assert ["leased" in tenant.events for tenant in taken] == [True, False]


@needs_root
def test_thousands_of_files_of_a_hostile_user(shared: Shared) -> None:
    for number in range(3_000):
        (shared.leases / f"{number:016x}.lease").touch()
        os.chown(shared.leases / f"{number:016x}.lease", 12666, 12666)
    first, second = (shared.tenant("20GiB", uid=uid) for uid in (12001, 12002))
    assert "leased" in first.events, first.warnings()
    assert "leased" in second.events, second.warnings()
    assert first.events["leased"]["uuids"] != second.events["leased"]["uuids"]
