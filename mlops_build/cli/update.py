"""Merge a newer version of the template into a service: copier renders it, Git merges it.

Your edits are kept, your own files are not changed, and renamed files keep your edits. Without a conflict the result is in the index and in
the files, for you to check and commit. With a conflict nothing is written, and the exit code is 4.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_build.cli.output import result, say

if TYPE_CHECKING:
    from mlops_build.scaffold.update import Update

EXAMPLE = """\
  mlops-build update
  mlops-build update --to 0.2.0 --data python_version=3.12 --dry-run
  mlops-build update --show params.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", default=".", help="the service's folder (default: this one)")
    parser.add_argument("--to", metavar="VERSION", help="a tag, branch or commit of the template (default: the newest release)")
    parser.add_argument(
        "--data", metavar="NAME=VALUE", action="append", default=[], help="a changed answer, or the answer to a new question"
    )
    parser.add_argument("--template", metavar="URL", help="the template's new address, if it has moved")
    parser.add_argument("--dry-run", action="store_true", help="show the result without writing it")
    parser.add_argument(
        "--write-conflicts", action="store_true", help="write conflicts into the files, too, as `git merge` does (exit code 4)"
    )
    parser.add_argument("--commit", action="store_true", help="commit the result")
    parser.add_argument(
        "--show", metavar="FILE", help="instead of an update, print how a file of yours (src/, params.yaml …) differs from the template's"
    )


def run(args: argparse.Namespace) -> int:
    from mlops_build.errors import UsageError
    from mlops_build.scaffold.show import show
    from mlops_build.scaffold.update import update

    data = {}
    for answer in args.data:
        name, equals, value = answer.partition("=")
        if not name or not equals:
            raise UsageError(f"--data {answer}: not of the form NAME=VALUE", remedy="for example --data python_version=3.12")
        data[name] = value
    if args.show is not None:
        shown = show(Path(args.path), args.show, to=args.to, data=data, template=args.template)
        result(args, shown.as_json(), shown.as_text())
        return 0
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
    from mlops_build.scaffold.tree import shown

    if done.merged is None:
        return f"nothing to do: the service has {done.before.name} of the template"
    merged = done.merged
    what = "" if done.written else " (nothing is written)"
    lines = [f"{done.before.name} → {done.after.name}{what}"]
    conflicting = {conflict.path for conflict in merged.conflicts}
    for change in merged.changes:
        if change.path not in conflicting:
            lines.append(f"  {change.what:<9}{shown(f'{change.old} → {change.path}' if change.old else change.path)}")
    lines += [
        f"  CONFLICT {shown(conflict.path)}: {conflict.why} [{conflict.kind}]\n           {conflict.remedy}"
        for conflict in merged.conflicts
    ]
    for about, paths in (
        ("your edits are kept in", merged.kept),
        ("you deleted, and the template has changed", merged.deleted),
        ("yours, and the template has new initial versions of (--show FILE prints the difference)", merged.outdated),
    ):
        if paths:
            lines.append(f"{about}: {', '.join(map(shown, paths))}")
    return "\n".join(lines)


def _next(done: "Update") -> str:
    if done.status == "conflict" and done.written:
        return "next: resolve the conflicts (git status lists them), git add them, git commit"
    if done.status == "conflict":
        return "next: mlops-build update --write-conflicts, with the same options, writes both sides into the files"
    if done.commit:
        return f"commit {done.commit[:12]}"
    return "next: git diff --staged, then git commit" if done.written else ""
