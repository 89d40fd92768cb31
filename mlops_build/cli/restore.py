"""Restore a backup of the registry into an empty database and an empty place.

Files first, then the database, in which the addresses of the files become the new ones. Stopped, run it again. In an empty folder,
`mlops-build restore DEST` makes mlflow.db and mlartifacts/ from a backup of a sqlite file. No MLflow server may use the database before the
restore ends; where the server hands out the files itself, start it with --artifacts-destination and the new place.
"""

import argparse

from mlops_build.cli.backup import add_database, database, opened
from mlops_build.cli.output import result, say

EXAMPLE = (
    "  mlops-build restore /mnt/backups/registry\n"
    "  mlops-build restore s3://backups/registry --database postgresql://mlflow@db/mlflow --artifacts s3://mlflow/artifacts\n"
    "  mlops-build restore s3://backups/registry --also s3://dvc/points=s3://new-dvc/points"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", help="where the backups are: a folder or s3://BUCKET/PREFIX")
    parser.add_argument("--backup", metavar="ID", help="which one (default: the newest; mlops-build backup DEST --list)")
    add_database(parser)
    parser.add_argument("--artifacts", metavar="URI", help="an empty place for the files (default: mlartifacts beside the sqlite file)")
    parser.add_argument("--also", action="append", default=[], metavar="OLD=NEW", help="restore a place beside the registry, to NEW")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from mlops_build.adapters.registry.dump import SQLITE
    from mlops_build.adapters.storage.address import place
    from mlops_build.backup import restore
    from mlops_build.errors import UsageError

    sql, endpoint = database(args, f"sqlite:///{Path('mlflow.db').absolute()}")
    if not args.artifacts and sql.kind != SQLITE:
        raise UsageError("there is no place for the files", remedy="add --artifacts URI: an empty folder or s3://BUCKET/PREFIX")
    also = {}
    for pair in args.also:
        old, separator, new = pair.partition("=")
        if not (old and separator and new):
            raise UsageError(f"--also {pair[:200]!r} does not say where to", remedy="write --also OLD=NEW")
        also[place(old).uri] = new
    artifacts = args.artifacts or str(sql.file.absolute().parent / "mlartifacts")
    restored = restore.run(opened(args), args.backup, sql, artifacts, also, endpoint, _progress)
    if damaged := restored.manifest.damaged:
        say(f"{len(damaged)} versions or places were damaged or missing when this backup was made: {', '.join(damaged[:10])}")
    document = {"backup": restored.manifest.id, "files": restored.files, "database": str(sql), "places": restored.places}
    lines = [f"restored backup {restored.manifest.id}: {restored.files:,} files, database {sql}"]
    lines += [
        f"  {old} is now {new}" if new else f"  {old} was not restored; into an empty place, --also OLD=NEW does it"
        for old, new in restored.places.items()
    ]
    result(args, document, "\n".join(lines))
    return 0


def _progress(line: str) -> None:
    say(f"mlops-build restore: {line}")
