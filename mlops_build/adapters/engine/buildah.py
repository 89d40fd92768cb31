"""Build and push images with the `buildah` command, which needs no daemon, and no root where user namespaces are allowed.

Storage, isolation and credentials are configured in buildah (storage.conf, BUILDAH_ISOLATION, `buildah login`).
"""

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlops_build.adapters.engine import command as engine
from mlops_build.adapters.engine.command import EngineUnreachable
from mlops_build.adapters.image_registry import ImageRegistryUnreachable
from mlops_build.adapters.program import Ended
from mlops_build.model.identity import DIGEST

# Additional arguments of `buildah build`, split as a shell does.
ARGUMENTS = "MLOPS_BUILD_BUILDAH_ARGS"
CLIENT = "BUILDAH_CLI"


def client_name() -> str:
    """The name or path of the command."""
    return os.environ.get(CLIENT) or "buildah"


def check_engine() -> str:
    """The name and version of buildah. Raises EngineUnreachable."""
    done = _buildah(["--version"])
    if done.code:
        raise EngineUnreachable(f"buildah does not work here: {done.last_line}", remedy="run `buildah info` for details")
    return " ".join(done.text.split()[:3]).replace(" version", "")


def digest_of(image: str) -> str | None:
    """The digest ("sha256:…") of a tag in its registry; None if there is no such image.

    Uses skopeo if it is installed; buildah itself has to pull the image. Raises EngineUnreachable, ImageRegistryUnreachable, LoginNeeded.
    """
    skopeo = shutil.which("skopeo")
    if skopeo:
        command = [skopeo, "inspect", *_insecure(image), "--format", "{{.Digest}}", f"docker://{image}"]
        done = engine.query(command, os.environ)
        digest = done.text.strip()
    else:
        # A large image takes minutes, so the time limit of `engine.query` is too short.
        command = [_client(), "pull", "--quiet", "--policy", "always", *_insecure(image), f"docker://{image}"]
        done = engine.query(command, os.environ, engine.BUILD_SECONDS)
        digest = "" if done.code else _digest_of_pulled(image)
    if not engine.exists(image, done, "buildah login"):
        return None
    if not DIGEST.fullmatch(digest):
        raise ImageRegistryUnreachable(f"the registry of {image} did not return a digest: {digest[:100]!r}")
    return digest


def build(context: Path, image: str) -> None:
    """Build a context as `image`; the output goes to stderr. Raises BuildFailed."""
    extra = shlex.split(os.environ.get(ARGUMENTS, ""))
    # The OCI format has no HEALTHCHECK. Without --layers no layer of an earlier build is reused.
    command = ["bud", "--format", "docker", "--layers", "--tag", image, *extra, str(context)]
    _shown(command, f"{image} cannot be built", "see above; the build needs the package index")


def push(image: str) -> None:
    """Push `image` to its registry. Raises BuildFailed."""
    host = image.partition("/")[0]
    wrong = f"{image} cannot be pushed"
    _shown(["push", *_insecure(image), image], wrong, f"see above; buildah login {host}, or check image.registry in service.yaml")


def _digest_of_pulled(image: str) -> str:
    return _buildah(["inspect", "--type", "image", "--format", "{{.FromImageDigest}}", image]).text.strip()


def _insecure(image: str) -> list[str]:
    return ["--tls-verify=false"] if engine.LOOPBACK.match(image) else []


def _buildah(arguments: Sequence[str]) -> Ended:
    return engine.query([_client(), *arguments], os.environ)


def _shown(arguments: Sequence[str], wrong: str, remedy: str) -> None:
    engine.show([_client(), *arguments], os.environ, wrong, remedy)


def _client() -> str:
    return engine.program(client_name(), "install buildah, or set BUILDAH_CLI to its command")
