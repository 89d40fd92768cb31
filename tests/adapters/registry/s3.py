"""A stand-in for an S3 gateway, and a connection to a real one that breaks off."""

import hashlib
import socket
import threading
import xml.sax.saxutils
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

from tests import servers


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

        class Handler(servers.Handler):
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
                short = status == 206 and bool(gateway.cuts)
                self.close_connection = self.close_connection or short
                self.reply(status, content, headers, sent=gateway.cuts.pop(0) if short else None)

        self._handler = Handler

    @contextmanager
    def serve(self) -> Iterator["Gateway"]:
        """Listen, at `uri`."""
        with servers.serve(self._handler) as host:
            self.uri = f"http://{host}"
            yield self

    def _listing(self, bucket: str, prefix: str) -> bytes:
        entries = "".join(
            f"<Contents><Key>{xml.sax.saxutils.escape(name.removeprefix(f'{bucket}/'))}</Key><Size>{len(content)}</Size>"
            f"<ETag>{xml.sax.saxutils.escape(etag(content))}</ETag></Contents>"
            for name, content in self.objects.items()
            if name.startswith(f"{bucket}/{prefix}")
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


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
