"""Tell people what changed: messages to the addresses of fleet.yaml, once for each change of an environment."""

import queue
import threading
from collections.abc import Callable, Sequence

from mlops_build.adapters import notify
from mlops_build.bridge.reconcile import Outcome
from mlops_build.errors import MlopsBuildError

# What people hear about. Other states are in the log and in `bridge status`.
TOLD = frozenset({"released", "requested", "rolled back", "failed"})
# Messages that wait for a receiver that does not answer; later ones are left out.
MOST = 200


def message(outcome: Outcome) -> tuple[str, str]:
    """Title and text."""
    lines = [str(outcome), *outcome.remarks]
    if outcome.error:
        lines += [outcome.error.message, *([outcome.error.remedy] if outcome.error.remedy else [])]
    return f"{outcome.where}: {outcome.state}", "\n".join(lines)


def send(addresses: Sequence[str], outcome: Outcome, say: Callable[[str], None]) -> None:
    """Send a message about an outcome to all addresses; a failure is printed."""
    for address in addresses:
        try:
            notify.send(address, *message(outcome))
        except MlopsBuildError as error:
            say(f"notify: {error.message}")
            if error.remedy:
                say(f"    {error.remedy}")


def is_new(outcome: Outcome) -> bool:
    """Whether a single pass reports it: it changed something. What only stays wrong would be reported by each pass."""
    return outcome.state in TOLD and bool(outcome.commit) and (outcome.request is None or outcome.request.new)


class Notices:
    """Sends messages in a thread of its own, so that a receiver that does not answer delays no release.

    addresses: those of fleet.yaml now.
    """

    def __init__(self, addresses: Callable[[], Sequence[str]], say: Callable[[str], None]) -> None:
        self._addresses, self._say = addresses, say
        self._told: dict[str, tuple[str, str | None, str]] = {}
        self._waiting: queue.Queue[Outcome] = queue.Queue(MOST)
        threading.Thread(target=self._work, daemon=True).start()

    def tell(self, outcome: Outcome) -> None:
        """Tell of an outcome, unless the last message about its environment was about the same state of the same commit."""
        key = (outcome.state, outcome.commit, outcome.error.message if outcome.error else "")
        if self._told.get(outcome.where) == key:
            return
        self._told[outcome.where] = key
        if outcome.state in TOLD and self._addresses():
            try:
                self._waiting.put_nowait(outcome)
            except queue.Full:
                self._say(f"notify: no message about {outcome.where}, because {MOST} messages wait")

    def _work(self) -> None:
        while True:
            outcome = self._waiting.get()
            try:
                send(self._addresses(), outcome, self._say)
            except Exception as error:  # a defect of a receiver's plugin must not end the thread
                self._say(f"notify: {type(error).__name__}")
