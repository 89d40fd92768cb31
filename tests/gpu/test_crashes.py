"""Killed and stopped processes, full disks and hostile files: the next service gets a card or a reason, and no stale lease remains."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from tests.gpu.nodes import GIB, PATIENCE, ROOT, Shared
from tests.gpu.test_ledger import HOSTILE, NAMES
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
    killed_at_random_moments(shared, 4, seed=10)


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


# ── the disk ──

DISKS = {
    "full": "mount -t tmpfs -o size=64k,mode=1777 none LEASES; head -c 1m /dev/zero > LEASES/filler 2>/dev/null",
    "no inodes": "mount -t tmpfs -o nr_inodes=2,mode=1777 none LEASES; touch LEASES/filler",
    # Root ignores modes, so the directory is mounted read-only, like readOnly: true in a pod.
    "read-only": "mount --bind LEASES LEASES && mount -o remount,ro,bind LEASES",
    # It also sends SIGXFSZ, which Python ignores.
    "file size limit": "ulimit -f 0",
}


@needs_namespaces
@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_that_takes_no_lease_gives_a_warning_and_a_card(shared: Shared, disk: str) -> None:
    """The mount is in a namespace of the service's."""
    script = f'{DISKS[disk].replace("LEASES", str(shared.leases))}; exec "$@" 2> {shared.folder}/errors'
    tenant = shared.tenant("4GiB", size=GIB, wrapper=[*UNSHARE, "sh", "-c", script, "sh"])
    assert "loaded" in tenant.events
    errors = (shared.folder / "errors").read_text() if disk != "file size limit" else str(shared.leases)
    assert str(shared.leases) in errors
    assert "Traceback" not in errors


@needs_namespaces
def test_a_disk_that_fills_up_loses_no_lease(shared: Shared) -> None:
    """The first service has a lease, and its reports fail on the full disk: its promise still counts."""
    inner = f"""
import os
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


# ── hostile users ──


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


@needs_root
@pytest.mark.parametrize("shape", ["fifo", "symlink to a secret", "unreadable", "wrong types"])
def test_hostile_files_neither_break_nor_block_services(shared: Shared, shape: str) -> None:
    """Another user created them, under all names that are used, before the first lease. test_ledger.py has more shapes."""
    for name in (*NAMES, "lock"):
        HOSTILE[shape](shared.leases / name)
        os.chown(shared.leases / name, 12666, 12666, follow_symlinks=False)
    first = shared.tenant("20GiB", uid=12001)
    assert "leased" in first.events, first.warnings()
    second = shared.tenant("20GiB")
    assert "leased" in second.events, second.warnings()
    assert "Traceback" not in first.warnings() + second.warnings()
    assert first.end() == second.end() == 0


LIES = {
    "more than the card": {"bytes": 1 << 60},
    "less than nothing": {"bytes": -(1 << 40)},
    "a card that is not there": {"uuids": ["GPU-00000000-0000-0000-0000-000000000000"]},
    "a thousand cards": {"uuids": [f"GPU-{n}" for n in range(1000)]},
    "another user's": {"uid": 0, "pid": 1},
    "letters that move a terminal": {"service": "\x1b[2J\x1b[31mroot\n" * 1000},
}


@needs_root
def test_a_lease_with_false_content_blocks_no_service(shared: Shared) -> None:
    """Its owner is alive and keeps its lock, so it cannot be removed; its content must not be trusted."""
    shared.tenant("1GiB", uid=12666)
    (file,) = shared.leases.glob("*.lease")
    document = json.loads(file.read_bytes())
    first = shared.tenant("20GiB", uid=12001)
    for lie in LIES.values():
        file.write_text(json.dumps(document | lie))
        second = shared.tenant("20GiB", uid=12002)
        assert first.events["leased"]["uuids"] != second.events["leased"]["uuids"], (lie, second.warnings())
        cards = shared.cards(uid=12001)
        listed = [lease for card in cards for lease in card["leases"]]
        assert all(lease["uid"] in (12001, 12002, 12666) for lease in listed)
        assert all("\x1b" not in lease["service"] and "\n" not in lease["service"] for lease in listed)
        assert all(card["committed_bytes"] >= 20 * GIB for card in cards), "false content does not create room"
        second.kill()


@needs_root
def test_the_lease_of_another_user_is_not_shared(shared: Shared) -> None:
    """The ids of leases are public, and any process can have one in its environment."""
    shared.tenant("20GiB")
    lease_id = next(shared.leases.glob("*.lease")).stem
    taken = [shared.tenant("20GiB", uid=12001, environment={"MLOPS_GPU_LEASE": lease_id}) for _ in range(2)]
    assert ["leased" in tenant.events for tenant in taken] == [True, False]
