"""Run docker and buildah, and interpret their errors."""

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlops_build.adapters import program as programs
from mlops_build.adapters.image_registry import ImageRegistryUnreachable, LoginNeeded
from mlops_build.adapters.program import STDERR, Ended
from mlops_build.errors import Failed, Unreachable

ANSWER_SECONDS = 60
BUILD_SECONDS = 3600

ABSENT = re.compile(r"no such manifest|manifest unknown|name unknown|name not known|not found", re.IGNORECASE)
FORBIDDEN = re.compile(r"unauthorized|no basic auth credentials|denied|authentication required|forbidden", re.IGNORECASE)
LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?/")
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class EngineUnreachable(Unreachable):
    """There is no build command, or its engine does not answer."""


class BuildFailed(Failed):
    """A build or a push failed; its output is above."""


def query(command: Sequence[str], environment: Mapping[str, str], seconds: float = ANSWER_SECONDS) -> Ended:
    """Run a short command. Raises EngineUnreachable if it does not end in time."""
    try:
        return programs.run(command, environment=environment, seconds=seconds)
    except programs.DoesNotEnd as error:
        raise EngineUnreachable(error.message, remedy="check the engine, DOCKER_HOST and the network") from None


def show(command: Sequence[str], environment: Mapping[str, str], wrong: str, remedy: str) -> None:
    """Print a command, without passwords in addresses, and run it with its output on stderr. Raises BuildFailed."""
    name = Path(command[0]).name
    line = CREDENTIALS.sub("***", shlex.join([name, *command[1:]]))
    os.write(STDERR, f"+ {line}\n".encode())
    try:
        done = programs.run(command, environment=environment, seconds=BUILD_SECONDS, shown=True)
    except programs.DoesNotEnd as error:
        raise BuildFailed(f"{wrong}: {error.message}", remedy=remedy) from None
    if done.code:
        raise BuildFailed(f"{wrong}: {name} {command[1]} exited with {done.code}", remedy=remedy)


def exists(image: str, done: Ended, login: str) -> bool:
    """Whether the registry has an image, from the result of a query. Raises LoginNeeded and ImageRegistryUnreachable.

    login: the command that stores credentials.
    """
    if not done.code:
        return True
    message = done.last_line
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
