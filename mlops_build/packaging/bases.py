"""Digests of base images at the time of this release of mlops-build: a tag can change, a digest cannot.

scripts/base-images.py writes base_images.json from the registries. A tag without a known digest is used without one.
"""

import json
from importlib import resources

FILE = "base_images.json"


def known() -> dict[str, str | None]:
    """Image → digest ("sha256:…") of its multi-platform index; None if it was not resolved for this release."""
    digests: dict[str, str | None] = json.loads(resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8"))["images"]
    return digests


def pinned(image: str) -> str:
    """NAME:TAG@DIGEST if the digest is known; else the image unchanged."""
    digest = known().get(image)
    return f"{image}@{digest}" if digest else image
