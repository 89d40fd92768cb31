"""A shell script for people to read: it deletes old files that nothing needs. This program deletes nothing itself."""

import os
import re
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from mlops_build.adapters.storage.place import Place
from mlops_build.audit.listing import DAY_MS
from mlops_build.audit.report import Report
from mlops_build.errors import Refused

# A name that no shell, no `aws` and no `rm` reads as something else.
PATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*")
ROOT = re.compile(r"(?:s3:/)?(?:/[A-Za-z0-9_][A-Za-z0-9 ._-]*)+")
FOLDER = re.compile(r"(?:[0-9]+/)?[0-9a-f]{32}/artifacts")
HEADER = """\
#!/bin/sh
# Written by `mlops-build audit --propose`. Read it, and delete the lines that you do not agree with, before you run it.
# Files that no version, run, release or branch needs, and that are older than {days} days. That is true for the time when this was written:
# do not run it later than today. `dvc gc` and `mlflow gc` do not know what releases need: do not use them instead.
set -eu
case $(date -u +%F) in {today} | {tomorrow}) ;; *) echo "this was written on {today}: write it again" >&2; exit 1 ;; esac
"""


class NotAllSeen(Refused):
    """Something was not looked at, so nobody knows whether it needs the files."""


def script(report: Report, keep_days: int) -> str:
    """The script. Raises NotAllSeen if anything was not looked at."""
    if report.unseen:
        raise NotAllSeen(
            f"no script is written, because the audit did not look at everything: {report.unseen[0]}",
            remedy="make all repositories and stores answer, then run this again",
        )
    now = datetime.now(UTC)
    lines = [HEADER.format(days=keep_days, today=f"{now:%Y-%m-%d}", tomorrow=f"{now + timedelta(days=1):%Y-%m-%d}")]
    limit = time.time() * 1000 - keep_days * DAY_MS
    for store in report.stores:
        if not store.is_known:
            lines.append(f"# Nothing is deleted in {store.place.uri!a}: no run of this registry has files there. Is it the right store?")
            continue
        old = [unit for unit, newest in sorted(store.units.items()) if newest < limit]
        lines += _deletions(store.place, store.endpoint, old, store.place.uri)
    if report.unsure:
        lines.append(f"# No data is deleted, because it is not known what is needed. {ascii(report.unsure[0])[1:-1]}")
    else:
        for remote in report.remotes:
            lines += _deletions(remote.place, remote.endpoint, [path.decode() for path in sorted(remote.orphans)], remote.place.uri)
    return "\n".join(lines) + "\n"


def _deletions(place: Place, endpoint: str | None, paths: list[str], uri: str) -> Iterator[str]:
    """A line for each path; one with another name than our own tools write is left out."""
    if not ROOT.fullmatch(uri) or ".." in uri.split("/"):
        yield f"# {len(paths)} paths of a place with an unusual name are left out: {uri!a}"
        return
    refused = {path for path in paths if not PATH.fullmatch(path)}
    if refused:
        yield f"# {len(refused)} paths with unusual names are left out"
    for path in paths:
        if path in refused:
            continue
        target, is_folder = shlex.quote(place.shown(path)), FOLDER.fullmatch(path)
        if uri.startswith("s3://"):
            endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            gateway = f" --endpoint-url {shlex.quote(endpoint)}" if endpoint else ""
            yield f"aws s3 rm{gateway} {f'--recursive {shlex.quote(place.shown(path) + chr(47))}' if is_folder else target}"
        else:
            yield f"rm {'-r ' if is_folder else ''}-- {target}"
