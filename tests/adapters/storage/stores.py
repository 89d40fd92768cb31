"""Stand-ins for the APIs of S3 and Swift over HTTP: what their lists and downloads look like, and what can go wrong with them."""

import hashlib
import json
import xml.sax.saxutils
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests import servers

PAGE = 3  # entries on a page
WHEN = "2026-11-30T10:20:30.456"


def etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Store:
    """objects: container/name → content. statuses: of the next requests of an object's name, once each. cut: bytes of bodies that are sent.

    requests: paths. tokens: of Swift, which the next requests do not accept any more.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.statuses: dict[str, list[int]] = {}
        self.cut: int | None = None
        self.expired = 0
        self.requests: list[str] = []
        store = self

        class Handler(servers.Handler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                name, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)
                store.requests.append(self.path)
                if name == "auth":
                    good = self.headers.get("X-Auth-User") == "old:reader" and self.headers.get("X-Auth-Key") == "secret"
                    fields = {"X-Storage-Url": f"{store._scheme}://{self.headers['Host']}/swift", "X-Auth-Token": "token"}
                    self.reply(204 if good else 401, b"", fields if good else {})
                elif name.startswith("swift/") and (store.expired or self.headers.get("X-Auth-Token") != "token"):
                    store.expired = max(0, store.expired - 1)
                    self.reply(401)
                elif "list-type" in query:
                    store._list_s3(self, name.strip("/"), query)
                elif "format" in query:
                    store._list_swift(self, name.removeprefix("swift/"), query)
                else:
                    self.do_object(name.removeprefix("swift/"))

            def do_HEAD(self) -> None:
                self.do_object(unquote(urlsplit(self.path).path).lstrip("/"))

            def do_object(self, name: str) -> None:
                content = store.objects.get(name)
                planned = store.statuses.get(name)
                status = planned.pop(0) if planned else 404 if content is None else 200
                body = (content or b"") if status == 200 else b""
                fields = {"ETag": f'"{etag(body)}"', "Last-Modified": "Mon, 30 Nov 2026 10:20:30 GMT"}
                self.reply(status, body, fields, sent=0 if self.command == "HEAD" else store.cut)

        self._handler = Handler

    def _names(self, container: str, prefix: str, after: str) -> list[str]:
        names = sorted(name.partition("/")[2] for name in self.objects if name.startswith(f"{container}/{prefix}"))
        return [name for name in names if name > after]

    def _list_s3(self, handler: Any, bucket: str, query: dict[str, list[str]]) -> None:
        if bucket not in {name.partition("/")[0] for name in self.objects}:
            handler.reply(404, b"<Error><Code>NoSuchBucket</Code></Error>", {"Content-Type": "application/xml"})
            return
        names = self._names(bucket, query["prefix"][0], query.get("continuation-token", [""])[0])
        entries = ""
        for name in names[:PAGE]:
            content = self.objects[f"{bucket}/{name}"]
            parts = "-2" if "parts" in name else ""
            entries += f"<Contents><Key>{xml.sax.saxutils.escape(name)}</Key><LastModified>{WHEN}Z</LastModified>"
            entries += f'<ETag>"{etag(content)}{parts}"</ETag><Size>{len(content)}</Size></Contents>'
        more = len(names) > PAGE
        token = f"<NextContinuationToken>{xml.sax.saxutils.escape(names[PAGE - 1])}</NextContinuationToken>" if more else ""
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        handler.reply(200, text.encode(), {"Content-Type": "application/xml"})

    def _list_swift(self, handler: Any, container: str, query: dict[str, list[str]]) -> None:
        if container not in {name.partition("/")[0] for name in self.objects}:
            handler.reply(404, b"NoSuchBucket")
            return
        names = self._names(container, query.get("prefix", [""])[0], query.get("marker", [""])[0])
        entries = [
            {
                "name": name,
                "hash": etag(self.objects[f"{container}/{name}"]),
                "bytes": len(self.objects[f"{container}/{name}"]),
                "last_modified": f"{WHEN}Z" if "z" in name else f"{WHEN}000",  # Ceph's and OpenStack's form
            }
            for name in names[:PAGE]
        ]
        handler.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    @contextmanager
    def serve(self, tls: SSLContext | None = None) -> Iterator[str]:
        """The address, as long as the context lasts."""
        self._scheme = "https" if tls else "http"
        with servers.serve(self._handler, tls) as host:
            yield f"{self._scheme}://{host}"
