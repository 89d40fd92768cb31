"""What a file of torch.save would import when it is loaded, found without torch, whose import takes longer than the rest of `package`.

The file is a zip file that contains one pickle of protocol 2. Other readers of zip files than Python's may find other members in an
ambiguous file, so only files with a single interpretation are accepted.
"""

import pickletools
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import IO

# The operations that torch reads with weights_only=True. None of them can build the name of an import while the pickle is loaded.
_OPERATIONS = """
GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST
EMPTY_DICT EMPTY_SET BINPERSID BININT BININT1 BININT2 BINFLOAT BINGET LONG_BINGET BINPUT LONG_BINPUT BINUNICODE SHORT_BINSTRING LONG1
PROTO STOP
"""
_TENSORS = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_STORAGES = (*_TENSORS, "Bool", "ComplexDouble", "ComplexFloat")
_REBUILD = """
device_tensor_from_cpu_tensor device_tensor_from_numpy meta_tensor_no_storage nested_tensor parameter parameter_with_state qtensor
sparse_tensor tensor tensor_v2 tensor_v3 wrapper_subclass
"""
_TYPES = """
bcomplex32 bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64 float16 float32 float4_e2m1fn_x2 float64
float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int1 int16 int2 int3 int32 int4 int5 int6 int64 int7 int8 qint32
qint8 quint2x4 quint4x2 quint8 uint1 uint16 uint2 uint3 uint32 uint4 uint5 uint6 uint64 uint7 uint8 per_channel_affine
per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine per_tensor_symmetric Size Tensor device
"""
OPERATIONS = frozenset(_OPERATIONS.split())
# What torch allows for weights_only=True; a test compares them with the installed torch.
SAFE = frozenset(
    {
        "_codecs.encode",
        *(f"builtins.{name}" for name in ("bytearray", "complex", "set")),
        *(f"collections.{name}" for name in ("Counter", "OrderedDict")),
        *(f"{module}.{kind}Storage" for module in ("torch", "torch.cuda") for kind in _STORAGES),
        *(f"torch.{kind}Storage" for kind in ("QInt32", "QInt8", "QUInt2x4", "QUInt4x2", "QUInt8")),
        *(f"{module}.{kind}Tensor" for module in ("torch", "torch.cuda") for kind in (*_TENSORS, "Bool")),
        *(f"{module}.{kind}Tensor" for module in ("torch.sparse", "torch.cuda.sparse") for kind in _TENSORS),
        *(f"torch.{name}" for name in _TYPES.split()),
        *(f"torch._utils._rebuild_{name}" for name in _REBUILD.split()),
        "torch._tensor._rebuild_from_type_v2",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)


class Unreadable(ValueError):
    """The file is not one that torch.save writes, or it has more than one interpretation. The text says why."""


class OtherPickle(Unreadable):
    """A pickle with an operation that torch.save does not write: it can build the names of its imports while it is loaded."""


def imports(file: IO[bytes]) -> set[str]:
    """The names, as MODULE.NAME, that loading the file would import. Raises Unreadable, and what zipfile raises."""
    return _imports(_pickle(file))


def _pickle(file: IO[bytes]) -> bytes:
    with zipfile.ZipFile(file) as archive:
        names = [member.filename for member in archive.infolist()]
        if len({name.lower() for name in names}) < len(names):
            raise Unreadable("two members of the zip file have the same name")
        top = names[0].partition("/")[0] if names else ""
        if any(not name.startswith(f"{top}/") for name in names) or f"{top}/data.pkl" not in names:
            raise Unreadable("the zip file is not laid out as by torch.save")
        if any(name.lower().endswith("/constants.pkl") for name in names):
            raise Unreadable("it is a torchscript file")
        if _directory(file) != archive.start_dir:
            raise Unreadable("the zip file says another place of its directory than where it is")
        member = archive.getinfo(f"{top}/data.pkl")
        if member.compress_type != zipfile.ZIP_STORED:
            raise Unreadable("data.pkl is compressed, which torch.save never does")
        return archive.read(member)


def _directory(file: IO[bytes]) -> int:
    """Where the zip file says that its directory is. zipfile corrects a wrong place, other readers believe it."""
    end = file.seek(0, 2) - 22
    file.seek(max(0, end - 20))
    locator, record = file.read(20), file.read()
    if len(record) != 22 or not record.startswith(b"PK\x05\x06"):
        raise Unreadable("the zip file has a comment, or something behind its end")
    if not locator.startswith(b"PK\x06\x07"):
        return int(struct.unpack_from("<L", record, 16)[0])
    place = int(struct.unpack_from("<Q", locator, 8)[0])
    if place != end - 20 - 56:
        raise Unreadable("the zip file says another place of its end than where it is")
    file.seek(place)
    return int(struct.unpack_from("<Q", file.read(56), 48)[0])


def _imports(pickled: bytes) -> set[str]:
    names: set[str] = set()
    for operation, _, position in pickletools.genops(pickled):
        if operation.name not in OPERATIONS or position is None:
            raise OtherPickle(f"the pickle has the operation {operation.name}, which torch.save never writes")
        if operation.name == "GLOBAL":
            # Not the operation's argument: pickletools decodes escapes in it, which a pickle's reader does not.
            module, name = (part.decode() for part in pickled[position + 1 :].split(b"\n", 2)[:2])
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            names.add(f"{module}.{name}")
    return names
