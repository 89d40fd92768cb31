"""libnvml's names, constants and structures are those of nvidia-ml-py, which is made from NVIDIA's header."""

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


@pytest.mark.parametrize(("ours", "theirs"), STRUCTURES.items(), ids=lambda one: one.__name__)
def test_a_structure_is_laid_out_as_nvidia_lays_it_out(ours: type[ctypes.Structure], theirs: type[ctypes.Structure]) -> None:
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
def test_a_function_is_called_as_nvidias_is_and_asks_the_same_of_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are run against a library that writes down the function and the size of what each argument points to."""
    asked: dict[str, list[tuple[str, list[int]]]] = {"ours": [], "theirs": []}

    def recording(who: str, symbol: str) -> object:
        def function(*arguments: object) -> int:
            asked[who].append((symbol, [_size(argument) for argument in arguments]))
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
    parameters = [one for one in inspect.signature(getattr(libnvml, name)).parameters if one != "version"]
    for version in [{}, {"version": pynvml.nvmlMemory_v2}] if name == "nvmlDeviceGetMemoryInfo" else [{}]:
        getattr(libnvml, name)(*(values[one][0] for one in parameters), **version)
        getattr(pynvml, name)(*(values[one][1] for one in parameters), **version)
    assert asked["ours"]
    assert asked["ours"] == asked["theirs"]


def _size(argument: object) -> int:
    """Bytes that the library may write or read there; a handle is a pointer, given as such."""
    if argument is None or isinstance(argument, int):
        return 0 if argument is None else ctypes.sizeof(ctypes.c_uint)
    return ctypes.sizeof(getattr(argument, "_obj", argument))  # type: ignore[arg-type]
