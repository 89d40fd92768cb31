"""The image's name. It contains a hash over all of the image's inputs, so it is known before the build and without a download.

The reason is in docs/explanation/image-name.md.
"""

import hashlib
import json
from collections.abc import Sequence

from mlops_build.errors import Refused
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.recipe import Recipe, of_service
from mlops_build.service import Service

# The SHA-256 of the Dockerfile's template in 0.4 and 0.5, when it was part of the name. It stays, so that a bridge, a laptop and a CI of
# different releases give an image the same name although the template changes. Another value would build every image again.
DOCKERFILE = "b47225527bbdaa9beb7d4752235e3e9732481404c28896ab04d9f61cf0d1adc3"
HEX = 12


def image_name(service: Service, models: Sequence[ModelVersion], recipe: Recipe | None = None) -> str:
    """`REGISTRY/SERVICE:v<version>-<12 hex>`; the version is the first model's. The same inputs give the same name everywhere.

    recipe: if it differs from service.yaml. Raises Refused without a model.
    """
    if not models:
        raise Refused(f"an image of {service.name} needs at least one model", remedy="promote a model version first")
    recipe = recipe or of_service(service)
    content = {
        "models": [{"name": model.name, "version": model.version, "digest": model.digest} for model in models],
        "image": {"registry": service.image.registry, "base": recipe.base, "apt": list(recipe.apt)},
        # Further inputs of the Dockerfile. Later ones count only if they are not the default, so that existing names do not change.
        "gpu": recipe.gpu,
        "port": recipe.port,
        "dockerfile": DOCKERFILE,
        **({"cuda": recipe.cuda} if recipe.cuda != "wheels" else {}),
        **({"platform": recipe.platform} if recipe.platform else {}),
        **({"secrets": list(recipe.secrets)} if recipe.secrets else {}),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{service.image.registry}/{service.name}:v{models[0].version}-{hashlib.sha256(canonical.encode()).hexdigest()[:HEX]}"
