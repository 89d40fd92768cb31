"""The process around the app: a port taken before the model is loaded, a word when it is ready, a gentle end on SIGTERM."""

import contextlib
import errno
import ipaddress
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from mlops_build.errors import Failed, UsageError
from mlops_build.serving.protocol import KEEP_ALIVE_SECONDS, LINGERING, bounded
from mlops_build.serving.settings import Settings

if TYPE_CHECKING:
    from mlops_build.serving.app import Service

# Requests that are being answered when SIGTERM comes get this long, in seconds.
DRAIN_SECONDS = 30
BACKLOG = 2048
# Open files beside connections: the model's, the libraries'.
FILES = 256
MIN_CONNECTIONS = 128
# How long the thread that reads and answers keeps the interpreter while the one that predicts wants it. Python's own 5 ms, many times in
# one prediction, are most of its time under load.
SWITCH_SECONDS = 0.0005


class PortTaken(Failed):
    """Another process listens on the port."""


def take_port(host: str, port: int) -> socket.socket:
    """Bind, without listening yet: a taken port is known before seconds go into loading a model. 0 takes a free one.

    Raises PortTaken, or UsageError for an address that is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(
            f"{host!r} is no address of this machine: {error.strerror}", remedy="use --host 127.0.0.1 or --host 0.0.0.0"
        ) from None
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(host, port) from None
        if error.errno == errno.EACCES:
            raise UsageError(f"port {port} needs root", remedy="choose one from 1024: --port 8080") from None
        raise UsageError(f"cannot listen on {host}: {error.strerror}", remedy="use --host 127.0.0.1 or --host 0.0.0.0") from None
    return taken


def url(host: str, taken: socket.socket) -> str:
    """Where the service answers."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            host = f"[{host}]"
    return f"http://{host}:{taken.getsockname()[1]}"


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the process with exit code 0, while loading too. In a container we are process 1, which has no default for it."""

    def end(*_: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(app: "Service", taken: socket.socket, ready: Callable[[], None], settings: Settings) -> int:
    """Serve on a port that was taken, until SIGTERM or Ctrl-C; `ready` is called when requests are answered. Raises PortTaken.

    The exit code: 0, or 1 where the card was lost to this process, which a new one may have again.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    connections = _allowed_connections(settings.connections)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        loop="uvloop",
        http=bounded(settings.read, connections, app.begin),
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # who a proxy says the caller is, nothing here asks
    )
    server = _Server(config, ready)
    code = 0

    def fatal() -> None:
        nonlocal code
        code = 1
        server.should_exit = True

    app.on_fatal = fatal
    try:
        server.run(sockets=[taken])
    except OSError as error:
        # Two processes can bind the same port; the second to listen is told so.
        if error.errno == errno.EADDRINUSE:
            host, port = taken.getsockname()[:2]
            raise _taken(host, port) from None
        raise
    return code


def _allowed_connections(wanted: int) -> int:
    """How many there may be. Every connection is a file: 1024 at most is what most systems begin with, and many containers end with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = FILES + LINGERING + BACKLOG  # those that are refused are accepted first, a backlog at once
    if soft < wanted + spare:
        most = wanted + spare if hard == resource.RLIM_INFINITY else min(wanted + spare, hard)
        with contextlib.suppress(ValueError, OSError):  # a container may forbid it: then the limit stays what it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return wanted if soft >= wanted + spare else max(MIN_CONNECTIONS, min(wanted, soft - spare))


def _taken(host: str, port: int) -> PortTaken:
    return PortTaken(f"port {port} on {host} is taken by another process", remedy="choose another with --port, or a free one with --port 0")


class _Server(uvicorn.Server):  # type: ignore[misc]  # uvicorn has no stubs that mypy follows here
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
