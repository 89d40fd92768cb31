"""uv and hatchling: resolve requirements, and build the wheel of a project."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlops_build.adapters import program
from mlops_build.adapters.program import Ended

RESOLVE_SECONDS, BUILD_SECONDS = 300, 120
EPOCH = "315532800"  # 1980, the earliest time that a zip file can express: the same files give the same bytes


def resolve(requirements: Sequence[str], *, folder: Path, seconds: float = RESOLVE_SECONDS) -> Ended:
    """`uv pip compile` in a folder; requirements: its arguments. Raises program.DoesNotEnd."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", *requirements]
    return program.run(command, folder=folder, environment=uv_environment(), seconds=seconds, remedy="check the network and PIP_INDEX_URL")


def build_wheel(source: Path, destination: Path) -> Ended:
    """Build the wheel of a hatchling project into a folder. Raises program.DoesNotEnd."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(destination.resolve())]
    return program.run(command, folder=source, environment={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, seconds=BUILD_SECONDS)


def uv_environment() -> dict[str, str]:
    """The environment variables for uv, with PIP_INDEX_URL and PIP_FIND_LINKS under uv's names: uv ignores pip's settings."""
    environment = dict(os.environ)
    if "PIP_INDEX_URL" in environment:
        environment.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
    if "PIP_FIND_LINKS" in environment:
        environment.setdefault("UV_FIND_LINKS", ",".join(environment["PIP_FIND_LINKS"].split()))
    return environment
