"""The owner of each file of a service: the team, a machine, or the template.

The table is in copier.yml. Copier uses it (it never overwrites files of the team or of a machine), and so does every comparison of a
service with its template.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from ruamel.yaml import YAML

from mlops_build.errors import NotFound

Owner = Literal["team", "machine", "template"]


def owner_of(path: str | PurePosixPath, copier_yml: Path | None = None) -> Owner:
    """The owner of `path`, relative to the service's root.

    copier_yml: the template's; by default the one that belongs to this mlops-build. Raises NotFound if there is none.
    """
    return _match(path, copier_yml)[0]


def owned_together(path: str | PurePosixPath, copier_yml: Path | None = None) -> str:
    """The folder that its owner manages as a unit, such as `deploy/overlays/staging/release`; else the path itself."""
    return _match(path, copier_yml)[1]


def _match(path: str | PurePosixPath, copier_yml: Path | None) -> tuple[Owner, str]:
    parts = PurePosixPath(path).parts
    # The machine's patterns come first, because a release record is inside the team's overlays.
    for owner, patterns in table(copier_yml or _own()).items():
        for pattern in patterns:
            if _covers(pattern, parts):
                wanted = PurePosixPath(pattern.lstrip("/")).parts
                return owner, "/".join(parts[: len(wanted)])
    return "template", str(path)


@cache
def table(copier_yml: Path) -> Mapping[Owner, Sequence[str]]:
    """The patterns of each owner, in order. A file that no pattern covers belongs to the template."""
    merged = {key: value for document in documents(copier_yml) for key, value in document.items()}
    return {owner: tuple(cast(list[str], merged.get(f"_{owner}", ()))) for owner in ("machine", "team")}


@cache
def documents(copier_yml: Path) -> Sequence[Mapping[str, Any]]:
    """The YAML documents of a copier.yml; copier merges them and their lists."""
    return [document for document in YAML(typ="safe", pure=True).load_all(copier_yml.read_text(encoding="utf-8")) if document]


def _own() -> Path:
    """copier.yml: next to this file in a wheel, in the root folder of a checkout."""
    here = Path(__file__).resolve()
    for candidate in (here.parent / "copier.yml", here.parents[2] / "copier.yml"):
        if candidate.is_file():
            return candidate
    raise NotFound(
        "this installation of mlops-build has no copier.yml", remedy="pass the template's: owner_of(path, copier_yml=TEMPLATE/'copier.yml')"
    )


def _covers(pattern: str, parts: tuple[str, ...]) -> bool:
    """Whether a pattern covers a path: `/a/*/b/` covers everything in such a folder, `/a/b` only that file."""
    wanted = PurePosixPath(pattern.lstrip("/")).parts
    if pattern.endswith("/"):
        parts = parts[: len(wanted)]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
