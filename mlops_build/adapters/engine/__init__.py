"""Choose between docker and buildah.

MLOPS_BUILD_ENGINE names one of them. Without it, docker is used if an engine answers, else buildah if it is installed.
"""

import os
import shutil
from pathlib import Path
from typing import Protocol

from mlops_build.adapters.engine import buildah, docker
from mlops_build.adapters.engine.command import EngineUnreachable
from mlops_build.errors import UsageError

CHOICE = "MLOPS_BUILD_ENGINE"


class Builder(Protocol):
    """The functions of the modules `docker` and `buildah`: build images and use their registry."""

    def check_engine(self) -> str: ...
    def digest_of(self, image: str) -> str | None: ...
    def build(self, context: Path, image: str) -> None: ...
    def push(self, image: str) -> None: ...


def choose() -> Builder:
    """The builder to use. Raises UsageError for another name in MLOPS_BUILD_ENGINE.

    If neither is installed, it is docker, whose error says what is missing.
    """
    named = os.environ.get(CHOICE)
    if named not in (None, "", "docker", "buildah"):
        raise UsageError(f"{CHOICE} is {named!r}, which is not a supported engine", remedy="set it to docker or buildah")
    if named == "buildah":
        return buildah
    # DOCKER_CLI selects docker, too.
    if named == "docker" or os.environ.get(docker.CLIENT) or not shutil.which(buildah.client_name()):
        return docker
    try:
        docker.check_engine()
    except EngineUnreachable:
        return buildah
    return docker
