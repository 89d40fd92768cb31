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

# The environment is the part that does not change with the model's version.
TEMPLATE, ENVIRONMENT = "Dockerfile.jinja", "environment.jinja"
# The version of uv that installs the dependencies during the build; it is not in the final image.
UV = "0.13.9"


def dockerfile(
    recipe: Recipe, contents: Contents, image_labels: Mapping[str, str], *, files: str | None = None, wheelhouse: bool = False
) -> str:
    """The Dockerfile of a context. Raises BadValue for a text that does not match its grammar.

    image_labels: name → value. files: the model whose version contains image.files. wheelhouse: whether the context has every package.
    """
    first = contents.models[0]
    return _rendered(
        TEMPLATE,
        environment=environment(recipe, python=contents.python, torch=contents.torch, wheelhouse=wheelhouse),
        service=grammar.model_name(contents.service, "service name"),
        image=None if contents.image is None else grammar.base_image(contents.image, "image name"),
        tag=f"v{first.version}",
        secrets=[grammar.secret(secret) for secret in recipe.secrets],
        labels=labels.checked(image_labels),
        files=None if files is None else grammar.model_name(files),
    )


def environment(recipe: Recipe, *, python: str, torch: str, wheelhouse: bool = False) -> str:
    """The part of the Dockerfile whose last stage is the environment: what an image has without code and model. A Dockerfile by itself.

    python, torch: versions. Raises BadValue for a text that does not match its grammar.
    """
    return _rendered(
        ENVIRONMENT,
        base=grammar.base_image(recipe.base),
        apt=[grammar.apt_package(package) for package in recipe.apt],
        python=grammar.python_version(python),
        torch=grammar.torch_version(torch),
        uv=UV,
        gpu=recipe.gpu,
        cuda=recipe.cuda,
        platform=None if recipe.platform is None else grammar.platform(recipe.platform),
        secrets=[grammar.secret(secret) for secret in recipe.secrets],
        wheelhouse=wheelhouse,
        port=recipe.port,
    )


def _rendered(name: str, **values: object) -> str:
    # autoescape is for HTML; every value here matches a grammar without characters that need escaping.
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    return jinja.from_string(resources.files(__package__).joinpath(name).read_text(encoding="utf-8")).render(values)
