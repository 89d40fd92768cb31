"""What a file is, from its content. Nothing is unpickled, except by torch's weights_only=True, and zip files are not extracted.

Operations of a pickle are listed up to PICKLE_BYTES. The directory of a zip file, and what its members claim to have, are bounded.
"""

import io
import json
import pickletools
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlops_build.model import checkpoint, scan

STATE_DICT, MODULE, TORCHSCRIPT, EXPORTED, LEGACY = "state_dict", "module", "torchscript", "exported-program", "legacy-torch"
PICKLE, NUMPY, SAFETENSORS, ONNX, OTHER = "pickle", "numpy", "safetensors", "onnx", "other"
TRUNCATED, ZIP_BOMB, UNREADABLE, MISSING = "truncated", "zip-bomb", "unreadable", "missing"
NEVER = (TRUNCATED, ZIP_BOMB, UNREADABLE, MISSING)
KINDS = (STATE_DICT, MODULE, TORCHSCRIPT, EXPORTED, LEGACY, PICKLE, NUMPY, SAFETENSORS, ONNX, OTHER, *NEVER)

PICKLE_BYTES = DIRECTORY_BYTES = 64 << 20
# A zip file is a bomb if its members claim more than BOMB_BYTES, and BOMB_RATIO times what it has. torch never compresses.
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100
LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle
LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages
TORCH_SUFFIXES = scan.TORCH | scan.PICKLES | {".model", ".tar"}
CALLS = {"REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX"}
IMPORTS = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
IDENTIFIERS = re.compile(r"[\w.]+ [\w.]+")


@dataclass(frozen=True)
class Examined:
    """kind: one of KINDS. details: one line for people. unsafe: it runs code when it is loaded, or that is not known."""

    kind: str
    details: str = ""
    unsafe: bool = False


def examine(file: Path, name: str) -> Examined:
    """Look at one file. name: as in its source, for the suffix. Raises nothing."""
    try:
        return _examine(file, Path(name).suffix.lower())
    except Exception as error:  # zipfile, numpy and others raise anything for what nobody wrote with them
        return Examined(UNREADABLE, f"it cannot be read: {type(error).__name__}: {error}".splitlines()[0][:300], unsafe=True)


def _examine(file: Path, suffix: str) -> Examined:
    with file.open("rb") as opened:
        head = opened.read(512)
        size = file.stat().st_size
        if not size:
            return Examined(TRUNCATED, "the file is empty")
        opened.seek(0)
        if head.startswith(b"PK"):
            return _zip(opened, file, suffix, size)
        if head.startswith(LEGACY_HEAD):
            return _legacy(opened, file)
        if head.startswith(b"\x93NUMPY"):
            return _numpy(opened, size)
        if head[257:262] == b"ustar" and suffix in TORCH_SUFFIXES:
            return Examined(LEGACY, "a tar file, as torch wrote before 0.1.10: it contains pickles", unsafe=True)
        if head[8:9] == b"{" and struct.unpack_from("<Q", head)[0] < size:
            return _safetensors(opened, size)
        if suffix == ".onnx" and head.startswith(b"\x08"):
            return Examined(ONNX)
        return _pickle(opened, head, suffix)


def _zip(opened: IO[bytes], file: Path, suffix: str, size: int) -> Examined:
    directory = _directory_bytes(opened, size)
    if directory is None:
        return Examined(TRUNCATED, "the zip file has no end")
    if directory > DIRECTORY_BYTES:
        return Examined(ZIP_BOMB, f"the zip file claims a directory of {directory} bytes")
    with zipfile.ZipFile(opened) as archive:
        members = archive.infolist()
    claimed, stored = sum(member.file_size for member in members), sum(member.compress_size for member in members)
    pickled = max((member.file_size for member in members if member.filename.endswith("data.pkl")), default=0)
    if stored > size or (claimed > BOMB_BYTES and claimed > BOMB_RATIO * size) or pickled > PICKLE_BYTES:
        return Examined(ZIP_BOMB, f"its members claim {claimed} bytes in a file of {size} bytes, {pickled} of them in a pickle")
    return _members(opened, file, suffix, [member.filename for member in members])


def _directory_bytes(opened: IO[bytes], size: int) -> int | None:
    """The most that a zip reader could take for the size of the directory; None if the file has no end of a zip file."""
    opened.seek(max(0, size - (1 << 16) - 100))
    tail = opened.read()
    claims = []
    for end in re.finditer(rb"PK\x05\x06(?=.{18})", tail, re.DOTALL):
        claims.append(int(struct.unpack_from("<L", tail, end.start() + 12)[0]))
        if tail[end.start() - 20 : end.start() - 16] == b"PK\x06\x07" and end.start() >= 76:
            claims.append(int(struct.unpack_from("<Q", tail, end.start() - 76 + 40)[0]))
    return max(claims, default=None)


def _members(opened: IO[bytes], file: Path, suffix: str, members: list[str]) -> Examined:
    names = {Path(name).name for name in members}
    findings = scan.scan_file(f"file{suffix}", lambda: file.open("rb"))
    why = "; ".join(finding.why for finding in findings[:3])
    if "constants.pkl" in names:
        return Examined(TORCHSCRIPT, "code and weights; loading it runs no Python")
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return Examined(EXPORTED, why or "a program of torch.export", bool(findings))
    if "data.pkl" in names:
        try:
            unsafe = checkpoint.imports(opened) - checkpoint.SAFE - scan.ALLOWED
        except checkpoint.OtherPickle as error:
            return Examined(MODULE, str(error), unsafe=True)
        except checkpoint.Unreadable as error:
            return Examined(UNREADABLE, str(error), unsafe=True)
        tensors = sum("/data/" in name for name in members)
        return (
            Examined(MODULE, f"loading it would import {_some(unsafe)}", True)
            if unsafe
            else Examined(STATE_DICT, _counted(tensors, "tensor"))
        )
    if members and all(name.endswith(".npy") for name in members):
        return _npz(opened, members)
    return Examined(OTHER, why or "a zip file", bool(findings))


def _npz(opened: IO[bytes], members: list[str]) -> Examined:
    with zipfile.ZipFile(opened) as archive:
        for name in members:
            with archive.open(name) as member:
                if (array := _numpy(member)).kind != NUMPY or array.unsafe:
                    return array
    return Examined(NUMPY, _counted(len(members), "array"))


def _numpy(opened: IO[bytes], size: int | None = None) -> Examined:
    """An array with its header. size: of the file, if it is to be checked."""
    import numpy as np

    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(opened)
    if kind.hasobject:
        return Examined(NUMPY, "an array of Python objects, which is a pickle", unsafe=True)
    count = 1
    for length in shape:
        count *= int(length)
    if size is not None and size - opened.tell() < count * kind.itemsize:
        return Examined(TRUNCATED, f"the array {shape} of {kind} needs {count * kind.itemsize} bytes")
    return Examined(NUMPY, f"an array {shape} of {kind}")


def _safetensors(opened: IO[bytes], size: int) -> Examined:
    length = int(struct.unpack("<Q", opened.read(8))[0])
    if length > DIRECTORY_BYTES:
        return Examined(OTHER)
    try:
        header = json.loads(opened.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return Examined(OTHER)
    if size < 8 + length + max(ends, default=0):
        return Examined(TRUNCATED, f"its tensors need {8 + length + max(ends)} bytes")
    return Examined(SAFETENSORS, _counted(len(ends), "tensor"))


def _legacy(opened: IO[bytes], file: Path) -> Examined:
    content = opened.read(PICKLE_BYTES)
    stream, names, others = io.BytesIO(content), set[str](), False
    for _ in range(LEGACY_PICKLES):
        listed = _listed(stream)
        names |= listed.imports
        others = others or listed.other
        if not listed.ends:
            return Examined(TRUNCATED, "a pickle in it has no end")
    if others or (unsafe := names - checkpoint.SAFE):
        return Examined(LEGACY, f"loading it would import {_some(unsafe) if not others else 'names that cannot be listed'}", unsafe=True)
    import torch

    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        return Examined(TRUNCATED, f"torch cannot load it: {error}".splitlines()[0][:300])
    return Examined(LEGACY, "tensors in torch's format before 1.6")


def _pickle(opened: IO[bytes], head: bytes, suffix: str) -> Examined:
    """A pickle of any protocol. Protocols 0 and 1 have no mark: what imports and calls is one, and in a file named as a model what ends."""
    stream = io.BytesIO(opened.read(PICKLE_BYTES))
    listed = _listed(stream)
    # What is still an operation where the reading stops is a pickle, too: a long text can hide what follows.
    if not listed.ends and stream.tell() == PICKLE_BYTES:
        return Examined(PICKLE, f"its first {PICKLE_BYTES >> 20} MiB do not show what it would import", unsafe=True)
    if scan.is_pickled(head[:2]) or listed.calls or (listed.ends and suffix in TORCH_SUFFIXES):
        details = f"loading it would import {_some(listed.imports)}" if listed.imports else "it imports nothing"
        return Examined(
            PICKLE if listed.ends or listed.calls else TRUNCATED, details if listed.ends else f"{details}; it has no end", unsafe=True
        )
    if suffix in scan.TORCH:
        return Examined(UNREADABLE, "the file is neither a zip file nor a pickle", unsafe=True)
    return Examined(OTHER)


@dataclass
class _Listed:
    """imports: MODULE.NAME. calls: it imports and calls. other: it has an operation that torch does not write. ends: it has STOP."""

    imports: set[str]
    calls: bool = False
    other: bool = False
    ends: bool = False


def _listed(stream: IO[bytes]) -> _Listed:
    """The operations of one pickle, as far as they can be read."""
    listed, strings, marked = _Listed(set()), list[str](), False
    try:
        for operation, argument, _ in pickletools.genops(stream):
            name = operation.name
            if name in ("GLOBAL", "INST"):
                if not IDENTIFIERS.fullmatch(str(argument)) or (name == "INST" and not marked):
                    break
                listed.imports.add(str(argument).replace(" ", "."))
            elif name in IMPORTS:
                listed.imports.add(".".join(strings[-2:]) or "a name that is computed")
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument]
            marked = marked or name == "MARK"
            listed.calls = listed.calls or (name in CALLS and bool(listed.imports))
            listed.other = listed.other or name not in checkpoint.OPERATIONS
            listed.ends = name == "STOP"
    except Exception:  # pickletools raises any error for a file that is not a pickle: then this is what could be read
        return listed
    return listed


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:10])[:500]
