"""Which of docker and buildah an agent has.

MLOPS_BUILD_ENGINE says docker or buildah. Without it docker is taken where an engine answers it, else buildah where there is one.
"""

import os
import shutil
from pathlib import Path
from typing import Protocol

from mlops_build.ci import buildah, docker
from mlops_build.ci.engine import EngineUnreachable
from mlops_build.errors import UsageError

CHOICE = "MLOPS_BUILD_ENGINE"


class Builder(Protocol):
    """What builds images and talks to their registry: the modules `docker` and `buildah`."""

    def check_engine(self) -> str: ...
    def digest_of(self, image: str) -> str | None: ...
    def build(self, context: Path, image: str) -> None: ...
    def push(self, image: str) -> None: ...


def choose() -> Builder:
    """The builder that this agent has. Raises UsageError for a name that is none of them.

    Where there is neither, it is docker's, which says what is missing.
    """
    named = os.environ.get(CHOICE)
    if named not in (None, "", "docker", "buildah"):
        raise UsageError(f"{CHOICE} is {named!r}", remedy="docker or buildah")
    if named == "buildah":
        return buildah
    # Who names docker's client wants docker.
    if named == "docker" or os.environ.get(docker.CLIENT) or not shutil.which(buildah.client_name()):
        return docker
    try:
        docker.check_engine()
    except EngineUnreachable:
        return buildah
    return docker
