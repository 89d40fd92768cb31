"""The server process: bind the port before the model is loaded, report when it is ready, and shut down gracefully on SIGTERM."""

import contextlib
import errno
import resource
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from mlops_build.serving import listen
from mlops_build.serving.http.connections import LINGERING, RESERVED, Connections
from mlops_build.serving.sigterm import Terminated
from mlops_build.serving_settings import Settings

if TYPE_CHECKING:
    import socket

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


def run(app: "Service", bound: "socket.socket", ready: Callable[[], None], settings: Settings) -> int:
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
            raise listen.in_use(*bound.getsockname()[:2]) from None
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


class _Server(uvicorn.Server):  # type: ignore[misc]  # uvicorn has no stubs that mypy follows here
    def __init__(self, config: uvicorn.Config, connections: Connections, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._connections, self._ready = connections, ready

    async def startup(self, sockets: "list[socket.socket] | None" = None) -> None:
        self._connections.start(self.server_state.connections, self.server_state.tasks)
        await super().startup(sockets)
        if self.started:
            self._ready()
