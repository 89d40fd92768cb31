"""Build and push images with the `docker` command. Credentials are configured in docker (`docker login`)."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from mlops_build.adapters.engine import command as engine
from mlops_build.adapters.engine.command import EngineUnreachable
from mlops_build.adapters.image_registry import ImageRegistryUnreachable
from mlops_build.adapters.program import Ended
from mlops_build.model.identity import DIGEST

# Additional arguments of `docker build`, split as a shell does: --network host --build-arg PIP_INDEX_URL=…
ARGUMENTS = "MLOPS_BUILD_DOCKER_ARGS"
CLIENT = "DOCKER_CLI"


def check_engine() -> str:
    """The name and version of the engine. Raises EngineUnreachable."""
    done = _docker(["version", "--format", "{{.Server.Version}}"])
    version = done.text.strip()
    if done.code or not version:
        raise EngineUnreachable(
            f"the Docker Engine does not answer: {done.last_line}",
            remedy="start it, set DOCKER_HOST, or install buildah, which needs no engine; "
            "`mlops-build package` writes a folder that kaniko can build",
        )
    return f"Docker {version}"


def digest_of(image: str) -> str | None:
    """The digest ("sha256:…") of a tag in its registry; None if there is no such image.

    Raises EngineUnreachable (no docker command), ImageRegistryUnreachable, LoginNeeded.
    """
    insecure = ["--insecure"] if engine.LOOPBACK.match(image) else []
    done = _docker(["manifest", "inspect", *insecure, "--verbose", image])
    if not engine.exists(image, done, "docker login"):
        return None
    description = json.loads(done.text)
    # A list is an index of several platforms; this command does not show the index's own digest.
    digest = str(description["Descriptor"]["digest"]) if isinstance(description, dict) else _digest_by_pulling(image)
    if not DIGEST.fullmatch(digest):
        raise ImageRegistryUnreachable(f"the registry of {image} did not return a digest: {digest[:100]!r}")
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
    digests = [reference.partition("@")[2] for reference in json.loads(done.text or "[]") if reference.startswith(f"{repository}@")]
    return digests[0] if digests else ""


def _docker(arguments: Sequence[str]) -> Ended:
    return engine.query([_client(), *arguments], _environment())


def _shown(arguments: Sequence[str], wrong: str, remedy: str) -> None:
    engine.show([_client(), *arguments], _environment(), wrong, remedy)


def _client() -> str:
    return engine.program(os.environ.get(CLIENT, "docker"), "install Docker or buildah, or set DOCKER_CLI to docker's command")


def _environment() -> dict[str, str]:
    # Without attestations, which would make every image an index of two manifests. `docker manifest` before 20.10 needs the last variable.
    return {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "DOCKER_CLI_EXPERIMENTAL": "enabled"}
