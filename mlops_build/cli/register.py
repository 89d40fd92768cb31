"""Register a new version with the weights of another one and the current code and locked environment: for a fix without training.

Like `train`, it requires that everything is committed, commits openapi.json if it changed, pushes, and registers a version that records the
commit. The current code must give the recorded answers to the example, and must not break callers (docs/reference/contract.md).
"""

import argparse

from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build register --weights-from models:/digits/3\n  mlops-build register --weights-from models:/digits@production"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights-from", required=True, metavar="MODEL_URI", help="models:/NAME/VERSION or models:/NAME@ALIAS")
    parser.add_argument("--allow-changed-answers", action="store_true", help="allow other answers to the recorded example")


def run(args: argparse.Namespace) -> int:
    from mlops_build import service
    from mlops_build.training import register_weights

    made = register_weights.run(service.find_root(), args.weights_from, allow_changed_answers=args.allow_changed_answers, say=say)
    for remark in made.remarks:
        say(remark)
    outcome = "registered" if made.new else "was registered before with the same content"
    result(args, made.as_json(), f"{made.model_uri} {outcome}, with the weights of {made.weights_from}, commit {made.commit[:12]}")
    return 0
