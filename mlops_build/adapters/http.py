"""HTTP requests to servers other than MLflow's: one answer within a time limit, no redirects, a company's certificates."""

import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse, HTTPSConnection
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
        except ValueError:
            return None


class _Https(urllib.request.HTTPSHandler):
    # Reads the certificates only when they are needed: 10 ms for each file of them.
    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(HTTPSConnection, request, context=tls_context())


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
    opener = urllib.request.build_opener(_NoRedirects(), _Https())
    try:
        try:
            answer = opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return Answer(answer.status, {key.lower(): value for key, value in answer.headers.items()}, _read(answer, limit, deadline))
    except (OSError, ValueError) as error:  # ValueError: the answer is not HTTP
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


def _read(answer: Any, limit: int, deadline: float) -> bytes:
    """At most `limit` bytes. urllib's own time limit begins again with each packet, so a slow server could hold a caller for ever."""
    body = b""
    while len(body) < limit and (chunk := answer.read1(min(CHUNK, limit - len(body)))):
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError("the answer takes too long")
    return body


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
