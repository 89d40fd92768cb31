"""The owner of each file of a service: the team, a machine, or the template.

The table is in copier.yml. Copier uses it (it never overwrites files of the team or of a machine), and so does every comparison of a
service with its template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Owner = Literal["team", "machine", "template"]


@dataclass(frozen=True)
class Owners:
    """The patterns of machines and of the team. A file that no pattern covers belongs to the template."""

    machine: Sequence[str] = ()
    team: Sequence[str] = ()

    def of(self, path: str) -> Owner:
        """The owner of a path, relative to the service's root."""
        return self._match(path)[0]

    def together(self, path: str) -> str:
        """The folder that its owner manages as a unit, such as `deploy/overlays/staging/release`; else the path itself."""
        return self._match(path)[1]

    def _match(self, path: str) -> tuple[Owner, str]:
        parts = PurePosixPath(path).parts
        # The machine's patterns come first, because a release record is inside the team's overlays.
        owners: tuple[tuple[Owner, Sequence[str]], ...] = (("machine", self.machine), ("team", self.team))
        for owner, patterns in owners:
            for pattern in patterns:
                wanted = PurePosixPath(pattern.lstrip("/")).parts
                # `/a/*/b/` covers everything in such a folder, `/a/b` only that file.
                covered = parts[: len(wanted)] if pattern.endswith("/") else parts
                if len(covered) == len(wanted) and all(map(fnmatchcase, covered, wanted)):
                    return owner, "/".join(covered)
        return "template", path


def settings(copier_yml: bytes) -> Mapping[str, Any]:
    """The questions and settings of a copier.yml; copier merges its documents, and their lists. Empty if only copier can read it."""
    try:
        documents = [document for document in YAML(typ="safe", pure=True).load_all(copier_yml.decode(errors="replace")) if document]
    except YAMLError:  # `!include`
        return {}
    merged = {name: value for document in documents for name, value in document.items()}
    return merged | {"_exclude": [pattern for document in documents for pattern in document.get("_exclude", [])]}


def owners(settings: Mapping[str, Any]) -> Owners:
    """The owners in these settings of a copier.yml."""
    return Owners(settings.get("_machine", ()), settings.get("_team", ()))
