"""What NVML says about the cards: one reading for each card or MIG instance, or the trouble it is in.

NVML looks at a card without making a CUDA context on it, which torch would (300-500 MiB of the memory that is looked for). It is asked
from daemon threads: a card that has fallen off the bus may hang its caller in the kernel for minutes, and must not hang the others. The
functions and their errors: https://docs.nvidia.com/deploy/nvml-api/. Readings carry NVML's index, which is not CUDA's ordinal; only the
UUID names a card for certain (visible.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from types import TracebackType

from mlops_build.errors import NoRoom
from mlops_build.gpu import libnvml as nvml
from mlops_build.gpu.frozen import dataclass, replace

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from typing import Any, Self

SECONDS = 2.0  # what one look may take of a card, and starting NVML
QUICK_SECONDS = 0.2  # a healthy node's cards answer in a millisecond, and on an overloaded one more threads are no help


class Trouble(StrEnum):
    """Why a card cannot be chosen."""

    LOST = "lost"  # fallen off the bus (Xid 79)
    NO_MEMORY = "memory not supported"  # a Jetson or GB10 shares the host's memory; NVML does not say how much is the card's
    MIG_PARENT = "divided by MIG"  # only its instances can be used
    SLOW = "does not answer"
    DENIED = "permission denied"
    FAULT = "fault"


class DriverTrouble(StrEnum):
    """Why no card can be looked at."""

    NO_LIBRARY = "no library"
    NOT_LOADED = "driver not loaded"
    MISMATCH = "driver and library differ"
    DENIED = "permission denied"
    SLOW = "does not answer"
    FAULT = "fault"


REMEDIES = {
    DriverTrouble.NO_LIBRARY: "install the NVIDIA driver (in a container: the NVIDIA runtime, with the driver capability `utility`), or "
    "run on the CPU on purpose",
    DriverTrouble.NOT_LOADED: "load the kernel module (`modprobe nvidia`) and read `dmesg`, or run on the CPU on purpose",
    DriverTrouble.MISMATCH: "the driver was updated under a running kernel or container: reboot the node, or start the container again",
    DriverTrouble.DENIED: "let this user open /dev/nvidiactl and /dev/nvidia*, or run as one who may",
    DriverTrouble.SLOW: "the driver hangs: read `dmesg` for NVRM and Xid lines; a reset or a reboot may be needed",
    DriverTrouble.FAULT: "run `nvidia-smi`, and read `dmesg` for NVRM and Xid lines",
}


class NoDriver(NoRoom):
    """There is no NVIDIA driver here, or it does not answer. reason: which of the troubles it is."""

    def __init__(self, message: str, *, reason: DriverTrouble = DriverTrouble.FAULT, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy or REMEDIES[reason])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Process:
    """A process that uses a card. pid: as NVML says it, which is the host's. used_bytes: None where the driver does not say."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """One card, or one MIG instance. index: NVML's (an instance has its parent's). None is "not said".

    total_bytes: what can be used, without what the driver reserves; used_bytes: of that. processes: None where the driver does not say.
    trouble, why: why it cannot be chosen, and in words. utilisation: %. temperature: °C. power_watts: W. ecc_errors: uncorrected, since the
    driver was loaded. mig_parent: UUID of the card an instance is a part of; mig_instance: its GPU and compute instance's numbers.
    """

    uuid: str
    index: int
    name: str
    total_bytes: int | None = None
    used_bytes: int | None = None
    processes: tuple[Process, ...] | None = None
    trouble: Trouble | None = None
    why: str = ""
    utilisation: int | None = None
    temperature: int | None = None
    power_watts: float | None = None
    ecc_errors: int | None = None
    compute_capability: tuple[int, int] | None = None
    mig_parent: str | None = None
    mig_instance: tuple[int, int] | None = None
    bus_id: str | None = None


def read(full: bool = False) -> list[Reading]:
    """One look at every card, in NVML's order; `full` as in `Nvml.read`. Raises NoDriver."""
    with Nvml() as nvml:
        return nvml.read(full)


class Nvml:
    """NVML, kept started between looks. A context manager; not for use by several threads at once.

    seconds: what starting NVML, and one look at one card, may take. Entering raises NoDriver.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._fixed: dict[int, Reading] = {}  # by index, what never changes while NVML is started
        self._asked: dict[int, _Answer] = {}
        self._count: int | None = None  # NVML counts the cards when it is started
        self._worker: _Worker | None = None

    def __enter__(self) -> Self:
        self._ask(nvml.nvmlInit)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # A call that hangs still uses the library: stopping it under that call could hang or crash. The process' end does it.
        if all(answer.done() for answer in self._asked.values()):
            _Answer(nvml.nvmlShutdown).find().wait(time.monotonic() + self._seconds)
        if self._worker is not None:
            self._worker.end()
        self._fixed.clear()
        self._count = self._worker = None

    def read(self, full: bool = False, *, utilisation: bool = False) -> list[Reading]:
        """Every card in NVML's order, each MIG parent followed by its instances. At most `seconds` for all: they are asked side by side.

        full: temperature, power, ECC errors and utilisation, too; a decision needs only the rest, or `utilisation`. Raises NoDriver when no
        card can be asked; a card that cannot be read is a Reading with a trouble.
        """
        if self._count is None:
            self._count = int(self._ask(nvml.nvmlDeviceGetCount))
        count = self._count
        deadline = time.monotonic() + self._seconds
        # A card that has hung since an earlier look is neither asked again (a thread more at every look) nor waited for again.
        hanging = {index for index, answer in self._asked.items() if not answer.done()}
        fresh = [index for index in range(count) if index not in hanging]
        for index in fresh:
            self._asked[index] = _Answer(lambda index=index: self._card(index, full, utilisation or full))  # type: ignore[misc]
        self._find([self._asked[index] for index in fresh])
        return [reading for index in range(count) for reading in self._answered(index, 0 if index in hanging else deadline)]

    def _find(self, answers: Sequence[_Answer]) -> None:
        """Ask all the questions. One thread asks one after the other, a tenth of what a thread for each would take; where that is not
        quick, there are as many threads as questions that are left, so that one that hangs delays no other."""
        left = list(reversed(answers))

        def work() -> None:
            while True:
                try:
                    answer = left.pop()
                except IndexError:
                    return
                answer.ask()

        if (
            self._worker is not None
            and self._worker.busy
            and any(not answer.done() for answer in self._asked.values() if answer not in answers)
        ):
            self._worker.end()  # it hangs with a card
            self._worker = None
        try:
            self._worker = self._worker or _Worker()
        except RuntimeError:  # no thread is to be had (a container's limit of processes): ask here, unbounded
            work()
            return
        self._worker.do(work)
        soon = time.monotonic() + QUICK_SECONDS
        if not all(answer.wait(soon) for answer in answers):
            for _ in range(len(left)):
                _start(work)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """A question about the driver as a whole."""
        answer = _Answer(question).find()
        if not answer.wait(time.monotonic() + self._seconds):
            raise NoDriver(f"the NVIDIA driver does not answer within {self._seconds:g} s", reason=DriverTrouble.SLOW)
        if answer.error is None:
            return answer.value
        raise _driver_trouble(answer.error)

    def _answered(self, index: int, deadline: float) -> list[Reading]:
        answer = self._asked[index]
        if not answer.wait(deadline):
            return [self._troubled(index, Trouble.SLOW, f"does not answer within {self._seconds:g} s")]
        if answer.error is not None:
            return [self._troubled(index, *_trouble(answer.error))]
        return list(answer.value)

    def _troubled(self, index: int, trouble: Trouble, why: str) -> Reading:
        reading = self._fixed.get(index) or Reading(f"unknown-{index}", index, "unknown")
        return replace(reading, trouble=trouble, why=why)

    def _card(self, index: int, full: bool, utilisation: bool) -> list[Reading]:
        """Runs in another thread. Raises NVMLError."""
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if index not in self._fixed:
            self._fixed[index] = Reading(
                nvml.nvmlDeviceGetUUID(handle),
                index,
                nvml.nvmlDeviceGetName(handle),
                compute_capability=self._or_none(nvml.nvmlDeviceGetCudaComputeCapability, handle),
                bus_id=self._or_none(lambda: _text(nvml.nvmlDeviceGetPciInfo(handle).busId)),
            )
        fixed = self._fixed[index]
        divided = self._or_none(nvml.nvmlDeviceGetMigMode, handle)
        if divided and divided[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            instances = list(self._instances(handle, fixed))
            why = (
                f"divided by MIG into {len(instances)}; only its instances can be used"
                if instances
                else "divided by MIG, without instances"
            )
            return [self._sized(handle, replace(fixed, trouble=Trouble.MIG_PARENT, why=why), full, utilisation), *instances]
        reading = self._sized(handle, fixed, full, utilisation)
        if reading.trouble is None and self._or_none(nvml.nvmlDeviceGetComputeMode, handle) == nvml.NVML_COMPUTEMODE_PROHIBITED:
            why = "its compute mode is PROHIBITED: an administrator keeps processes off it (nvidia-smi --compute-mode)"
            reading = replace(reading, trouble=Trouble.DENIED, why=why)
        return [reading]

    def _instances(self, parent: Any, card: Reading) -> Iterator[Reading]:
        for number in range(self._or_none(nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
            except nvml.NVMLError:  # an empty place
                continue
            ids = (self._or_none(nvml.nvmlDeviceGetGpuInstanceId, handle), self._or_none(nvml.nvmlDeviceGetComputeInstanceId, handle))
            uuid = nvml.nvmlDeviceGetUUID(handle)
            name = self._or_none(nvml.nvmlDeviceGetName, handle) or card.name
            reading = replace(card, uuid=uuid, name=name, mig_parent=card.uuid, mig_instance=None if None in ids else ids)
            try:
                yield self._sized(handle, reading, False, False)
            except nvml.NVMLError as error:
                trouble, why = _trouble(error)
                yield replace(reading, trouble=trouble, why=why)

    def _sized(self, handle: Any, reading: Reading, full: bool, utilisation: bool) -> Reading:
        """The reading with its memory, its processes, and what else was asked for."""
        try:
            total, used = self._memory(handle)
        except nvml.NVMLError as error:
            if reading.trouble is not None:  # a MIG parent says nothing about its memory on some drivers
                return reading
            trouble, why = _trouble(error)
            if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                trouble, why = Trouble.NO_MEMORY, "NVML does not say how much memory it has (it shares the host's)"
            return replace(reading, trouble=trouble, why=why)
        reading = replace(reading, total_bytes=total, used_bytes=used, processes=self._processes(handle))
        if utilisation:
            rates = self._or_none(nvml.nvmlDeviceGetUtilizationRates, handle)
            reading = replace(reading, utilisation=None if rates is None else int(rates.gpu))
        if full:
            milliwatts = self._or_none(nvml.nvmlDeviceGetPowerUsage, handle)
            reading = replace(
                reading,
                temperature=self._or_none(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
                power_watts=None if milliwatts is None else milliwatts / 1000,
                ecc_errors=self._or_none(
                    nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                ),
            )
        return reading

    def _memory(self, handle: Any) -> tuple[int, int]:
        """(what can be used, what is used of it), bytes. Version 2 keeps what the driver reserves apart; version 1 counts it as used."""
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        except nvml.NVMLError as error:
            if error.value not in (nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_INVALID_ARGUMENT):
                raise
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return int(memory.total), int(memory.used)
        return int(memory.total - memory.reserved), int(memory.used)

    def _processes(self, handle: Any) -> tuple[Process, ...] | None:
        """Who uses it: compute, graphics, and clients of MPS. One process may be in two lists, and each then has all of its memory."""
        found: dict[int, int | None] = {}
        said = False
        for kind in ("Compute", "Graphics", "MPSCompute"):
            # Only the newest version by default: an older driver has _v2, and NVML does not fall back.
            for version in ("_v3", "_v2"):
                try:
                    listed = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}")(handle)
                except nvml.NVMLError as error:
                    if error.value == nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                        continue
                    break
                said = said or kind == "Compute"
                for one in listed:
                    known, used = found.get(one.pid), one.usedGpuMemory
                    found[int(one.pid)] = known if used is None else max(int(used), known or 0)
                break
        return tuple(Process(pid, used) for pid, used in sorted(found.items())) if said else None

    def _or_none(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What a card need not be able to say."""
        try:
            return question(*arguments)
        except nvml.NVMLError:
            return None


class _Answer:
    """The answer to come of a question asked in a thread that nobody waits for at the end of the process."""

    def __init__(self, question: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: Exception | None = None
        self._question = question
        self._arrived = threading.Lock()
        self._arrived.acquire()

    def find(self) -> Self:
        """Ask, in a thread of its own."""
        _start(self.ask)
        return self

    def ask(self) -> None:
        """Ask, in this thread."""
        try:
            self.value = self._question()
        except Exception as error:
            self.error = error  # for who waits: a name that is no UTF-8 is a card's fault, too
        self._arrived.release()

    def done(self) -> bool:
        return not self._arrived.locked()

    def wait(self, deadline: float) -> bool:
        """Whether it has come, waiting until then (time.monotonic) at most."""
        if not self._arrived.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        self._arrived.release()
        return True


class _Worker:
    """A thread that waits for work. Starting one instead takes its turn behind every busy process, and that under the decision's lock."""

    def __init__(self) -> None:
        self.busy = False
        self._work: list[Callable[[], None] | None] = []
        self._there = threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def do(self, work: Callable[[], None] | None) -> None:
        self._work.append(work)
        self._there.release()

    def end(self) -> None:
        """After what it has been given."""
        self.do(None)

    def _run(self) -> None:
        while True:
            self._there.acquire()
            work = self._work.pop(0)
            if work is None:
                return
            self.busy = True
            work()
            self.busy = False


def _start(work: Callable[[], None]) -> None:
    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError:  # no thread is to be had (a container's limit of processes): ask here, unbounded
        work()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _trouble(error: Exception) -> tuple[Trouble, str]:
    """A card's error as a trouble, and in words."""
    if not isinstance(error, nvml.NVMLError):
        return Trouble.FAULT, f"{type(error).__name__}: {error}"
    value = int(error.value)
    kinds = {
        nvml.NVML_ERROR_GPU_IS_LOST: (Trouble.LOST, "has fallen off the bus: reset the card or reboot the node"),
        nvml.NVML_ERROR_RESET_REQUIRED: (Trouble.LOST, "needs a reset (`nvidia-smi --gpu-reset`)"),
        nvml.NVML_ERROR_NO_PERMISSION: (Trouble.DENIED, "this user may not look at it"),
        nvml.NVML_ERROR_TIMEOUT: (Trouble.SLOW, "the driver gave up waiting for it"),
    }
    return kinds.get(value, (Trouble.FAULT, f"NVML: {error} ({value})"))


def _driver_trouble(error: Exception) -> NoDriver:
    if not isinstance(error, nvml.NVMLError):
        return NoDriver(f"the NVIDIA driver's library cannot be used: {error}")
    value = int(error.value)
    kinds = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: (DriverTrouble.NO_LIBRARY, "there is no NVIDIA driver here: libnvidia-ml.so.1 is not found"),
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: (DriverTrouble.NOT_LOADED, "the NVIDIA driver's kernel module is not loaded"),
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            DriverTrouble.MISMATCH,
            "the NVIDIA driver's library and kernel module are of two versions",
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (DriverTrouble.DENIED, "this user may not use the NVIDIA driver"),
        nvml.NVML_ERROR_TIMEOUT: (DriverTrouble.SLOW, "the NVIDIA driver gave up waiting"),
    }
    reason, message = kinds.get(value, (DriverTrouble.FAULT, f"the NVIDIA driver fails: {error} ({value})"))
    return NoDriver(message, reason=reason)
