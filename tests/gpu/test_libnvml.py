"""Compare names, constants and structures of libnvml with nvidia-ml-py, which follows NVIDIA's header."""

import ctypes
import inspect

import pynvml
import pytest

from mlops_build.gpu import libnvml

STRUCTURES = {
    libnvml.Memory: pynvml.c_nvmlMemory_t,
    libnvml.Memory2: pynvml.c_nvmlMemory_v2_t,
    libnvml.Utilization: pynvml.c_nvmlUtilization_t,
    libnvml.ProcessInfo: pynvml.c_nvmlProcessInfo_v2_t,
    libnvml.PciInfo: pynvml.nvmlPciInfo_t,
}
FUNCTIONS = sorted(name for name, _ in inspect.getmembers(libnvml, inspect.isfunction) if name.startswith("nvml"))


@pytest.mark.parametrize(("ours", "theirs"), STRUCTURES.items(), ids=lambda structure: structure.__name__)
def test_structures_have_nvidias_layout(ours: type[ctypes.Structure], theirs: type[ctypes.Structure]) -> None:
    def layout(structure: type[ctypes.Structure]) -> list[tuple[str, int, int]]:
        fields = [(name, getattr(structure, name)) for name, *_ in structure._fields_]
        return [(name, field.offset, field.size) for name, field in fields]

    assert layout(ours) == layout(theirs)
    assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)


def test_constants_have_nvidias_values() -> None:
    constants = {name: value for name, value in vars(libnvml).items() if isinstance(value, int) and name.lower().startswith("nvml")}
    assert len(constants) > 15
    assert constants == {name: getattr(pynvml, name) for name in constants}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_make_the_same_library_calls_as_nvidias(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are called with a library that records the function and the size of each argument's target."""
    calls: dict[str, list[tuple[str, list[int]]]] = {"ours": [], "theirs": []}

    def recording(who: str, symbol: str) -> object:
        def function(*arguments: object) -> int:
            calls[who].append((symbol, [_size(argument) for argument in arguments]))
            return 0

        return function

    class Library:
        def __getattr__(self, symbol: str) -> object:
            return recording("ours", symbol)

    monkeypatch.setattr(libnvml, "_library", Library())
    monkeypatch.setattr(pynvml, "nvmlLib", object())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", lambda symbol: recording("theirs", symbol))
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 1)
    values = {"index": (0, 0), "sensor": (0, 0), "kind": (1, 1), "counter": (0, 0), "handle": (libnvml.Handle(1), pynvml.c_nvmlDevice_t())}
    parameters = [parameter for parameter in inspect.signature(getattr(libnvml, name)).parameters if parameter != "version"]
    for version in [{}, {"version": pynvml.nvmlMemory_v2}] if name == "nvmlDeviceGetMemoryInfo" else [{}]:
        getattr(libnvml, name)(*(values[parameter][0] for parameter in parameters), **version)
        getattr(pynvml, name)(*(values[parameter][1] for parameter in parameters), **version)
    assert calls["ours"]
    assert calls["ours"] == calls["theirs"]


def _size(argument: object) -> int:
    """Bytes that the library may access there; a handle is passed as a pointer."""
    if argument is None or isinstance(argument, int):
        return 0 if argument is None else ctypes.sizeof(ctypes.c_uint)
    return ctypes.sizeof(getattr(argument, "_obj", argument))  # type: ignore[arg-type]
