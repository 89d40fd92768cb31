"""Read the cards through NVML (nvidia-ml-py): a reading for each card or MIG instance.

NVML reads a card without creating a CUDA context on it; torch would create one (300-500 MiB). The calls run in daemon threads, since a call
about a card that has fallen off the bus can hang in the kernel for minutes, and must not delay the other cards. Reference:
https://docs.nvidia.com/deploy/nvml-api/. A reading has NVML's index, which is not CUDA's ordinal; only the UUID identifies a card
(visible.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import chain, starmap
from threading import Thread
from typing import Any, Self

import pynvml

from mlops_build.errors import NoRoom
from mlops_build.gpu.no_gpu import no_driver

SECONDS = 2.0  # time limit for starting NVML, and for reading a card
TRIES = 4  # of reading the memory of a card, until it is the same before and after its processes are read
QUICK_SECONDS = 0.2  # a working card answers in a millisecond, and on an overloaded node more threads do not help
DRIVER = -1  # instead of a card's index: a call that concerns the whole driver
LIBRARY, UNKNOWN = "libnvidia-ml.so.1", "unknown"


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
    CORRUPT = "library is corrupt"
    NOT_LOADED = "driver not loaded"
    MISMATCH = "driver and library differ"
    DENIED = "permission denied"
    SLOW = "does not answer"
    FAULT = "fault"


# By Trouble or DriverTrouble; three of them are in both.
REMEDIES = {
    Trouble.LOST: "drain the node and reset the card (`nvidia-smi --gpu-reset`) or reboot; `dmesg` has the Xid",
    Trouble.MIG_PARENT: "create instances (`nvidia-smi mig -cgi …`), or turn MIG off",
    DriverTrouble.NO_LIBRARY: "install the NVIDIA driver (in a container: the NVIDIA runtime, with the driver capability `utility`), or "
    "choose the CPU explicitly",
    DriverTrouble.CORRUPT: "install the NVIDIA driver again (in a container: remove the library from the image, since the NVIDIA "
    "runtime adds the driver's), or choose the CPU explicitly",
    DriverTrouble.NOT_LOADED: "load the kernel module (`modprobe nvidia`) and read `dmesg`, or choose the CPU explicitly",
    DriverTrouble.MISMATCH: "the driver was updated while the kernel or container was running: reboot the node, or restart the container",
    DriverTrouble.DENIED: "give this user access to /dev/nvidiactl and /dev/nvidia*, or run as a user that has it",
    DriverTrouble.SLOW: "the driver hangs: look for NVRM and Xid lines in `dmesg`; a reset or a reboot may be needed",
    DriverTrouble.FAULT: "run `nvidia-smi`, and look for NVRM and Xid lines in `dmesg`",
}
# By NVML's code, or the name of an exception: the trouble, and its text with {0} for the error and {1} for the key. None: any other error.
OF_A_CARD = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: (Trouble.NO_MEMORY, "NVML does not report its memory (it shares the host's)"),
    pynvml.NVML_ERROR_GPU_IS_LOST: (Trouble.LOST, "has fallen off the bus: reset the card or reboot the node"),
    pynvml.NVML_ERROR_RESET_REQUIRED: (Trouble.LOST, "needs a reset (`nvidia-smi --gpu-reset`)"),
    pynvml.NVML_ERROR_NO_PERMISSION: (Trouble.DENIED, "this user may not read it"),
    pynvml.NVML_ERROR_TIMEOUT: (Trouble.SLOW, "the driver reports a timeout"),
    "TimeoutError": (Trouble.SLOW, "{0}"),
    None: (Trouble.FAULT, "NVML: {0} ({1})"),
}
OF_THE_DRIVER = {
    "FileNotFoundError": (DriverTrouble.NO_LIBRARY, "{0}"),
    "OSError": (DriverTrouble.CORRUPT, "the NVIDIA driver's library is corrupt: {0}"),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (DriverTrouble.CORRUPT, f"the NVIDIA driver's library is corrupt: {LIBRARY}: {{0}}"),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (DriverTrouble.NOT_LOADED, "the NVIDIA driver's kernel module is not loaded"),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        DriverTrouble.MISMATCH,
        "the NVIDIA driver's library and kernel module have different versions",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (DriverTrouble.DENIED, "this user may not use the NVIDIA driver"),
    pynvml.NVML_ERROR_TIMEOUT: (DriverTrouble.SLOW, "the NVIDIA driver reports a timeout"),
    "TimeoutError": (DriverTrouble.SLOW, "the NVIDIA driver {0}"),
    None: (DriverTrouble.FAULT, "the NVIDIA driver fails: {0} ({1})"),
}


class NoDriver(NoRoom):
    """Exit code 5: there is no NVIDIA driver here, or it does not answer. reason: why."""

    exit_code = 5

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
        self._known: dict[int, list[Reading]] = {}  # by index: the card without its values, then its instances
        self._running: set[int] = set()  # keys of calls that have not ended

    def __enter__(self) -> Self:
        count = self._results({DRIVER: _start})[DRIVER]
        if isinstance(count, Exception):
            reason, why = _explained(count, OF_THE_DRIVER)
            raise NoDriver(why, reason=reason)
        self._known = {index: [Reading(f"{UNKNOWN}-{index}", index, UNKNOWN)] for index in range(count)}
        return self

    def __exit__(self, *_: object) -> None:
        # A call that hangs still uses the library, and a shutdown could hang or crash. Then NVML stays started until the process ends.
        if not self._running:
            self._results({DRIVER: pynvml.nvmlShutdown})

    def read(self, full: bool = False, only: Collection[str] | None = None) -> list[Reading]:
        """Every card in NVML's order, each MIG parent followed by its instances. Cards are read in parallel, in at most `seconds`.

        full: with temperature, power, ECC errors and utilisation, which most decisions do not need. only: leave out cards that are known
        from an earlier read to have none of these UUIDs. A card that cannot be read is a Reading with a trouble.
        """
        calls = {
            index: partial(self._card, index, full)
            for index, known in self._known.items()
            if only is None or any(reading.uuid in only or reading.name == UNKNOWN for reading in known)
        }
        readings: list[Reading] = []
        for index, result in self._results(calls).items():
            if isinstance(result, Exception):
                result = [_troubled(self._known[index][0], result)]
            readings += result
        return readings

    def _results(self, calls: Mapping[int, Callable[[], Any]]) -> dict[int, Any]:
        """The result or the exception of each call, in the same order. A call that has not ended since an earlier time is not repeated,
        since each time would add a thread."""
        began = time.monotonic()
        results: dict[int, Any] = dict.fromkeys(calls, TimeoutError(f"does not answer within {self._seconds:g} s"))
        new = calls.keys() - self._running
        self._running |= new
        left = iter(list(new))

        def work() -> None:
            for key in left:
                try:
                    results[key] = calls[key]()
                except Exception as error:  # any error is a fault of the card, for example a UUID that is not valid UTF-8
                    results[key] = error
                self._running.discard(key)

        # One thread makes all calls, in a fifth of the time of a thread for each. If that is not quick, there is a thread for each.
        threads: list[Thread] = []
        for number, seconds in ((1, QUICK_SECONDS), (len(new) - 1, self._seconds)):
            for _ in range(number if new & self._running else 0):
                threads.append(Thread(target=work, daemon=True))
                try:
                    threads[-1].start()
                except RuntimeError:  # no thread can be started (a container's process limit): call here, without a time limit
                    work()
            for thread in filter(Thread.is_alive, threads):
                thread.join(max(0.0, began + seconds - time.monotonic()))
        return results.copy()  # without what ends later

    def _card(self, index: int, full: bool) -> list[Reading]:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        pci = _value(handle, "PciInfo")
        card = self._known[index][0] = Reading(
            pynvml.nvmlDeviceGetUUID(handle),
            index,
            _value(handle, "Name") or UNKNOWN,
            compute_capability=_value(handle, "CudaComputeCapability"),
            bus_id=pci and pci.busId,
        )
        instances: list[Reading] = []
        if (_value(handle, "MigMode") or [0])[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
            instances = list(_instances(handle, card))
            into = f"into {len(instances)} instances; only those can be used" if instances else "without instances"
            card = replace(card, trouble=Trouble.MIG_PARENT, why=f"divided by MIG, {into}")
        elif _value(handle, "ComputeMode") == pynvml.NVML_COMPUTEMODE_PROHIBITED:
            why = "its compute mode is PROHIBITED: an administrator has disabled it for processes (nvidia-smi --compute-mode)"
            card = replace(card, trouble=Trouble.DENIED, why=why)
        self._known[index][1:] = instances
        return [_sized(handle, card, full), *instances]


def _start() -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        cause = error.__context__
        if not isinstance(cause, OSError):
            raise
        # nvidia-ml-py reports any error of dlopen as LIBRARY_NOT_FOUND.
        missing = LIBRARY in str(cause) and "No such file" in str(cause)
        raise FileNotFoundError(f"{LIBRARY} is not found: {no_driver()}") if missing else cause from None
    return int(pynvml.nvmlDeviceGetCount())


def _instances(parent: Any, card: Reading) -> Iterator[Reading]:
    for number in range(_value(parent, "MaxMigDeviceCount") or 0):
        handle = _value(parent, "MigDeviceHandleByIndex", number)  # None: no instance has this number
        uuid = handle and _value(handle, "UUID")
        if uuid:
            ids = (_value(handle, "GpuInstanceId"), _value(handle, "ComputeInstanceId"))
            name = _value(handle, "Name") or card.name
            instance = replace(card, uuid=uuid, name=name, mig_parent=card.uuid, mig_instance=None if None in ids else ids)
            yield _sized(handle, instance)


def _sized(handle: Any, card: Reading, full: bool = False) -> Reading:
    """The card with its memory, its processes and, with `full`, the other values."""
    try:
        memory, used = _memory(handle), -1
        # NVML reads them one after the other. If a process allocates or ends in between, its memory would hide that of others.
        for _ in range(TRIES):
            if memory.used == used:
                break
            used = memory.used
            processes, memory = _processes(handle), _memory(handle)
    except pynvml.NVMLError as error:
        return card if card.trouble else _troubled(card, error)  # some drivers do not report the memory of a MIG parent
    total = memory.total - getattr(memory, "reserved", 0)
    card = replace(card, total_bytes=total, used_bytes=max(used, memory.used), processes=processes)
    if not full:
        return card
    rates, milliwatts = _value(handle, "UtilizationRates"), _value(handle, "PowerUsage")
    return replace(
        card,
        utilisation=rates and rates.gpu,
        temperature=_value(handle, "Temperature", pynvml.NVML_TEMPERATURE_GPU),
        power_watts=milliwatts and milliwatts / 1000,
        ecc_errors=_value(handle, "TotalEccErrors", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
    )


def _memory(handle: Any) -> Any:
    """Version 2 reports the driver's reserved memory separately; version 1 counts it as used. Raises NVMLError."""
    return _value(handle, "MemoryInfo", pynvml.nvmlMemory_v2) or pynvml.nvmlDeviceGetMemoryInfo(handle)


def _processes(handle: Any) -> tuple[Process, ...] | None:
    """The processes that use the card: compute, graphics and MPS clients. A process in two lists has all of its memory in both."""
    lists = [_value(handle, f"{kind}RunningProcesses") for kind in ("Compute", "Graphics", "MPSCompute")]
    if lists[0] is None:
        return None
    sizes: dict[int, int | None] = {}
    for process in chain(*filter(None, lists)):
        known, used = sizes.get(process.pid), process.usedGpuMemory
        sizes[process.pid] = known if used is None else max(used, known or 0)
    return tuple(starmap(Process, sorted(sizes.items())))


def _value(handle: Any, name: str, *arguments: Any) -> Any:
    """An optional value, from nvmlDeviceGet<name> or its older version. None after any error, for example a name that is not UTF-8."""
    for version in ("", "_v2"):
        with contextlib.suppress(Exception):
            return getattr(pynvml, f"nvmlDeviceGet{name}{version}")(handle, *arguments)
    return None


def _troubled(card: Reading, error: Exception) -> Reading:
    trouble, why = _explained(error, OF_A_CARD)
    return replace(card, trouble=trouble, why=why)


def _explained(error: Exception, troubles: dict[Any, Any]) -> tuple[Any, str]:
    key = getattr(error, "value", type(error).__name__)
    trouble, text = troubles.get(key, troubles[None])
    return trouble, text.format(error, key)
