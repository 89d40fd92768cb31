"""Run the pipeline, commit its results, push data and commit, and register a model version that records the commit.

Commit your changes first: with uncommitted changes it stops before the pipeline. It commits only the files that the pipeline writes.
After an interruption, run it again. A version is registered only if the metrics meet evaluate.thresholds in params.yaml.
"""

import argparse

from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="run every stage, also where nothing changed")
    parser.add_argument("--allow-dirty", action="store_true", help="register with uncommitted changes: marked dirty, with the patch")


def run(args: argparse.Namespace) -> int:
    from mlops_build import service, tracking
    from mlops_build.release import alias
    from mlops_build.training import pipeline

    root = service.find_root()
    outcome = pipeline.train(root, say=say, force=args.force, allow_dirty=args.allow_dirty)
    settings, registry = service.load(root), tracking.registry(root)
    next_step = str(alias.next_step(registry, settings, {model.name: model.version for model in outcome.models}))
    lines = [f"{model.model_uri}  commit {model.commit[:12]}{' dirty' if model.dirty else ''}" for model in outcome.models]
    result(
        args,
        {"models": [model.as_json() for model in outcome.models], "warnings": list(outcome.warnings)},
        "\n".join([*lines, *([next_step] if next_step else [])]),
    )
    return 0
