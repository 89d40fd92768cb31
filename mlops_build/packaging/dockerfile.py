"""Our own Dockerfile: several stages, no compiler, no root, dependencies in a layer that changes only with the lock, the model last.

It builds with BuildKit (from Docker 20.10) and with the classic builder, with buildah and with kaniko: no heredoc, no cache mount, no
`COPY --link`, no syntax line that would have to be pulled.
"""

from jinja2 import Environment, StrictUndefined

from mlops_build.packaging import grammar
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.name import template
from mlops_build.packaging.recipe import Recipe

# What installs the dependencies while building; not in the final image.
UV = "0.13.9"


def dockerfile(recipe: Recipe, contents: Contents, commit: str | None) -> str:
    """The Dockerfile of a context. commit: of the first model's code. Raises BadValue for a text that its grammar refuses."""
    first = contents.models[0]
    # autoescape is for HTML; here every value has passed a grammar that leaves nothing to escape.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    return environment.from_string(template()).render(
        service=grammar.model_name(contents.service, "service name"),
        image=None if contents.image is None else grammar.base_image(contents.image, "image name"),
        tag=f"v{grammar.version(first.version)}",
        commit=None if commit is None else grammar.commit(commit),
        models=[
            {"name": grammar.model_name(one.name), "version": grammar.version(one.version), "digest": grammar.digest(one.digest)}
            for one in contents.models
        ],
        base=grammar.base_image(recipe.base),
        apt=[grammar.apt_package(package) for package in recipe.apt],
        python=grammar.python_version(contents.python),
        torch=grammar.torch_version(contents.torch),
        uv=UV,
        gpu=recipe.gpu,
        port=recipe.port,
    )
