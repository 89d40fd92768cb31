"""Services of released versions beside the current one, on one node: each respects the other's leases, through the same lease directory.

The releases are exported from Git by CHANGELOG.md's table. No memory is granted twice while a release gets the directory's lock within
its 2 s; without it, releases up to 0.6 promise without looking again.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlops_build.gpu import testing
from mlops_build.scaffold.source import releases
from tests.gpu.conftest import MakeNode
from tests.gpu.holder import Script, Start, wait_until
from tests.gpu.nodes import GIB, LOOK, PATIENCE, ROOT
from tests.gpu.test_granted_once import Outcome, round_of, violations

RELEASES = releases((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0")
NO_LOCK = "has been held for more than"  # the warning of a release that promises without the lock
Package = Callable[[str], Path]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The folder with `mlops_build` of a release; "" is the working tree. Skips the test if the commit is not in this clone's history."""
    folders: dict[str, Path] = {"": ROOT}

    def export(version: str) -> Path:
        if version not in folders:
            done = subprocess.run(["git", "-C", str(ROOT), "archive", RELEASES[version], "mlops_build"], capture_output=True, check=False)
            if done.returncode:
                pytest.skip(f"the commit of release {version} is not in this clone's history; git fetch --unshallow")
            folders[version] = tmp_path_factory.mktemp(version)
            subprocess.run(["tar", "--extract", "--directory", str(folders[version])], input=done.stdout, check=True)
        return folders[version]

    return export


class Services:
    """Processes of any release on one node."""

    def __init__(self, node: testing.Node, package: Package, lease: Start, *, hide_pids: bool = False) -> None:
        self.node, self.package, self._lease = node, package, lease
        self._view = node.view(hide_pids=hide_pids)

    def environment(self, version: str) -> dict[str, str]:
        return {**self._view, "PYTHONSAFEPATH": "1", "PYTHONPATH": f"{self.package(version)}{os.pathsep}{ROOT}"}

    def lease(self, version: str, memory: str) -> Script:
        """A process of this version that requests memory; its `answer` is the lease or the error."""
        holder = self._lease(self.environment(version), memory=memory)
        if "error" not in holder.answer and version:
            assert holder.do("import mlops_build; say(version=mlops_build.__version__)") == {"version": version}
        return holder

    def refused(self, version: str, memory: str) -> bool:
        return self.lease(version, memory).answer.get("error") == "NoRoom"

    def cards(self, version: str) -> list[dict[str, Any]]:
        """`gpu.cards()` of this version."""
        done = subprocess.run(
            [sys.executable, "-c", LOOK], env=self.environment(version), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        cards: list[dict[str, Any]] = json.loads(done.stdout)
        return cards


@pytest.fixture
def services(node: MakeNode, package: Package, lease: Start) -> Services:
    """A node with one card of 24 GiB."""
    return Services(node("24GiB"), package, lease)


@pytest.fixture
def hidden(node: MakeNode, package: Package, lease: Start) -> Services:
    """The same in containers: NVML shows no processes."""
    return Services(node("24GiB"), package, lease, hide_pids=True)


BOTH_WAYS = [
    pytest.param(*versions, id=f"{versions[0] or 'current'}-{versions[1] or 'current'}", marks=marks)
    for version in VERSIONS
    for versions in ((version, ""), ("", version))
    for marks in ([] if version == "0.4.0" else [pytest.mark.soak if version == "0.5.0" else pytest.mark.slow],)
]


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_a_lease_is_respected_until_its_process_is_killed(services: Services, first: str, second: str) -> None:
    holder = services.lease(first, "20GiB")
    assert services.refused(second, "5GiB")
    small = services.lease(second, "3GiB")
    assert small.answer["cpu"] is False
    listed = {lease["id"]: lease["bytes"] for lease in services.cards(second)[0]["leases"]}
    assert listed == {holder.answer["id"]: 20 * GIB, small.answer["id"]: 3 * GIB}
    assert services.cards(second)[0]["committed_bytes"] == services.cards(first)[0]["committed_bytes"] == 23 * GIB
    holder.kill()
    holder.wait()
    again = services.lease(second, "20GiB")
    assert again.answer["cpu"] is False
    again.do("lease.release()")
    assert services.lease(first, "20GiB").answer["cpu"] is False


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_reported_memory_counts_once_for_the_other(hidden: Services, first: str, second: str) -> None:
    """In containers only the owner's report tells that memory belongs to a lease."""
    holder = hidden.lease(first, "10GiB")
    load = "with lease.loading(): allocate(8 << 30)"
    assert holder.do(load) == {"done": True}
    wait_until(lambda: hidden.cards(second)[0]["external_bytes"] < GIB)
    card = hidden.cards(second)[0]
    assert 8 * GIB <= sum(card["leases"][0]["seen"].values()) <= 10 * GIB
    assert card["committed_bytes"] == pytest.approx(10 * GIB, abs=GIB // 2)
    assert hidden.lease(second, "12GiB").answer["cpu"] is False


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_load_slots_are_shared(services: Services, first: str, second: str) -> None:
    """While one loads, the other waits, and says so."""
    loading, waiting = services.lease(first, "8GiB"), services.lease(second, "8GiB")
    loading.do("entered = lease.loading(); entered.__enter__()")
    waiting.tell("with lease.loading(): say(loading=True)")
    while "load" not in waiting.stderr.readline():
        pass
    slots = [file for file in Path(services.environment("")["MLOPS_GPU_LEASE_DIR"]).glob("load-*") if is_locked(file)]
    assert len(slots) == 1
    loading.do("entered.__exit__(None, None, None); say(left=True)")
    assert json.loads(waiting.line()) == {"loading": True}


def is_locked(file: Path) -> bool:
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def program(services: Services, start: Start) -> Callable[[str, str, int], Script]:
    """`gpu run` of a version with a program that loads onto cuda:0 without knowing of leases, once that has loaded."""

    def run(version: str, memory: str, size: int) -> Script:
        service = [sys.executable, "-IS", str(Path(testing.__file__).with_name("service.py")), "--memory", str(size)]
        command = [sys.executable, "-m", "mlops_build", "gpu", "run", "--memory", memory, "--", *service]
        process = start(command, services.environment(version))
        events = [json.loads(process.line()) for _ in range(2)]
        assert events[-1]["event"] == "loaded", events
        return process

    return run


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_a_program_under_gpu_run_counts_once_for_the_other(
    services: Services, program: Callable[[str, str, int], Script], first: str, second: str
) -> None:
    process = program(first, "10GiB", 8 * GIB)
    card = services.cards(second)[0]
    assert [lease["bytes"] for lease in card["leases"]] == [10 * GIB]
    assert card["external_bytes"] == 0
    assert card["committed_bytes"] == 10 * GIB
    process.kill()
    assert services.cards(second)[0]["leases"] or not services.node.processes(0), "the lease lives as long as the program"
    for pid in services.node.processes(0):
        os.kill(pid, 9)
    wait_until(lambda: not services.cards(second)[0]["leases"])


def burst(package: Package, versions: Sequence[str], seed: int) -> Outcome:
    """A round of all these versions. A round in which a process did not get the lock within its 2 s (a busy machine) is repeated with
    fewer processes."""
    members = 40 // len(versions)
    while True:
        outcome = round_of(seed, members, stalls=False, packages=[package(version) for version in versions])
        if NO_LOCK not in outcome.warnings or members < 3:
            return outcome
        members //= 2


@pytest.mark.parametrize("version", ["0.4.0", *(pytest.param(other, marks=pytest.mark.slow) for other in VERSIONS if other != "0.4.0")])
def test_a_burst_of_both(package: Package, version: str) -> None:
    outcome = burst(package, [version, ""], 1)
    assert violations([outcome]) == ""


@pytest.mark.slow
def test_bursts_of_all_releases(package: Package) -> None:
    outcomes = [burst(package, [*VERSIONS, ""], seed) for seed in range(5)]
    assert violations(outcomes) == ""
