"""Copy the registry into a place for backups: first its database, then every file that it names, each content once.

DEST is a folder or s3://BUCKET/PREFIX, which should not be on the same disks. Files that the backup before has are not read again. Stopped,
run it again: a backup exists when all of it is there. Git repositories are not copied.
With MLOPS_BUILD_BACKUP_KEY (or MLOPS_BUILD_BACKUP_KEY_FILE) backups are signed, and unsigned or changed ones are refused. PostgreSQL needs
pg_dump; the password is that of PGPASSWORD or ~/.pgpass.

Exit code: 4 if a version's files are missing or altered (the backup is made), or if --verify finds a damaged backup.
"""

import argparse
from typing import TYPE_CHECKING

from mlops_build.cli.output import result, say
from mlops_build.cli.parser import whole

if TYPE_CHECKING:
    from mlops_build.adapters.registry.dump import Sql
    from mlops_build.backup.destination import Destination

EXAMPLE = (
    "  mlops-build backup /mnt/backups/registry\n"
    "  mlops-build backup s3://backups/registry --database postgresql://mlflow@db/mlflow --keep 14 --keep-days 90\n"
    "  mlops-build backup s3://backups/registry --verify --all\n"
    "  mlops-build backup s3://backups/registry --list"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", help="where the backups are: a folder or s3://BUCKET/PREFIX")
    add_database(parser)
    parser.add_argument(
        "--artifacts",
        action="append",
        default=[],
        metavar="URI",
        help="only copy files below it, also where it is a folder"
        " of the server; the first one is where the server keeps the files that it hands out itself",
    )
    parser.add_argument("--also", action="append", default=[], metavar="URI", help="another place to copy, such as a DVC remote")
    parser.add_argument("--without", action="append", default=[], metavar="URI", help="a place to leave out, such as one that is gone")
    parser.add_argument("--keep", type=whole(1, 100000), metavar="N", help="afterwards delete all but the newest N backups")
    parser.add_argument(
        "--keep-days", type=whole(1, 100000), metavar="D", help="afterwards delete those older; with --keep, all in either stay"
    )
    parser.add_argument("--prune", action="store_true", help="delete old backups as --keep and --keep-days say, and do nothing else")
    parser.add_argument("--list", action="store_true", help="show the backups, and do nothing else")
    parser.add_argument("--verify", action="store_true", help="check a backup, and do nothing else")
    parser.add_argument("--backup", metavar="ID", help="which one to check (default: the newest)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample", type=whole(0, 10**9 - 1), default=100, metavar="N", help="read N files for --verify (default: 100)")
    which.add_argument("--all", action="store_true", help="read all files for --verify")


def add_database(parser: argparse.ArgumentParser) -> None:
    """--database and --endpoint-url."""
    parser.add_argument(
        "--database", metavar="URI", help="MLflow's database (default: MLOPS_BUILD_BACKUP_DATABASE, MLFLOW_TRACKING_URI, or the service's)"
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="the S3 gateway of DEST (default: AWS_ENDPOINT_URL)")


def opened(args: argparse.Namespace) -> "Destination":
    from mlops_build.adapters.storage.address import folder
    from mlops_build.backup.destination import Destination

    return Destination(folder(args.destination, args.endpoint_url))


def database(args: argparse.Namespace, default: str | None = None) -> "tuple[Sql, str | None]":
    """The database, and the S3 gateway of the registry's files. Raises UsageError without a database."""
    import os

    from mlops_build import tracking
    from mlops_build.adapters.registry.dump import Sql
    from mlops_build.errors import UsageError

    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    if uri := args.database or os.environ.get("MLOPS_BUILD_BACKUP_DATABASE"):
        return Sql(uri), endpoint
    try:
        tracked = tracking.find()
    except UsageError:
        if not default:
            raise UsageError(
                "no database: neither --database nor MLFLOW_TRACKING_URI is given, and the current folder is not a service",
                remedy="add --database sqlite:///FILE, or --database postgresql://USER@HOST/NAME",
            ) from None
        return Sql(default), endpoint
    return Sql(tracked.uri), endpoint or tracked.s3_endpoint_url


def run(args: argparse.Namespace) -> int:
    import signal
    import sys

    from mlops_build.errors import UsageError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files and the marker are deleted
    if not args.verify and (args.backup or args.all):
        raise UsageError("--backup and --all belong to --verify", remedy="add --verify, or leave them out")
    if args.list:
        return _list(args)
    if args.prune:
        return _prune(args)
    return _verify(args) if args.verify else _make(args)


def _prune(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mlops_build.backup import keep
    from mlops_build.errors import UsageError

    if not (args.keep or args.keep_days):
        raise UsageError("--prune needs to know which backups stay", remedy="add --keep N, --keep-days D or both")
    pruned = keep.prune(opened(args), args.keep, args.keep_days, _progress)
    result(args, asdict(pruned), str(pruned))
    return 0


def _make(args: argparse.Namespace) -> int:
    import time

    from mlops_build import finding
    from mlops_build.adapters.registry.dump import SQLITE
    from mlops_build.backup import keep, take
    from mlops_build.backup.manifest import Tampered
    from mlops_build.backup.places import Locations

    began = time.monotonic()
    destination = opened(args)
    sql, endpoint = database(args)
    locations = Locations(args.artifacts, args.without, is_embedded=sql.kind == SQLITE)
    made = take.run(destination, sql, locations, args.also, endpoint, _progress)
    pruned = keep.Pruned([])
    if args.keep or args.keep_days:
        try:
            pruned = keep.prune(destination, args.keep, args.keep_days, _progress)
        except Tampered as error:
            made.findings.append(finding.Finding(destination.place.uri, "nothing-deleted", error.message, error.remedy or ""))
    document = {
        "backup": made.manifest.id,
        "files": made.manifest.files,
        "bytes": made.manifest.size,
        "new_objects": made.new,
        "sent_bytes": made.sent,
        "not_read_again": made.reused,
        "seconds": round(time.monotonic() - began, 1),
        "deleted_backups": pruned.backups,
        "deleted_objects": pruned.objects,
        "deleted_bytes": pruned.size,
        "findings": finding.as_json(made.findings),
    }
    text = (
        f"backup {made.manifest.id}: {made.manifest.files:,} files, {made.manifest.size / 1e6:,.1f} MB; {made.new:,} new objects,"
        f" {made.sent / 1e6:,.1f} MB sent; {made.reused:,} files not read again; {document['seconds']} s"
    )
    if pruned.backups:
        text += f"\n{pruned}"
    result(args, document, "\n".join([text, *([finding.show(made.findings)] if made.findings else [])]))
    return 4 if made.findings else 0


def _verify(args: argparse.Namespace) -> int:
    from mlops_build import finding
    from mlops_build.backup import keep

    checked = keep.verify(opened(args), args.backup, None if args.all else args.sample, _progress)
    document = {
        "backup": checked.manifest.id,
        "files": checked.manifest.files,
        "read": checked.read,
        "findings": finding.as_json(checked.findings),
    }
    text = (
        f"backup {checked.manifest.id}: {checked.manifest.files:,} files are listed, {checked.read:,} contents and the database were read"
    )
    result(args, document, "\n".join([text, *([finding.show(checked.findings)] if checked.findings else [])]))
    return 4 if checked.findings else 0


def _list(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mlops_build.backup.manifest import Tampered

    destination = opened(args)
    entries: list[dict[str, object]] = []
    lines = []
    for name in destination.names():
        try:
            made = destination.manifest(name)
        except Tampered as error:
            entries.append({"id": name, "error": error.message})
            lines.append(f"{name}  cannot be used: {error.message}")
            continue
        entries.append(asdict(made))
        damaged = f"  {len(made.damaged)} damaged or not copied" if made.damaged else ""
        lines.append(f"{name}  {made.kind:10}  {made.files:9,} files  {made.size / 1e6:12,.1f} MB{damaged}")
    result(args, entries, "\n".join(lines) or "there is no backup")
    return 4 if any("error" in entry for entry in entries) else 0


def _progress(line: str) -> None:
    say(f"mlops-build backup: {line}")
