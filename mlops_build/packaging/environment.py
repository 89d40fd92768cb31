"""The tag of an environment image: what an image has without code and model, which many versions share."""

import hashlib
import json
from dataclasses import replace

from mlops_build.packaging import dockerfile
from mlops_build.packaging.context import Needs
from mlops_build.packaging.recipe import Recipe


def tag(recipe: Recipe, needs: Needs, revision: int | None) -> str:
    """`env-` and 12 hex digits of a SHA-256 over what the image is built from. Raises BadValue.

    Secrets and a wheelhouse do not count: they say where packages come from. revision: image.revision of service.yaml, which asks for
    another build of the same.
    """
    text = dockerfile.environment(replace(recipe, secrets=()), python=needs.python, torch=needs.torch)
    built_from = json.dumps({"dockerfile": text, "lock": needs.lock, "revision": revision}, sort_keys=True)
    return f"env-{hashlib.sha256(built_from.encode()).hexdigest()[:12]}"
