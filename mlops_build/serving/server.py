"""The server process: bind the port before the model is loaded, report when it is ready, and shut down gracefully on SIGTERM."""

import contextlib
import errno
import ipaddress
import resource
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from mlops_build.errors import Failed, UsageError
from mlops_build.serving.http.connections import LINGERING, RESERVED, Connections
from mlops_build.serving.sigterm import Terminated
from mlops_build.serving_settings import Settings

if TYPE_CHECKING:
    from mlops_build.serving.app import Service

# How long running requests may take after SIGTERM.
DRAIN_SECONDS = 30
BACKLOG = 2048
# Open files besides connections: those of the model and of libraries.
FILES = 256
MIN_CONNECTIONS = 128
# How long the event loop's thread keeps the interpreter while the predicting thread waits for it. With Python's default of 5 ms, these
# waits are most of the time of a prediction under load.
SWITCH_SECONDS = 0.0005


class PortInUse(Failed):
    """Another process uses the port."""


def bind_port(host: str, port: int) -> socket.socket:
    """Bind the port without listening, so that a port in use is an error before the model is loaded. Port 0 chooses a free port.

    Raises PortInUse, and UsageError for an address that this machine does not have.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(
            f"{host!r} is not an address of this machine: {error.strerror}", remedy="use --host 127.0.0.1 or --host 0.0.0.0"
        ) from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise _port_in_use(host, port) from None
        if error.errno == errno.EACCES:
            raise UsageError(f"port {port} needs root", remedy="choose a port above 1023: --port 8080") from None
        raise UsageError(f"cannot listen on {host}: {error.strerror}", remedy="use --host 127.0.0.1 or --host 0.0.0.0") from None
    return bound


def url(host: str, bound: socket.socket) -> str:
    """The base URL of the service."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            host = f"[{host}]"
    return f"http://{host}:{bound.getsockname()[1]}"


def run(app: "Service", bound: socket.socket, ready: Callable[[], None], settings: Settings) -> int:
    """Serve on a bound socket until SIGTERM or Ctrl-C. ready: called once the service accepts requests. Raises PortInUse.

    Returns the exit code: 0, or 1 if CUDA became unusable in this process, or a prediction is stuck: a new process may be able to predict.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    connections = Connections(app, settings.read, _allowed_connections(settings.connections))
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        loop="uvloop",
        http=connections.protocol,
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )

    def started() -> None:
        app.check()
        ready()

    server = _Server(config, connections, started)
    code = 0

    def fatal() -> None:
        nonlocal code
        code = 1
        server.should_exit = True

    app.on_fatal = fatal
    try:
        server.run(sockets=[bound])
    except Terminated:  # uvicorn repeats the signal after its shutdown
        pass
    except OSError as error:
        # Two processes can bind the same port; listening then fails in the second.
        if error.errno == errno.EADDRINUSE:
            host, port = bound.getsockname()[:2]
            raise _port_in_use(host, port) from None
        raise
    finally:
        app.liveness.end()
    return 1 if app.liveness.why() else code


def _allowed_connections(wanted: int) -> int:
    """The limit of connections. Each is an open file; most systems start with a limit of 1024 files, which many containers cannot raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = FILES + RESERVED + LINGERING + BACKLOG  # refused connections are accepted first, up to a whole backlog
    if soft < wanted + spare:
        most = wanted + spare if hard == resource.RLIM_INFINITY else min(wanted + spare, hard)
        with contextlib.suppress(ValueError, OSError):  # a container may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return wanted if soft >= wanted + spare else max(MIN_CONNECTIONS, min(wanted, soft - spare))


def _port_in_use(host: str, port: int) -> PortInUse:
    return PortInUse(
        f"port {port} on {host} is in use by another process", remedy="choose another port with --port, or a free one with --port 0"
    )


class _Server(uvicorn.Server):  # type: ignore[misc]  # uvicorn has no stubs that mypy follows here
    def __init__(self, config: uvicorn.Config, connections: Connections, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._connections, self._ready = connections, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._connections.start(self.server_state.connections, self.server_state.tasks)
        await super().startup(sockets)
        if self.started:
            self._ready()
