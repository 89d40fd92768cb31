"""The container engine and the image registry, through the `docker` command. Credentials are docker's own business (`docker login`)."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mlops_build.errors import Failed, Refused, Unreachable
from mlops_build.model.identity import DIGEST

ANSWER_SECONDS = 60
BUILD_SECONDS = 3600
STDERR = 2  # our own, by its number: what people watch, while stdout is for the result
# More arguments for `docker build`, split like a shell does: --network host --build-arg PIP_INDEX_URL=…
ARGUMENTS = "MLOPS_BUILD_DOCKER_ARGS"
CLIENT = "DOCKER_CLI"

ABSENT = re.compile(r"no such manifest|manifest unknown|name unknown|not found", re.IGNORECASE)
FORBIDDEN = re.compile(r"unauthorized|denied|authentication required|forbidden", re.IGNORECASE)
LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?/")


class EngineUnreachable(Unreachable):
    """There is no docker command, or no engine answers it."""


class ImageRegistryUnreachable(Unreachable):
    """The registry that images are pushed to does not answer."""


class LoginNeeded(Refused):
    """The image registry wants credentials, or better ones."""


class BuildFailed(Failed):
    """`docker build` or `docker push` failed; what it printed stands above."""


def check_engine() -> str:
    """The engine's version. Raises EngineUnreachable."""
    done = _docker(["version", "--format", "{{.Server.Version}}"])
    version = done.stdout.strip()
    if done.returncode or not version:
        raise EngineUnreachable(
            f"no Docker Engine answers: {_last_line(done.stderr)}",
            remedy="start it, or set DOCKER_HOST to one; without any, `mlops-build package` writes a folder that buildah or kaniko builds",
        )
    return version


def digest_of(image: str) -> str | None:
    """The digest ("sha256:…") that a tag has in its registry; None where there is no such image.

    Raises EngineUnreachable (no docker command), ImageRegistryUnreachable, LoginNeeded.
    """
    insecure = ["--insecure"] if LOOPBACK.match(image) else []
    done = _docker(["manifest", "inspect", *insecure, "--verbose", image])
    if done.returncode:
        said = _last_line(done.stderr)
        # Asked first: a registry that hides what one may not see says "denied" for what is absent, too.
        if FORBIDDEN.search(said):
            raise LoginNeeded(f"the registry of {image} refuses: {said}", remedy=f"docker login {image.partition('/')[0]}")
        if ABSENT.search(said):
            return None
        raise ImageRegistryUnreachable(
            f"the registry of {image} does not answer: {said}",
            remedy="check image.registry in service.yaml, the network and its certificate",
        )
    found = json.loads(done.stdout)
    # A list is an index of several platforms, whose own digest this command does not say.
    digest = str(found["Descriptor"]["digest"]) if isinstance(found, dict) else _digest_by_pulling(image)
    if not DIGEST.fullmatch(digest):
        raise ImageRegistryUnreachable(f"the registry of {image} answers with no digest: {digest[:100]!r}")
    return digest


def build(context: Path, image: str) -> None:
    """Build a context as `image`; the output goes to stderr. Raises BuildFailed."""
    extra = shlex.split(os.environ.get(ARGUMENTS, ""))
    _shown(["build", "--tag", image, *extra, str(context)], f"{image} cannot be built", "see above; the build needs the package index")


def push(image: str) -> None:
    """Push `image` to its registry. Raises BuildFailed."""
    host = image.partition("/")[0]
    _shown(["push", image], f"{image} cannot be pushed", f"see above; docker login {host}, or check image.registry in service.yaml")


def _digest_by_pulling(image: str) -> str:
    _shown(["pull", image], f"{image} cannot be pulled", "see above")
    done = _docker(["image", "inspect", "--format", "{{json .RepoDigests}}", image])
    repository = image.rpartition(":")[0]
    digests = [one.partition("@")[2] for one in json.loads(done.stdout or "[]") if one.startswith(f"{repository}@")]
    return digests[0] if digests else ""


def _docker(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            [_client(), *arguments], env=_environment(), capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineUnreachable(
            f"`docker {arguments[0]}` did not answer within {ANSWER_SECONDS} s", remedy="check the engine, DOCKER_HOST and the network"
        ) from None


def _shown(arguments: Sequence[str], wrong: str, remedy: str) -> None:
    try:
        done = subprocess.run([_client(), *arguments], env=_environment(), stdout=STDERR, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{wrong}: not done within {BUILD_SECONDS} s", remedy=remedy) from None
    if done.returncode:
        raise BuildFailed(f"{wrong}: docker {arguments[0]} ended with {done.returncode}", remedy=remedy)


def _client() -> str:
    wanted = os.environ.get(CLIENT, "docker")
    found = shutil.which(wanted)
    if not found:
        raise EngineUnreachable(f"there is no {wanted!r} command here", remedy="install Docker, or set DOCKER_CLI to its command")
    return found


def _environment() -> dict[str, str]:
    # No attestations: they would make every image an index of two manifests. The CLI's flag is for `docker manifest` before 20.10.
    return {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "DOCKER_CLI_EXPERIMENTAL": "enabled"}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]
