"""The Dockerfile: several stages, no compiler, no root, dependencies in a layer that changes only with the lock, the model last.

It builds with BuildKit (from Docker 20.10), the classic builder, buildah and kaniko: no heredoc, no cache mount, no `COPY --link`, no
syntax line that would be pulled. Only a recipe with secrets needs a builder with secrets.
"""

from collections.abc import Mapping
from importlib import resources

from jinja2 import Environment, StrictUndefined

from mlops_build.packaging import grammar, labels
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.recipe import Recipe

TEMPLATE = "Dockerfile.jinja"
# The version of uv that installs the dependencies during the build; it is not in the final image.
UV = "0.13.9"


def dockerfile(
    recipe: Recipe, contents: Contents, image_labels: Mapping[str, str], *, files: str | None = None, wheelhouse: bool = False
) -> str:
    """The Dockerfile of a context. Raises BadValue for a text that does not match its grammar.

    image_labels: name → value. files: the model whose version contains image.files. wheelhouse: whether the context has every package.
    """
    first = contents.models[0]
    # autoescape is for HTML; every value here matches a grammar without characters that need escaping.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    template = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        service=grammar.model_name(contents.service, "service name"),
        image=None if contents.image is None else grammar.base_image(contents.image, "image name"),
        tag=f"v{first.version}",
        labels=labels.checked(image_labels),
        base=grammar.base_image(recipe.base),
        apt=[grammar.apt_package(package) for package in recipe.apt],
        python=grammar.python_version(contents.python),
        torch=grammar.torch_version(contents.torch),
        uv=UV,
        gpu=recipe.gpu,
        cuda=recipe.cuda,
        platform=None if recipe.platform is None else grammar.platform(recipe.platform),
        secrets=[grammar.secret(secret) for secret in recipe.secrets],
        files=None if files is None else grammar.model_name(files),
        wheelhouse=wheelhouse,
        port=recipe.port,
    )
