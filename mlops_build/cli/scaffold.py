"""Generate a service from an existing training script. Your files are not changed, moved or run.

The script and its local modules are copied into a service generated from the template. The train stage runs it with its arguments, whose
defaults go to params.yaml. Small data is copied and tracked with DVC; more than 1 GiB, data on S3, and all data with --by-reference stay
where they are. Remaining tasks are printed and written to TODO.md.
"""

import argparse
import os
from pathlib import Path

from mlops_build.cli.output import result, say

EXAMPLE = """\
  mlops-build scaffold fraud-score --from ~/work/train.py --data ~/work/transactions.csv
  mlops-build scaffold fraud-score --from ~/work/train.py --data s3://datasets/fraud --answer s3_endpoint_url=https://s3.example.com"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", type=Path, help="the service's folder, which must not exist yet, or be empty")
    parser.add_argument("--from", dest="script", metavar="SCRIPT", type=Path, required=True, help="the training script")
    parser.add_argument(
        "--data", metavar="PATH", action="append", default=[], help="a file or folder, or s3://BUCKET/PATH; may be repeated"
    )
    parser.add_argument("--by-reference", action="store_true", help="copy no data, of any size")
    parser.add_argument(
        "--template", metavar="URL", help="address or folder of the template (default: MLOPS_BUILD_TEMPLATE, or mlops-build's own)"
    )
    parser.add_argument("--version", metavar="REF", help="a tag, branch or commit of the template; default: its newest release")
    parser.add_argument(
        "--answer", metavar="NAME=VALUE", action="append", default=[], help="an answer to one of the template's questions; may be repeated"
    )


def run(args: argparse.Namespace) -> int:
    from mlops_build.errors import UsageError
    from mlops_build.scaffold import render
    from mlops_build.scaffold.existing import around

    answers: dict[str, object] = {}
    for answer in args.answer:
        name, separator, value = answer.partition("=")
        if not separator or not name:
            raise UsageError(
                f"--answer {answer!r}: there is no =", remedy="write --answer NAME=VALUE, for example --answer team=ml-platform"
            )
        answers[name] = value
    made = around.scaffold(
        args.destination,
        args.script,
        args.data,
        answers,
        template=args.template or os.environ.get("MLOPS_BUILD_TEMPLATE") or render.TEMPLATE,
        version=args.version,
        by_reference=args.by_reference,
        say=say,
    )
    result(args, made.as_json(), made.as_text())
    return 0
