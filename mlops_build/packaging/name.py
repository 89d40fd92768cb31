"""The image's name. It contains a hash over all of the image's inputs, so it is known before the build and without a download.

The reason is in docs/explanation/image-name.md.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mlops_build.errors import Refused
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.recipe import Recipe, of_service
from mlops_build.service import Service
from mlops_build.service.pin import Pin
from mlops_build.service.pin import pin_of as pin_of

HEX = 12
# From this release on, the name depends only on what the service asks for.
BY_REQUEST = Pin(0, 9)
# The earlier formulas: from which release on, and the SHA-256 of a template of the Dockerfile, which was an input of the name. A service
# keeps the formula of the release that it pins, because its CI computes the name again. Those releases knew no digest of a base image.
EARLIER = {
    Pin(0, 1): "932294f93760682c7243f46daa11fad37dbab26b406d39ab2f6023c7e24e673f",
    Pin(0, 4): "b47225527bbdaa9beb7d4752235e3e9732481404c28896ab04d9f61cf0d1adc3",
}


def image_name(service: Service, models: Sequence[ModelVersion], recipe: Recipe | None = None, *, pin: Pin | None = None) -> str:
    """`REGISTRY/SERVICE:v<version>-<12 hex>`; the version is the first model's. The same inputs give the same name everywhere.

    recipe: if it differs from service.yaml. pin: the release of mlops-build that the service requires. Raises Refused without a model.
    """
    if not models:
        raise Refused(f"an image of {service.name} needs at least one model", remedy="promote a model version first")
    recipe = recipe or of_service(service)
    content = {
        "models": [{"name": model.name, "version": model.version, "digest": model.digest} for model in models],
        "gpu": recipe.gpu,
        "port": recipe.port,
        **({"platform": recipe.platform} if recipe.platform else {}),
        **_image(service, recipe, pin),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{service.image.registry}/{service.name}:v{models[0].version}-{hashlib.sha256(canonical.encode()).hexdigest()[:HEX]}"


def is_valid(name: str | None, service: Service, models: Sequence[ModelVersion], pin: Pin | None = None) -> bool:
    """Whether a release record may have this name: for a pin before BY_REQUEST exactly the one of its release, which its CI computes;
    else the name of any release."""
    pins = (pin,) if pin and pin < BY_REQUEST else (None, *EARLIER)
    return name in [image_name(service, models, pin=each) for each in pins]


def _image(service: Service, recipe: Recipe, pin: Pin | None) -> dict[str, Any]:
    """The part of the name's inputs that differs between releases. `image.files` are covered by the digest of a model version."""
    if pin is None or pin >= BY_REQUEST:
        request = {**service.image.set_keys(), "secrets": list(recipe.secrets)}
        # The order in a list does not matter, and an empty value asks for nothing.
        return {"image": {key: _as_set(value) for key, value in request.items() if key != "files" and value not in (None, [])}}
    return {
        "image": {"registry": service.image.registry, "base": service.image.base, "apt": list(recipe.apt)},
        "dockerfile": EARLIER[max((first for first in EARLIER if first <= pin), default=Pin(0, 1))],
        **({"cuda": recipe.cuda} if recipe.cuda != "wheels" else {}),
        **({"secrets": list(recipe.secrets)} if recipe.secrets else {}),
    }


def _as_set(value: Any) -> Any:
    return sorted({json.dumps(item, sort_keys=True) for item in value}) if isinstance(value, list) else value
