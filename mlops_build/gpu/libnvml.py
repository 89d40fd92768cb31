"""The two dozen NVML functions that mlops-build uses, called through ctypes, with the names that nvidia-ml-py uses.

nvidia-ml-py has all 400 functions. Importing it takes 2-3 times as long as starting the interpreter, more than the rest of `gpu pick`. A
test compares names, constants and structures with nvidia-ml-py.

Reference: https://docs.nvidia.com/deploy/nvml-api/. All functions raise NVMLError.
"""

import ctypes
from ctypes import byref, c_char, c_int, c_uint, c_ulonglong

NVML_ERROR_INVALID_ARGUMENT = 2
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_INSUFFICIENT_SIZE = 7
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_TIMEOUT = 10
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_FUNCTION_NOT_FOUND = 13
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_RESET_REQUIRED = 16
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18

NVML_COMPUTEMODE_PROHIBITED = 2
NVML_DEVICE_MIG_ENABLE = 1
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_TEMPERATURE_GPU = 0
NVML_VOLATILE_ECC = 0
nvmlMemory_v2 = 0x02000028  # noqa: N816 -- NVML's name; size and version of the structure

_NOT_AVAILABLE = 2**64 - 1
_TEXT = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE, NVML_DEVICE_UUID_V2_BUFFER_SIZE

_library: ctypes.CDLL | None = None


class NVMLError(Exception):
    """value: NVML's return code."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        """NVML's own text, which is available before NVML is started."""
        try:
            error_string = _loaded().nvmlErrorString
        except (NVMLError, AttributeError):
            return f"NVML error {self.value}"
        error_string.restype = ctypes.c_char_p
        return str((error_string(self.value) or b"").decode(errors="replace")) or f"NVML error {self.value}"


class Handle(ctypes.c_void_p):
    """A card or a MIG instance, valid while NVML is started (nvmlDevice_t)."""


class Memory(ctypes.Structure):  # c_nvmlMemory_t
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Memory2(ctypes.Structure):  # c_nvmlMemory_v2_t
    _fields_ = (("version", c_uint), ("total", c_ulonglong), ("reserved", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Utilization(ctypes.Structure):  # c_nvmlUtilization_t
    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class ProcessInfo(ctypes.Structure):  # c_nvmlProcessInfo_v2_t, and v3
    _fields_ = (("pid", c_uint), ("usedGpuMemory", c_ulonglong), ("gpuInstanceId", c_uint), ("computeInstanceId", c_uint))


class PciInfo(ctypes.Structure):  # nvmlPciInfo_t
    _fields_ = (
        *(("busIdLegacy", c_char * 16), ("domain", c_uint), ("bus", c_uint), ("device", c_uint)),
        *(("pciDeviceId", c_uint), ("pciSubSystemId", c_uint), ("busId", c_char * 32)),
    )


class Process:
    """usedGpuMemory: bytes; None if the driver does not report it."""

    __slots__ = ("pid", "usedGpuMemory")

    def __init__(self, pid: int, used: int | None) -> None:
        self.pid = pid
        self.usedGpuMemory = used


def nvmlInit() -> None:  # noqa: N802 -- these are nvidia-ml-py's names
    _call("nvmlInitWithFlags", c_uint(0))


def nvmlShutdown() -> None:  # noqa: N802
    _call("nvmlShutdown")


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return _number("nvmlDeviceGetCount_v2")


def nvmlDeviceGetHandleByIndex(index: int) -> Handle:  # noqa: N802
    handle = Handle()
    _call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
    return handle


def nvmlDeviceGetUUID(handle: Handle) -> str:  # noqa: N802
    return _text("nvmlDeviceGetUUID", handle)


def nvmlDeviceGetName(handle: Handle) -> str:  # noqa: N802
    return _text("nvmlDeviceGetName", handle)


def nvmlDeviceGetMemoryInfo(handle: Handle, version: int | None = None) -> Memory | Memory2:  # noqa: N802
    if version is None:
        memory = Memory()
        _call("nvmlDeviceGetMemoryInfo", handle, byref(memory))
        return memory
    memory2 = Memory2(version=version)
    _call("nvmlDeviceGetMemoryInfo_v2", handle, byref(memory2))
    return memory2


def nvmlDeviceGetUtilizationRates(handle: Handle) -> Utilization:  # noqa: N802
    rates = Utilization()
    _call("nvmlDeviceGetUtilizationRates", handle, byref(rates))
    return rates


def nvmlDeviceGetTemperature(handle: Handle, sensor: int) -> int:  # noqa: N802
    return _number("nvmlDeviceGetTemperature", handle, c_uint(sensor))


def nvmlDeviceGetPowerUsage(handle: Handle) -> int:  # noqa: N802
    """Milliwatts."""
    return _number("nvmlDeviceGetPowerUsage", handle)


def nvmlDeviceGetTotalEccErrors(handle: Handle, kind: int, counter: int) -> int:  # noqa: N802
    count = c_ulonglong()
    _call("nvmlDeviceGetTotalEccErrors", handle, c_uint(kind), c_uint(counter), byref(count))
    return count.value


def nvmlDeviceGetCudaComputeCapability(handle: Handle) -> tuple[int, int]:  # noqa: N802
    major, minor = c_int(), c_int()
    _call("nvmlDeviceGetCudaComputeCapability", handle, byref(major), byref(minor))
    return major.value, minor.value


def nvmlDeviceGetPciInfo(handle: Handle) -> PciInfo:  # noqa: N802
    info = PciInfo()
    _call("nvmlDeviceGetPciInfo_v3", handle, byref(info))
    return info


def nvmlDeviceGetComputeMode(handle: Handle) -> int:  # noqa: N802
    return _number("nvmlDeviceGetComputeMode", handle)


def nvmlDeviceGetMigMode(handle: Handle) -> list[int]:  # noqa: N802
    """The current and the pending mode."""
    current, pending = c_uint(), c_uint()
    _call("nvmlDeviceGetMigMode", handle, byref(current), byref(pending))
    return [current.value, pending.value]


def nvmlDeviceGetMaxMigDeviceCount(handle: Handle) -> int:  # noqa: N802
    return _number("nvmlDeviceGetMaxMigDeviceCount", handle)


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Handle, index: int) -> Handle:  # noqa: N802
    instance = Handle()
    _call("nvmlDeviceGetMigDeviceHandleByIndex", handle, c_uint(index), byref(instance))
    return instance


def nvmlDeviceGetGpuInstanceId(handle: Handle) -> int:  # noqa: N802
    return _number("nvmlDeviceGetGpuInstanceId", handle)


def nvmlDeviceGetComputeInstanceId(handle: Handle) -> int:  # noqa: N802
    return _number("nvmlDeviceGetComputeInstanceId", handle)


def nvmlDeviceGetComputeRunningProcesses_v2(handle: Handle) -> list[Process]:  # noqa: N802
    return _processes("nvmlDeviceGetComputeRunningProcesses_v2", handle)


def nvmlDeviceGetComputeRunningProcesses_v3(handle: Handle) -> list[Process]:  # noqa: N802
    return _processes("nvmlDeviceGetComputeRunningProcesses_v3", handle)


def nvmlDeviceGetGraphicsRunningProcesses_v2(handle: Handle) -> list[Process]:  # noqa: N802
    return _processes("nvmlDeviceGetGraphicsRunningProcesses_v2", handle)


def nvmlDeviceGetGraphicsRunningProcesses_v3(handle: Handle) -> list[Process]:  # noqa: N802
    return _processes("nvmlDeviceGetGraphicsRunningProcesses_v3", handle)


def nvmlDeviceGetMPSComputeRunningProcesses_v2(handle: Handle) -> list[Process]:  # noqa: N802
    return _processes("nvmlDeviceGetMPSComputeRunningProcesses_v2", handle)


def nvmlDeviceGetMPSComputeRunningProcesses_v3(handle: Handle) -> list[Process]:  # noqa: N802
    return _processes("nvmlDeviceGetMPSComputeRunningProcesses_v3", handle)


def _loaded() -> ctypes.CDLL:
    global _library
    if _library is None:
        try:
            _library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            raise NVMLError(NVML_ERROR_LIBRARY_NOT_FOUND) from None
    return _library


def _call(name: str, *arguments: object) -> None:
    try:
        function = getattr(_loaded(), name)
    except AttributeError:  # the driver is older than the function
        raise NVMLError(NVML_ERROR_FUNCTION_NOT_FOUND) from None
    if code := function(*arguments):
        raise NVMLError(code)


def _number(name: str, *arguments: object) -> int:
    number = c_uint()
    _call(name, *arguments, byref(number))
    return number.value


def _text(name: str, *arguments: object) -> str:
    text = ctypes.create_string_buffer(_TEXT)
    _call(name, *arguments, text, c_uint(_TEXT))
    return text.value.decode()


def _processes(name: str, handle: Handle) -> list[Process]:
    count = c_uint(0)
    try:
        _call(name, handle, byref(count), None)
        return []
    except NVMLError as error:
        if error.value != NVML_ERROR_INSUFFICIENT_SIZE:
            raise
    count.value = count.value * 2 + 5  # more processes may start before the second call
    entries = (ProcessInfo * count.value)()
    _call(name, handle, byref(count), entries)
    return [Process(info.pid, None if info.usedGpuMemory == _NOT_AVAILABLE else info.usedGpuMemory) for info in entries[: count.value]]
