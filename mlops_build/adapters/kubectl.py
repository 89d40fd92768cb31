"""kubectl: render overlays, and call the cluster's API."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlops_build.adapters import program
from mlops_build.adapters.program import Ended
from mlops_build.errors import Unreachable

RENDER_SECONDS = 60
DRY_RUN_SECONDS, REQUEST_SECONDS = 60, 10
UNREACHABLE = re.compile(
    r"unable to connect|connection to the server|(?:was|connection) refused|no such host|no route to host|network is unreachable"
    r"|i/o timeout|handshake timeout|Client\.Timeout|deadline exceeded|x509|no configuration|failed to download openapi",
    re.IGNORECASE,
)
# The server itself says this, whatever else its message contains: a field may be called timeoutSeconds, and a webhook may not answer.
ANSWERED = re.compile(r"Error from server|^The \S+ \".*\" is invalid", re.MULTILINE)
NO_ANSWER = "the cluster does not answer"
REMEDY = "check KUBECONFIG, the context and the network"


class ClusterUnreachable(Unreachable):
    """The cluster's API does not answer, or kubectl is not installed or not configured."""


def is_installed() -> bool:
    """Whether kubectl is on PATH."""
    return shutil.which("kubectl") is not None


def check_installed() -> None:
    """Raises ClusterUnreachable."""
    if not is_installed():
        raise ClusterUnreachable("kubectl is not installed", remedy="install kubectl on the agent, and set KUBECONFIG")


def run(arguments: Sequence[str], *, seconds: float, stdin: str | None = None) -> Ended:
    """Run kubectl, whatever its exit code. Raises ClusterUnreachable."""
    done = _run(arguments, seconds, stdin)
    if done.code and UNREACHABLE.search(done.last_line) and not ANSWERED.search(done.message):
        raise ClusterUnreachable(f"{NO_ANSWER}: {done.last_line}", remedy=REMEDY)
    return done


def _run(arguments: Sequence[str], seconds: float, stdin: str | None = None) -> Ended:
    check_installed()
    try:
        return program.run(["kubectl", *arguments], seconds=seconds, stdin=None if stdin is None else stdin.encode())
    except program.DoesNotEnd as error:
        raise ClusterUnreachable(error.message, remedy=REMEDY) from None


def kustomize(overlay: Path, seconds: float = RENDER_SECONDS) -> Ended:
    """Render an overlay, which needs no cluster. Raises ClusterUnreachable if kubectl is missing or does not end."""
    return _run(["kustomize", str(overlay)], seconds)


def dry_run(manifests: str) -> Ended:
    """Ask the API server whether it would accept manifests, which changes nothing. Raises ClusterUnreachable."""
    arguments = ["apply", "--dry-run=server", f"--request-timeout={REQUEST_SECONDS}s", "--filename", "-"]
    return run(arguments, seconds=DRY_RUN_SECONDS, stdin=manifests)


def probe(arguments: Sequence[str]) -> Ended | None:
    """Run kubectl for a check; None if it is not installed or does not end in time."""
    return program.probe(["kubectl", *arguments])
