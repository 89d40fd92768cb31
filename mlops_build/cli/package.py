"""Write the build context of a model version: a folder that docker, buildah or kaniko turns into an image with nothing else.

ENV takes the versions from the environment's release record in this service's working tree. MODEL_URI takes one version; the base image
comes from service.yaml where this is the model's service, else it is the official slim image of the model's Python.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_build.cli.output import result, say

if TYPE_CHECKING:
    from mlops_build.packaging.contents import Contents

EXAMPLE = "  mlops-build package staging -o build/context\n  mlops-build package models:/digits/3 -o build/context"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="MODEL_URI|ENV", help="models:/NAME/VERSION, models:/NAME@ALIAS, or an environment of service.yaml")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="the folder to write; an earlier context is replaced"
    )


def run(args: argparse.Namespace) -> int:
    made = _version(args) if args.what.startswith("models:") else _environment(args)
    paths = [path for path in args.output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in paths)
    tag = made.image or f"{made.service}:v{made.models[0].version}"
    document = {**made.as_json(), "context": str(args.output), "files": len(paths), "bytes": size}
    text = f"{args.output}: {', '.join(map(str, made.models))}, {len(paths)} files, {size / 2**20:.1f} MiB"
    result(args, document, f"{text}\nnext: docker build --tag {tag} {args.output}\n  or: mlops-build serve {args.output}")
    return 0


def _environment(args: argparse.Namespace) -> "Contents":
    from mlops_build import service
    from mlops_build.errors import NotFound
    from mlops_build.packaging import context, recipe
    from mlops_build.packaging.name import image_name
    from mlops_build.registry import Registry, tracking_uri
    from mlops_build.release import record

    root = service.find_root()
    settings = service.load(root)
    settings.environment(args.what)
    released = record.read(root, args.what)
    if not released.models:
        raise NotFound(
            f"nothing is released to {args.what} yet",
            remedy=f"mlops-build promote {settings.models[0].name} VERSION --to {args.what}, then mlops-build release {args.what}",
        )
    image = image_name(settings, released.models)
    if image != released.image:
        say(f"the record of {args.what} says {released.image}, service.yaml and this mlops-build make {image}: release {args.what} again")
    sources = context.from_registry(Registry(tracking_uri(root)), released.models)
    return context.write_context(recipe.of_service(settings), image, sources, args.output)


def _version(args: argparse.Namespace) -> "Contents":
    from mlops_build import service
    from mlops_build.errors import NotFound
    from mlops_build.model.identity import parse_uri
    from mlops_build.packaging import context, recipe
    from mlops_build.packaging.contents import Model
    from mlops_build.packaging.name import image_name
    from mlops_build.registry import Registry

    reference = parse_uri(args.what)
    registry = Registry()
    version = registry.version(reference.name, reference.which)
    try:
        settings = service.load(service.find_root())
    except NotFound:
        settings = None
    names = [model.name for model in settings.models] if settings else []
    if settings is None or version.name not in names:
        return context.write_version(registry, version, args.output)
    model = Model(version.name, version.version, context.registered_digest(version))
    # One of several models is not the service's image, so it does not get its name.
    image = image_name(settings, [model]) if names == [model.name] else None
    return context.write_context(recipe.of_service(settings), image, context.from_registry(registry, [model]), args.output)
