"""The container engine and the image registry, through the `docker` command. Credentials are docker's own business (`docker login`)."""

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mlops_build.ci import engine
from mlops_build.ci.engine import EngineUnreachable, ImageRegistryUnreachable
from mlops_build.model.identity import DIGEST

# More arguments for `docker build`, split like a shell does: --network host --build-arg PIP_INDEX_URL=…
ARGUMENTS = "MLOPS_BUILD_DOCKER_ARGS"
CLIENT = "DOCKER_CLI"


def check_engine() -> str:
    """The engine, with its version. Raises EngineUnreachable."""
    done = _docker(["version", "--format", "{{.Server.Version}}"])
    version = done.stdout.strip()
    if done.returncode or not version:
        raise EngineUnreachable(
            f"no Docker Engine answers: {engine.last_line(done.stderr)}",
            remedy="start it, set DOCKER_HOST to one, or install buildah, which needs none; "
            "`mlops-build package` writes a folder that kaniko builds",
        )
    return f"Docker {version}"


def digest_of(image: str) -> str | None:
    """The digest ("sha256:…") that a tag has in its registry; None where there is no such image.

    Raises EngineUnreachable (no docker command), ImageRegistryUnreachable, LoginNeeded.
    """
    insecure = ["--insecure"] if engine.LOOPBACK.match(image) else []
    done = _docker(["manifest", "inspect", *insecure, "--verbose", image])
    if not engine.found(image, done, "docker login"):
        return None
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
    return engine.ask([_client(), *arguments], _environment())


def _shown(arguments: Sequence[str], wrong: str, remedy: str) -> None:
    engine.show([_client(), *arguments], _environment(), wrong, remedy)


def _client() -> str:
    return engine.program(os.environ.get(CLIENT, "docker"), "install Docker or buildah, or set DOCKER_CLI to docker's command")


def _environment() -> dict[str, str]:
    # No attestations: they would make every image an index of two manifests. The CLI's flag is for `docker manifest` before 20.10.
    return {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "DOCKER_CLI_EXPERIMENTAL": "enabled"}
