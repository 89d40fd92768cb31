"""The errors that a user can see. They have one base class; the class has the exit code, the instance the remedy.

A specific error (such as `git.command.PushRejected`) is a subclass in the module that raises it.
"""

from collections.abc import Mapping


def printable(text: str) -> str:
    """The text without control characters: what a host or a file says must not reach a terminal as it is."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


class MlopsBuildError(Exception):
    """An error that a user can understand and fix.

    message: what is wrong and where. remedy: what to do about it. details: more keys of the document that --json prints.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, remedy: str | None = None, details: Mapping[str, object] | None = None) -> None:
        message, remedy = printable(message), remedy and printable(remedy)
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = {**(details or {})}
        if remedy:
            self.add_note(remedy)  # a traceback shows it, as in a notebook


class Failed(MlopsBuildError):
    """Exit code 1: the command failed."""


class UsageError(MlopsBuildError):
    """Exit code 2: the command or its arguments are not valid."""

    exit_code = 2


class NotFound(MlopsBuildError):
    """Exit code 3: something requested does not exist."""

    exit_code = 3


class Refused(MlopsBuildError):
    """Exit code 4: a check failed, or the change would conflict."""

    exit_code = 4


class Unreachable(MlopsBuildError):
    """Exit code 5: a required service does not answer."""

    exit_code = 5


class NoRoom(MlopsBuildError):
    """Exit code 6: no GPU has the requested memory."""

    exit_code = 6
