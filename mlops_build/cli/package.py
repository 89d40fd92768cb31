"""Write the build context of a model version: a folder from which docker, buildah or kaniko can build the image.

ENV uses the versions in the environment's release record in this service's working tree. MODEL_URI uses one version; the base image
comes from service.yaml if this is the model's service, else it is the official slim image of the model's Python. Flags that override
service.yaml give another image with another name; the source of the packages does not change the name.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_build.cli.output import result, say

if TYPE_CHECKING:
    from mlops_build.packaging.contents import Contents

EXAMPLE = "\n".join(
    [
        "  mlops-build package staging -o build/context",
        "  mlops-build package models:/digits/3 -o build/context",
        "  mlops-build package models:/digits/3 -o build/context --cpu --platform linux/arm64 --wheelhouse ~/wheels",
    ]
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="MODEL_URI|ENV", help="models:/NAME/VERSION, models:/NAME@ALIAS, or an environment of service.yaml")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="the folder to write; an earlier context is replaced"
    )
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", dest="gpu", action="store_true", default=None, help="torch with CUDA, overrides service.yaml")
    device.add_argument("--cpu", dest="gpu", action="store_false", help="torch without CUDA, overrides service.yaml")
    parser.add_argument("--platform", choices=["linux/amd64", "linux/arm64"], help="of the image (default: the builder's own)")
    parser.add_argument(
        "--wheelhouse", metavar="DIR", type=Path, help="use every package from this folder of wheels: the build needs no package index"
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        choices=["index-url", "netrc", "ca-bundle"],
        help="id of a secret for the build (also image.secrets in service.yaml); can be given more than once",
    )


def run(args: argparse.Namespace) -> int:
    made = _version(args) if args.what.startswith("models:") else _environment(args)
    paths = [path for path in args.output.rglob("*") if path.is_file()]
    if made.unsafe_pickle:
        say(f"the model contains pickled files, which are accepted (serving.unsafe_pickle): {made.unsafe_pickle}")
    size = sum(path.stat().st_size for path in paths)
    tag = made.image or f"{made.service}:v{made.models[0].version}"
    document = {**made.as_json(), "context": str(args.output), "files": len(paths), "bytes": size}
    secrets = "".join(f" --secret id={secret},src=FILE" for secret in _secrets(args.output))
    models = ", ".join(f"{model.name} v{model.version}" for model in made.models)
    text = f"{args.output}: {models}, {len(paths)} files, {size / 2**20:.1f} MiB"
    result(args, document, f"{text}\nnext: docker build --tag {tag}{secrets} {args.output}\n  or: mlops-build serve {args.output}")
    return 0


def _environment(args: argparse.Namespace) -> "Contents":
    from mlops_build import service, tracking
    from mlops_build.errors import NotFound
    from mlops_build.packaging import context, recipe
    from mlops_build.packaging.name import image_name, is_valid
    from mlops_build.release import record
    from mlops_build.service import pin

    root = service.find_root()
    settings = service.load(root)
    settings.environment(args.what)
    released = record.read(root, args.what)
    if not released.models:
        raise NotFound(
            f"nothing is released to {args.what} yet",
            remedy=f"mlops-build promote {settings.models[0].name} VERSION --to {args.what}, then mlops-build release {args.what}",
        )
    chosen = recipe.of_service(settings, **_options(args))
    image = image_name(settings, released.models, chosen, pin=pin.at(root))
    if chosen != recipe.of_service(settings):
        say(f"the record of {args.what} has {released.image}; with these flags the image is {image}")
    elif is_valid(released.image, settings, released.models):
        image = str(released.image)
    else:
        say(f"the record of {args.what} has {released.image}, but its models and service.yaml give {image}: release {args.what} again")
    sources = context.from_registry(tracking.registry(root), released.models)
    return context.write_context(chosen, image, sources, args.output, wheels=args.wheelhouse)


def _version(args: argparse.Namespace) -> "Contents":
    from mlops_build import tracking
    from mlops_build.model.identity import parse_uri
    from mlops_build.packaging import context, recipe
    from mlops_build.packaging.name import image_name
    from mlops_build.service import find_root, pin
    from mlops_build.service.owner import owner

    reference = parse_uri(args.what)
    registry = tracking.registry()
    version = registry.version(reference.name, reference.which)
    settings = owner(args.what)
    if settings is None:
        return context.write_version(registry, version, args.output, wheels=args.wheelhouse, **_options(args))
    model = version.checked()
    # A single one of several models is not the service's image, so it does not get its name.
    chosen = recipe.of_service(settings, **_options(args))
    image = image_name(settings, [model], chosen, pin=pin.at(find_root())) if len(settings.models) == 1 else None
    return context.write_context(chosen, image, context.from_registry(registry, [model]), args.output, wheels=args.wheelhouse)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe's options from the flags."""
    return {"gpu": args.gpu, "platform": args.platform, "secrets": tuple(args.secret)}


def _secrets(context: Path) -> list[str]:
    """The ids of the secrets in a context's Dockerfile."""
    import re

    return list(dict.fromkeys(re.findall(r"--mount=type=secret,id=([a-z-]+)", (context / "Dockerfile").read_text(encoding="utf-8"))))
