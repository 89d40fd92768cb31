"""Run docker and buildah, and interpret their errors."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlops_build.checklist.result import last_line
from mlops_build.errors import Failed, Refused, Unreachable

ANSWER_SECONDS = 60
BUILD_SECONDS = 3600
STDERR = 2  # the file descriptor of this process: progress goes to stderr, the result to stdout

ABSENT = re.compile(r"no such manifest|manifest unknown|name unknown|name not known|not found", re.IGNORECASE)
FORBIDDEN = re.compile(r"unauthorized|denied|authentication required|forbidden", re.IGNORECASE)
LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?/")
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class EngineUnreachable(Unreachable):
    """There is no build command, or its engine does not answer."""


class ImageRegistryUnreachable(Unreachable):
    """The image registry does not answer."""


class LoginNeeded(Refused):
    """The image registry needs credentials, or refuses the given ones."""


class BuildFailed(Failed):
    """A build or a push failed; its output is above."""


def query(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a short command. Raises EngineUnreachable if it does not end in time."""
    try:
        return subprocess.run(list(command), env=dict(environment), capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        name = Path(command[0]).name
        raise EngineUnreachable(
            f"`{name} {command[1]}` did not answer within {ANSWER_SECONDS} s", remedy="check the engine, DOCKER_HOST and the network"
        ) from None


def show(command: Sequence[str], environment: Mapping[str, str], wrong: str, remedy: str) -> None:
    """Print a command, without passwords in addresses, and run it with its output on stderr. Raises BuildFailed."""
    name = Path(command[0]).name
    line = CREDENTIALS.sub("***", shlex.join([name, *command[1:]]))
    os.write(STDERR, f"+ {line}\n".encode())
    try:
        done = subprocess.run(list(command), env=dict(environment), stdout=STDERR, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{wrong}: not finished within {BUILD_SECONDS} s", remedy=remedy) from None
    if done.returncode:
        raise BuildFailed(f"{wrong}: {name} {command[1]} exited with {done.returncode}", remedy=remedy)


def exists(image: str, done: "subprocess.CompletedProcess[str]", login: str) -> bool:
    """Whether the registry has an image, from the result of a query. Raises LoginNeeded and ImageRegistryUnreachable.

    login: the command that stores credentials.
    """
    if not done.returncode:
        return True
    message = last_line(done)
    # Checked first: a registry may also answer "denied" for an image that does not exist.
    if FORBIDDEN.search(message):
        raise LoginNeeded(f"the registry of {image} refused access: {message}", remedy=f"{login} {image.partition('/')[0]}")
    if ABSENT.search(message):
        return False
    raise ImageRegistryUnreachable(
        f"the registry of {image} does not answer: {message}",
        remedy="check image.registry in service.yaml, the network and its certificate",
    )


def program(name: str, remedy: str) -> str:
    """The path of a command. Raises EngineUnreachable."""
    path = shutil.which(name)
    if not path:
        raise EngineUnreachable(f"the command {name!r} is not installed", remedy=remedy)
    return path
