"""Generate a service from a training script, or around an adopted model. Your files are not changed, moved or run.

With --from, the script and its local modules are copied into a service generated from the template. The train stage runs it with its
arguments, whose defaults go to params.yaml. Small data is copied and tracked with DVC; more than 1 GiB, data on S3, and all data with
--by-reference stay where they are. Remaining tasks are printed and written to TODO.md.

With --model, the code, weights and recorded answers of a version that `adopt register --code` registered become a service without a
training. Its only stage logs the weights, and compares the answers with the recorded ones.
"""

import argparse
import os
from pathlib import Path

from mlops_build.cli import repositories
from mlops_build.cli.output import result, say

EXAMPLE = """\
  mlops-build scaffold fraud-score --from ~/work/train.py --data ~/work/transactions.csv
  mlops-build scaffold fraud-score --from ~/work/train.py --data s3://datasets/fraud --answer s3_endpoint_url=https://s3.example.com
  mlops-build scaffold old-digits --model models:/digits/2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", type=Path, help="the service's folder, which must not exist yet, or be empty")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="script", metavar="SCRIPT", type=Path, help="the training script")
    source.add_argument("--model", metavar="URI", help="the adopted version: models:/NAME/VERSION or models:/NAME@ALIAS")
    parser.add_argument("--tracking-uri", metavar="URI", help=repositories.MLFLOW)
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

    answers: dict[str, object] = {}
    for answer in args.answer:
        name, separator, value = answer.partition("=")
        if not separator or not name:
            raise UsageError(
                f"--answer {answer!r}: there is no =", remedy="write --answer NAME=VALUE, for example --answer team=ml-platform"
            )
        answers[name] = value
    template = args.template or os.environ.get("MLOPS_BUILD_TEMPLATE") or render.TEMPLATE
    if args.model:
        return _around_model(args, answers, template)
    from mlops_build.scaffold.existing import around

    if args.tracking_uri:
        raise UsageError("--tracking-uri belongs to --model", remedy="add --answer mlflow_tracking_uri=URI instead")
    made = around.scaffold(
        args.destination,
        args.script,
        args.data,
        answers,
        template=template,
        version=args.version,
        by_reference=args.by_reference,
        say=say,
    )
    result(args, made.as_json(), made.as_text())
    return 0


def _around_model(args: argparse.Namespace, answers: dict[str, object], template: str) -> int:
    from mlops_build.errors import UsageError
    from mlops_build.scaffold.adopted import around

    if args.data or args.by_reference:
        raise UsageError("--data and --by-reference belong to --from", remedy="remove them: a service around a model has no training data")
    registry = repositories.registry(args)
    made = around.scaffold(args.destination, args.model, registry, answers, template=template, version=args.version, say=say)
    result(args, made.as_json(), made.as_text())
    return 0
