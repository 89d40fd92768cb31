"""Measure the resident memory to decode bodies, each in a process of its own: `python -m tests.serving.peaks`.

tracemalloc counts what orjson allocates, of which it uses a part. Prints a line of JSON for each body.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlops_build.serving import memory
from mlops_build.serving.input.decode import Decoder
from tests.serving import models
from tests.serving.forms import CSV, JSON

SIZE = 2_500_000
SIGNATURES = {
    "floats": models.FLOATS,
    "text": models.columns(("a", "string")),
    "mixed": models.columns(("a", "long"), ("b", "string"), ("c", "double")),
    "dates": models.columns(("a", "datetime")),
    "tensor": models.tensor("float32", (-1, -1)),
    "none": None,
}
RECORDS, INPUTS, COLUMN = '{"dataframe_records":[%s]}', '{"inputs":[%s]}', '{"inputs":{"a":[%s]}}'
ROWS, ONE = '{"dataframe_split":{"columns":["a","b","c"],"data":[%s]}}', '{"dataframe_split":{"columns":["a"],"data":[%s]}}'
# Signature, form, unit.
VALID = [
    ("floats", ROWS, "[0.123456789,1.5,-2]"), ("floats", RECORDS, '{"a":0.5,"b":1.5,"c":2}'), ("floats", ROWS, "[1,2,3]"),
    ("mixed", ROWS, '[1,"some text",2.5]'), ("mixed", RECORDS, '{"a":1,"b":"some text","c":2.5}'), ("text", ONE, '["some text é"]'),
    ("tensor", INPUTS, "[1.5,2.5,3.5]"), ("tensor", INPUTS, "[0.123456789,1.5,-2]"),
    ("floats", "a,b,c\n%s\n", "0.5,1.5,2.5"), ("text", "a\n%s\n", "some text"), ("none", "a,b,c\n%s\n", "x,1,2.5"),
]  # fmt: skip
HOSTILE = [
    ("floats", INPUTS, "[]"), ("floats", INPUTS, "{}"), ("text", INPUTS, "[[[1]]]"), ("text", INPUTS, "1.5"), ("text", INPUTS, '{"a":"x"}'),
    ("text", INPUTS, '{"a":{}}'), ("floats", ONE, '"Ā"'), ("floats", INPUTS, f'["{"x" * 50}"]'), ("text", COLUMN, f'"{"x" * 200}😀"'),
    ("text", COLUMN, f'"{"x" * 200}😀\\ud800"'), ("none", ROWS, "NaN"), ("none", '{"messages":[%s]}', '"x"'),
    ("dates", ONE, '["2026-01-01"]'),
    ("floats", RECORDS, '{"a":0.5,"b":"1.5","c":2}'), ("floats", "a,b,c\n%s\n", ",,"), ("none", "a\n%s\n", "😀"),
    ("none", "a\n%s\n", "x" * 300 + "😀"), ("floats", "a,b,c\n%s\n", "0.5,x,2.5"), ("none", "a\n%s\n", '""'),
]  # fmt: skip


def bodies() -> Iterator[tuple[bool, str, bytes, bytes, str]]:
    """Whether a body is valid, its signature, itself, a small one like it, and its type."""
    for valid, signature, form, unit in [(True, *shape) for shape in VALID] + [(False, *shape) for shape in HOSTILE]:
        kind = JSON if form.startswith("{") else CSV
        separator = "," if kind == JSON else "\n"
        large, small = (form.replace("%s", separator.join([unit] * (size // (len(unit.encode()) + 1)))).encode() for size in (SIZE, 20_000))
        yield valid, signature, large, small, kind


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


def peak(decoder: Decoder, body: bytes, small: bytes, kind: str) -> tuple[int, int]:
    """The peak of the memory to decode a body, and what was reserved for it, in bytes."""
    reserved: list[int] = []

    def decode(content: bytes) -> None:
        try:
            decoder.decode(content, kind, reserved.append)
        except Exception as error:
            sys.stderr.write(f"{error}\n")

    decode(small)
    reserved.clear()
    memory.trim()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    decode(body)
    return resident("VmHWM") - before, sum(reserved)


def main() -> None:
    memory.prepare()
    folder = Path(tempfile.mkdtemp())
    decoders = {name: Decoder(models.save(folder / name, signature)) for name, signature in SIGNATURES.items()}
    for valid, signature, body, small, kind in bodies():
        if process := os.fork():
            os.waitpid(process, 0)
            continue
        needed, reserved = peak(decoders[signature], body, small, kind)
        line = {"valid": valid, "body": body[:60].decode(errors="replace"), "needed": needed / len(body), "reserved": reserved / len(body)}
        os.write(1, json.dumps(line).encode() + b"\n")
        os._exit(0)


if __name__ == "__main__":
    main()
