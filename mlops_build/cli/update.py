"""Merge a newer version of the template into a service: copier renders it, Git merges it.

What you edited is kept, what you own is not touched, renamed files take your edits along. Without a conflict the result is in the index and
in the files, for you to look at and commit; with one nothing is written, and the exit code is 4.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_build.cli.output import result, say

if TYPE_CHECKING:
    from mlops_build.scaffold.update import Update

EXAMPLE = """\
  mlops-build update
  mlops-build update --to 0.2.0 --data python_version=3.12 --dry-run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", default=".", help="the service's folder (default: this one)")
    parser.add_argument("--to", metavar="VERSION", help="a tag, branch or commit of the template (default: the newest release)")
    parser.add_argument("--data", metavar="NAME=VALUE", action="append", default=[], help="an answer that changes, or a new question's")
    parser.add_argument("--template", metavar="URL", help="where the template is now, if it has moved")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, and write nothing")
    parser.add_argument("--write-conflicts", action="store_true", help="with conflicts too, as `git merge` leaves them (exit code 4)")
    parser.add_argument("--commit", action="store_true", help="commit the result")


def run(args: argparse.Namespace) -> int:
    from mlops_build.errors import UsageError
    from mlops_build.scaffold.update import update

    data = {}
    for answer in args.data:
        name, equals, value = answer.partition("=")
        if not name or not equals:
            raise UsageError(f"--data {answer}: no NAME=VALUE", remedy="for example --data python_version=3.12")
        data[name] = value
    done = update(
        Path(args.path),
        to=args.to,
        data=data,
        template=args.template,
        dry_run=args.dry_run,
        write_conflicts=args.write_conflicts,
        commit=args.commit,
    )
    if not args.json:
        for note in done.notes:
            say(f"note: {note}")
    result(args, done.as_json(), _text(done))
    if not args.json and (then := _next(done)):
        say(then)
    return 4 if done.status == "conflict" else 0


def _text(done: "Update") -> str:
    from mlops_build.scaffold.update import shown

    if done.merged is None:
        return f"nothing to do: the service has {done.before.name} of the template"
    merged = done.merged
    what = "" if done.written else " (nothing is written)"
    lines = [f"{done.before.name} → {done.after.name}{what}"]
    conflicting = {conflict.path for conflict in merged.conflicts}
    for change in merged.changes:
        if change.path not in conflicting:
            lines.append(f"  {change.what:<9}{shown(f'{change.old} → {change.path}' if change.old else change.path)}")
    lines += [f"  CONFLICT {shown(one.path)}: {one.why} [{one.kind}]\n           {one.remedy}" for one in merged.conflicts]
    for about, paths in (
        ("your edits are kept in", merged.kept),
        ("you deleted, and the template has changed", merged.deleted),
        ("yours, and the template starts them differently now", merged.outdated),
    ):
        if paths:
            lines.append(f"{about}: {', '.join(map(shown, paths))}")
    return "\n".join(lines)


def _next(done: "Update") -> str:
    if done.status == "conflict" and done.written:
        return "next: resolve the conflicts (git status lists them), git add them, git commit"
    if done.status == "conflict":
        return "next: mlops-build update --write-conflicts, with the same options, puts both sides into the files for you to choose"
    if done.commit:
        return f"commit {done.commit[:12]}"
    return "next: git diff --staged, then git commit" if done.written else ""
