"""A folder with the files of years: what each of them is, and none of them may run its command."""

import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Command:
    """An object whose pickle runs a shell command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


class Net(torch.nn.Module):
    """A network of somebody's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.linear(rows)


def bomb(claimed: int = 4_000_000_000, data: bytes = bytes(1000)) -> bytes:
    """A zip file whose member claims another size than it has."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
    content = bytearray(file.getvalue())
    place = content.index(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<L", claimed)
    content[22:26] = struct.pack("<L", claimed)
    return bytes(content)


def _overlapping() -> bytes:
    """A zip file with a hundred members that are one and the same bytes."""
    packed = zlib.compress(bytes(1_000_000), 9)[2:-4]
    local = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 0, 8, 0, 33, zlib.crc32(bytes(1_000_000)), len(packed), 1_000_000, 1, 0) + b"a"
    directory = b"".join(
        struct.pack(
            "<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, 20, 0, 8, 0, 33, zlib.crc32(bytes(1_000_000)), len(packed), 1_000_000, 1, 0, 0, 0, 0, 0, 0
        )
        + b"a"
        for _ in range(100)
    )
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 100, 100, len(directory), len(local) + len(packed), 0)
    return local + packed + directory + end


def state(seed: int = 0) -> "OrderedDict[str, torch.Tensor]":
    torch.manual_seed(seed)
    return OrderedDict(Net().state_dict())


def make(folder: Path, marker: Path) -> dict[str, str]:
    """Write the files; each name with its kind, and `unsafe ` before the kind of a file that runs code when it is loaded."""
    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    command: Any = Command(f"touch {marker}")
    kinds: dict[str, str] = {}

    def bytes_(name: str, kind: str, content: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        kinds[name] = kind

    def saved(name: str, kind: str, value: Any, **options: Any) -> None:
        made = io.BytesIO()
        torch.save(value, made, **options)
        bytes_(name, kind, made.getvalue())

    saved("digits-best.pth", "state_dict", state())
    saved("tensor.pt", "state_dict", torch.zeros(7))
    saved("run1/checkpoint.ckpt", "state_dict", {"epoch": 3, "net": state(1), "accuracy": np.float64(0.5)})
    saved("names/quote'\"and,comma;=cmd.pth", "state_dict", state(2))
    saved("names/new\nline\x1b[31m.pth", "state_dict", state(3))
    saved("names/=1+cmd|'x'!A0.pth", "state_dict", state(4))
    saved("names/größe–模型.pth", "state_dict", state(5))
    saved(os.fsdecode(b"names/latin-\xe9.pth"), "state_dict", state(6))
    saved("names/back\\slash.pth", "state_dict", state(7))
    saved("old/legacy.pth", "legacy-torch", state(8), _use_new_zipfile_serialization=False)
    saved("old/legacy-command.pth", "unsafe legacy-torch", {"w": state(), "x": command}, _use_new_zipfile_serialization=False)
    saved("old/legacy-module.pth", "unsafe legacy-torch", Net(), _use_new_zipfile_serialization=False)
    saved("whole.pth", "unsafe module", Net())
    saved("command.pth", "unsafe module", {"w": state(), "x": command})
    saved("command4.pt", "unsafe module", command, pickle_protocol=4)
    whole = (folder / "digits-best.pth").read_bytes()
    bytes_("copy/of/digits.pth", "state_dict", whole)
    bytes_("cut.pth", "truncated", whole[:-40])
    bytes_("cut-early.pth", "truncated", whole[:200])
    legacy = (folder / "old/legacy.pth").read_bytes()
    bytes_("cut-legacy.pth", "truncated", legacy[:-10])
    bytes_("cut-legacy-early.pth", "truncated", legacy[:60])
    bytes_("empty.pt", "truncated", b"")
    bytes_("noise.pth", "unsafe unreadable", bytes(range(7, 256)))
    bytes_("two-ends.pth", "unsafe unreadable", whole + b"more")
    for protocol in range(6):
        bytes_(f"pickles/command{protocol}.pth", "unsafe pickle", pickle.dumps(command, protocol))
        bytes_(f"pickles/neutral{protocol}", "unsafe pickle", pickle.dumps(command, protocol))
    bytes_("pickles/no-end.dat", "unsafe pickle", pickle.dumps(command, 0)[:-1])
    bytes_("pickles/plain0.pkl", "unsafe pickle", pickle.dumps({"a": 1}, 0))
    bytes_("pickles/instance.pt", "unsafe pickle", b"(S'touch /nowhere'\nios\nsystem\n.")
    torch.jit.save(torch.jit.script(Net()), folder / "script.pt")
    kinds["script.pt"] = "torchscript"
    with zipfile.ZipFile(folder / "exported.pt2", "w") as program:  # its parts; test_kind.py has a real one
        for member in ("archive_format", "models/model.json", "version"):
            program.writestr(f"exported/{member}", "pt2")
    kinds["exported.pt2"] = "exported-program"
    for name, arrays in (("array.npy", np.arange(6.0)), ("objects.npy", np.array([command], dtype=object))):
        made = io.BytesIO()
        np.save(made, arrays)
        bytes_(name, "unsafe numpy" if arrays.dtype.hasobject else "numpy", made.getvalue())
    bytes_("cut.npy", "truncated", (folder / "array.npy").read_bytes()[:-8])
    np.savez(folder / "arrays.npz", a=np.zeros(3), b=np.ones(2))
    np.savez_compressed(folder / "objects.npz", a=np.array([command], dtype=object))
    kinds |= {"arrays.npz": "numpy", "objects.npz": "unsafe numpy"}
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    bytes_("weights.safetensors", "safetensors", struct.pack("<Q", len(header)) + header + bytes(8))
    bytes_("cut.safetensors", "truncated", struct.pack("<Q", len(header)) + header + bytes(7))
    bytes_("net.onnx", "onnx", b"\x08\x07\x12\x07pytorch")
    bytes_("README.txt", "other", b"N.B. these are old\n")
    bytes_("import.py", "other", b"import os\nimport sys\n")
    bytes_("config.yaml", "other", b"config:\n  a: 1\n")
    bytes_("bomb.pth", "zip-bomb", bomb())
    bytes_("liar.pth", "unsafe unreadable", bomb(10, bytes(10_000_000)))
    bytes_("overlapping.zip", "zip-bomb", _overlapping())
    end = whole.rindex(b"PK\5\6")
    bytes_("directory.pth", "zip-bomb", whole[: end + 12] + struct.pack("<L", 4_000_000_000) + whole[end + 16 :])
    with tarfile.open(folder / "ancient.pth", "w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"N.\n"))
    kinds["ancient.pth"] = "unsafe legacy-torch"
    (folder / "link.pth").symlink_to(folder / "digits-best.pth")
    (folder / "outside").symlink_to("/etc")
    os.mkfifo(folder / "pipe.pth")
    return kinds
