"""A headless Chromium, driven by the DevTools protocol over two pipes."""

import contextlib
import fcntl
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 30


class Browser:
    """One tab. events: all that the browser has reported."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._count = write, read, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps({"id": self._count, "method": method, "params": params, **session}).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            message = self._next(deadline)
            if message.get("id") == self._count:
                assert "error" not in message, (method, message)
                result: dict[str, Any] = message["result"]
                return result

    def open(self, file: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + SECONDS
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self._next(deadline)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{found}.scrollIntoView({{block: 'center', inline: 'center'}})")
        x, y = self.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text if kind == "keyDown" else ""
            )

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0, "Chromium does not answer"
            if select.select([self._read], [], [], left)[0]:
                part = os.read(self._read, 1 << 16)
                assert part, "Chromium has ended"
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "id" not in message:
            self.events.append(message)
        return message


@contextlib.contextmanager
def started(program: str, folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in `folder`. It ends with the block."""
    # Chromium reads commands from 3 and writes answers to 4, so ours must be others.
    ends = [*os.pipe(), *os.pipe()]
    commands, write, read, answers = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)

    def place() -> None:
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    command = [
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-pipe",
    ]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900"],
            stdout=log,
            stderr=log,
            preexec_fn=place,
            pass_fds=(3, 4),
            env={**os.environ, "HOME": str(folder)},
        )
    os.close(commands)
    os.close(answers)
    try:
        yield Browser(write, read)
    finally:
        process.kill()
        process.wait(SECONDS)
        os.close(write)
        os.close(read)
