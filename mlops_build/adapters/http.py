"""HTTP requests to servers other than MLflow's: one answer within a time limit, no redirects, a company's certificates."""

import http.client
import io
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mlops_build.errors import Unreachable

MOST_BYTES = 1 << 20
CHUNK = 1 << 16
# Variables of other programs for a company's certificates, besides Python's SSL_CERT_FILE and SSL_CERT_DIR.
BUNDLES = ("GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Remedies for a server that does not answer, and for one whose certificate is not trusted.
NETWORK = "check the address, the network and the proxy"
CERTIFICATES = f"if your company has its own certificates, set SSL_CERT_FILE (or {', '.join(BUNDLES)}) to their file"


class NoAnswer(Unreachable):
    """The server does not answer."""


@dataclass(frozen=True)
class Answer:
    """status: HTTP's. headers: with names in lower case. body: at most MOST_BYTES."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON; None if it is something else."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):  # RecursionError: too deep
            return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # urllib would send the headers, and so a token, to the new address.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def call(
    method: str, url: str, *, seconds: float, headers: Mapping[str, str] | None = None, body: bytes | None = None, limit: int = MOST_BYTES
) -> Answer:
    """Send one request, and read the answer, any status included. Raises NoAnswer after `seconds` in all. url: http or https.

    limit: at most this many bytes of the body are read.
    """
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(url, method=method, data=body, headers=dict(headers or {}))  # noqa: S310 # http(s): the caller's check
    opener = urllib.request.build_opener(_NoRedirects(), _handler(deadline))
    try:
        try:
            answer = opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return Answer(answer.status, {key.lower(): value for key, value in answer.headers.items()}, _read(answer, limit))
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last two: the answer is not HTTP
        reason = getattr(error, "reason", error)
        remedy = CERTIFICATES if isinstance(reason, ssl.SSLCertVerificationError) else NETWORK
        parts = urlsplit(url)
        raise NoAnswer(f"{parts.scheme}://{parts.netloc} does not answer: {str(reason)[:200]}", remedy=remedy) from None


def has_address(host: str) -> bool:
    """Whether a host's name resolves."""
    try:
        return bool(socket.getaddrinfo(host, 80))
    except OSError:
        return False


def _read(answer: Any, limit: int) -> bytes:
    body = b""
    while len(body) < limit and (chunk := answer.read1(min(CHUNK, limit - len(body)))):
        body += chunk
    return body


class _Timed(io.RawIOBase):
    """Reads from a socket until the deadline. Its own time limit begins again with each packet, so a slow server could hold a caller."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._raw, self._deadline = connection, connection.makefile("rb", buffering=0), deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        try:
            if left > 0:
                self._connection.settimeout(left)
                return self._raw.readinto(buffer)
        except TimeoutError:
            pass
        raise TimeoutError("the answer takes too long")

    def close(self) -> None:
        self._raw.close()
        super().close()


def _handler(deadline: float) -> urllib.request.BaseHandler:
    """Opens http and https, and reads the whole answer, its headers included, until the deadline."""

    class Response(http.client.HTTPResponse):
        def __init__(self, connection: socket.socket, *arguments: Any, **options: Any) -> None:
            super().__init__(connection, *arguments, **options)
            self.fp.close()
            self.fp = io.BufferedReader(_Timed(connection, deadline))

    class Plain(http.client.HTTPConnection):
        response_class = Response

    class Encrypted(http.client.HTTPSConnection):
        response_class = Response

    class Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Plain, request)

        def https_open(self, request: urllib.request.Request) -> Any:
            # Reads the certificates only when they are needed: 10 ms for each file of them.
            return self.do_open(Encrypted, request, context=tls_context())

    return Handler()


def tls_context() -> ssl.SSLContext:
    """The trusted certificates: Python's own, and a company's. Raises NoAnswer for a file without certificates."""
    context = ssl.create_default_context()
    for variable in BUNDLES:
        if bundle := os.environ.get(variable):
            try:
                context.load_verify_locations(cafile=bundle)
            except (OSError, ssl.SSLError):
                raise NoAnswer(f"{variable} is {bundle}, which contains no certificates", remedy="set it to a file in PEM format") from None
    return context
