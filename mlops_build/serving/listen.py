"""The port of a server, bound before the server starts."""

import contextlib
import errno
import ipaddress
import socket

from mlops_build.errors import Failed, UsageError


class PortInUse(Failed):
    """Another process uses the port."""


def bind(host: str, port: int, *, is_ready: bool = False) -> socket.socket:
    """Bind the port without listening, so that a port in use is an error before the model is loaded. Port 0 chooses a free port.

    is_ready: listen, too. Raises PortInUse, and UsageError for an address that this machine does not have.
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
        if is_ready:
            bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise in_use(host, port) from None
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


def in_use(host: str, port: int) -> PortInUse:
    """The error for a port in use."""
    return PortInUse(
        f"port {port} on {host} is in use by another process", remedy="choose another port with --port, or a free one with --port 0"
    )
