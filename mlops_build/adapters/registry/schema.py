"""The revision of MLflow's tables that the installed MLflow works with: it migrates an older database when it opens it.

Read from the files of its migrations: importing mlflow takes two seconds.
"""

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Collection
from pathlib import Path

from mlops_build.adapters.registry.records import shown
from mlops_build.errors import Refused

TABLE = "alembic_version"
REVISION = re.compile(r"""^(down_)?revision\s*(?::[^=\n]*)?=\s*["']([0-9a-z]+)["']""", re.MULTILINE)


class OtherSchema(Refused):
    """The database of another MLflow release, which mlflow would migrate or not understand."""


def check(uri: str, revisions: Collection[str], *, is_empty: bool) -> None:
    """Raise OtherSchema for the database of another MLflow release.

    revisions: in its table alembic_version. is_empty: it has no tables at all; mlflow creates its own there.
    """
    head = _installed()
    if head is None or (is_empty and not revisions) or set(revisions) == {head}:
        return
    remedy = "back it up, then `mlflow db upgrade` with its address, if that release is older (docs/how-to/upgrade-mlflow.md)"
    if not revisions:
        remedy = "give the address of MLflow's database, or of an empty one; after a failed migration, restore the backup"
        raise OtherSchema(f"the database {shown(uri)} has tables, but no revision of MLflow's in alembic_version", remedy=remedy)
    release = importlib.metadata.version("mlflow")
    raise OtherSchema(
        f"MLflow's database {shown(uri)} belongs to another release of MLflow than {release}, which is installed here", remedy=remedy
    )


@functools.cache
def _installed() -> str | None:
    """The newest revision; None where no MLflow that opens databases is installed."""
    mlflow = importlib.util.find_spec("mlflow")
    if mlflow is None or mlflow.origin is None:
        return None
    made: set[str] = set()
    replaced: set[str] = set()
    for file in Path(mlflow.origin).parent.glob("store/db_migrations/versions/*.py"):
        for is_older, revision in REVISION.findall(file.read_text(encoding="utf-8")):
            (replaced if is_older else made).add(revision)
    heads = made - replaced
    return heads.pop() if len(heads) == 1 else None
