"""The simulated node as Python sees it: its cards, their faults, views of it, and services that run on it."""

import ctypes
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlops_build.errors import Failed, UsageError
from mlops_build.gpu.testing import service
from mlops_build.gpu.testing.build import libraries

_ANY = -1
_NAMESPACE = uuid.UUID("8d3f7c52-2a54-4f0e-9d0e-6f1b1c6c9a11")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCard:
    """One card. Memory in bytes, or as text: "24GiB".

    total is what NVML calls so, with the `reserved` part that the driver keeps to itself; used belongs to no process. What is None, the
    card does not support (NVML's NotSupported). memory_supported=False is a Jetson or a GB10: no memory information at all. speed orders
    the cards for CUDA, which by default counts the fastest first; by default it follows compute capability, then memory. uuid by default
    follows from the card's place, so that a test sees the same ones in each run.
    """

    total: int | str = "24GiB"
    name: str = "NVIDIA L4"
    used: int | str = 0
    reserved: int | str = 0
    compute_capability: tuple[int, int] = (8, 9)
    uuid: str | None = None
    utilisation: int | None = 0  # %
    temperature: int | None = 40  # °C
    power_watts: float | None = 30.0
    power_limit_watts: float | None = 72.0
    ecc_errors: int | None = 0  # uncorrected
    memory_supported: bool = True
    mig_capable: bool = False
    speed: int | None = None
    multiprocessors: int = 58


class SimulatedService(subprocess.Popen[str]):
    """A process that `Node.start` started: a Popen that knows what the service says."""

    def wait_for(self, event: str, *, timeout: float = 20.0) -> dict[str, Any]:
        """Reads what the service says until it says `event` ("started", "loaded", "grown", "out of memory"), and returns that line.
        timeout in seconds. Raises Failed if the service ends or the time is over."""
        deadline = time.monotonic() + timeout
        while line := self._line(event, deadline):
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        self.wait(max(0.1, deadline - time.monotonic()))
        raise Failed(
            f"the simulated service {self.pid} ended with exit code {self.returncode} before it said {event!r}: "
            f"{self.stderr.read().strip() if self.stderr else ''}"
        )

    def _line(self, event: str, deadline: float) -> bytes:
        """The next line; b"" at the end. Byte by byte past Python's buffers, so that what select says is true."""
        assert self.stdout  # noqa: S101  (Node.start opens it)
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failed(f"the simulated service {self.pid} did not say {event!r} in time")
            byte = os.read(self.stdout.fileno(), 1)
            if not byte:
                return line
            line += byte
        return line


class Node:
    """A machine with cards, for as long as the `with` block (or until `close`). Not meant to be shared by threads.

    cards: each a SimulatedCard, or a text that says its memory. directory: where its files are, made if it is not there; a temporary one by
    default. context: what a process's first allocation on a card costs on top, as a CUDA context does. Raises NoCompiler, BuildFailed (see
    `libraries`) and UsageError.

    Every method that takes a card takes its NVML index on the node, or its UUID; a MIG instance has only a UUID.
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
        self._own_directory = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="simulated-node-") if directory is None else directory).absolute()
        self.libraries = libraries()
        self.cards: tuple[SimulatedCard, ...] = tuple(_complete(card, index) for index, card in enumerate(cards))
        self.context_bytes = _bytes(context)
        self._services: list[SimulatedService] = []
        self._devices: dict[str, int] = {}
        self._parts: dict[int, list[str]] = {}
        self._control = _control(self.libraries / "libsimulatednode.so")
        self._make_directory()
        self._node: int | None = self._control.control_create(
            os.fsencode(self._state), self.context_bytes, driver_version.encode(), cuda_version
        )
        if not self._node:
            raise UsageError(
                f"a node cannot be made in {self.directory}: there is one, or it is not writable", remedy="give it a folder of its own"
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
        (self.directory / "nvidia-uvm").touch(mode=0o666)  # what a process that started CUDA holds open

    def _add(self, card: SimulatedCard, parent: int, bus_id: str, serial: str) -> int:
        assert card.uuid  # noqa: S101  (_complete gave it)
        if card.uuid in self._devices:
            raise UsageError(f"two cards have the UUID {card.uuid}", remedy="leave uuid out, or give each its own")
        device: int = self._control.control_add(
            self._node, parent, card.uuid.encode(), card.name.encode(), bus_id.encode(), serial.encode()
        )
        if device < 0:
            raise UsageError("a simulated node has room for 128 cards and MIG instances", remedy="use fewer")
        self._devices[card.uuid] = device
        numbers: dict[str, int | None] = {
            "total": _bytes(card.total),
            "reserved": _bytes(card.reserved),
            "external": _bytes(card.used),
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

    # ── what processes are started with ──

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, changed so that a process started with it (`env=`) is on the node: the libraries on
        LD_LIBRARY_PATH, a lease directory and an mlops-gpu.toml (not there yet) of the node's own, and no mask from outside."""
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

        cards: those it was given, renumbered from 0 by NVML and CUDA as in a real container (their /dev/nvidia numbers stay); None: all.
        A MIG instance's UUID gives it that instance alone; of a card with MIG the container is not told the memory. hide_pids: no
        processes are listed, as where the driver cannot see other pid namespaces. hide_process_memory: they are listed without their
        memory, as under WSL.
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
        """Starts a service that hardcodes `cuda:<ordinal>`, as a process of its own (`python -m mlops_build.gpu.testing.service` says
        what it does).

        memory: what it holds once loaded, its context included; it is taken in `steps` over load_seconds. grow_to: what it holds grow_after
        seconds later. name is in its command line. Its stdout is a pipe: see `SimulatedService.wait_for`. It ends on SIGTERM with exit
        code 0, out of memory with 77; `close` ends it too.
        """
        command = [sys.executable, "-IS", service.__file__, "--memory", str(_bytes(memory)), "--name", name]
        command += ["--load-seconds", str(load_seconds), "--steps", str(steps), "--ordinal", str(ordinal)]
        if grow_to is not None:
            command += ["--grow-to", str(_bytes(grow_to)), "--grow-after", str(grow_after)]
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

    # ── what is on the cards ──

    def used(self, card: int | str) -> int:
        """Bytes in use, as NVML's version 2 counts them (without the reserved part); of a card with MIG, what its instances use."""
        return int(self._control.control_used(self._handle(), self._device(card)))

    def processes(self, card: int | str) -> dict[int, int]:
        """Bytes by pid, of the processes alive on the card. The pid is the one in this process's pid namespace."""
        pids, amounts = (ctypes.c_int32 * 1024)(), (ctypes.c_int64 * 1024)()
        count = self._control.control_processes(self._handle(), self._device(card), pids, amounts, 1024)
        found: dict[int, int] = {}
        for pid, amount in zip(pids[:count], amounts[:count], strict=True):
            found[pid] = found.get(pid, 0) + amount
        return found

    def set_used(self, card: int | str, memory: int | str) -> None:
        """Sets the memory in use that belongs to no process: bytes, or text such as "3GiB"."""
        self._set(self._device(card), "external", _bytes(memory))

    def set_utilisation(self, card: int | str, percent: int) -> None:
        self._set(self._device(card), "utilisation", percent)

    def set_temperature(self, card: int | str, celsius: int) -> None:
        self._set(self._device(card), "temperature", celsius)

    def set_power(self, card: int | str, watts: float) -> None:
        self._set(self._device(card), "power", int(watts * 1000))

    def set_ecc_errors(self, card: int | str, uncorrected: int) -> None:
        self._set(self._device(card), "ecc_errors", uncorrected)

    def mig(self, card: int, instances: Sequence[int | str]) -> list[str]:
        """Turns MIG on and cuts the card into instances of these sizes; returns their UUIDs. None at all is a card with MIG on that
        nobody can use. Raises UsageError while something runs on the card, as the driver would."""
        device = self._device(card)
        whole = self.cards[device]
        if self.processes(card):
            raise UsageError(f"card {card} is in use", remedy="end its processes before MIG is set")
        if sum(_bytes(size) for size in instances) > _bytes(whole.total) - _bytes(whole.reserved):
            raise UsageError(f"the instances are larger than card {card}", remedy="make them smaller")
        for gone in self._parts.pop(device, []):
            self._set(self._devices.pop(gone), "parent", -2)
        self._set(device, "mig_capable", 1)
        self._set(device, "mig_mode", 1)
        self._parts[device] = [self._part(whole, device, number, size) for number, size in enumerate(instances)]
        return list(self._parts[device])

    def _part(self, whole: SimulatedCard, parent: int, number: int, size: int | str) -> str:
        amount = _bytes(size)
        share = max(1, round(7 * amount / _bytes(whole.total)))
        part = replace(
            whole,
            uuid=f"MIG-{uuid.uuid5(_NAMESPACE, f'{whole.uuid} {number} {amount}')}",
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

    # ── what goes wrong ──

    def fault(self, card: int | str | None, call: str = "*", *, code: int = 0, delay_ms: int = 0, times: int | None = None) -> None:
        """From now on this call about this card answers `code` (NVML's, or CUDA's for a call that begins with cu), or as usual if that is
        0, after delay_ms. Processes that run already meet it too.

        call: a function's name; with or without its `_v2` or `_v3` is the same; "*" is every NVML call that names the card. card None:
        every card, and calls that name none, such as nvmlDeviceGetCount or cuInit. times: how often it strikes before all is well again.
        """
        device = _ANY if card is None else self._device(card)
        if self._control.control_fault(self._handle(), device, call.encode(), code, delay_ms, -1 if times is None else times) != 0:
            raise UsageError("a simulated node has room for 256 faults", remedy="restore() ends some")

    def lose(self, card: int | str) -> None:
        """The card has fallen off the bus: every NVML call about it answers GPU_IS_LOST (15), a process that starts CUDA now does not get
        it, and one that is on it can allocate no more (CUDA_ERROR_UNKNOWN)."""
        self.fault(card, code=15)

    def fail_init(self, code: int) -> None:
        """Nobody gets past nvmlInit, which answers with this NVML code: 9 is a driver that is not loaded, 18 one of another version than
        the library, 4 no permission. cuInit finds no device (100), or with 18 says 803. 0 ends it."""
        self._control.control_init_code(self._handle(), code)

    def restore(self, card: int | str | None = None) -> None:
        """Ends the card's faults, or every fault there is and `fail_init`. A call that hangs returns."""
        if card is None:
            self.fail_init(0)
            self._control.control_restore(self._handle(), _ANY, 1)
        else:
            self._control.control_restore(self._handle(), self._device(card), 0)

    # ── the end ──

    def close(self) -> None:
        """Ends the services that `start` started, and removes the directory if it was a temporary one."""
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


# What would put a process elsewhere than on the node as it is.
_FROM_OUTSIDE = {
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "MLOPS_SIMULATED_CARDS",
    "MLOPS_SIMULATED_PIDS",
}


def _bytes(amount: int | str) -> int:
    if isinstance(amount, int):
        return amount
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]iB?)?", amount)
    if not match:
        raise UsageError(f"{amount!r} is not an amount of memory", remedy="write a number and KiB, MiB, GiB or TiB, such as 4GiB")
    return int(float(match[1]) * {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[match[2][0]]) if match[2] else int(match[1])


def _complete(card: SimulatedCard | str, index: int) -> SimulatedCard:
    if isinstance(card, str):
        card = SimulatedCard(total=card)
    if card.uuid is not None and not card.uuid.startswith("GPU-"):
        raise UsageError(f"{card.uuid} is not the UUID of a card", remedy="begin it with GPU-")
    speed = card.speed
    if speed is None:
        speed = (card.compute_capability[0] * 100 + card.compute_capability[1]) * 2**20 + _bytes(card.total) // 2**20
    return replace(card, uuid=card.uuid or f"GPU-{uuid.uuid5(_NAMESPACE, str(index))}", speed=speed)


def _control(library: Path) -> ctypes.CDLL:
    """The library by its path: LD_LIBRARY_PATH counts only for processes that start with it, and this one should not be on the node."""
    control = ctypes.CDLL(str(library))
    pointer, text, integer, wide = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64
    for name, result, arguments in (
        ("control_create", pointer, (text, wide, text, integer)),
        ("control_close", None, (pointer,)),
        ("control_add", integer, (pointer, integer, text, text, text, text)),
        ("control_show", None, (pointer,)),
        ("control_set", integer, (pointer, integer, text, wide)),
        ("control_init_code", None, (pointer, integer)),
        ("control_fault", integer, (pointer, integer, text, integer, integer, integer)),
        ("control_restore", None, (pointer, integer, integer)),
        ("control_used", wide, (pointer, integer)),
        ("control_processes", integer, (pointer, integer, ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(wide), integer)),
    ):
        function = getattr(control, name)
        function.restype, function.argtypes = result, arguments
    return control
