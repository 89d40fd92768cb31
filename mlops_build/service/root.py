"""Find the folder of a service."""

import re
from pathlib import Path

from mlops_build.errors import NotFound

FILE = "service.yaml"


def find_root(start: Path | None = None) -> Path:
    """The nearest folder with a service.yaml, from `start` (default: the current folder) upwards. Raises NotFound."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file() and not _is_manifest(folder / FILE):
            return folder
    raise NotFound(f"no {FILE} in {start} or above it", remedy="run this inside a service (a repository made with `copier copy`)")


def _is_manifest(path: Path) -> bool:
    """Whether it is a Kubernetes Service in a file of this name, as in the template's deploy/base."""
    return bool(re.search(r"^(?:apiVersion|kind):", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))
