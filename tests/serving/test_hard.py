"""Difficult callers: overload, slow senders, disconnects, and bytes that are not HTTP. test_soak.py has the long forms of these tests, with
numeric goals."""

import contextlib
import gzip
import json
import random
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from tests.serving.conftest import HELD, Server
from tests.serving.openloop import offer
from tests.serving.test_http import RUNNING, WAITING, address, alive, ask, body, metric, wait_for_metric

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
MIB = 1 << 20


@pytest.fixture
def server(strict: Server) -> Server:
    return strict


def request(content: bytes, *more: bytes) -> bytes:
    return b"\r\n".join([HEAD.rstrip(), b"Content-Length: %d" % len(content), *more, b"", content])


def connect(server: Server, seconds: float = 20) -> socket.socket:
    return socket.create_connection(address(server), timeout=seconds)


def everything(connection: socket.socket) -> bytes:
    """The bytes until the server closes the connection. Raises TimeoutError if it does not."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def memory(server: Server) -> float:
    return metric(server, "process_resident_memory_bytes")


# -- overload --


def test_at_ten_times_the_capacity_excess_requests_are_refused_at_once(server: Server) -> None:
    slow = request(body(1.5, seconds=0.02))  # in batches of 8: 400 per second
    offer(address(server), slow, 200, 0.5)  # warm
    before = memory(server)
    outcome = offer(address(server), slow, 4000, 1.5)
    assert set(outcome.statuses) == {200, 429}, outcome.statuses
    assert outcome.statuses[200] >= 100
    assert outcome.statuses[429] >= 100
    assert outcome.without_retry == 0
    assert outcome.lost == 0
    assert outcome.percentile(429, 0.5) < outcome.percentile(200, 0.5), "a refused request does not wait in the queue"
    assert memory(server) - before < 64 * MIB
    alive(server)


def test_refusals_are_counted_and_logged(server: Server) -> None:
    refusals = 'mlops_build_refused_total{model="model",why="queue full"}'
    wait_for_metric(server, RUNNING, 0)
    before = metric(server, refusals)
    with contextlib.ExitStack() as stack:

        def sent(content: bytes) -> socket.socket:
            connection = stack.enter_context(connect(server))
            connection.sendall(content)
            return connection

        stack.enter_context(server.holding())
        for number, rows in enumerate((body(HELD), body(*[1.0] * 16))):  # the first is predicted, the second fills the queue
            sent(request(rows))
            wait_for_metric(server, RUNNING, number + 1)
            wait_for_metric(server, WAITING, 16 * number)
        refused = sent(request(body(1.0), b"X-Request-Id: me-1"))
        answer = refused.recv(4096)
        assert statuses(answer) == [429]
        assert b"x-request-id: me-1" in answer
        assert re.search(rb"retry-after: [1-9]", answer)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error_code"] == "REQUEST_LIMIT_EXCEEDED"
        answer = sent(request(b"{}").replace(b"/invocations", b"/v2/models/model/infer")).recv(4096)
        assert statuses(answer) == [429]
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}
        expecting = sent(request(body(1.0), b"Expect: 100-continue")[:-10])
        assert statuses(expecting.recv(4096)) == [429], "and not 100, so that the body is not sent"
        chunked = sent(b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert statuses(chunked.recv(4096)) == [429]
        chunked.sendall(b"no size\r\n")
        assert chunked.recv(4096) == b"", "one response for one request"
        assert metric(server, refusals) == before + 4
        server.hold.unlink()
        wait_for_metric(server, RUNNING, 0)
        whole = request(body(2.5))
        refused.sendall(whole[:-20])  # the connection stays open
        time.sleep(0.1)
        refused.sendall(whole[-20:])
        answer = b""
        while b"}" not in answer:
            answer += refused.recv(4096)
        assert b"2.5" in answer
    line = json.loads(server.wait_for(r'\{.*"me-1".*\}')[0])
    assert (line["model"], line["status"]) == ("model", 429)


def test_large_bodies_share_a_limit(server: Server) -> None:
    """All requests together may use 64 times the body limit. A body is counted twice while it arrives."""
    before = memory(server)
    half = request(b" " * (MIB - 1))[: MIB - 1000]
    connections = [connect(server) for _ in range(60)]
    try:
        answered: list[int] = []

        def send(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                connection.sendall(half)
            with contextlib.suppress(OSError):
                answered.extend(statuses(connection.recv(4096)))

        threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(answered) <= {429, 503}
        assert 503 in answered
        assert memory(server) - before < 80 * MIB
    finally:
        for connection in connections:
            connection.close()
    alive(server)


# -- slow callers --


def test_a_caller_that_sends_byte_by_byte_is_disconnected(server: Server) -> None:
    whole = request(body(1.5))
    starts = [0, len(HEAD) - 5, whole.index(b"\r\n\r\n") + 4]  # in the request line, in a header, in the body
    connections = [(connect(server), whole[start:], start) for start in starts for _ in range(20)]
    for connection, _, start in connections:
        connection.sendall(whole[:start])
    began = time.monotonic()
    remaining = set(range(len(connections)))
    sent = 0
    while remaining and time.monotonic() - began < 20:
        time.sleep(0.1)
        for index in sorted(remaining):
            connection, rest, _ = connections[index]
            try:
                connection.send(rest[sent % len(rest) : sent % len(rest) + 1])
            except OSError:
                remaining.discard(index)
        sent += 1
        if sent % 5 == 0:
            alive(server)
    for connection, _, _ in connections:
        connection.close()
    assert not remaining, "the time limit for a request does not restart with each byte"


def test_a_caller_that_never_reads_is_disconnected(server: Server) -> None:
    """Its responses fill the buffers, and the server cannot write."""
    before = memory(server)
    connections = []
    for _ in range(3):  # more would not fit into the memory for requests
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(server))
        connection.sendall(request(body(1.0, size=2_000_000)) * 3)
        connections.append(connection)
    of_server = {(address(server)[1], connection.getsockname()[1]) for connection in connections}
    end = time.monotonic() + 20
    while any((entry.laddr[1], *entry.raddr[1:]) in of_server for entry in psutil.net_connections("tcp") if entry.status == "ESTABLISHED"):
        assert time.monotonic() < end
        time.sleep(0.1)
    alive(server)
    assert memory(server) - before < 64 * MIB
    for connection in connections:
        connection.close()


# -- many connections --


def test_a_connection_above_the_limit_receives_503_and_the_others_continue(server: Server) -> None:
    alive(server)  # the connections of earlier tests are closed
    held = [connect(server) for _ in range(400)]
    try:
        for connection in held:
            connection.sendall(HEAD)  # all wait for the rest
        late = [connect(server) for _ in range(20)]
        for connection in late:
            connection.sendall(request(body(1.5)))
            answer = everything(connection)
            assert statuses(answer) == [503]
            assert b"retry-after: 1" in answer
            connection.close()
        rest = request(body(2.5))[len(HEAD) :]
        held[7].sendall(rest)
        answer = b""
        while b"}" not in answer:
            answer += held[7].recv(4096)
        assert b"2.5" in answer, "uvicorn's own limit would refuse this request too"
    finally:
        for connection in held:
            connection.close()
    end = time.monotonic() + 20
    while ask(server, body(1.5))[0] == 503:
        assert time.monotonic() < end
    alive(server)


PROBES = ["/health", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready", "/models/model/health", "/v2/models/model/ready"]


def get(path: str) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()


def test_probes_are_answered_when_idle_connections_reach_the_limit(server: Server) -> None:
    alive(server)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(400)]
        for connection in idle:
            connection.sendall(get("/ping"))
            assert statuses(connection.recv(4096)) == [200]
        silent = [stack.enter_context(connect(server)) for _ in range(100)]  # more than are reserved
        for path in PROBES:
            with connect(server) as connection:
                connection.sendall(get(path))
                assert statuses(everything(connection)) == [200], path
        for refused in (get("/version"), request(body(1.5)), get("/ping").replace(b"/ping", b"/" + b"a" * 70_000)):
            with connect(server) as connection:
                connection.sendall(refused)
                assert statuses(everything(connection)) in ([503], [431])
        for connection in silent:
            assert statuses(everything(connection)) == [503]
        idle[0].sendall(request(body(2.5)))
        assert statuses(idle[0].recv(4096)) == [200]
    end = time.monotonic() + 20
    while ask(server, body(1.5))[0] == 503:
        assert time.monotonic() < end


# -- disconnects and broken HTTP --


def test_a_disconnect_at_any_byte_does_no_harm(server: Server) -> None:
    whole = request(body(1.5))
    dice = random.Random(1)  # noqa: S311
    for cut in range(len(whole) + 1):
        with connect(server) as connection:
            connection.sendall(whole[:cut])
            if dice.random() < 0.5:  # a reset instead of an end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if cut % 100 == 0:
            alive(server)
    for name in (RUNNING, WAITING):
        wait_for_metric(server, name, 0)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"".join(request(body(float(number)), *([b"Connection: close"] if number == 9 else [])) for number in range(10)))
        answers = everything(connection)
    assert [float(value) for value in re.findall(rb'"predictions":\[([0-9.]+)\]', answers)] == [float(number) for number in range(10)]


SMALL = body(1.5)
LENGTH = b"Content-Length: %d" % len(SMALL)


def small(*headers: bytes, version: bytes = b"HTTP/1.1", target: bytes = b"/invocations", content: bytes = SMALL) -> bytes:
    return b"\r\n".join([b"POST " + target + b" " + version, b"Host: x", b"Content-Type: application/json", *headers, b"", content])


SENT = {
    "plain": small(LENGTH),
    "HTTP/1.0": small(LENGTH, version=b"HTTP/1.0"),
    "the last": small(LENGTH, b"Connection: close"),
    "in chunks": small(b"Transfer-Encoding: chunked", content=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMALL), SMALL)),
    "asks first": small(LENGTH, b"Expect: 100-continue"),
    "zeros before its length": small(b"Content-Length: %05000d" % len(SMALL)),
    "with a query": small(LENGTH, target=b"/invocations?a=b"),
    "compressed": small(
        b"Content-Encoding: gzip", b"Content-Length: %d" % len(gzip.compress(SMALL)), content=gzip.compress(SMALL, mtime=0)
    ),
}


@pytest.mark.parametrize("name", SENT)
@pytest.mark.parametrize("pieces", [1, 7])
def test_the_same_response_for_every_way_to_send_a_request(server: Server, name: str, pieces: int) -> None:
    sent = SENT[name]
    with connect(server) as connection:
        size = -(-len(sent) // pieces)
        for at in range(0, len(sent), size):
            connection.sendall(sent[at : at + size])
            time.sleep(0.01 * (pieces > 1))
        got = b""
        while not got.endswith(b'{"predictions":[1.5]}'):
            piece = connection.recv(4096)
            assert piece, got
            got += piece
        head = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert head[0] == b"HTTP/1.1 200 OK"
        assert {b"content-type: application/json", b"content-length: 21"} < set(head)
        assert len([line for line in head if line.startswith(b"x-request-id: ")]) == 1
        ends = name in ("HTTP/1.0", "the last")
        assert (b"connection: close" in head) is ends
        if not ends:
            connection.sendall(SENT["plain"])
            got = connection.recv(4096)
            assert got.endswith(b'{"predictions":[1.5]}')
        else:
            assert connection.recv(4096) == b""


H2C = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"]


@pytest.mark.parametrize("rows", [1, 2, 20_000])  # the last is too large to be answered without a task
@pytest.mark.parametrize("pieces", [1, 50])
def test_a_request_to_upgrade_to_http2_is_answered_as_http1(server: Server, rows: int, pieces: int) -> None:
    """Java's HttpClient sends it by default, curl with --http2."""
    sent = request(body(*[1.5] * rows), *H2C)
    with connect(server) as connection:
        for _ in range(2):
            size = -(-len(sent) // pieces)
            for at in range(0, len(sent), size):
                connection.sendall(sent[at : at + size])
                time.sleep(0.002 * (pieces > 1))
            connection.sendall(request(body(2.5)))
            got = b""
            while b'{"predictions":[2.5]}' not in got:
                piece = connection.recv(65536)
                assert piece, got[:500]
                got += piece
            assert statuses(got) == [200, 200]
            assert got.count(b"1.5") == rows
        connection.sendall(request(body(1.5), b"Connection: close, Upgrade", b"Upgrade: h2c"))
        assert statuses(everything(connection)) == [200]


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WRONG: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "a body longer than its length": (lambda: request(body(1.5)) + b"}}}}\r\n\r\n", {200, 400}),
    "two lengths": (lambda: request(body(1.5), b"Content-Length: 7"), {400}),
    "a length and chunks": (lambda: request(body(1.5), b"Transfer-Encoding: chunked"), {400}),
    "an invalid length": (lambda: HEAD + b"Content-Length: many\r\n\r\n", {400}),
    "a negative length": (lambda: HEAD + b"Content-Length: -1\r\n\r\n", {400}),
    "a length beyond 64 bits": (lambda: HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", {400}),
    "invalid chunks": (lambda: CHUNKED + b"5\r\nabc\r\nxyz\r\n\r\n", {400}),
    "a chunk of a huge size": (lambda: CHUNKED + b"FFFFFFFFFFFFFFFFFF\r\nabc\r\n", {400}),
    "many trailers": (lambda: CHUNKED + b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", {400, 431}),
    "a huge header": (lambda: HEAD + b"X: " + b"a" * 300_000, {431}),
    "very many headers": (lambda: HEAD + b"A: b\r\n" * 20_000, {431}),
    "very many complete headers": (lambda: HEAD + b"A: b\r\n" * 20_000 + b"Content-Length: 0\r\n\r\n", {431}),
    "a thousand headers": (lambda: HEAD + b"A: b\r\n" * 1000 + b"Content-Length: 0\r\n\r\n", {431}),
    "a long target": (lambda: b"GET /" + b"a" * 300_000, {400, 431}),
    "a target beyond ASCII": (lambda: b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404}),
    "a header with a line break": (lambda: HEAD + b"X: a\nB\r\n: c\r\n\r\n", {400}),
    "an upgrade": (lambda: b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", {200, 400}),
    "an upgrade without end": (lambda: request(body(1.5), *H2C) * 200, {200, 400}),
    "a tunnel": (lambda: b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "an unknown method": (lambda: b"BREW /invocations HTTP/1.1\r\nHost: x\r\n\r\n", {400, 405}),
    "another protocol": (lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), {400}),
    "HTTP/2": (lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "a thousand requests at once": (lambda: b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 1000, {200, 400}),
}
# After these bytes the server waits for the rest.
UNFINISHED = {
    "a body cut short": request(body(1.5))[:-9],
    "chunks that do not end": CHUNKED + b"3\r\nabc\r\n" * 1000,
    "blank lines": b"\r\n" * 10_000,
}


def test_large_headers_of_a_later_request_are_refused(server: Server) -> None:
    large = get("/ping").replace(b"Host: x", b"Host: x\r\nX: " + b"a" * 66_000)
    with connect(server) as connection:
        connection.sendall(get("/ping") + large)
        assert statuses(everything(connection)) == [200]  # the first; the second is not answered


def test_a_refused_request_that_expects_100_continue_ends_its_connection(server: Server) -> None:
    """Otherwise the next request would be read as its body."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\nExpect: 100-continue\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head)
        answer = everything(connection)
    assert statuses(answer) == [404]
    assert b"connection: close" in answer


def test_headers_that_are_too_large_in_sum_are_refused(server: Server) -> None:
    """Each piece is small enough."""
    with connect(server) as connection:
        connection.sendall(HEAD + b"A: b\r\n" * 9_000)
        time.sleep(0.2)
        connection.sendall(b"A: b\r\n" * 9_000 + b"Content-Length: 0\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("start", [b"2\r\n{}\r\n0\r\nX-T: ", b"2;x="], ids=["trailer", "chunk extension"])
def test_data_beside_the_body_is_limited(server: Server, start: bytes) -> None:
    """Otherwise the parser collects it without a limit: a trailer of 90 MB kept the event loop busy for 20 s."""
    with connect(server) as connection:
        connection.sendall(CHUNKED + start)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 16 << 20 and not select.select([connection], [], [], 0.01)[0]:
                sent += connection.send(b"a" * 65536)
        assert everything(connection).startswith(b"HTTP/1.1 431 ")
    assert sent < 16 << 20


@pytest.mark.parametrize("name", WRONG)
def test_broken_http_is_refused_and_its_connection_closed(server: Server, name: str) -> None:
    """Without a 5xx, and while other requests are served."""
    content, expected = WRONG[name]
    with connect(server) as connection:
        sender = threading.Thread(target=lambda: _send_all(connection, content()))
        sender.start()
        if name in ("an upgrade", "a target beyond ASCII", "an unknown method", "many trailers"):
            connection.settimeout(3)
            with contextlib.suppress(TimeoutError):
                answers = b""
                answers = connection.recv(65536)
        else:
            answers = everything(connection)
        alive(server)
        sender.join()
    assert set(statuses(answers)) <= expected, answers[:500]
    assert answers or name in ("a thousand requests at once", "a huge header")


def test_the_connection_of_an_unfinished_request_is_closed_after_the_time_limit(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        connections = {name: stack.enter_context(connect(server)) for name in UNFINISHED}
        for name, connection in connections.items():
            connection.sendall(UNFINISHED[name])
        answers = {name: statuses(everything(connection)) for name, connection in connections.items()}
    assert set(answers.pop("blank lines")) <= {400}
    assert not any(answers.values()), answers


def _send_all(connection: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(content)


def test_random_changes_of_a_request_cause_no_server_error(server: Server) -> None:
    """For changed, dropped and repeated bytes there is a response below 500, or the connection is closed."""
    whole = request(body(1.5))
    dice = random.Random(7)  # noqa: S311
    for number in range(300):
        changed = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            position = dice.randrange(len(changed))
            what = dice.random()
            if what < 0.5:
                changed[position] = dice.randrange(256)
            elif what < 0.75:
                del changed[position]
            else:
                changed[position:position] = changed[position : position + dice.randrange(20)]
        with connect(server) as connection:
            connection.sendall(changed)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            assert all(status < 500 for status in statuses(everything(connection))), bytes(changed)
        if number % 100 == 0:
            alive(server)
    alive(server)
