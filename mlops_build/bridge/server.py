"""The bridge as a process: the loop in a thread, its endpoint on a port, until SIGTERM."""

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlops_build.adapters import program
from mlops_build.bridge.endpoint import Endpoint
from mlops_build.bridge.loop import Loop
from mlops_build.serving.sigterm import Terminated, exit_on_sigterm

if TYPE_CHECKING:
    import socket

MOST_CONNECTIONS = 128
# How long a connection may last, so that one that sends nothing occupies no place.
CONNECTION_SECONDS = 30.0
HEAD_BYTES = 1 << 14
# After SIGTERM: for what is running to end by itself, and then for its programs to be stopped.
GRACE_SECONDS = 3.0


class _Protocol(H11Protocol):  # type: ignore[misc]  # uvicorn has no stubs that mypy follows here
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.began = self.loop.time()
        # /health must have a place: the oldest connection that waits for a request makes room, else the new one.
        present = [each for each in self.connections if not each.transport.is_closing()]
        if len(present) > MOST_CONNECTIONS:
            idle = [each for each in present if each.cycle is None or each.cycle.response_complete]
            min(idle, key=lambda each: each.began).transport.abort()
        self.loop.call_later(CONNECTION_SECONDS, transport.close)


def serve(loop: Loop, bound: "socket.socket") -> None:
    """Run the loop and answer requests until SIGTERM or Ctrl-C; what is running then gets some seconds to end."""
    options: dict[str, Any] = {"log_level": "error", "access_log": False, "lifespan": "off", "loop": "asyncio", "ws": "none"}
    config = uvicorn.Config(
        Endpoint(loop), http=_Protocol, h11_max_incomplete_event_size=HEAD_BYTES, timeout_graceful_shutdown=1, **options
    )
    threading.Thread(target=loop.run, daemon=True).start()
    with exit_on_sigterm():
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except Terminated:  # uvicorn repeats the signal after its shutdown
            pass
        finally:
            loop.stop()
            if not loop.is_idle(GRACE_SECONDS):
                program.end_all()
                loop.is_idle(GRACE_SECONDS)
