"""The response to a request, for every protocol. Needs only the standard library, since the stub uses it too."""

import json
from collections.abc import Container
from dataclasses import dataclass

JSON = b"application/json"
Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. kind: the content type. headers: all except Content-Type and Content-Length."""

    status: int
    body: bytes | bytearray
    kind: bytes = JSON
    headers: Headers = ()


def mlflow_error(status: int, code: str, message: str, headers: Headers = ()) -> Answer:
    """An error in the form of MLflow's server."""
    if status == 415:  # plain text, as in MLflow's server
        return Answer(status, message.encode("utf-8", "replace"), b"text/plain; charset=utf-8", headers)
    document = {"error_code": code, "message": message}
    return Answer(status, json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"), JSON, headers)


def no_route(path: str, static: Container[str], endpoints: Container[str]) -> Answer:
    """The response to a path, or to a method that it does not have. static: paths for GET. endpoints: paths for POST."""
    if path in static or path in endpoints:
        allow = b"POST" if path in endpoints else b"GET"
        return Answer(405, b'{"detail":"Method Not Allowed"}', headers=((b"allow", allow),))
    bare = path.rstrip("/")
    if bare != path and (bare in static or bare in endpoints):
        return Answer(307, b"", headers=((b"location", bare.encode()),))
    return Answer(404, b'{"detail":"Not Found"}')
