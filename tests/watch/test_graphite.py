"""`mlops-build watch graphite` against a real TCP listener."""

import platform
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters.graphite import MAX_QUEUED, Sender
from mlops_build.errors import Unreachable, UsageError
from mlops_build.gpu.testing import SimulatedCard
from mlops_build.watch.graphite import component, node_component
from tests.gpu.conftest import MakeNode

LINE = re.compile(r"([A-Za-z0-9_.-]+) (-?[0-9]+(?:\.[0-9]+)?) ([0-9]{10})")


@pytest.fixture
def carbon() -> Iterator[socket.socket]:
    """A listener as carbon's plaintext port is."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(60)
        yield listener


def command(listener: socket.socket, *options: str) -> list[str]:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    return [sys.executable, "-m", "mlops_build", "watch", "graphite", address, "--node", "gpu-1.rack", *options]


def received(connection: socket.socket, *, snapshots: int | None = None) -> dict[str, str]:
    """Values by path: all until the sender ends, or those of so many snapshots."""
    connection.settimeout(60)
    text = ""
    with connection:
        while snapshots is None or text.count(".driver_up ") < snapshots or not text.endswith("\n"):
            chunk = connection.recv(65536)
            if not chunk:
                break
            text += chunk.decode()
    values = {}
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        values[match[1]] = match[2]
    return values


def test_a_snapshot_is_sent_as_plaintext(node: MakeNode, carbon: socket.socket) -> None:
    gpus = node(SimulatedCard(total="24GiB", temperature=61, power_watts=None), "24GiB")
    gpus.lose(1)
    with subprocess.Popen([*command(carbon), "--once", "--json"], env=gpus.environment, stdout=subprocess.PIPE) as process:
        connection, _ = carbon.accept()
        values = received(connection)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f'"sent": {len(values)}' in output.decode()
    card = f"mlops.gpu.gpu-1_rack.card.{gpus.cards[0].uuid}"
    assert values[f"{card}.memory_total_bytes"] == str(24 * 2**30)
    assert values[f"{card}.temperature_celsius"] == "61"
    assert f"{card}.power_watts" not in values
    assert values["mlops.gpu.gpu-1_rack.driver_up"] == "1"
    assert values["mlops.gpu.gpu-1_rack.cards_ready"] == "1"
    assert any(path.endswith(".reason.lost.trouble") for path in values)


def test_it_connects_again_when_graphite_was_away(node: MakeNode, carbon: socket.socket) -> None:
    process = subprocess.Popen(
        [*command(carbon), "--interval", "1", "--prefix", "a.b"], env=node("24GiB").environment, stderr=subprocess.PIPE
    )
    assert process.stderr
    try:
        for _ in range(2):
            connection, _ = carbon.accept()
            values = received(connection, snapshots=1)
            assert any(re.fullmatch(r"a\.b\.[^.]+\.driver_up", path) for path in values)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait(20)
        process.stderr.close()


def test_what_could_not_be_sent_is_kept_and_bounded(carbon: socket.socket) -> None:
    address = carbon.getsockname()
    carbon.close()
    sender = Sender(*address)
    for number in range(MAX_QUEUED + 40):
        with pytest.raises(Exception, match="does not accept"):
            sender.send(f"{number}\n".encode())
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(address)
        again.listen()
        sender.send(b"last\n")
        connection, _ = again.accept()
        sender.close()
        with connection, connection.makefile() as file:
            lines = file.read().split()
    assert lines == [*(str(number) for number in range(41, MAX_QUEUED + 40)), "last"]


def test_a_snapshot_that_was_sent_in_part_is_sent_again(carbon: socket.socket) -> None:
    large = b"x" * (64 << 20) + b"\n"  # more than the buffers of a connection hold
    sent = bytearray()

    def accept() -> None:
        first, _ = carbon.accept()
        first.recv(1)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing it resets the connection
        first.close()
        second, _ = carbon.accept()
        with second:
            while chunk := second.recv(1 << 20):
                sent.extend(chunk)

    server = threading.Thread(target=accept, daemon=True)
    server.start()
    sender = Sender(*carbon.getsockname())
    with pytest.raises(Unreachable, match="does not accept"):
        sender.send(large)
    sender.send(b"last\n")
    sender.close()
    server.join(60)
    assert sent == large + b"last\n"


def test_an_unreachable_server_is_exit_code_5(node: MakeNode, carbon: socket.socket) -> None:
    address = command(carbon, "--once")
    carbon.close()
    done = subprocess.run(address, env=node("24GiB").environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert "2003" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["h:0"], ["h:2003", "--prefix", "a b"], ["h:2003", "--prefix", "a..b"], ["h:2003", "--interval", "0"]]
)
def test_invalid_arguments_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(["watch", "graphite", *arguments])
    except SystemExit as ended:  # from the parser
        code = ended.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("a.b", "a_b"), ("x y\n1", "x_y_1"), ("", "_"), ("GPU-1", "GPU-1"), ("é", "_")])
def test_a_component_of_a_path_has_no_separator(text: str, expected: str) -> None:
    assert component(text) == expected


@pytest.mark.parametrize(
    ("host", "environment", "expected"),
    [
        ("gpu-1.example.com", {}, "gpu-1_example_com"),
        ("0123456789ab", {}, None),
        ("0123456789ab", {"NODE_NAME": "gpu-1"}, "gpu-1"),
        ("graphite-7c9d8b6f5-x2x4z", {}, "graphite-7c9d8b6f5-x2x4z"),
        ("graphite-7c9d8b6f5-x2x4z", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ("gpu-1", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "gpu-1"),
    ],
)
def test_the_name_of_a_container_is_in_no_path(
    monkeypatch: pytest.MonkeyPatch, host: str, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("NODE_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platform, "node", lambda: host)
    if expected is None:
        with pytest.raises(UsageError, match=host) as refused:
            node_component(None)
        assert "--node NAME" in str(refused.value.remedy)
    else:
        assert node_component(None) == expected
    assert node_component("given") == "given"
