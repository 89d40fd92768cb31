"""Leases across containers: other network, pid, ipc and mount namespaces and other uids share only the lease directory."""

import os
import subprocess
from typing import Any

import pytest

from tests.gpu.holder import wait_until
from tests.gpu.nodes import GIB, Shared

UNSHARE = ["unshare", "--net", "--ipc", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]


def _unshares() -> bool:
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not _unshares(), reason="this user may not make namespaces (unshare)")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of other uids")


@needs_namespaces
def test_leases_are_visible_in_both_directions_and_end_with_the_container(shared: Shared) -> None:
    outside = shared.tenant("20GiB", size=4 * GIB)
    inside = shared.tenant("20GiB", size=4 * GIB, wrapper=UNSHARE, environment=shared.node.view(cards=[0, 1], hide_pids=True))
    assert inside.events["loaded"]["pid"] < 100, "it counts its pids from 1"
    assert inside.events["leased"]["uuids"] != outside.events["leased"]["uuids"]
    assert shared.refused("20GiB").startswith("NoRoom")
    assert shared.refused("20GiB", wrapper=UNSHARE).startswith("NoRoom")

    inside.kill()
    again = shared.tenant("20GiB")
    assert again.events["leased"]["uuids"] == inside.events["leased"]["uuids"]
    outside.end()
    last = shared.tenant("20GiB", wrapper=UNSHARE)
    assert last.events["leased"]["uuids"] == outside.events["leased"]["uuids"]


@needs_namespaces
def test_the_same_pid_in_two_containers_is_two_processes(shared: Shared) -> None:
    first, second = (shared.tenant("6GiB", size=5 * GIB, wrapper=UNSHARE) for _ in range(2))
    assert first.events["loaded"]["pid"] == second.events["loaded"]["pid"]
    cards = shared.cards()
    assert sum(len(card["leases"]) for card in cards) == 2
    first.kill()
    assert sum(len(card["leases"]) for card in shared.cards()) == 1


@needs_namespaces
def test_memory_seen_from_a_container_without_pids_is_counted_once(shared: Shared) -> None:
    """NVML reports pids of the host, which are not valid here: the owner's report attributes the memory."""
    shared.tenant("8GiB", size=6 * GIB, wrapper=UNSHARE, environment=shared.node.view(cards=[0, 1], hide_pids=True))
    for environment in (None, shared.node.view(cards=[0, 1], hide_pids=True)):
        for wrapper in ((), UNSHARE):
            committed = sum(card["committed_bytes"] for card in shared.cards(environment=environment, wrapper=wrapper))
            assert committed == pytest.approx(8 * GIB, abs=GIB // 2)


@needs_namespaces
@pytest.mark.slow  # a peak counts after some seconds
def test_memory_of_a_service_of_the_host_is_not_a_container_s(shared: Shared) -> None:
    """The container takes it for its program's, which has not loaded yet. Whoever sees the process knows better, and tells the others."""
    hidden = shared.node.view(cards=[0, 1], hide_pids=True)
    inside = shared.tenant("10GiB", wrapper=UNSHARE, environment=hidden)
    (uuid,) = inside.events["leased"]["uuids"]
    ordinal = [str(card.uuid) for card in shared.node.cards].index(uuid)
    shared.node.start("8GiB", ordinal=ordinal).wait_for("loaded")

    def committed(**options: Any) -> int:
        return round(next(card["committed_bytes"] for card in shared.cards(**options) if card["uuid"] == uuid) / GIB)

    wait_until(lambda: any('"seen": {"GPU' in file.read_text() for file in shared.leases.glob("*.seen")))
    assert committed() == 18
    wait_until(lambda: committed() == committed(wrapper=UNSHARE, environment=hidden))


@needs_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_uids_see_each_others_leases_with_any_umask(shared: Shared, umask: int) -> None:
    first = shared.tenant("20GiB", uid=12001, umask=umask, size=GIB)
    second = shared.tenant("20GiB", uid=12002, umask=umask, size=GIB)
    assert {"loaded"} <= first.events.keys() & second.events.keys()
    assert first.events["leased"]["uuids"] != second.events["leased"]["uuids"]
    assert shared.refused("20GiB", uid=12003, umask=umask).startswith("NoRoom")
    assert {lease["uid"] for card in shared.cards(uid=12003) for lease in card["leases"]} == {12001, 12002}
    first.kill()
    assert shared.tenant("20GiB", uid=12002, umask=umask).events["leased"]["uuids"] == first.events["leased"]["uuids"]


@needs_root
def test_a_user_without_write_permission_gets_a_card_without_a_lease(shared: Shared) -> None:
    shared.leases.chmod(0o755)
    tenant = shared.tenant("4GiB", uid=12001)
    assert tenant.events["leased"]["uuids"]
    assert "lease" in tenant.warnings().lower()
    assert list(shared.leases.glob("*.lease")) == []
