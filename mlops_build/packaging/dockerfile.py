"""Our own Dockerfile: several stages, no compiler, no root, dependencies in a layer that changes only with the lock, the model last.

It builds with BuildKit (from Docker 20.10) and with the classic builder, with buildah and with kaniko: no heredoc, no cache mount, no
`COPY --link`, no syntax line that would have to be pulled. Only a recipe with secrets needs a builder that has them.
"""

from collections.abc import Mapping

from jinja2 import Environment, StrictUndefined

from mlops_build.packaging import grammar, labels
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.name import template
from mlops_build.packaging.recipe import Recipe

# What installs the dependencies while building; not in the final image.
UV = "0.13.9"


def dockerfile(recipe: Recipe, contents: Contents, says: Mapping[str, str], *, files: str | None = None, wheelhouse: bool = False) -> str:
    """The Dockerfile of a context. Raises BadValue for a text that its grammar refuses.

    says: the image's labels. files: the model whose version brings image.files. wheelhouse: whether the context holds every package.
    """
    first = contents.models[0]
    # autoescape is for HTML; here every value has passed a grammar that leaves nothing to escape.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    return environment.from_string(template()).render(
        service=grammar.model_name(contents.service, "service name"),
        image=None if contents.image is None else grammar.base_image(contents.image, "image name"),
        tag=f"v{grammar.version(first.version)}",
        labels=labels.checked(says),
        base=grammar.base_image(recipe.base),
        apt=[grammar.apt_package(package) for package in recipe.apt],
        python=grammar.python_version(contents.python),
        torch=grammar.torch_version(contents.torch),
        uv=UV,
        gpu=recipe.gpu,
        cuda=recipe.cuda,
        platform=None if recipe.platform is None else grammar.platform(recipe.platform),
        secrets=[grammar.secret(one) for one in recipe.secrets],
        files=None if files is None else grammar.model_name(files),
        wheelhouse=wheelhouse,
        port=recipe.port,
    )
