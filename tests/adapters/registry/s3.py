"""A stand-in for an S3 gateway, and a connection to a real one that breaks off."""

import hashlib
import socket
import threading
import xml.sax.saxutils
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Gateway:
    """Lists and sends objects as S3 does: parts of them (Range), and only those that did not change (If-Match).

    objects: bucket/key → content. cuts: bytes after which each of the next bodies breaks off. status: of every next GET of an
    object, if not 0. ranges: what was asked for.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.cuts: list[int] = []
        self.status = 0
        self.ignores_ranges = False
        self.ranges: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                name = unquote(parts.path).strip("/")
                if "list-type=2" in parts.query:
                    self.answer(200, gateway._listing(name, parse_qs(parts.query)["prefix"][0]), {"Content-Type": "application/xml"})
                elif gateway.status or name not in gateway.objects:
                    self.answer(gateway.status or 404, b"", {})
                else:
                    self.send_object(gateway.objects[name])

            def send_object(self, content: bytes) -> None:
                gateway.ranges.append(self.headers.get("Range", ""))
                if self.headers.get("If-Match", etag(content)) != etag(content):
                    self.answer(412, b"", {})
                    return
                first, last = (int(end) for end in self.headers["Range"].removeprefix("bytes=").split("-"))
                if gateway.ignores_ranges:
                    self.answer(200, content, {})
                else:
                    self.answer(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

            def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if status == 206 and gateway.cuts:
                    content, self.close_connection = content[: gateway.cuts.pop(0)], True
                self.wfile.write(content)

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True  # the reader stopped in the middle of a file

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._listener.server_port}"

    def _listing(self, bucket: str, prefix: str) -> bytes:
        entries = "".join(
            f"<Contents><Key>{xml.sax.saxutils.escape(name.removeprefix(f'{bucket}/'))}</Key><Size>{len(content)}</Size>"
            f"<ETag>{xml.sax.saxutils.escape(etag(content))}</ETag></Contents>"
            for name, content in self.objects.items()
            if name.startswith(f"{bucket}/{prefix}")
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()

    def __enter__(self) -> "Gateway":
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


@contextmanager
def breaking(server: str, after: int) -> Iterator[str]:
    """The address of a forwarder that ends each connection once the server has sent `after` bytes on it."""
    to = urlsplit(server)
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(source: socket.socket, target: socket.socket, most: int | None) -> None:
        count = 0
        while chunk := source.recv(1 << 16 if most is None else min(1 << 16, most - count) or 1):
            if most is not None and count >= most:
                break
            target.sendall(chunk)
            count += len(chunk)
        for end in (source, target):
            end.shutdown(socket.SHUT_RDWR)

    def run(source: socket.socket, target: socket.socket, most: int | None) -> None:
        try:
            forward(source, target, most)
        except OSError:
            source.close()  # the other direction ended the connection

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection((to.hostname, to.port), timeout=30)
            for arguments in ((client, upstream, None), (upstream, client, after)):
                threading.Thread(target=run, args=arguments, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
