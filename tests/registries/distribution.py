"""An image registry over real HTTP: it stores blobs, uploads and manifests, checks digests and logins, and fails where a test says so."""

import base64
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests import servers

NAME = r"/v2/(?P<name>[a-z0-9/]+)"
MANIFEST, BLOB, UPLOAD = rf"{NAME}/manifests/(?P<key>.+)", rf"{NAME}/blobs/(?P<key>sha256:.+)", rf"{NAME}/blobs/uploads/(?P<key>[0-9]*)"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Fault:
    """What the registry does instead at a request `METHOD PATH` that matches. after: this many matching requests are answered as usual.

    keep: the bytes of the request's body that it stores, before it closes the connection. short: the answer lacks its last byte.
    delay: seconds before the answer. replace: headers of the usual answer. Otherwise the answer is status, headers and body.
    """

    match: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    times: int = 1
    after: int = 0
    keep: int | None = None
    short: bool = False
    delay: float = 0
    replace: dict[str, str] | None = None


@dataclass(frozen=True)
class Seen:
    """A request. size: the bytes of its body that were read."""

    method: str
    path: str
    headers: dict[str, str]
    size: int


@dataclass
class Registry:
    """host: its address. mode: open, basic or bearer. realm: of tokens, if it is not this server's. uses: how many requests a token serves.

    login: user:password. seen: the requests, also those to the token server. forgets: uploads are unknown after a broken connection.
    """

    host: str = ""
    mode: str = "open"
    realm: str = ""
    login: str = "bot:xyzzy"
    identity: str = "an-identity-token"
    uses: int = 1000
    mounts: bool = True
    forgets: bool = False
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    tokens: list[int] = field(default_factory=list)
    sent: int = 0

    def fault(self, request: str) -> Fault | None:
        """The fault of this request."""
        for fault in self.faults:
            if re.match(fault.match, request):
                fault.after -= 1
                if fault.after < 0 < fault.times:
                    fault.times -= 1
                    return fault
        return None

    def calls(self, match: str) -> list[Seen]:
        """The requests `METHOD PATH` that match."""
        return [seen for seen in self.seen if re.match(match, f"{seen.method} {seen.path}")]

    def accepts(self, authorization: str) -> bool:
        if self.mode != "bearer":
            return self.mode == "open" or authorization == f"Basic {base64.b64encode(self.login.encode()).decode()}"
        number = re.fullmatch(r"Bearer token-([0-9]+)", authorization)
        if not number or not self.tokens[int(number[1])]:
            return False
        self.tokens[int(number[1])] -= 1
        return True

    def token(self, authorization: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        basic = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if authorization != basic and query.get("refresh_token") != [self.identity]:
            return 401, {}, b'{"details": "incorrect username or password"}'
        self.tokens.append(self.uses)
        return 200, {}, json.dumps({"access_token" if "refresh_token" in query else "token": f"token-{len(self.tokens) - 1}"}).encode()

    def answer(self, method: str, path: str, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """The usual answer to a request."""
        address = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        if address.path == "/token":
            return self.token(headers.get("Authorization", ""), parse_qs(body.decode() if method == "POST" else address.query))
        if not self.accepts(headers.get("Authorization", "")):
            bearer = f'Bearer realm="{self.realm or f"http://{self.host}/token"}",service="registry",scope="x"'
            return 401, {"WWW-Authenticate": bearer if self.mode == "bearer" else 'Basic realm="x"'}, b""
        if at := re.fullmatch(MANIFEST, address.path):
            return self.manifest(method, at["name"], at["key"], body, headers)
        if at := re.fullmatch(BLOB, address.path):
            content = self.blobs.get((at["name"], at["key"]))
            return (404, {}, b"") if content is None else (200, {"Docker-Content-Digest": at["key"]}, content)
        if at := re.fullmatch(UPLOAD, address.path):
            return self.upload(method, at["name"], at["key"], query, body)
        return 404, {}, b"<html>what is this?</html>"

    def manifest(self, method: str, name: str, key: str, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if method == "PUT":
            for reference in (key, digest_of(body)):
                self.manifests[name, reference] = (headers["Content-Type"], body)
            return 201, {"Docker-Content-Digest": digest_of(body)}, b""
        if (name, key) not in self.manifests:
            return 404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'
        media_type, body = self.manifests[name, key]
        return 200, {"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}, body

    def upload(self, method: str, name: str, key: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if method == "POST":
            mounted = self.blobs.get((query.get("from", ""), query.get("mount", "")))
            if self.mounts and mounted is not None:
                self.blobs[name, query["mount"]] = mounted
                return 201, {"Docker-Content-Digest": query["mount"]}, b""
            key = str(next(self.numbers))
            self.uploads[key] = bytearray()
        if key not in self.uploads:
            return 404, {}, b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}'
        content = self.uploads[key]
        content += body
        where = {"Location": f"/v2/{name}/blobs/uploads/{key}?_state=signed-state", "Range": f"0-{max(len(content) - 1, 0)}"}
        if method in ("GET", "DELETE"):
            return 204, where if method == "GET" or not self.uploads.pop(key) else {}, b""
        if method != "PUT":
            return 202, where, b""
        if digest_of(bytes(content)) != query["digest"]:
            return 400, {}, b'{"errors": [{"code": "DIGEST_INVALID", "message": "provided digest did not match"}]}'
        self.blobs[name, query["digest"]] = bytes(self.uploads.pop(key))
        return 201, {"Docker-Content-Digest": query["digest"]}, b""


@contextmanager
def serve(tls: SSLContext | None = None) -> Iterator[Registry]:
    """A registry on a free port of this machine."""
    registry = Registry()

    class Handler(servers.Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fault = registry.fault(f"{self.command} {self.path}")
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size if not fault or fault.keep is None else fault.keep)
            registry.seen.append(Seen(self.command, self.path, dict(self.headers.items()), len(body)))
            if not fault and len(body) < size:
                self.close_connection = True  # the client ended the connection
                return
            if fault and fault.keep is None and not fault.short and not fault.delay and fault.replace is None:
                self.answer(fault.status, fault.headers, fault.body)
                return
            time.sleep(fault.delay if fault else 0)
            status, fields, content = registry.answer(self.command, self.path, body, self.headers)
            if fault and fault.keep is not None:
                if registry.forgets:
                    registry.uploads.clear()
                self.close_connection = True
                self.connection.close()
            else:
                self.answer(status, {**fields, **(fault.replace or {} if fault else {})}, content, is_short=bool(fault and fault.short))

        do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def answer(self, status: int, fields: dict[str, str], body: bytes, *, is_short: bool = False) -> None:
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                for start in range(0, len(body) - is_short, 1 << 16):
                    self.wfile.write(body[start : min(start + (1 << 16), len(body) - is_short)])
                    registry.sent += 1 << 16
            self.close_connection = self.close_connection or is_short

    with servers.serve(Handler, tls) as registry.host:
        yield registry
