"""A blob on its way into a repository. After a failure, the upload continues where the registry can tell what it has."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from mlops_build.adapters.image_registry.answer import Answer, ImageRegistryUnreachable
from mlops_build.adapters.image_registry.connection import Body, Connection
from mlops_build.errors import Failed

# The registry reads a blob again, or moves it in its storage, before it answers that the blob is complete.
COMPLETE_SECONDS = 300.0
OCTETS = {"Content-Type": "application/octet-stream"}
# Statuses for an upload that the registry does not know. Docker's registry answers 200 after it has cancelled one that it cannot continue.
FORGOTTEN = (200, 404, 416)


class Forgotten(ImageRegistryUnreachable):
    """The registry does not know an upload, or what it has of it."""


def start(connection: Connection, action: str) -> str:
    """The address of a new upload; a single try."""
    return connection.location(connection.send("POST", "blobs/uploads/", action, (202,), body=b"", once=True), action)


@dataclass
class Upload:
    """content(offset) yields the bytes of the blob from there. progress(bytes) is called with the bytes that are sent.

    is_there: whether the repository has the blob already; a single try.
    """

    connection: Connection
    action: str
    digest: str
    size: int
    content: Callable[[int], Iterator[bytes]]
    progress: Callable[[int], None] | None
    is_there: Callable[[], bool]
    # The address of the upload, and the bytes that the registry has.
    _where: str = ""
    _offset: int = 0

    def run(self) -> None:
        """Store the blob. Raises Failed for content of another size, and errors of the content as they are."""
        tries, furthest, is_again = self.connection.tries(), 0, False
        while True:
            try:
                if is_again and self._where:
                    self._ask()
                elif is_again and self.is_there():  # the answer that it is complete was lost
                    return
                if not self._where:
                    self._where, self._offset = start(self.connection, self.action), 0
                if self._offset > furthest:
                    furthest = self._offset
                    tries.renew()
                if self._offset < self.size:
                    self._send_rest()
                self._complete()
                return
            except ImageRegistryUnreachable as error:
                if isinstance(error, Forgotten):
                    self._where = ""
                tries.failed(error)
                is_again = True
            except Exception:
                if self._where:
                    self.connection.cancel(self._where)
                raise

    def _ask(self) -> None:
        """Ask the registry for what it has. Raises Forgotten."""
        answer = self.connection.send("GET", self._where, self.action, range(200, 500), once=True)
        # "0-0" can mean nothing, or one byte; a registry that has one refuses the offset 0 then.
        has = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,15})", answer.headers.get("range", ""))
        if answer.status != 204 or not has or int(has[1]) >= max(self.size, 1):
            raise self._forgotten()
        self._move(answer)
        self._offset = int(has[1]) + 1 if int(has[1]) else 0

    def _send_rest(self) -> None:
        headers = {**OCTETS, **({"Content-Range": f"{self._offset}-{self.size - 1}"} if self._offset else {})}
        body = Body(self.size - self._offset, self._rest)
        expected = (201, 202, 204, *FORGOTTEN)
        self._move(self.connection.send("PATCH", self._where, self.action, expected, headers=headers, body=body, once=True))

    def _rest(self) -> Iterator[bytes]:
        sent = self._offset
        for chunk in self.content(self._offset):
            if sent + len(chunk) > self.size:
                raise Failed(
                    f"the content of {self.digest} is longer than {self.size} bytes", remedy="run this again, and check the source"
                )
            yield chunk
            sent += len(chunk)
            if self.progress:
                self.progress(sent)
        if sent < self.size:
            raise Failed(
                f"the content of {self.digest} ended after {sent} of {self.size} bytes", remedy="run this again, and check the source"
            )

    def _complete(self) -> None:
        address = f"{self._where}{'&' if '?' in self._where else '?'}digest={quote(self.digest, safe='')}"
        expected = (201, 204, *FORGOTTEN)
        answer = self.connection.send("PUT", address, self.action, expected, headers=OCTETS, body=b"", seconds=COMPLETE_SECONDS, once=True)
        if answer.status in FORGOTTEN:
            raise self._forgotten()
        self.connection.confirms(self.digest, answer, self.action)

    def _move(self, answer: Answer) -> None:
        """The upload goes on at another address. Raises Forgotten."""
        if answer.status in FORGOTTEN:
            raise self._forgotten()
        if "location" in answer.headers:
            self._where = self.connection.location(answer, self.action)

    def _forgotten(self) -> Forgotten:
        return Forgotten(
            f"{self.connection.host} lost an upload again and again ({self.action})", remedy="see the log of the image registry"
        )
