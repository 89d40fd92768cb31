"""Without a lease directory: a random choice, a child process that holds the memory, a second read, and a warning."""

import os
import subprocess
from pathlib import Path

import pytest

from mlops_build.gpu import testing
from tests.gpu.holder import HOLDER, wait_until

GIB = 1 << 30


@pytest.fixture
def alone(node):
    """Environments of nodes without a lease directory: alone("24GiB") -> node, environment."""

    def make(*cards: testing.SimulatedCard | str) -> tuple[testing.Node, dict[str, str]]:
        machine = node(*cards)
        return machine, machine.environment | {"MLOPS_GPU_LEASE_DIR": str(machine.directory / "absent")}

    return make


def held(machine: testing.Node) -> list[int]:
    return [machine.used(card) for card in range(len(machine.cards))]


def test_the_memory_is_held_until_loading_begins(alone, lease) -> None:
    machine, environment = alone("24GiB")
    holder = lease(environment, memory="4GiB")
    assert holder.answer["mask"] == machine.cards[0].uuid
    (used,) = held(machine)
    assert 3 * GIB < used <= 4 * GIB, "includes the child's own context"
    assert holder.do(f"with lease.loading(): allocate({2 * GIB})") == {"done": True}
    assert held(machine) == [2 * GIB + machine.context_bytes]
    holder.do("lease.release()")
    error = holder.end()
    assert "no lease directory at" in error
    assert "may take the same memory" in error
    assert "1777" in error


def test_services_that_start_at_the_same_time_get_different_cards(alone, lease) -> None:
    _, environment = alone("8GiB", "8GiB", "8GiB")
    got = [lease(environment, memory="5GiB") for _ in range(3)]
    assert len({holder.answer["mask"] for holder in got}) == 3
    assert lease(environment, memory="5GiB").answer["error"] == "NoRoom"
    got[0].do("lease.release()")
    assert lease(environment, memory="5GiB").answer["mask"] == got[0].answer["mask"]


@pytest.mark.parametrize("end", ["release", "kill -9"])
def test_the_child_ends_with_its_parent(alone, lease, end: str) -> None:
    machine, environment = alone("24GiB")
    holder = lease(environment, memory="4GiB")
    if end == "release":
        holder.do("lease.release()")
        assert held(machine) == [0]
    else:
        holder.kill()
        wait_until(lambda: held(machine) == [0])


def test_a_card_that_is_fuller_than_reported_is_not_chosen(alone, lease) -> None:
    """The allocation fails, as if another process had been faster."""
    machine, environment = alone("24GiB", "24GiB")
    machine.fault(0, "cuMemAlloc", code=2)
    assert lease(environment, memory="4GiB").answer["mask"] == machine.cards[1].uuid
    machine.fault(1, "cuMemAlloc", code=2)
    refused = lease(environment, memory="4GiB").answer
    assert refused["error"] == "NoRoom"
    assert refused["message"].count("could not be allocated") == 2


def test_without_libcuda_there_is_a_random_choice_and_a_second_read(alone, lease) -> None:
    machine, environment = alone("24GiB", "2GiB")
    only_nvml = machine.directory / "only-nvml"
    only_nvml.mkdir()
    for library in Path(environment["LD_LIBRARY_PATH"].split(os.pathsep)[0]).iterdir():
        if "cuda" not in library.name:
            (only_nvml / library.name).symlink_to(library)
    holder = lease(environment | {"LD_LIBRARY_PATH": str(only_nvml)}, memory="4GiB")
    assert holder.answer["mask"] == machine.cards[0].uuid
    assert held(machine) == [0, 0]


def test_two_cards_are_both_held(alone, lease) -> None:
    machine, environment = alone("8GiB", "8GiB")
    lease(environment, memory="4GiB", count=2)
    assert all(3 * GIB < used <= 4 * GIB for used in held(machine))


def test_a_read_only_directory_shows_the_leases_of_others(node, lease) -> None:
    machine = node("24GiB", "8GiB")
    lease(machine.environment, memory="22GiB")
    # A private read-only mount, since root can write to any directory.
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("a mount of its own needs root and unshare")
    leases = machine.environment["MLOPS_GPU_LEASE_DIR"]
    mount = f"mount --bind {leases} {leases} && mount -o remount,bind,ro {leases}"
    script = f"import subprocess; subprocess.run({mount!r}, shell=True, check=True)\n{HOLDER}"
    holder = lease(machine.environment, script=script, before=["unshare", "--mount", "--propagation", "private"], memory="4GiB")
    assert holder.answer["mask"] == machine.cards[1].uuid
    assert "is not writable" in holder.end()
