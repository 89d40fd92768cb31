"""The simulated node, used by many real processes, as NVML and CUDA show it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_build.errors import Failed, UsageError
from mlops_build.gpu import testing
from mlops_build.gpu.testing import SimulatedCard
from tests.e2e import console
from tests.gpu.conftest import ROOT, MakeNode

GIB = 2**30
MIB = 2**20
RunPython = Callable[..., str]

LOOK = """
import json, pynvml
pynvml.nvmlInit()
cards = []
for index in range(pynvml.nvmlDeviceGetCount()):
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    plain, exact = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    cards.append({
        "uuid": pynvml.nvmlDeviceGetUUID(handle), "total": exact.total, "used": exact.used, "free": exact.free, "reserved": exact.reserved,
        "plain_used": plain.used, "minor": pynvml.nvmlDeviceGetMinorNumber(handle),
        "processes": {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)},
    })
print(json.dumps(cards))
"""

# CUDA calls as in C: `call` raises for an error code, `uuids` returns the visible devices.
CUDA = """
import ctypes, json, os, signal, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code: raise SystemExit(f"{name}: {code}")
def uuids():
    code = cuda.cuInit(0)
    if code: return code
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    uuids = []
    for ordinal in range(count.value):
        raw = (ctypes.c_ubyte * 16)()
        call("cuDeviceGetUuid_v2", raw, ordinal)
        uuids.append(bytes(raw).hex())
    return uuids
def context():
    call("cuInit", 0)
    made = ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(made), 0)
    call("cuCtxSetCurrent", made)
def allocate(size):
    address = ctypes.c_uint64()
    return cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)), address
"""

# For each line [mask or null, order or null], prints what a process that starts CUDA with it sees.
MASKS = (
    CUDA
    + """
for line in sys.stdin:
    mask, order = json.loads(line)
    if not (child := os.fork()):
        if mask is not None: os.environ["CUDA_VISIBLE_DEVICES"] = mask
        if order is not None: os.environ["CUDA_DEVICE_ORDER"] = order
        print(json.dumps(uuids()), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
)


def digits(uuid: str) -> str:
    return uuid.split("-", 1)[1].replace("-", "")


# ── sharing ──


def test_a_process_sees_the_memory_of_another(node: MakeNode, run_python: RunPython) -> None:
    made = node("24GiB", SimulatedCard(total="24GiB", reserved="512MiB", used="1GiB"))
    service = made.start("4GiB", load_seconds=0)
    service.wait_for("loaded")
    first, second = json.loads(run_python(LOOK, made.environment))
    assert (first["total"], first["used"], first["free"]) == (24 * GIB, 4 * GIB, 20 * GIB)
    assert first["processes"] == {str(service.pid): 4 * GIB}
    assert (second["used"], second["plain_used"], second["reserved"]) == (1 * GIB, 1 * GIB + 512 * MIB, 512 * MIB)
    assert second["total"] == second["used"] + second["reserved"] + second["free"]
    assert made.used(0) == 4 * GIB
    assert made.processes(0) == {service.pid: 4 * GIB}
    made.set_used(1, "3GiB")
    assert json.loads(run_python(LOOK, made.environment))[1]["used"] == 3 * GIB


def test_a_context_costs_memory(node: MakeNode) -> None:
    made = node("24GiB", context="500MiB")
    made.start(0, load_seconds=0).wait_for("loaded")
    assert made.used(0) == 500 * MIB


def test_a_service_grows_and_ends_at_sigterm(node: MakeNode) -> None:
    made = node("24GiB")
    service = made.start("4GiB", load_seconds=0.05, grow_to="6GiB", grow_after=0.05)
    assert service.wait_for("loaded")["held_bytes"] == 4 * GIB
    assert service.wait_for("grown")["held_bytes"] == 6 * GIB
    assert made.used(0) == 6 * GIB
    service.terminate()
    assert service.wait(10) == 0
    assert made.used(0) == 0


def test_a_full_card_has_no_room(node: MakeNode) -> None:
    made = node("24GiB")
    made.start("20GiB", load_seconds=0).wait_for("loaded")
    newcomer = made.start("5GiB", load_seconds=0)
    assert newcomer.wait_for("out of memory")["held_bytes"] > 0
    assert newcomer.wait(10) == 77
    assert "out of memory" in newcomer.stderr.read()  # type: ignore[union-attr]
    assert made.used(0) == 20 * GIB


def test_a_service_that_cannot_load_is_an_error_with_the_reason(node: MakeNode) -> None:
    made = node("24GiB")
    with pytest.raises(Failed, match="exit code 77 before the event 'loaded'"):
        made.start("25GiB", load_seconds=0).wait_for("loaded")


def test_of_many_services_as_many_load_as_have_room(node: MakeNode) -> None:
    made = node("24GiB")
    services = [made.start("4GiB", load_seconds=0, steps=1) for _ in range(12)]
    ends = []
    for service in services:
        line = json.loads(service.stdout.readlines(1)[0])  # type: ignore[union-attr]
        assert line["event"] == "started"
        ends.append(json.loads(service.stdout.readline())["event"])  # type: ignore[union-attr]
    # The context of another service can take the memory that the last one needs, as on a real card.
    assert ends.count("loaded") in (5, 6)
    assert set(ends) == {"loaded", "out of memory"}
    for service, end in zip(services, ends, strict=True):
        if end == "out of memory":
            service.wait(10)
    assert made.used(0) == ends.count("loaded") * 4 * GIB


def test_freed_memory_is_free(node: MakeNode, run_python: RunPython) -> None:
    made = node("24GiB")
    output = run_python(
        CUDA
        + """
context()
for _ in range(50):
    code, address = allocate(20 << 30)
    assert code == 0
    assert allocate(20 << 30)[0] == 2
    call("cuMemFree_v2", address)
assert cuda.cuMemFree_v2(address) == 1
left, total = ctypes.c_size_t(), ctypes.c_size_t()
call("cuMemGetInfo_v2", ctypes.byref(left), ctypes.byref(total))
call("cuDevicePrimaryCtxRelease", 0)
assert allocate(1)[0] == 201
text = ctypes.c_char_p()
call("cuGetErrorString", 2, ctypes.byref(text))
print(left.value, total.value, text.value.decode())
""",
        made.environment,
    )
    assert output.split(maxsplit=2) == [str(24 * GIB - 300 * MIB), str(24 * GIB), "out of memory\n"]
    assert made.used(0) == 0


# ── death ──


def test_a_killed_process_holds_nothing(node: MakeNode) -> None:
    made = node("24GiB")
    service = made.start("20GiB", load_seconds=0)
    service.wait_for("loaded")
    service.kill()
    service.wait()
    assert made.used(0) == 0
    assert made.start("20GiB", load_seconds=0).wait_for("loaded")["held_bytes"] == 20 * GIB


def test_a_forked_child_owns_nothing_and_cannot_use_cuda(node: MakeNode) -> None:
    made = node("24GiB")
    script = (
        CUDA
        + """
context()
assert allocate(4 << 30)[0] == 0
if not os.fork():
    os.write(1, f"{os.getpid()} {cuda.cuInit(0)} {allocate(1)[0]}\\n".encode())
    sys.stdin.read()
    os._exit(0)
os.write(1, f"{os.getpid()} parent\\n".encode())
signal.pause()
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=made.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        lines = [parent.stdout.readline().split(), parent.stdout.readline().split()]
        child = next(line for line in lines if line[1] != "parent")
        assert child[1:] == ["3", "3"]
        assert made.processes(0) == {parent.pid: 4 * GIB + 300 * MIB}
        parent.kill()
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
        os.kill(int(child[0]), 0)
        assert made.used(0) == 0


def test_a_process_that_execs_frees_its_memory(node: MakeNode) -> None:
    made = node("24GiB")
    script = CUDA + 'context(); allocate(4 << 30); os.execvp("sh", ["sh", "-c", "echo there; read line"])'
    with subprocess.Popen(
        [sys.executable, "-c", script], env=made.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        assert made.used(0) == 0
        process.communicate("done\n")


HAMMER = (
    CUDA
    + """
context()
print("ready", flush=True)
while True:
    code, address = allocate(1 << 30)
    if code == 0: call("cuMemFree_v2", address)
"""
)


def test_processes_killed_at_random_times_leave_no_memory(node: MakeNode) -> None:
    made = node("24GiB")
    dice = random.Random(7)  # noqa: S311
    for _ in range(6):
        processes = [subprocess.Popen([sys.executable, "-c", HAMMER], env=made.environment, stdout=subprocess.PIPE) for _ in range(5)]
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        for process in dice.sample(processes, len(processes)):
            time.sleep(dice.uniform(0, 0.005))
            process.kill()
        for process in processes:
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        assert made.used(0) == 0
    assert made.start("24GiB", load_seconds=0).wait_for("loaded", timeout=5)


# A process that reads lines: a size to allocate, or the negative index of an allocation to free. It prints the code.
OBEDIENT = (
    CUDA
    + """
context()
addresses = []
print(0, flush=True)
for line in sys.stdin:
    what = int(line)
    if what > 0:
        code, address = allocate(what)
        if code == 0: addresses.append(address)
        print(code, flush=True)
    else:
        print(cuda.cuMemFree_v2(addresses.pop(-what)), flush=True)
"""
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["take", "take", "give", "kill"]), st.integers(1, 12 * GIB)), max_size=25)
)
def test_random_processes_hold_what_they_allocated(shared_node: testing.Node, steps: list[tuple[int, str, int]]) -> None:
    """Compare NVML with a model: 3 processes that allocate, free and are killed on a card of 24 GiB."""
    made = shared_node
    processes: dict[int, subprocess.Popen[str]] = {}
    model: dict[int, list[int]] = {}

    def tell(process: subprocess.Popen[str], what: int) -> int:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    try:
        for who, what, amount in steps:
            if who not in processes:
                processes[who] = subprocess.Popen(
                    [sys.executable, "-c", OBEDIENT], env=made.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                there = processes[who].stdout.readline()  # type: ignore[union-attr]
                room = sum(map(sum, model.values())) + 300 * MIB <= 24 * GIB
                assert (there == "0\n") == room
                if not room:
                    processes.pop(who).communicate()
                    continue
                model[who] = [300 * MIB]
            if what == "take":
                fits = sum(map(sum, model.values())) + amount <= 24 * GIB
                assert tell(processes[who], amount) == (0 if fits else 2)
                if fits:
                    model[who].append(amount)
            elif what == "give" and len(model[who]) > 1:
                place = amount % (len(model[who]) - 1)
                assert tell(processes[who], -place) == 0
                del model[who][1 + place]
            elif what == "kill":
                process = processes.pop(who)
                process.kill()
                process.communicate()
                del model[who]
            assert made.processes(0) == {process.pid: sum(model[who]) for who, process in processes.items()}
            assert made.used(0) == sum(map(sum, model.values()))
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    assert made.used(0) == 0


@pytest.fixture
def shared_node(node: MakeNode) -> testing.Node:
    """One node for all examples of a property."""
    return node("24GiB")


# ── which devices ──


@pytest.fixture
def mixed(node: MakeNode) -> testing.Node:
    """CUDA's order is 2, 0, 1, 3."""
    return node(
        SimulatedCard(total="24GiB"),
        SimulatedCard(total="24GiB"),
        SimulatedCard(total="80GiB", name="NVIDIA H100", compute_capability=(9, 0)),
        SimulatedCard(total="16GiB", name="Tesla T4", compute_capability=(7, 5)),
    )


@pytest.fixture
def seen(simulation: Path) -> Iterator[Callable[[testing.Node, str | None, str | None], list[str] | int]]:
    """What a process sees that starts CUDA with a mask and an order: the digits of UUIDs, or cuInit's code."""
    processes: dict[Path, subprocess.Popen[str]] = {}

    def ask(on: testing.Node, mask: str | None, order: str | None = None) -> list[str] | int:
        if on.directory not in processes:
            processes[on.directory] = subprocess.Popen(
                [sys.executable, "-c", MASKS], env=on.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = processes[on.directory]
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([mask, order]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())  # type: ignore[no-any-return]

    yield ask
    for process in processes.values():
        process.communicate()


def test_cuda_counts_the_fastest_first_by_default(mixed: testing.Node, seen: Callable[..., list[str] | int]) -> None:
    uuids = [digits(card.uuid or "") for card in mixed.cards]
    assert seen(mixed, None) == [uuids[index] for index in (2, 0, 1, 3)]
    assert seen(mixed, None, "FASTEST_FIRST") == [uuids[index] for index in (2, 0, 1, 3)]
    assert seen(mixed, None, "PCI_BUS_ID") == uuids
    assert seen(mixed, "0") == [uuids[2]]
    assert seen(mixed, "0", "PCI_BUS_ID") == [uuids[0]]


def test_the_mask_is_read_as_cuda_reads_it(mixed: testing.Node, seen: Callable[..., list[str] | int]) -> None:
    cards = [card.uuid or "" for card in mixed.cards]
    no_device = 100
    for mask, expected in {
        "": no_device,
        "-1": no_device,
        "0,1": [0, 1],
        "1,-1,0": [1],
        "3,9,0": [3],
        "0,0": no_device,
        "0,9,0": no_device,
        "1,2,1": no_device,
        " 1, 2": [1, 2],
        "1x,2": [1, 2],
        "none": no_device,
        cards[3]: [3],
        f"{cards[3]},{cards[0]}": [3, 0],
        cards[3][:12]: [3],
        f"{cards[3][:12]},{cards[3]}": no_device,
        "GPU-": no_device,  # ambiguous
        f"{cards[1]},GPU-nobody,{cards[0]}": [1],
        f"{cards[1]},0": [1],
        f"0,{cards[1]}": [0],
    }.items():
        wanted = expected if isinstance(expected, int) else [digits(cards[index]) for index in expected]
        assert seen(mixed, mask, "PCI_BUS_ID") == wanted, mask


@pytest.fixture(scope="module")
def as_torch_reads_it() -> Callable[[str, list[str]], list[int]]:
    """torch's own parser of CUDA_VISIBLE_DEVICES, which it uses before it starts CUDA."""
    torch_cuda = pytest.importorskip("torch.cuda", reason="torch is not installed")

    def read(mask: str, uuids: list[str]) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", mask)
            entries = torch_cuda._parse_visible_devices()
        if entries and isinstance(entries[0], str):
            return list(torch_cuda._transform_uuid_to_ordinals(entries, uuids))
        inside = [index for index, entry in enumerate(entries) if entry >= len(uuids)]
        return list(entries[: inside[0]] if inside else entries)

    return read


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_mask_is_read_as_torch_reads_it(
    mixed: testing.Node,
    seen: Callable[..., list[str] | int],
    as_torch_reads_it: Callable[[str, list[str]], list[int]],
    data: st.DataObject,
) -> None:
    cards = [card.uuid or "" for card in mixed.cards]
    uuid = st.sampled_from(cards).flatmap(lambda whole: st.integers(4, len(whole)).map(lambda length: whole[:length]))
    index = st.from_regex(r"\A ?[0-9]{1,2}[a-z]?\Z") | st.integers(-2, 6).map(str)
    mask = ",".join(data.draw(st.lists(index | uuid | st.sampled_from(["", "GPU-x", "none"]), min_size=0, max_size=5)))
    expected = [digits(cards[at]) for at in as_torch_reads_it(mask, cards)]
    assert seen(mixed, mask, "PCI_BUS_ID") == (expected or 100)


# ── MIG ──


def test_a_card_is_divided_into_instances(node: MakeNode, run_python: RunPython, seen: Callable[..., list[str] | int]) -> None:
    made = node(SimulatedCard(total="80GiB", name="NVIDIA A100", compute_capability=(8, 0)), "24GiB")
    first, second = made.mig(0, ["10GiB", "40GiB"])
    assert first.startswith("MIG-")
    card, other = (card.uuid or "" for card in made.cards)
    # A process gets a single instance, and no other device.
    assert seen(made, None) == [digits(first)]
    for mask, expected in {
        first: first,
        second: second,
        f"{second},{first}": second,
        f"MIG-{card}/2/0": second,
        "0": first,
        card: first,
        "0,1": first,
        other: other,
        "1,0": first,
    }.items():
        assert seen(made, mask, "PCI_BUS_ID") == [digits(expected)], mask
    service = made.start("8GiB", load_seconds=0, environment={**made.environment, "CUDA_VISIBLE_DEVICES": second})
    service.wait_for("loaded")
    assert (made.used(first), made.used(second), made.used(0)) == (0, 8 * GIB, 8 * GIB)
    output = run_python(
        """
import json, pynvml
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
parts = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index) for index in range(2)]
try: pynvml.nvmlDeviceGetUtilizationRates(card)
except pynvml.NVMLError_NotSupported: busy = None
try: whole = pynvml.nvmlDeviceGetMemoryInfo(card).used
except pynvml.NVMLError_NotSupported: whole = None
process, = pynvml.nvmlDeviceGetComputeRunningProcesses(parts[1])
print(json.dumps([pynvml.nvmlDeviceGetMigMode(card), whole, busy, [pynvml.nvmlDeviceGetMemoryInfo(part).total for part in parts],
    pynvml.nvmlDeviceGetName(parts[0]), process.gpuInstanceId,
    pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(parts[0]))]))
""",
        made.environment,
    )
    assert json.loads(output) == [[1, 1], 8 * GIB, None, [10 * GIB, 40 * GIB], "NVIDIA A100 MIG 1g.10gb", 2, card]
    with pytest.raises(UsageError, match="in use"):
        made.mig(0, [])


def test_a_container_does_not_see_the_memory_of_a_card_with_mig(node: MakeNode, run_python: RunPython) -> None:
    made = node("80GiB", "24GiB")
    _, second = made.mig(0, ["10GiB", "40GiB"])
    output = run_python(
        """
import json, pynvml
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
try: whole = pynvml.nvmlDeviceGetMemoryInfo(card).used
except pynvml.NVMLError_NotSupported: whole = None
print(json.dumps([pynvml.nvmlDeviceGetCount(), whole, pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, 0))]))
""",
        made.view([second]),
    )
    assert json.loads(output) == [1, None, second]


def test_a_card_with_mig_and_without_instances_is_not_a_device(node: MakeNode, seen: Callable[..., list[str] | int]) -> None:
    made = node("80GiB", "24GiB")
    made.mig(0, [])
    assert seen(made, None) == [digits(made.cards[1].uuid or "")]


# ── views ──


def test_a_container_sees_its_cards_renumbered(node: MakeNode, run_python: RunPython) -> None:
    made = node(*["24GiB"] * 6)
    service = made.start("4GiB", load_seconds=0, environment=made.view([3, 5]))
    service.wait_for("loaded")
    first, second = json.loads(run_python(LOOK, made.view([3, 5])))
    assert (first["uuid"], second["uuid"]) == (made.cards[3].uuid, made.cards[5].uuid)
    assert (first["minor"], second["minor"]) == (3, 5)
    assert first["processes"] == {str(service.pid): 4 * GIB}
    hidden, _ = json.loads(run_python(LOOK, made.view([3, 5], hide_pids=True)))
    assert (hidden["used"], hidden["processes"]) == (4 * GIB, {})
    bare, _ = json.loads(run_python(LOOK, made.view([3, 5], hide_process_memory=True)))
    assert bare["processes"] == {str(service.pid): None}
    assert json.loads(run_python(LOOK, made.view([]))) == []


def test_pids_are_of_the_nodes_namespace(node: MakeNode, run_python: RunPython) -> None:
    made = node("24GiB")
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("unshare makes no pid namespaces here")
    script = CUDA + "context(); allocate(4 << 30); print(os.getpid(), flush=True); signal.pause()"
    with subprocess.Popen([*inside, sys.executable, "-c", script], env=made.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "1\n"
        (pid,) = made.processes(0)
        assert Path(f"/proc/{pid}/stat").read_text().split()[3] == str(process.pid)
        (card,) = json.loads(run_python(LOOK, made.environment))
        assert card["processes"] == {str(pid): 4 * GIB + 300 * MIB}
        process.kill()  # --kill-child: the kernel ends what is inside
        process.wait()
        deadline = time.monotonic() + 10
        while made.used(0):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_processes_of_other_users_share_the_node(simulation: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        libraries = shutil.copytree(simulation, folder / "libraries")
        with testing.Node(["24GiB"], directory=folder / "node") as made:
            (folder / "node").chmod(0o755)
            script = CUDA + 'context(); allocate(4 << 30); print("there", flush=True); signal.pause()'
            environment = {**made.environment, "LD_LIBRARY_PATH": str(libraries)}
            python = Path(os.path.realpath(sys.executable))
            start = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(python), "-c", script]
            with subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                assert process.stdout
                if process.stdout.readline() != "there\n":
                    pytest.skip(f"another user cannot run this Python: {process.communicate()[1].strip()[-200:]}")
                assert made.processes(0) == {process.pid: 4 * GIB + 300 * MIB}
                process.kill()
    finally:
        shutil.rmtree(folder)


# ── faults ──

CODES = """
import json, pynvml
def code(call, *arguments, **options):
    try: return call(*arguments, **options) and 0
    except pynvml.NVMLError as error: return error.value
begun = code(pynvml.nvmlInit)
print(json.dumps([begun] if begun else [code(pynvml.nvmlDeviceGetHandleByIndex, 0) or [
    code(pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlDeviceGetHandleByIndex(0)) or 0,
    code(pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlDeviceGetHandleByIndex(0), version=pynvml.nvmlMemory_v2) or 0,
], code(pynvml.nvmlDeviceGetHandleByIndex, 1) or 0]))
"""


def test_any_call_can_fail(node: MakeNode, run_python: RunPython) -> None:
    made = node("24GiB", "24GiB")

    def codes() -> list[object]:
        return json.loads(run_python(CODES, made.environment))  # type: ignore[no-any-return]

    assert codes() == [[0, 0], 0]
    made.fault(0, "nvmlDeviceGetMemoryInfo", code=3)
    assert codes() == [[3, 3], 0]
    made.restore(0)
    made.fault(0, "nvmlDeviceGetMemoryInfo", code=999, times=1)
    assert codes() == [[999, 0], 0]
    made.lose(0)
    assert codes() == [15, 0]
    made.restore(0)
    made.fault(None, "nvmlDeviceGetHandleByIndex", code=4)
    assert codes() == [4, 4]
    made.fail_init(18)
    assert codes() == [18]
    made.restore()
    assert codes() == [[0, 0], 0]


def test_a_hanging_call_hangs_until_the_card_is_restored(node: MakeNode) -> None:
    made = node("24GiB")
    made.fault(0, "nvmlDeviceGetMemoryInfo", delay_ms=600_000)
    script = """
import pynvml
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
print("asks", flush=True)
print(pynvml.nvmlDeviceGetMemoryInfo(card).total)
"""
    with subprocess.Popen([sys.executable, "-c", script], env=made.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        made.restore(0)
        assert process.stdout.readline() == f"{24 * GIB}\n"


def test_a_process_that_started_cuda_has_the_device_open(node: MakeNode, run_python: RunPython) -> None:
    made = node("24GiB")
    script = CUDA + 'call("cuInit", 0); print(*[os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")])'
    assert str(made.directory / "nvidia-uvm") in run_python(script, made.environment).split()


def test_faults_of_cuda(node: MakeNode, seen: Callable[..., list[str] | int]) -> None:
    made = node("24GiB", "24GiB")
    made.lose(0)
    assert seen(made, None) == [digits(made.cards[1].uuid or "")]
    made.restore()
    made.fault(0, "cuMemAlloc", code=999)
    assert made.start("4GiB", load_seconds=0).wait(10) == 1
    made.fault(None, "cuInit", code=999)
    assert seen(made, None) == 999
    made.restore()
    made.fail_init(9)
    assert seen(made, None) == 100
    made.fail_init(18)
    assert seen(made, None) == 803


def test_unsupported_values_of_a_card(node: MakeNode, run_python: RunPython) -> None:
    made = node(SimulatedCard(memory_supported=False, utilisation=None, temperature=None, power_watts=None, ecc_errors=None))
    script = """
import pynvml as n
n.nvmlInit()
card = n.nvmlDeviceGetHandleByIndex(0)
for call in (n.nvmlDeviceGetMemoryInfo, n.nvmlDeviceGetUtilizationRates, n.nvmlDeviceGetPowerUsage, n.nvmlDeviceGetEccMode,
             lambda card: n.nvmlDeviceGetTemperature(card, 0),
             lambda card: n.nvmlDeviceGetTotalEccErrors(card, 1, 0), n.nvmlDeviceGetMigMode):
    try: print(call(card))
    except n.NVMLError_NotSupported: pass
"""
    assert run_python(script, made.environment) == ""


def test_set_condition(node: MakeNode, run_python: RunPython) -> None:
    made = node("24GiB")
    made.set_condition(0, utilisation=77, temperature=88, power_watts=66.5, ecc_errors=5)
    script = """
import pynvml as n
n.nvmlInit()
card = n.nvmlDeviceGetHandleByIndex(0)
print(n.nvmlDeviceGetUtilizationRates(card).gpu, n.nvmlDeviceGetTemperature(card, 0), n.nvmlDeviceGetPowerUsage(card))
print(n.nvmlDeviceGetTotalEccErrors(card, 1, 0))
"""
    assert run_python(script, made.environment).split() == ["77", "88", "66500", "5"]


def test_without_the_node_there_is_no_driver(node: MakeNode, run_python: RunPython) -> None:
    environment = node("24GiB").environment
    del environment["MLOPS_SIMULATED_NODE"]
    assert json.loads(run_python(CODES, environment)) == [9]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda node: node.used(2), "no card 2"),
        (lambda node: node.used("GPU-nobody"), "no card or MIG instance GPU-nobody"),
        (lambda node: node.fault(0, "nvmlDeviceGetMemory", code=1), "no function 'nvmlDeviceGetMemory'"),
        (lambda node: node.mig(0, ["20GiB", "20GiB"]), "larger than card 0"),
        (lambda node: node.set_used(0, "lots"), "'lots' is not an amount of memory"),
        (lambda node: testing.Node(["24GiB"], directory=node.directory), "there is one"),
        (lambda _: testing.Node([SimulatedCard(uuid="MIG-1")]), "MIG-1 is not the UUID of a card"),
        (lambda node: node.close() or node.used(0), "closed"),
    ],
)
def test_a_mistake_is_an_error_with_the_reason(node: MakeNode, wrong: Callable[[testing.Node], object], says: str) -> None:
    made = node("24GiB")
    with pytest.raises(UsageError, match=says) as refused:
        wrong(made)
    assert refused.value.remedy


# ── building it, and running a command on it ──


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_concurrent_processes_build_it_once_without_a_warning(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, simulation: Path) -> None:
    monkeypatch.setenv("CC", "gcc -Wall -Wextra -Werror")
    with ThreadPoolExecutor(2) as threads:
        folders = {made.result() for made in [threads.submit(testing.libraries) for _ in range(2)]}
    (folder,) = folders
    assert sorted(path.name for path in folder.iterdir()) == ["libcuda.so.1", "libnvidia-ml.so.1", "libsimulatednode.so"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setenv("PATH", "")
    assert testing.libraries() == folder


def test_a_missing_compiler_is_an_error_with_a_remedy(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(testing.NoCompiler, match="neither gcc nor cc") as refused:
        testing.libraries()
    assert "apt-get install gcc" in (refused.value.remedy or "")


def test_the_output_of_the_compiler_is_shown(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, simulation: Path) -> None:
    monkeypatch.setenv("CC", "gcc -include no-such-header.h")
    with pytest.raises(testing.BuildFailed, match=r"no-such-header\.h"):
        testing.libraries()
    assert [path for path in fresh_cache.rglob("*") if path.is_file()] == []


def test_a_command_runs_on_a_node(simulation: Path) -> None:
    program = [sys.executable, "-m", "mlops_build.gpu.testing"]
    done = subprocess.run(
        [*program, "--card", "2x24GiB", "--card", "48GiB", "--service", "4GiB", "--", sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # cuda:0 is the fastest card, which is not NVML's first.
    assert [(card["total"] // GIB, card["used"] // GIB) for card in json.loads(done.stdout)] == [(24, 0), (24, 0), (48, 4)]
    assert subprocess.run([*program, "--", "sh", "-c", "exit 9"], timeout=60, check=False).returncode == 9
    refused = subprocess.run([*program, "--", "no-such-program"], capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    refused = subprocess.run([*program, "--card", "2x24", "--", "true"], capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, "'2x24' has no unit" in refused.stderr) == (2, True)


def test_a_node_ends_its_services(simulation: Path) -> None:
    with testing.Node(["24GiB"]) as made:
        service = made.start("4GiB", load_seconds=0)
        service.wait_for("loaded")
        service.send_signal(signal.SIGSTOP)
        assert made.used(0) == 4 * GIB
    assert service.returncode == -signal.SIGKILL
    assert not made.directory.exists()


def test_each_command_of_the_page_prints_the_shown_output(tmp_path: Path, simulation: Path) -> None:
    if not (Path(sys.executable).parent / "gpustat").exists():
        pytest.skip("gpustat is not installed")
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # importing this environment's plugins takes a second
    page = ROOT / "docs/how-to/test-a-gpu-service-without-a-card.md"
    console.check(page.read_text(), tmp_path, environment, at_least=2)
