"""What docker and buildah have in common here: how they are run, and what their refusals mean."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlops_build.errors import Failed, Refused, Unreachable

ANSWER_SECONDS = 60
BUILD_SECONDS = 3600
STDERR = 2  # our own, by its number: what people watch, while stdout is for the result

ABSENT = re.compile(r"no such manifest|manifest unknown|name unknown|name not known|not found", re.IGNORECASE)
FORBIDDEN = re.compile(r"unauthorized|denied|authentication required|forbidden", re.IGNORECASE)
LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?/")
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class EngineUnreachable(Unreachable):
    """There is no command to build with, or no engine answers it."""


class ImageRegistryUnreachable(Unreachable):
    """The registry that images are pushed to does not answer."""


class LoginNeeded(Refused):
    """The image registry wants credentials, or better ones."""


class BuildFailed(Failed):
    """A build or a push failed; what it printed stands above."""


def ask(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a command that answers at once. Raises EngineUnreachable where it does not."""
    try:
        return subprocess.run(list(command), env=dict(environment), capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        name = Path(command[0]).name
        raise EngineUnreachable(
            f"`{name} {command[1]}` did not answer within {ANSWER_SECONDS} s", remedy="check the engine, DOCKER_HOST and the network"
        ) from None


def show(command: Sequence[str], environment: Mapping[str, str], wrong: str, remedy: str) -> None:
    """Run a command whose output is for people; it is said first, without passwords in addresses. Raises BuildFailed."""
    name = Path(command[0]).name
    line = CREDENTIALS.sub("***", shlex.join([name, *command[1:]]))
    os.write(STDERR, f"+ {line}\n".encode())
    try:
        done = subprocess.run(list(command), env=dict(environment), stdout=STDERR, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{wrong}: not done within {BUILD_SECONDS} s", remedy=remedy) from None
    if done.returncode:
        raise BuildFailed(f"{wrong}: {name} {command[1]} ended with {done.returncode}", remedy=remedy)


def found(image: str, done: "subprocess.CompletedProcess[str]", login: str) -> bool:
    """Whether a registry that was asked for an image has it. Raises LoginNeeded and ImageRegistryUnreachable.

    login: the command for better credentials.
    """
    if not done.returncode:
        return True
    said = last_line(done.stderr)
    # Asked first: a registry that hides what one may not see says "denied" for what is absent, too.
    if FORBIDDEN.search(said):
        raise LoginNeeded(f"the registry of {image} refuses: {said}", remedy=f"{login} {image.partition('/')[0]}")
    if ABSENT.search(said):
        return False
    raise ImageRegistryUnreachable(
        f"the registry of {image} does not answer: {said}", remedy="check image.registry in service.yaml, the network and its certificate"
    )


def program(name: str, remedy: str, which: Callable[[str], str | None] = shutil.which) -> str:
    """The path of a command. Raises EngineUnreachable."""
    path = which(name)
    if not path:
        raise EngineUnreachable(f"there is no {name!r} command here", remedy=remedy)
    return path


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]
