"""A simulated node: its cards, their faults, views from containers, and services that run on it."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from mlops_build.errors import UsageError
from mlops_build.gpu.testing.build import libraries
from mlops_build.gpu.testing.card import NAMESPACE, SimulatedCard, complete, in_bytes
from mlops_build.gpu.testing.control import control
from mlops_build.gpu.testing.started import SimulatedService

_SERVICE = Path(__file__).with_name("service.py")
_ANY = -1


class Node:
    """A machine with cards, until the end of the `with` block or `close`.

    cards: a SimulatedCard, or its memory as text, for each card. directory: for the node's files, created if missing; by default a
    temporary one. context: memory that a process's first allocation on a card costs additionally, like a CUDA context. Raises NoCompiler,
    BuildFailed (see `libraries`) and UsageError.

    Methods accept a card's NVML index on the node or its UUID. A MIG instance has only a UUID.
    """

    def __init__(
        self,
        cards: Sequence[SimulatedCard | str],
        *,
        directory: Path | str | None = None,
        context: int | str = "300MiB",
        driver_version: str = "580.65.06",
        cuda_version: int = 13000,
    ) -> None:
        self.libraries = libraries()
        self.cards: tuple[SimulatedCard, ...] = tuple(complete(card, index) for index, card in enumerate(cards))
        self._own_directory = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="simulated-node-") if directory is None else directory).absolute()
        self.context_bytes = in_bytes(context)
        self._services: list[SimulatedService] = []
        self._devices: dict[str, int] = {}
        self._parts: dict[int, list[str]] = {}
        self._control = control(self.libraries / "libsimulatednode.so")
        self._make_directory()
        self._node: int | None = self._control.control_create(
            os.fsencode(self._state), self.context_bytes, driver_version.encode(), cuda_version
        )
        if not self._node:
            raise UsageError(
                f"a node cannot be created in {self.directory}: there is one already, or the folder is not writable",
                remedy="use an empty, writable folder",
            )
        for index, card in enumerate(self.cards):
            self._add(card, _ANY, f"00000000:{0x17 + index:02X}:00.0", f"{1650000000000 + index}")

    @property
    def _state(self) -> Path:
        return self.directory / "node.state"

    def _make_directory(self) -> None:
        leases = self.directory / "leases"
        leases.mkdir(parents=True, exist_ok=True)
        leases.chmod(0o1777)
        (self.directory / "mlops-gpu.toml").touch()
        (self.directory / "nvidia-uvm").touch(mode=0o666)  # a process that has started CUDA holds it open

    def _add(self, card: SimulatedCard, parent: int, bus_id: str, serial: str) -> int:
        assert card.uuid  # noqa: S101  (set by `complete`)
        if card.uuid in self._devices:
            raise UsageError(f"two cards have the UUID {card.uuid}", remedy="omit uuid, or use different ones")
        device: int = self._control.control_add(
            self._node, parent, card.uuid.encode(), card.name.encode(), bus_id.encode(), serial.encode()
        )
        if device < 0:
            raise UsageError("a simulated node has at most 128 cards and MIG instances", remedy="use fewer")
        self._devices[card.uuid] = device
        numbers: dict[str, int | None] = {
            "total": in_bytes(card.total),
            "reserved": in_bytes(card.reserved),
            "external": in_bytes(card.used),
            "memory_supported": card.memory_supported,
            "mig_capable": card.mig_capable,
            "major": card.compute_capability[0],
            "minor": card.compute_capability[1],
            "speed": card.speed,
            "utilisation": card.utilisation,
            "temperature": card.temperature,
            "power": None if card.power_watts is None else int(card.power_watts * 1000),
            "power_limit": None if card.power_limit_watts is None else int(card.power_limit_watts * 1000),
            "ecc_errors": card.ecc_errors,
            "multiprocessors": card.multiprocessors,
            "compute_mode": card.compute_mode,
        }
        for name, value in numbers.items():
            self._set(device, name, -1 if value is None else int(value))
        self._control.control_show(self._node)
        return device

    def _set(self, device: int, name: str, value: int) -> None:
        if self._control.control_set(self._node, device, name.encode(), value) != 0:
            raise UsageError(f"a simulated card has no {name!r}")

    def _device(self, card: int | str) -> int:
        if self._node is None:
            raise UsageError("this node is closed", remedy="use it inside its `with` block")
        if isinstance(card, str):
            if card not in self._devices:
                raise UsageError(f"the node has no card or MIG instance {card}", remedy=f"it has {', '.join(self._devices)}")
            return self._devices[card]
        if not 0 <= card < len(self.cards):
            raise UsageError(f"the node has no card {card}", remedy=f"its cards are 0 to {len(self.cards) - 1}")
        return card

    # ── processes on the node ──

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, changed for processes on the node (`env=`): with the libraries in LD_LIBRARY_PATH, the node's own
        lease directory and (empty) mlops-gpu.toml, and without a mask."""
        environment = {name: value for name, value in os.environ.items() if name not in _FROM_OUTSIDE}
        others = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(self.libraries), *([others] if others else [])])
        environment["MLOPS_SIMULATED_NODE"] = str(self._state)
        environment["MLOPS_GPU_LEASE_DIR"] = str(self.directory / "leases")
        environment["MLOPS_GPU_CONFIG"] = str(self.directory / "mlops-gpu.toml")
        return environment

    def view(
        self, cards: Sequence[int | str] | None = None, *, hide_pids: bool = False, hide_process_memory: bool = False
    ) -> dict[str, str]:
        """The environment of a container on the node.

        cards: the cards in the container, which NVML and CUDA renumber from 0 as in a real container (the /dev/nvidia numbers stay); None:
        all. With the UUID of a MIG instance it has only that instance, and does not see the memory of the whole card. hide_pids: list no
        processes, like a driver that cannot see other pid namespaces. hide_process_memory: list them without their memory, as under WSL.
        """
        environment = self.environment
        if cards is not None:
            for card in cards:
                self._device(card)
            environment["MLOPS_SIMULATED_CARDS"] = ",".join(str(card) for card in cards)
        if hide_pids or hide_process_memory:
            environment["MLOPS_SIMULATED_PIDS"] = "hidden" if hide_pids else "without-memory"
        return environment

    def start(
        self,
        memory: int | str,
        *,
        load_seconds: float = 0.2,
        steps: int = 4,
        grow_to: int | str | None = None,
        grow_after: float = 0.0,
        ordinal: int = 0,
        name: str = "service",
        environment: Mapping[str, str] | None = None,
    ) -> SimulatedService:
        """Start a process of a service that hardcodes `cuda:<ordinal>` (mlops_build.gpu.testing.service).

        memory: its memory once loaded, including its context; allocated in `steps` over load_seconds. grow_to: its memory grow_after
        seconds later. name: appears in its command line. Its stdout is a pipe: see `SimulatedService.wait_for`. It ends at SIGTERM with
        exit code 0, and without memory with 77. `close` ends it, too.
        """
        command = [sys.executable, "-IS", str(_SERVICE), "--memory", str(in_bytes(memory)), "--name", name]
        command += ["--load-seconds", str(load_seconds), "--steps", str(steps), "--ordinal", str(ordinal)]
        if grow_to is not None:
            command += ["--grow-to", str(in_bytes(grow_to)), "--grow-after", str(grow_after)]
        started = SimulatedService(
            command,
            env=dict(self.environment if environment is None else environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._services.append(started)
        return started

    # ── the state of the cards ──

    def used(self, card: int | str) -> int:
        """Bytes in use as in NVML's version 2 (without the reserved part), including the use of the card's MIG instances."""
        return int(self._control.control_used(self._handle(), self._device(card)))

    def processes(self, card: int | str) -> dict[int, int]:
        """Bytes by pid for the live processes on the card. Pids are of this process's pid namespace."""
        pids, amounts = (ctypes.c_int32 * 1024)(), (ctypes.c_int64 * 1024)()
        count = self._control.control_processes(self._handle(), self._device(card), pids, amounts, 1024)
        by_pid: dict[int, int] = {}
        for pid, amount in zip(pids[:count], amounts[:count], strict=True):
            by_pid[pid] = by_pid.get(pid, 0) + amount
        return by_pid

    def set_used(self, card: int | str, memory: int | str) -> None:
        """Set the memory in use that belongs to no process: bytes, or text such as "3GiB"."""
        self._set(self._device(card), "external", in_bytes(memory))

    def set_condition(
        self,
        card: int | str,
        *,
        utilisation: int | None = None,
        temperature: int | None = None,
        power_watts: float | None = None,
        ecc_errors: int | None = None,
    ) -> None:
        """Set utilisation (%), temperature (°C), power (W) or uncorrected ECC errors. None leaves a value unchanged."""
        power = None if power_watts is None else int(power_watts * 1000)
        for name, value in {"utilisation": utilisation, "temperature": temperature, "power": power, "ecc_errors": ecc_errors}.items():
            if value is not None:
                self._set(self._device(card), name, value)

    def mig(self, card: int, instances: Sequence[int | str]) -> list[str]:
        """Turn MIG on, divide the card into instances of these sizes, and return their UUIDs. A card with MIG and no instances cannot be
        used. Raises UsageError while processes use the card, like the driver."""
        device = self._device(card)
        whole = self.cards[device]
        if self.processes(card):
            raise UsageError(f"card {card} is in use", remedy="end its processes before you turn MIG on")
        if sum(in_bytes(size) for size in instances) > in_bytes(whole.total) - in_bytes(whole.reserved):
            raise UsageError(f"the instances are larger than card {card}", remedy="use smaller instances")
        for removed in self._parts.pop(device, []):
            self._set(self._devices.pop(removed), "parent", -2)
        self._set(device, "mig_capable", 1)
        self._set(device, "mig_mode", 1)
        self._parts[device] = [self._part(whole, device, number, size) for number, size in enumerate(instances)]
        return list(self._parts[device])

    def _part(self, whole: SimulatedCard, parent: int, number: int, size: int | str) -> str:
        amount = in_bytes(size)
        share = max(1, round(7 * amount / in_bytes(whole.total)))
        part = replace(
            whole,
            uuid=f"MIG-{uuid.uuid5(NAMESPACE, f'{whole.uuid} {number} {amount}')}",
            name=f"{whole.name} MIG {share}g.{round(amount / 2**30)}gb",
            total=amount,
            used=0,
            reserved=0,
        )
        device = self._add(part, parent, "", "")
        self._set(device, "gpu_instance", number + 1)
        self._set(device, "compute_instance", 0)
        assert part.uuid  # noqa: S101
        return part.uuid

    # ── faults ──

    def fault(self, card: int | str | None, call: str = "*", *, code: int = 0, delay_ms: int = 0, times: int | None = None) -> None:
        """Let a call about this card return `code` after delay_ms, also in processes that already run.

        card: None means every card, and calls without a card such as nvmlDeviceGetCount or cuInit. call: a function's name, with or without
        `_v2` or `_v3`; "*" means every NVML call about the card. code: NVML's, or CUDA's for a function that starts with cu; 0: the normal
        result. times: the number of faulty calls; None: until `restore`.
        """
        device = _ANY if card is None else self._device(card)
        if call != "*" and not any(hasattr(self._control, call + version) for version in ("", "_v2", "_v3")):
            raise UsageError(f"the simulated libraries have no function {call!r}", remedy="use a name from nvml.h or cuda.h")
        if self._control.control_fault(self._handle(), device, call.encode(), code, delay_ms, -1 if times is None else times) != 0:
            raise UsageError("a simulated node has at most 256 faults", remedy="remove faults with restore()")

    def lose(self, card: int | str) -> None:
        """Let the card fall off the bus: every NVML call about it returns GPU_IS_LOST (15). A process that starts CUDA now does not see it,
        and one that uses it cannot allocate more memory (CUDA_ERROR_UNKNOWN)."""
        self.fault(card, code=15)

    def fail_init(self, code: int) -> None:
        """Let nvmlInit return this NVML code: 9 (driver not loaded), 18 (driver and library have different versions), 4 (no permission).
        cuInit then returns 100 (no device), with 18 it returns 803. 0 ends the fault."""
        self._control.control_init_code(self._handle(), code)

    def restore(self, card: int | str | None = None) -> None:
        """End the card's faults; without a card, all faults and `fail_init`. Calls that hang return."""
        if card is None:
            self.fail_init(0)
            self._control.control_restore(self._handle(), _ANY, 1)
        else:
            self._control.control_restore(self._handle(), self._device(card), 0)

    # ── the end ──

    def close(self) -> None:
        """End the services that `start` started, and remove the directory if it is a temporary one."""
        if self._node is None:
            return
        for started in self._services:
            started.terminate()
        for started in self._services:
            try:
                started.wait(2)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()
            for pipe in (started.stdout, started.stderr):
                if pipe:
                    pipe.close()
        self._control.control_close(self._node)
        self._node = None
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _handle(self) -> int:
        if self._node is None:
            raise UsageError("this node is closed", remedy="use it inside its `with` block")
        return self._node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


# Variables that would change which cards a process sees.
_FROM_OUTSIDE = {
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "MLOPS_SIMULATED_CARDS",
    "MLOPS_SIMULATED_PIDS",
}
