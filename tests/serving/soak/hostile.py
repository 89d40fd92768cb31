"""Hostile callers. Each function is one attack, of at most about 20 seconds, and returns the statuses that it received."""

import contextlib
import gzip
import io
import json
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from tests.serving.forms import CSV, JSON, PARQUET
from tests.serving.soak.callers import Address
from tests.serving.soak.served import ERRORS
from tests.serving.test_hard import WRONG

Statuses = Counter[str]
Attack = Callable[[Address, random.Random], Statuses]
MIB = 1 << 20
BODY_LIMIT = 16 * MIB
READ_SECONDS = 20.0
SMALL = json.dumps({"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}).encode()


def request(body: bytes, *more: bytes, path: str = "/invocations", kind: str = JSON) -> bytes:
    head = [f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Content-Type: " + kind.encode(), b"Content-Length: %d" % len(body), *more]
    return b"\r\n".join([*head, b"", body])


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=READ_SECONDS)


def exchange(address: Address, content: bytes, *, half: bool = False) -> Statuses:
    """Send bytes, and count the statuses until the server closes the connection or has answered once."""
    received = b""
    with contextlib.suppress(OSError), connect(address) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(content)
            if half:
                connection.shutdown(socket.SHUT_WR)
        while b"\r\n\r\n" not in received and (data := connection.recv(65536)):
            received += data
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", received)
    return Counter(status.decode() for status in statuses) if statuses else Counter(["closed"])


def slow_senders(address: Address, dice: random.Random) -> Statuses:
    whole = request(SMALL)
    received: Statuses = Counter()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(address)) for _ in range(100)]
        for at in range(dice.randrange(20, 60)):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(whole[at : at + 1])
            time.sleep(0.1)
    received["disconnected"] = len(connections)
    return received


def broken_http(address: Address, dice: random.Random) -> Statuses:
    """What test_hard.py sends, pipelined requests, and half-closed connections."""
    whole = request(SMALL)
    pipelined = whole * dice.choice([10, 64, 500]) + request(SMALL, b"Connection: close")
    sent = dice.choice([pipelined, whole, whole[: dice.randrange(len(whole))], *(content() for content, _ in WRONG.values())])
    return exchange(address, sent, half=dice.random() < 0.5)


@cache
def bombs() -> list[bytes]:
    """Small gzip bodies that are large when they are read, or once they are parsed."""
    most = BODY_LIMIT - 100

    def filled(start: bytes, unit: bytes, end: bytes) -> bytes:
        return start + unit * ((most - len(start) - len(end)) // len(unit)) + end

    split, record = b'{"dataframe_split":{"columns":["a","b","c"],"data":[', b'{"a":1,"b":2,"c":3}'
    texts = [
        *(filled(b'{"inputs":[', unit + b",", unit + b"]}") for unit in (b"[]", b"{}", b"1", b'""')),
        filled(b'{"dataframe_records":[', record + b",", record + b"]}"), filled(split, b"[1,2,3],", b"[1,2,3]]}}"),
        filled(b'{"dataframe_split":{"data":[', b"[],", b"[]]}}"), filled(b'{"inputs":{"a":[', b"null,", b'null],"b":[1],"c":[1]}}'),
        filled(b'{"inputs":' + b"[" * 5_000_000, b" ", b"]" * 5_000_000 + b"}"), filled(b'{"params":{"x":[', b"0,", b"0]}}"),
        b"a,b,c\n" + b"1,2,3\n" * (most // 6), b" " * (1 << 28), bytes(1 << 28),
    ]  # fmt: skip
    packed = [gzip.compress(text, 9, mtime=0) for text in texts]
    return [*packed, packed[-1] * 20, gzip.compress(packed[0], mtime=0), gzip.compress(b"", mtime=0) * 400_000]


def gzip_bombs(address: Address, dice: random.Random) -> Statuses:
    kind = dice.choice([JSON, JSON, JSON, CSV])
    path = dice.choice(["/invocations", "/models/pixels/invocations", "/models/text/invocations", "/v2/models/rows/infer"])
    return exchange(address, request(dice.choice(bombs()), b"Content-Encoding: gzip", path=path, kind=kind))


def deep(address: Address, dice: random.Random) -> Statuses:
    depth = dice.choice([600, 2_000, 100_000, 1_000_000])
    unit, end = dice.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return exchange(address, request(b'{"inputs":' + unit * depth + b"1" + end * depth + b"}"))


@cache
def _large() -> list[tuple[bytes, str, str]]:
    """Valid bodies of nearly 16 MiB."""
    rows = b"[0.123456789,1.5,-2],"
    split = b'{"dataframe_split":{"columns":["a","b","c"],"data":[' + rows * ((BODY_LIMIT - 200) // len(rows)) + b"[1,2,3]]}}"
    record = b'{"a":0.5,"b":1.5,"c":2},'
    records = b'{"dataframe_records":[' + record * ((BODY_LIMIT - 200) // len(record)) + b'{"a":1,"b":1,"c":1}]}'
    image = json.dumps([[[0.5] * 8] * 8] * 3).encode() + b","
    images = b'{"inputs":[' + image * ((BODY_LIMIT - 2000) // len(image)) + image.rstrip(b",") + b"]}"
    csv = b"a,b,c\n" + b"0.5,1.5,2.5\n" * ((BODY_LIMIT - 10) // 12)
    return [
        (split, "/invocations", JSON), (records, "/invocations", JSON), (images, "/models/pixels/invocations", JSON),
        (csv, "/invocations", CSV), (split + b" " * BODY_LIMIT, "/invocations", JSON),
    ]  # fmt: skip


def large(address: Address, dice: random.Random) -> Statuses:
    body, path, kind = dice.choice(_large())
    return exchange(address, request(body, path=path, kind=kind))


@cache
def _parquet() -> list[bytes]:
    """Files that are small because a column has one value, and one with very many columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = []
    for table in (
        pa.table({name: pa.array([1.0]).take(pa.array([0] * 20_000_000, pa.int8())) for name in "abc"}),
        pa.table({"text": pa.array(["x" * 1000] * 100_000), "number": pa.array([1] * 100_000)}),
        pa.table({f"c{number}": [1.0] for number in range(20_000)}),
    ):
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd")
        files.append(file.getvalue())
    return files


def parquet_bombs(address: Address, dice: random.Random) -> Statuses:
    body = dice.choice(_parquet())
    path = dice.choice(["/invocations", "/models/text/invocations"])
    return exchange(address, request(body if dice.random() < 0.8 else body[: dice.randrange(len(body))], path=path, kind=PARQUET))


def garbage(address: Address, dice: random.Random) -> Statuses:
    kind = dice.choice([JSON, CSV, PARQUET, "text/plain", "image/png", "", "multipart/form-data; boundary=x", f"{JSON}; charset=x"])
    texts = [b"\xff\xfe" * 5_000, SMALL, b'{"inputs": "\xed\xa0\x80"}', b"--x\r\n" * 50_000]
    body = dice.choice([*texts, dice.randbytes(dice.randrange(100_000))])
    if dice.random() < 0.3:
        changed = bytearray(request(body[:2000], kind=kind))
        for _ in range(5):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return exchange(address, bytes(changed), half=True)
    return exchange(address, request(body, path=dice.choice(["/invocations", "/v2/models/rows/infer"]), kind=kind))


def shapes(address: Address, dice: random.Random) -> Statuses:
    """Requests of the Open Inference Protocol whose shape is larger than their data."""
    shape = dice.choice([[10**9], [10**6, 10**6], [2**63], [-1], [0], [10**4] * 16])
    tensor: dict[str, Any] = {"name": "a", "datatype": dice.choice(["FP32", "BYTES", "INT64"]), "shape": shape}
    binary = dice.random() < 0.5
    tensor |= {"parameters": {"binary_data_size": dice.choice([10**9, 4, -1])}} if binary else {"data": [1]}
    head = json.dumps({"inputs": [tensor]}).encode()
    lengths = [b"Inference-Header-Content-Length: %d" % len(head)] if binary else []
    return exchange(address, request(head + b"\xff\xff\xff\x7f" * (4 * binary), *lengths, path="/v2/models/rows/infer"))


def disconnects(address: Address, dice: random.Random) -> Statuses:
    whole = dice.choice([request(SMALL), request(_large()[0][0])])
    with contextlib.suppress(OSError), connect(address) as connection:
        connection.sendall(whole[: dice.randrange(len(whole))])
        if dice.random() < 0.5:  # a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return Counter(["disconnected"])


def idle(address: Address, dice: random.Random) -> Statuses:
    """Connections that send nothing, or the start of a request, up to the limit of the server."""
    received: Statuses = Counter()
    with contextlib.ExitStack() as stack:
        for _ in range(1500):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(connect(address))
                if dice.random() < 0.5:
                    connection.sendall(b"POST /invocations HTTP/1.1\r\n")
                received["opened"] += 1
        time.sleep(5)
    return received


def failing_model(address: Address, dice: random.Random) -> Statuses:
    """The model raises, sleeps, or returns a wrong shape."""
    values = [float(-dice.randint(1, ERRORS)), *[0.5] * dice.randrange(3)]
    body = json.dumps({"inputs": {"what": values}}).encode()
    return exchange(address, request(body, path="/models/odd/invocations"))


def unread(address: Address, dice: random.Random) -> Statuses:
    """Ask for large answers, and never read them."""
    body = json.dumps({"inputs": {"what": [-8.0] * 4}}).encode()
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(address)
            connection.sendall(request(body, path="/models/odd/invocations") * 3)
        time.sleep(dice.uniform(1, 5))
    return Counter(["disconnected"])


ATTACKS: dict[str, Attack] = {
    "slow senders": slow_senders,
    "broken HTTP": broken_http,
    "gzip bombs": gzip_bombs,
    "deep nesting": deep,
    "16 MiB bodies": large,
    "Parquet bombs": parquet_bombs,
    "garbage": garbage,
    "shapes beyond the data": shapes,
    "disconnects": disconnects,
    "idle connections": idle,
    "failing model": failing_model,
    "unread answers": unread,
}


def prepare() -> None:
    """Create the large bodies, which takes seconds."""
    bombs(), _large(), _parquet()
