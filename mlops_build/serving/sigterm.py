"""Exit on SIGTERM, also while models are loaded. In a container this is process 1, for which the kernel has no default action."""

import contextlib
import signal
from collections.abc import Iterator


class Terminated(SystemExit):
    """SIGTERM was received. A model that calls sys.exit raises another SystemExit, which is an error of the model."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raise Terminated on SIGTERM, which ends the process with code 0."""

    def end(*_: object) -> None:
        raise Terminated(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
