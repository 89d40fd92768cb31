"""The simulated node, used by many real processes, as NVML and CUDA show it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_build.errors import Failed, UsageError
from mlops_build.gpu import testing
from mlops_build.gpu.testing import SimulatedCard
from tests.e2e import console
from tests.gpu.conftest import ROOT, MakeNode, RunPython
from tests.gpu.holder import Script, Start, started

GIB = 2**30
MIB = 2**20

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

# CUDA reads its mask once, so each mask is for a process of its own.
MASKS = (
    CUDA
    + """
for mask in json.load(sys.stdin):
    if not (child := os.fork()):
        os.environ["CUDA_DEVICE_ORDER"] = sys.argv[1]
        if mask is not None: os.environ["CUDA_VISIBLE_DEVICES"] = mask
        print(json.dumps(uuids()), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
)


def digits(uuid: str) -> str:
    return uuid.split("-", 1)[1].replace("-", "")


def cuda_sees(node: testing.Node, masks: Iterable[str | None], order: str = "PCI_BUS_ID") -> list[list[str] | int]:
    """What a process sees that starts CUDA with each mask: the digits of UUIDs, or cuInit's code."""
    done = subprocess.run(
        [sys.executable, "-c", MASKS, order],
        env=node.environment,
        input=json.dumps(list(masks)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


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


def test_a_service_loads_grows_and_is_refused_on_a_full_card(node: MakeNode) -> None:
    made = node("24GiB", context="500MiB")
    service = made.start("14GiB", load_seconds=0.05, grow_to="20GiB", grow_after=0.05)
    assert service.wait_for("loaded")["held_bytes"] == 14 * GIB
    assert service.wait_for("grown")["held_bytes"] == 20 * GIB
    assert made.used(0) == 20 * GIB, "with its context"
    newcomer = made.start("5GiB", load_seconds=0)
    with pytest.raises(Failed, match="exit code 77 before the event 'loaded'"):
        newcomer.wait_for("loaded")
    assert made.used(0) == 20 * GIB
    service.terminate()
    assert service.wait(10) == 0
    assert made.used(0) == 0


# ── death ──


def test_a_forked_child_owns_nothing_and_cannot_use_cuda(node: MakeNode, start: Start) -> None:
    made = node("24GiB")
    script = """
context()
assert allocate(4 << 30)[0] == 0
if not os.fork():
    os.write(1, f"{os.getpid()} {cuda.cuInit(0)} {allocate(1)[0]}\\n".encode())
    sys.stdin.read()
    os._exit(0)
signal.pause()
"""
    parent = start(CUDA + script, made.environment)
    child, *codes = parent.line().split()
    assert codes == ["3", "3"]
    assert made.processes(0) == {parent.pid: 4 * GIB + 300 * MIB}
    parent.kill()
    os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
    os.kill(int(child), 0)
    assert made.used(0) == 0


def test_a_process_that_execs_frees_its_memory(node: MakeNode, start: Start) -> None:
    made = node("24GiB")
    script = 'context(); allocate(4 << 30); os.execvp("sh", ["sh", "-c", "echo there; read line"])'
    assert start(CUDA + script, made.environment).line() == "there"
    assert made.used(0) == 0


# It reads lines: a size to allocate, or the negative index of an allocation to free. It prints the code.
OBEDIENT = """
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
STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["take", "take", "give", "kill"]), st.integers(1, 12 * GIB)), max_size=25)


@pytest.mark.usefixtures("simulation")
@settings(max_examples=15, deadline=None)
@given(steps=STEPS)
def test_random_processes_hold_what_they_allocated(steps: list[tuple[int, str, int]]) -> None:
    """Compare NVML with a model: 3 processes that allocate, free and are killed on a card of 24 GiB."""
    processes: dict[int, Script] = {}
    model: dict[int, list[int]] = {}

    def has_room(amount: int) -> bool:
        return sum(map(sum, model.values())) + amount <= 24 * GIB

    with testing.Node(["24GiB"]) as made, started() as start:
        for who, what, amount in steps:
            if who not in processes:
                process = start(CUDA + OBEDIENT, made.environment)
                if not has_room(300 * MIB):
                    assert process.stdout.readline() != "0\n"
                    continue
                assert process.line() == "0"
                processes[who], model[who] = process, [300 * MIB]
            if what == "take":
                processes[who].tell(str(amount))
                assert processes[who].line() == ("0" if has_room(amount) else "2")
                model[who] += [amount] if has_room(amount) else []
            elif what == "give" and len(model[who]) > 1:
                place = amount % (len(model[who]) - 1)
                processes[who].tell(str(-place))
                assert processes[who].line() == "0"
                del model[who][1 + place]
            elif what == "kill":
                processes[who].kill()
                processes.pop(who).wait()
                del model[who]
            assert made.processes(0) == {process.pid: sum(model[who]) for who, process in processes.items()}
            assert made.used(0) == sum(map(sum, model.values()))


# ── MIG ──

# The use of the whole card and its instances; then what only the host is told.
PARTS = """
import json, pynvml
pynvml.nvmlInit()
def supported(call, *arguments):
    try: return call(*arguments)
    except pynvml.NVMLError: return None
card = pynvml.nvmlDeviceGetHandleByIndex(0)
parts = [part for index in range(2) if (part := supported(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card, index))]
memory = supported(pynvml.nvmlDeviceGetMemoryInfo, card)
shown = [memory and memory.used, [pynvml.nvmlDeviceGetUUID(part) for part in parts]]
if memory:
    shown += [pynvml.nvmlDeviceGetMigMode(card), pynvml.nvmlDeviceGetName(parts[0]), supported(pynvml.nvmlDeviceGetUtilizationRates, card)]
print(json.dumps(shown))
"""


def test_a_card_is_divided_into_instances(node: MakeNode, run_python: RunPython) -> None:
    made = node(SimulatedCard(total="80GiB", name="NVIDIA A100", compute_capability=(8, 0)), "24GiB")
    first, second = made.mig(0, ["10GiB", "40GiB"])
    assert first.startswith("MIG-")
    card, other = (card.uuid or "" for card in made.cards)
    # A process gets a single instance, and no other device.
    masks = {first: first, second: second, f"{second},{first}": second, f"MIG-{card}/2/0": second}
    masks |= {"0": first, card: first, "0,1": first, other: other, "1,0": first}
    assert cuda_sees(made, masks) == [[digits(expected)] for expected in masks.values()]
    service = made.start("8GiB", load_seconds=0, environment={**made.environment, "CUDA_VISIBLE_DEVICES": second})
    service.wait_for("loaded")
    assert (made.used(first), made.used(second), made.used(0)) == (0, 8 * GIB, 8 * GIB)
    assert json.loads(run_python(PARTS, made.environment)) == [8 * GIB, [first, second], [1, 1], "NVIDIA A100 MIG 1g.10gb", None]
    assert json.loads(run_python(PARTS, made.view([second]))) == [None, [second]], "a container does not see the whole card's use"
    with pytest.raises(UsageError, match="in use"):
        made.mig(0, [])
    empty = node("80GiB", "24GiB")
    empty.mig(0, [])
    assert cuda_sees(empty, [None]) == [[digits(empty.cards[1].uuid or "")]], "a divided card without instances is not a device"


# ── faults ──


def test_faults_of_cuda(node: MakeNode) -> None:
    made = node("24GiB", "24GiB")
    made.lose(0)
    assert cuda_sees(made, [None]) == [[digits(made.cards[1].uuid or "")]]
    made.restore()
    made.fault(0, "cuMemAlloc", code=999)
    assert made.start("4GiB", load_seconds=0).wait(10) == 1
    made.fault(None, "cuInit", code=999)
    assert cuda_sees(made, [None]) == [999]
    made.restore()
    for code, of_cuda in ((9, 100), (18, 803)):
        made.fail_init(code)
        assert cuda_sees(made, [None]) == [of_cuda]


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
