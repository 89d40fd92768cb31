"""Show the origin of a model version: commit, data, stages, parameters, metrics, environment."""

import argparse

from mlops_build.cli.output import result

EXAMPLE = "  mlops-build lineage models:/digits@staging"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_uri", metavar="MODEL_URI", help="models:/NAME/VERSION or models:/NAME@ALIAS")


def run(args: argparse.Namespace) -> int:
    from mlops_build import tracking
    from mlops_build.lineage import tree
    from mlops_build.model.identity import parse_uri

    ref = parse_uri(args.model_uri)
    registry = tracking.registry()
    document = tree.read(registry, registry.version(ref.name, ref.which))
    result(args, document, tree.show(document))
    return 0
