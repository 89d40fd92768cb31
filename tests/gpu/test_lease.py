"""gpu.lease() in real processes on a simulated node: choice, promise, mask, refusal, waiting, end."""

import json
import os
import signal
import sys

from mlops_build import gpu
from mlops_build.gpu import testing
from tests.gpu.holder import HOLDER
from tests.gpu.nodes import GIB, promises

DONE = {"done": True}
HOLD_THE_LOCK = """
import sys
from mlops_build.gpu.ledger import Ledger
with Ledger.open().turn():
    print("{}", flush=True)
    sys.stdin.read()
"""
FAKE_TORCH = "from types import SimpleNamespace as Fake; torch = sys.modules['torch'] = Fake(cuda=Fake(is_initialized=lambda: True))"


def promised(node: testing.Node) -> dict[str, int]:
    """Bytes promised on each card."""
    sums: dict[str, int] = {}
    for promise in promises(node):
        for uuid in promise.uuids:
            sums[uuid] = sums.get(uuid, 0) + promise.bytes
    return sums


def uuids(node: testing.Node) -> list[str]:
    return [card.uuid for card in node.cards]


def test_a_process_sees_only_the_card_that_it_leased(node, lease) -> None:
    machine = node("24GiB", "24GiB")
    first = lease(machine.environment, memory="4GiB", service="ranker")
    second = lease(machine.environment, memory="4GiB")
    (a,), (b,) = first.answer["uuids"], second.answer["uuids"]
    assert {a, b} == set(uuids(machine)), "spread: on different cards"
    assert first.answer["mask"] == a
    assert first.answer["order"] == "PCI_BUS_ID"
    assert promised(machine) == {a: 4 * GIB, b: 4 * GIB}
    assert first.do("lease.release(); say(mask=os.environ.get('CUDA_VISIBLE_DEVICES'))")["mask"] is None
    assert promised(machine) == {b: 4 * GIB}
    second.kill()
    second.wait()
    assert promised(machine) == {}


def test_no_room_gives_the_reason_for_each_card(node, lease) -> None:
    machine = node(
        "24GiB",
        testing.SimulatedCard(total="24GiB", name="NVIDIA A10", used="23GiB"),
        testing.SimulatedCard(memory_supported=False),
        "2GiB",
    )
    lease(machine.environment, memory="20GiB", service="ranker")
    refused = lease(machine.environment, memory="10GiB").answer
    assert (refused["error"], refused["code"]) == ("NoRoom", 6)
    lines = refused["message"].splitlines()
    assert "10.0 GiB" in lines[0]
    for uuid, why in zip(
        uuids(machine), ["promised to ranker", "23.0 GiB counted for processes without a lease", "memory", "2.0 GiB in total"], strict=True
    ):
        (line,) = [line for line in lines if uuid in line]
        assert why in line
    assert "wait=" in refused["remedy"]


def test_waiting_for_room_names_the_holder(node, lease) -> None:
    machine = node("10GiB")
    holder = lease(machine.environment, memory="8GiB", service="ranker")
    script = HOLDER.replace("from mlops_build import gpu", "from mlops_build import gpu\nprogress = lambda text: say(waiting=text)")
    waiter = lease(machine.environment, script=script, memory="4GiB", wait=60, expression="{'progress': progress}")
    assert "promised to ranker" in waiter.answer["waiting"]
    holder.kill()
    assert json.loads(waiter.line())["uuids"] == uuids(machine)


def test_waiting_is_bounded_and_skipped_if_it_cannot_help(node, lease) -> None:
    machine = node("10GiB")
    lease(machine.environment, memory="8GiB")
    assert lease(machine.environment, memory="4GiB", wait=0.2).answer["message"].startswith("no room for 4.0 GiB:\n")
    assert lease(machine.environment, memory="4GiB", wait=1.1).answer["remedy"].startswith("wait longer (wait=120, --wait 120)")
    never = lease(machine.environment, memory="11GiB", wait=600)  # waiting would exceed the test's timeout
    assert never.answer["error"] == "NoRoom"
    assert "waiting does not help" in never.answer["remedy"]


def test_the_cpu_is_used_only_on_request_and_with_a_warning(node, lease) -> None:
    machine = node("4GiB")
    assert lease(machine.environment, memory="8GiB").answer["error"] == "NoRoom"
    allowed = lease(machine.environment, memory="8GiB", otherwise="cpu")
    assert (allowed.answer["cpu"], allowed.answer["mask"], allowed.answer["uuids"]) == (True, "", [])
    assert "using the CPU (otherwise: cpu): no room for 8.0 GiB:\n" in allowed.end()
    machine.fail_init(9)
    gone = lease(machine.environment, memory="1GiB").answer
    assert (gone["error"], gone["code"]) == ("NoDriver", 5)
    allowed = lease(machine.environment, memory="1GiB", otherwise="cpu")
    assert allowed.answer["cpu"]
    assert "using the CPU (otherwise: cpu)" in allowed.end()


def test_an_existing_mask_is_respected_and_restored(node, lease) -> None:
    machine = node("24GiB", "24GiB", "24GiB")
    second = uuids(machine)[1]
    holder = lease(machine.environment | {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, memory="1GiB")
    assert holder.answer["uuids"] == [second]
    assert holder.answer["mask"] == second
    assert holder.do("lease.release(); say(mask=os.environ['CUDA_VISIBLE_DEVICES'])")["mask"] == "1"
    for mask in ("", "-1"):
        refused = lease(machine.environment | {"CUDA_VISIBLE_DEVICES": mask}, memory="1GiB", wait=600).answer
        assert refused["error"] == "NoRoom"
        assert f"hidden by CUDA_VISIBLE_DEVICES={mask!r}" in refused["message"]


def test_two_cards_at_once(node, lease) -> None:
    machine = node("8GiB", "8GiB", "8GiB")
    pair = lease(machine.environment, memory="6GiB", count=2)
    assert pair.answer["mask"] == ",".join(pair.answer["uuids"])
    assert promised(machine) == dict.fromkeys(pair.answer["uuids"], 6 * GIB)
    refused = lease(machine.environment, memory="6GiB", count=2).answer
    assert "2 cards are requested" in refused["message"]


def test_exclusive(node, lease) -> None:
    machine = node("24GiB", testing.SimulatedCard(total="24GiB", used="1GiB"))
    alone = lease(machine.environment, memory="1GiB", exclusive=True, service="trainer")
    assert alone.answer["uuids"] == uuids(machine)[:1]
    assert "an exclusive card is requested" in lease(machine.environment, memory="1GiB", exclusive=True).answer["message"]
    other = lease(machine.environment, memory="1GiB", uuids=[uuids(machine)[0]]).answer
    assert "trainer has an exclusive lease" in other["message"]
    assert lease(machine.environment, memory="1GiB").answer["uuids"] == uuids(machine)[1:]


def test_a_mig_instance(node, lease) -> None:
    machine = node(testing.SimulatedCard(total="40GiB", name="NVIDIA A100", mig_capable=True))
    parts = machine.mig(0, ["10GiB", "10GiB"])
    first, second = (lease(machine.environment, memory="8GiB").answer["mask"] for _ in range(2))
    assert {first, second} == {part if isinstance(part, str) else part.uuid for part in parts}
    assert "divided by MIG" in lease(machine.environment, memory="8GiB").answer["message"]
    assert "only one of them" in lease(machine.environment, memory="1GiB", count=2).answer["message"]


def test_refused_once_cuda_is_started(node, lease) -> None:
    """Uses a stand-in for torch, which is built without CUDA here."""
    refused = lease(node("24GiB").environment, script=f"import sys; {FAKE_TORCH}\n{HOLDER}", memory="1GiB").answer
    assert (refused["error"], refused["code"]) == ("CudaStarted", 4)
    assert "before" in refused["remedy"]


def test_a_second_call_releases_the_first_lease(node, lease) -> None:
    """As a cell of a notebook that runs again does."""
    machine = node("24GiB")
    holder = lease(machine.environment, memory="20GiB")
    assert holder.do("lease = gpu.lease('22GiB')") == DONE
    assert promised(machine) == {uuids(machine)[0]: 22 * GIB}
    assert holder.do("lease.release(); lease = gpu.lease('2GiB')") == DONE
    assert holder.do("lease.release(); lease.release()") == DONE
    assert "the earlier lease of this process is released" in holder.end()


def test_a_second_call_below_gpu_run_keeps_the_shared_lease_without_a_warning(node, lease) -> None:
    machine = node("24GiB")
    wrapper = [sys.executable, "-m", "mlops_build", "gpu", "run", "--memory", "20GiB", "--"]
    holder = lease(machine.environment, before=wrapper, memory="8GiB")
    assert holder.do("lease = gpu.lease('6GiB')") == DONE
    assert promised(machine) == {uuids(machine)[0]: 20 * GIB}
    assert "released" not in holder.end()


def test_a_lease_ends_with_its_block_and_its_last_reference(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="20GiB")
    for end in ("with lease: pass", "del lease", "lease = None"):
        assert holder.do(end) == DONE
        assert promised(machine) == {}
        assert holder.do("say(mask=os.environ.get('CUDA_VISIBLE_DEVICES'))") == {"mask": None}
        assert holder.do("lease = gpu.lease('20GiB')") == DONE
    assert holder.do("again = gpu.lease('40GiB')")["error"] == "NoRoom"
    assert holder.do(FAKE_TORCH) == DONE
    released = holder.do("lease.device")  # without the mask, cuda:0 would be a card that is not reserved
    assert (released["error"], released["remedy"]) == ("Released", "call gpu.lease again")


def test_a_lease_without_a_reference_stays_while_its_memory_is_used(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="20GiB")
    assert holder.do(f"{FAKE_TORCH}; del lease") == DONE
    assert promised(machine) == {uuids(machine)[0]: 20 * GIB}


def test_a_forked_child_does_not_end_its_parents_lease(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="1GiB")
    assert holder.do("child = os.fork() or (lease.release(), os._exit(0)); os.waitpid(child, 0)") == DONE
    assert promised(machine) == {uuids(machine)[0]: GIB}


def test_invalid_arguments_are_refused_with_a_remedy(node, lease) -> None:
    holder = lease(node("24GiB").environment, memory="1GiB")
    budgets = [{"memory": memory} for memory in ("4GB", 0, "2", 8, -5)]
    others = ({"count": 0}, {"wait": -1}, {"otherwise": "tpu"}, {"strategy": "best"}, {"names": "A100"})
    for wrong in (*budgets, *({"memory": "1GiB"} | other for other in others)):
        refused = holder.do(f"gpu.lease(**{wrong!r})")
        assert refused["code"] == 2, wrong
        assert refused["remedy"], wrong


def test_the_budget_is_from_the_environment_or_four_gibibytes_with_a_warning(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment)
    assert promised(machine) == {uuids(machine)[0]: 4 * GIB}
    assert "4.0 GiB are assumed" in (warning := holder.end())
    assert "MLOPS_GPU_MEMORY" in warning
    environment = machine.environment | {"MLOPS_GPU_MEMORY": "6GiB"}
    holder = lease(environment)
    assert promised(machine) == {uuids(machine)[0]: 6 * GIB}
    assert lease(environment, memory="2GiB").end() == holder.end() == ""
    assert "MLOPS_GPU_MEMORY is '6G'" in lease(machine.environment | {"MLOPS_GPU_MEMORY": "6G"}).answer["message"]


def test_filters_and_a_custom_strategy(node, lease) -> None:
    big, busy, old = (
        testing.SimulatedCard(total="80GiB", name="NVIDIA A100-SXM4-80GB", compute_capability=(8, 0)),
        testing.SimulatedCard(total="24GiB", utilisation=90),
        testing.SimulatedCard(total="16GiB", name="Tesla T4", compute_capability=(7, 5)),
    )
    machine = node(big, busy, old)
    first, second, third = uuids(machine)
    holder = lease(machine.environment, memory="1GiB")
    own = "lambda cards, request, rng: sorted(cards, key=lambda card: card.name == 'NVIDIA L4', reverse=True)"
    for filters, chosen in (
        ("names=['*t4*']", third),
        (f"uuids=['{second[:20]}']", second),
        ("strategy='pack', max_utilisation=50, min_compute_capability=(8, 0)", first),
        ("strategy='pack'", third),
        ("strategy='WORST_FIT'", first),
        (f"strategy={own}", second),
    ):
        answer = holder.do(f"lease.release(); lease = gpu.lease('1GiB', {filters}); say(uuids=lease.uuids)")
        assert answer["uuids"] == [chosen], filters


def test_a_stopped_holder_of_the_lock_blocks_no_other(node, lease) -> None:
    machine = node("8GiB")
    lease(machine.environment, script=HOLD_THE_LOCK).send_signal(signal.SIGSTOP)
    got = [lease(machine.environment, memory="6GiB") for _ in range(2)]
    assert ["uuids" in holder.answer for holder in got] == [True, False], "no memory is promised twice"
    assert promised(machine) == {uuids(machine)[0]: 6 * GIB}


def test_a_process_stopped_while_deciding_promises_no_memory_that_others_took(node, lease) -> None:
    """It chose before it was stopped. Others stopped waiting for its lock, and decided without the lock."""
    machine = node("8GiB")
    pauses = """
import sys
from mlops_build import gpu
search = sys.modules["mlops_build.gpu.search"].Search
choose = search._choose
def choose_and_pause(self, *arguments):
    chosen = choose(self, *arguments)
    if search._choose is choose_and_pause:
        search._choose = choose
        print("{}", flush=True)
        sys.stdin.readline()
    return chosen
search._choose = choose_and_pause
"""
    stopped = lease(machine.environment, script=pauses + HOLDER, memory="6GiB")
    quick = lease(machine.environment, memory="6GiB")
    assert quick.answer["uuids"] == uuids(machine)
    stopped.tell("go on")
    assert json.loads(stopped.line())["error"] == "NoRoom"
    assert promised(machine) == {uuids(machine)[0]: 6 * GIB}


def test_a_process_stopped_after_its_promise_reads_the_cards_again(node, lease) -> None:
    """A service without a lease takes the memory meanwhile."""
    machine = node("24GiB")
    pauses = """
import sys
from mlops_build import gpu
search = sys.modules["mlops_build.gpu.search"]
search.FRESH_SECONDS = 0.0
settled = search.Search._settled
def settle_later(self, *arguments):
    print("{}", flush=True)
    sys.stdin.readline()
    return settled(self, *arguments)
search.Search._settled = settle_later
"""
    stopped = lease(machine.environment, script=pauses + HOLDER, memory="16GiB")
    machine.set_used(0, "20GiB")
    stopped.tell("go on")
    assert json.loads(stopped.line())["error"] == "NoRoom"


def test_a_lock_that_cannot_be_used_does_not_make_decisions_unsafe(node, lease) -> None:
    machine = node("24GiB")
    (machine.directory / "leases" / "lock").mkdir()
    got = [lease(machine.environment, memory="15GiB") for _ in range(2)]
    assert ["uuids" in holder.answer for holder in got] == [True, False]
    assert promised(machine) == {uuids(machine)[0]: 15 * GIB}


def test_a_child_that_is_forked_while_another_thread_waits_can_lease(node, lease) -> None:
    machine = node("24GiB", "2GiB")  # the waiting request keeps the larger card
    holder = lease(machine.environment, memory="20GiB", otherwise="cpu")
    waiter = lease(machine.environment, memory="1GiB", otherwise="cpu")
    assert not holder.answer["cpu"]
    waiter.do("lease.release()")
    waiter.do("import threading; threading.Thread(target=gpu.lease, args=['20GiB'], kwargs={'wait': 600}, daemon=True).start()")
    fork = (
        "child = os.fork() or (gpu.lease('1GiB'), os._exit(7)); code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]); say(code=code)"
    )
    assert waiter.do(fork) == {"code": 7}


def test_an_interrupt_leaves_no_promise(node, lease) -> None:
    machine = node("8GiB")
    interrupted = """
import sys
from mlops_build import gpu
def interrupt(*_): raise KeyboardInterrupt
sys.modules["mlops_build.gpu.search"].Search._record = interrupt
"""
    script = interrupted + HOLDER.replace(
        "except MlopsBuildError as error:", "except KeyboardInterrupt:\n    say(interrupted=True)\n    sys.stdin.read()", 1
    )
    script = script.split("    say(error=type(error).__name__, code")[0]
    assert lease(machine.environment, script=script, memory="6GiB").answer == {"interrupted": True}
    assert promised(machine) == {}


def test_there_is_no_warning_about_the_lease_directory_without_a_driver(lease, tmp_path) -> None:
    """Without cards there is no choice that the missing directory could affect."""
    nowhere = {"LD_LIBRARY_PATH": str(tmp_path), "MLOPS_GPU_LEASE_DIR": str(tmp_path / "absent")}
    held = lease({**os.environ, **nowhere}, memory="1GiB", otherwise="cpu")
    assert held.answer["uuids"] == []
    errors = held.end()
    assert "libnvidia-ml.so.1 is not found" in errors
    assert "lease directory" not in errors


def test_the_errors_that_the_documentation_names_can_be_caught() -> None:
    assert {gpu.CudaStarted, gpu.Nested, gpu.Released, gpu.NoRoom, gpu.NoDriver} <= {getattr(gpu, name) for name in gpu.__all__}
