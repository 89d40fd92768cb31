"""The errors a user can meet. One base class; the exit code sits on the class, the remedy in the instance.

A specific error (say, `git.repository.PushRejected`) is a subclass that lives beside the code that raises it.
"""


class MlopsBuildError(Exception):
    """Something a user can understand and mend.

    message: what is wrong and where. remedy: what to do about it.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class Failed(MlopsBuildError):
    """Exit code 1: it was tried and did not work."""


class UsageError(MlopsBuildError):
    """Exit code 2: the command or its arguments make no sense."""

    exit_code = 2


class NotFound(MlopsBuildError):
    """Exit code 3: something asked for does not exist."""

    exit_code = 3


class Refused(MlopsBuildError):
    """Exit code 4: a check failed, or the change would conflict."""

    exit_code = 4


class Unreachable(MlopsBuildError):
    """Exit code 5: a service that is needed does not answer."""

    exit_code = 5


class NoRoom(MlopsBuildError):
    """Exit code 6: no GPU has the memory that was asked for."""

    exit_code = 6
