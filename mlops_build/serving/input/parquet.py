"""Tables in Parquet. Their values may be compressed, and repeated by reference."""

import io
from typing import Any

from mlops_build.serving.input import mismatch
from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.mismatch import short
from mlops_build.serving.input.reader import Reader
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature, refuse_if
from mlops_build.serving.refusal import Refusal, Unanswered

# The metadata of a body: once it is parsed, as a multiple of its size.
METADATA_COPIES = 20
# A value in a table and in its copies, and a Python object.
VALUE_BYTES, OBJECT_BYTES = 24, 136
# Of texts, also those in messages about invalid values.
TEXT_COPIES = 3
# The readers and the table of a column.
COLUMN_BYTES = 16 << 10
BATCH_ROWS = 4096
PLAIN = ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE")
NUMBERS = ("NONE", "INT", "TIMESTAMP")


def _read(signature: Signature, body: bytes, _: str, reserve: Reserve) -> Rows:
    try:
        frame = frame_of(body, reserve, signature.most)
    except ImportError:
        raise Refusal("this image cannot read Parquet: add pyarrow to the service's dependencies", status=415) from None
    except Unanswered:
        raise
    except Exception as error:
        raise Refusal(f"the body cannot be read as Parquet: {short(error)}") from None
    if signature.schema is not None and signature.schema.is_tensor_spec():
        refuse_if(mismatch.overflow_of_frame(frame, signature.schema))  # MLflow refuses such values in columns itself
    return signature.enforced(frame, None, form="frame", sent=frame)


def frame_of(body: bytes, reserve: Reserve, most: int) -> Any:
    """The pandas.DataFrame of a body. most: the limit for the number of columns.

    Raises ValueError for too many columns, pyarrow's errors for an invalid body, and what `reserve` raises.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # arrow's own pool keeps what is freed
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    reserve(METADATA_COPIES * min(len(body), int.from_bytes(body[-8:-4], "little")))
    metadata = pq.read_metadata(pa.BufferReader(body))
    if metadata.num_columns > most:
        raise ValueError(f"{metadata.num_columns} columns were sent; this service reads at most {most}")
    columns = [metadata.schema.column(at) for at in range(metadata.num_columns)]
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    reserve(sum(_size(column, group, at) for group in groups for at, column in enumerate(columns)) + COLUMN_BYTES * len(columns))
    # Equal texts of a dictionary take no memory of their own.
    if texts := [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]:
        file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=texts)
        for batch in file.iter_batches(BATCH_ROWS):
            reserve(TEXT_COPIES * sum(map(_text, batch.columns)))
    return pd.read_parquet(io.BytesIO(body))


def _size(column: Any, group: Any, at: int) -> int:
    """An upper bound of the memory for a column of a row group, without its texts, in bytes."""
    chunk, depth = group.column(at), column.path.count(".")
    is_number = column.physical_type in PLAIN and column.logical_type.type in NUMBERS
    width = VALUE_BYTES if is_number and depth <= 2 else OBJECT_BYTES * max(1, depth - 1)
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
        width += TEXT_COPIES * column.length
    # The metadata of a body may be wrong.
    values = max(chunk.num_values, group.num_rows) * width
    return int(chunk.total_uncompressed_size + values + (OBJECT_BYTES * (1 + depth) * group.num_rows if depth else 0))


def _text(array: Any) -> int:
    """The size of the texts in an array that contains dictionaries, in bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary).take(array.indices.drop_null()) if len(array.dictionary) else pa.array([], pa.int32())
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(map(_text, array.flatten()))
    if pa.types.is_map(array.type):
        return _text(array.keys) + _text(array.items)
    return _text(array.flatten()) if pa.types.is_nested(array.type) else 0


READER = Reader("application/vnd.apache.parquet", _read, slow=True)
