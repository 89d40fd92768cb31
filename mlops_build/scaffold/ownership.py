"""Who owns a file of a service, as copier.yml says: the team, a machine, or the template.

One table, read by copier (it never overwrites what is the team's or a machine's) and by whatever compares a service with
its template.
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

    copier_yml: the template's questionnaire; without it the one that belongs to this mlops-build. Raises NotFound if there is none.
    """
    return _asked(path, copier_yml)[0]


def owned_together(path: str | PurePosixPath, copier_yml: Path | None = None) -> str:
    """What the path's owner owns as one: the folder that a pattern names, `deploy/overlays/staging/release`, else the path itself."""
    return _asked(path, copier_yml)[1]


def _asked(path: str | PurePosixPath, copier_yml: Path | None) -> tuple[Owner, str]:
    parts = PurePosixPath(path).parts
    # A release record lies inside the team's overlays: the machine's table is asked first.
    for owner, patterns in table(copier_yml or _own()).items():
        for pattern in patterns:
            if _covers(pattern, parts):
                wanted = PurePosixPath(pattern.lstrip("/")).parts
                return owner, "/".join(parts[: len(wanted)])
    return "template", str(path)


@cache
def table(copier_yml: Path) -> Mapping[Owner, Sequence[str]]:
    """The patterns of each owner, in the order in which they are asked. What no pattern covers is the template's."""
    merged = {key: value for document in documents(copier_yml) for key, value in document.items()}
    return {owner: tuple(cast(list[str], merged.get(f"_{owner}", ()))) for owner in ("machine", "team")}


@cache
def documents(copier_yml: Path) -> Sequence[Mapping[str, Any]]:
    """The parts of a questionnaire: copier joins them, and their lists."""
    return [document for document in YAML(typ="safe", pure=True).load_all(copier_yml.read_text(encoding="utf-8")) if document]


def _own() -> Path:
    """copier.yml: beside this file in a wheel, at the root in a checkout."""
    here = Path(__file__).resolve()
    for candidate in (here.parent / "copier.yml", here.parents[2] / "copier.yml"):
        if candidate.is_file():
            return candidate
    raise NotFound("this mlops-build has no copier.yml", remedy="give the template's own: owner_of(path, copier_yml=TEMPLATE/'copier.yml')")


def _covers(pattern: str, parts: tuple[str, ...]) -> bool:
    """`/a/*/b/` covers everything under such a folder, `/a/b` that file alone."""
    wanted = PurePosixPath(pattern.lstrip("/")).parts
    if pattern.endswith("/"):
        parts = parts[: len(wanted)]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
