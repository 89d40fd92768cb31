"""The service's names and addresses in the checklist, from its own files."""

import re
from dataclasses import dataclass
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.adapters import dvc_remote, githost
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.checklist.plans import Plans
from mlops_build.service import Service


@dataclass(frozen=True)
class Names:
    """root: the service's folder. plans: those of its CI system. origin: the repository's address.

    remote, endpoint: of DVC's default remote. python: the interpreter's command.
    """

    root: Path
    service: Service
    plans: Plans
    origin: str | None
    remote: str | None
    endpoint: str | None
    python: str

    @property
    def image(self) -> str:
        """The repository that images are pushed to."""
        return f"{self.service.image.registry}/{self.service.name}"

    @property
    def image_host(self) -> str:
        return self.service.image.registry.partition("/")[0]

    @property
    def repository(self) -> githost.Repository | None:
        """The repository on the Git host; None if origin is on a host that is not known."""
        return githost.repository_of(self.origin, self.service.git.pull_requests) if self.origin else None

    @property
    def wants_token(self) -> bool:
        """Whether git or the API of the host needs MLOPS_GIT_TOKEN."""
        return self.service.git.opens_pull_requests or str(self.origin).startswith("https://")


def read(root: Path, plans: Plans, *, origin: str | None = None) -> Names:
    """The names of the service at `root`. origin: default: the checkout's. Raises ServiceError."""
    service = service_file.load(root)
    remote = dvc_remote.default_remote(root)
    checkout = Checkout.find(root)
    return Names(
        root=root,
        service=service,
        plans=plans,
        origin=origin or (checkout.origin_url() if checkout else None),
        remote=remote.url if remote else None,
        endpoint=remote.endpoint if remote else None,
        python=_python(root / "pyproject.toml"),
    )


def _python(path: Path) -> str:
    match = re.search(r'requires-python = ">=(3\.[0-9]{1,2})"', path.read_text()) if path.is_file() else None
    return f"python{match[1]}" if match else "python3"
