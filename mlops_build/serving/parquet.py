"""The memory that a Parquet body needs once it is read. Its values may be compressed, and repeated by reference."""

import io

from mlops_build.serving.json_text import Reserve

# The table, its conversion to pandas, and the model's input.
COPIES = 3
# Of texts, also those in messages about invalid values.
TEXT_COPIES = 4
# A value as a Python object, with the reference to it.
OBJECT_BYTES = 96
# The metadata, readers and table of a column.
COLUMN_BYTES = 16 << 10
BATCH_ROWS = 4096


def reserve_for(body: bytes, reserve: Reserve) -> None:
    """Reserve the memory to read a body. Raises pyarrow's errors for an invalid body, and what `reserve` raises."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own pool keeps freed memory
    # Read as dictionaries: equal texts are stored once.
    reserve(2 * len(body))
    metadata = pq.read_metadata(io.BytesIO(body))
    texts = [
        metadata.schema.column(at).path for at in range(metadata.num_columns) if metadata.schema.column(at).physical_type == "BYTE_ARRAY"
    ]
    values = 0
    for group in range(metadata.num_row_groups):
        for at in range(metadata.num_columns):
            chunk, column = metadata.row_group(group).column(at), metadata.schema.column(at)
            width = OBJECT_BYTES + (column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0)
            values += chunk.total_uncompressed_size + chunk.num_values * width
    reserve(COPIES * values + COLUMN_BYTES * metadata.num_columns)
    file = pq.ParquetFile(io.BytesIO(body), read_dictionary=texts)
    for batch in file.iter_batches(BATCH_ROWS) if texts else ():
        for column in batch.columns:
            if pa.types.is_dictionary(column.type) and len(column.dictionary):
                lengths = pc.binary_length(column.dictionary).take(column.indices.drop_null())
                reserve(TEXT_COPIES * (pc.sum(lengths).as_py() or 0))
