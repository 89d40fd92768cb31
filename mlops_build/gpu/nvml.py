"""Read the cards through NVML: a reading for each card or MIG instance.

NVML reads a card without creating a CUDA context on it; torch would create one (300-500 MiB). The calls run in daemon threads, since a call
about a card that has fallen off the bus can hang in the kernel for minutes, and must not delay the other cards. Reference:
https://docs.nvidia.com/deploy/nvml-api/. A reading has NVML's index, which is not CUDA's ordinal; only the UUID identifies a card
(visible.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING

from mlops_build.errors import NoRoom
from mlops_build.gpu import libnvml as nvml
from mlops_build.gpu.calls import Call, Worker, start_thread

if TYPE_CHECKING:
    from typing import Any, Self

SECONDS = 2.0  # time limit for starting NVML, and for reading a card
QUICK_SECONDS = 0.2  # a working card answers in a millisecond, and on an overloaded node more threads do not help


class Trouble(StrEnum):
    """Why a card cannot be chosen."""

    LOST = "lost"  # fallen off the bus (Xid 79)
    NO_MEMORY = "memory not supported"  # a Jetson or GB10 shares the host's memory; NVML does not say how much is the card's
    MIG_PARENT = "divided by MIG"  # only its instances can be used
    SLOW = "does not answer"
    DENIED = "permission denied"
    FAULT = "fault"


class DriverTrouble(StrEnum):
    """Why no card can be read."""

    NO_LIBRARY = "no library"
    NOT_LOADED = "driver not loaded"
    MISMATCH = "driver and library differ"
    DENIED = "permission denied"
    SLOW = "does not answer"
    FAULT = "fault"


REMEDIES = {
    DriverTrouble.NO_LIBRARY: "install the NVIDIA driver (in a container: the NVIDIA runtime, with the driver capability `utility`), or "
    "choose the CPU explicitly",
    DriverTrouble.NOT_LOADED: "load the kernel module (`modprobe nvidia`) and read `dmesg`, or choose the CPU explicitly",
    DriverTrouble.MISMATCH: "the driver was updated while the kernel or container was running: reboot the node, or restart the container",
    DriverTrouble.DENIED: "give this user access to /dev/nvidiactl and /dev/nvidia*, or run as a user that has it",
    DriverTrouble.SLOW: "the driver hangs: look for NVRM and Xid lines in `dmesg`; a reset or a reboot may be needed",
    DriverTrouble.FAULT: "run `nvidia-smi`, and look for NVRM and Xid lines in `dmesg`",
}


class NoDriver(NoRoom):
    """There is no NVIDIA driver here, or it does not answer. reason: why."""

    def __init__(self, message: str, *, reason: DriverTrouble = DriverTrouble.FAULT, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy or REMEDIES[reason])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Process:
    """A process that uses a card. pid: NVML's, in the host's namespace. used_bytes: None if the driver does not report it."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A card or a MIG instance. None means that the driver does not report the value.

    index: NVML's (an instance has that of its parent). total_bytes: usable memory, without the driver's reserve. used_bytes: of that.
    trouble, why: the reason why it cannot be chosen, as a code and as text. utilisation: %. temperature: °C. power_watts: W. ecc_errors:
    uncorrected, since the driver was loaded. mig_parent: UUID of the card that an instance belongs to. mig_instance: its GPU instance and
    compute instance IDs.
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
    """Read every card once, in NVML's order; `full` as in `Nvml.read`. Raises NoDriver."""
    with Nvml() as nvml:
        return nvml.read(full)


class Nvml:
    """NVML, started for several reads. A context manager; not thread-safe.

    seconds: time limit for starting NVML, and for reading a card. Entering raises NoDriver.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._fixed: dict[int, Reading] = {}  # by index; values that do not change while NVML is started
        self._calls: dict[int, Call] = {}  # by index; the last read of each card
        self._count: int | None = None  # constant while NVML is started
        self._worker: Worker | None = None

    def __enter__(self) -> Self:
        self._call(nvml.nvmlInit)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # A call that hangs still uses the library, and a shutdown could hang or crash. Then NVML stays started until the process ends.
        if all(call.done() for call in self._calls.values()):
            Call(nvml.nvmlShutdown).start().wait(time.monotonic() + self._seconds)
        if self._worker is not None:
            self._worker.end()
        self._fixed.clear()
        self._count = self._worker = None

    def read(self, full: bool = False, *, utilisation: bool = False) -> list[Reading]:
        """Every card in NVML's order, each MIG parent followed by its instances. Cards are read in parallel, in at most `seconds`.

        full: with temperature, power, ECC errors and utilisation, which a decision does not need. utilisation: with utilisation. Raises
        NoDriver if no card can be read. A single card that cannot be read is a Reading with a trouble.
        """
        if self._count is None:
            self._count = int(self._call(nvml.nvmlDeviceGetCount))
        count = self._count
        deadline = time.monotonic() + self._seconds
        # A card that has hung since an earlier read is not read again (each read would add a thread), and not waited for.
        hanging = {index for index, call in self._calls.items() if not call.done()}
        responsive = [index for index in range(count) if index not in hanging]
        for index in responsive:
            self._calls[index] = Call(lambda index=index: self._card(index, full, utilisation or full))  # type: ignore[misc]
        self._run([self._calls[index] for index in responsive])
        return [reading for index in range(count) for reading in self._result(index, 0 if index in hanging else deadline)]

    def _run(self, calls: Sequence[Call]) -> None:
        """Run all calls in one thread, which takes a tenth of the time of a thread for each. If that is not quick, start a thread for each
        call that is left, so that a hanging call does not delay the others."""
        left = list(reversed(calls))

        def work() -> None:
            while True:
                try:
                    call = left.pop()
                except IndexError:
                    return
                call.run()

        if self._worker is not None and self._worker.busy and any(not call.done() for call in self._calls.values() if call not in calls):
            self._worker.end()  # it hangs with a card
            self._worker = None
        try:
            self._worker = self._worker or Worker()
        except RuntimeError:  # no thread can be started (a container's process limit): call here, without a time limit
            work()
            return
        self._worker.do(work)
        soon = time.monotonic() + QUICK_SECONDS
        if not all(call.wait(soon) for call in calls):
            for _ in range(len(left)):
                start_thread(work)

    def _call(self, function: Callable[[], Any]) -> Any:
        """Call a function that concerns the whole driver. Raises NoDriver."""
        call = Call(function).start()
        if not call.wait(time.monotonic() + self._seconds):
            raise NoDriver(f"the NVIDIA driver does not answer within {self._seconds:g} s", reason=DriverTrouble.SLOW)
        if call.error is None:
            return call.value
        raise _driver_trouble(call.error)

    def _result(self, index: int, deadline: float) -> list[Reading]:
        call = self._calls[index]
        if not call.wait(deadline):
            return [self._troubled(index, Trouble.SLOW, f"does not answer within {self._seconds:g} s")]
        if call.error is not None:
            return [self._troubled(index, *_trouble(call.error))]
        return list(call.value)

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
                f"divided by MIG into {len(instances)} instances; only those can be used"
                if instances
                else "divided by MIG, without instances"
            )
            return [self._sized(handle, replace(fixed, trouble=Trouble.MIG_PARENT, why=why), full, utilisation), *instances]
        reading = self._sized(handle, fixed, full, utilisation)
        if reading.trouble is None and self._or_none(nvml.nvmlDeviceGetComputeMode, handle) == nvml.NVML_COMPUTEMODE_PROHIBITED:
            why = "its compute mode is PROHIBITED: an administrator has disabled it for processes (nvidia-smi --compute-mode)"
            reading = replace(reading, trouble=Trouble.DENIED, why=why)
        return [reading]

    def _instances(self, parent: Any, card: Reading) -> Iterator[Reading]:
        for number in range(self._or_none(nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
            except nvml.NVMLError:  # no instance with this number
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
        """The reading with its memory, its processes and the requested extras."""
        try:
            total, used = self._memory(handle)
        except nvml.NVMLError as error:
            if reading.trouble is not None:  # some drivers do not report the memory of a MIG parent
                return reading
            trouble, why = _trouble(error)
            if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                trouble, why = Trouble.NO_MEMORY, "NVML does not report its memory (it shares the host's)"
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
        """(usable memory, used memory), bytes. Version 2 reports the driver's reserved memory separately; version 1 counts it as used."""
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        except nvml.NVMLError as error:
            if error.value not in (nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_INVALID_ARGUMENT):
                raise
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return int(memory.total), int(memory.used)
        return int(memory.total - memory.reserved), int(memory.used)

    def _processes(self, handle: Any) -> tuple[Process, ...] | None:
        """The processes that use the card: compute, graphics and MPS clients. A process in two lists has all of its memory in both."""
        sizes: dict[int, int | None] = {}
        supported = False
        for kind in ("Compute", "Graphics", "MPSCompute"):
            # An older driver has only _v2.
            for version in ("_v3", "_v2"):
                try:
                    listed = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}")(handle)
                except nvml.NVMLError as error:
                    if error.value == nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                        continue
                    break
                supported = supported or kind == "Compute"
                for process in listed:
                    known, used = sizes.get(process.pid), process.usedGpuMemory
                    sizes[int(process.pid)] = known if used is None else max(int(used), known or 0)
                break
        return tuple(Process(pid, used) for pid, used in sorted(sizes.items())) if supported else None

    def _or_none(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """An optional value: None if the card does not report it."""
        try:
            return function(*arguments)
        except nvml.NVMLError:
            return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _trouble(error: Exception) -> tuple[Trouble, str]:
    """A card's error as a code and as text."""
    if not isinstance(error, nvml.NVMLError):
        return Trouble.FAULT, f"{type(error).__name__}: {error}"
    value = int(error.value)
    kinds = {
        nvml.NVML_ERROR_GPU_IS_LOST: (Trouble.LOST, "has fallen off the bus: reset the card or reboot the node"),
        nvml.NVML_ERROR_RESET_REQUIRED: (Trouble.LOST, "needs a reset (`nvidia-smi --gpu-reset`)"),
        nvml.NVML_ERROR_NO_PERMISSION: (Trouble.DENIED, "this user may not read it"),
        nvml.NVML_ERROR_TIMEOUT: (Trouble.SLOW, "the driver reports a timeout"),
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
            "the NVIDIA driver's library and kernel module have different versions",
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (DriverTrouble.DENIED, "this user may not use the NVIDIA driver"),
        nvml.NVML_ERROR_TIMEOUT: (DriverTrouble.SLOW, "the NVIDIA driver reports a timeout"),
    }
    reason, message = kinds.get(value, (DriverTrouble.FAULT, f"the NVIDIA driver fails: {error} ({value})"))
    return NoDriver(message, reason=reason)
