"""Digests of base images, as they were when this mlops-build was released: a tag moves, a digest does not.

base_images.json is written by scripts/base-images.py, which asks the registries. A tag whose digest is not known there is used as it is.
"""

import json
from importlib import resources

FILE = "base_images.json"


def known() -> dict[str, str | None]:
    """Image → digest ("sha256:…") of its index of platforms; None: not resolved for this release."""
    found: dict[str, str | None] = json.loads(resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8"))["images"]
    return found


def pinned(image: str) -> str:
    """NAME:TAG@DIGEST where the digest is known; an image that has a digest, or that nobody knows, as it is."""
    digest = known().get(image)
    return f"{image}@{digest}" if digest else image
