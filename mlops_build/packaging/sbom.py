"""The image's bill of materials as CycloneDX JSON, made from the lock, the recipe and the models before the build.

The same context gives the same bytes: there is no time, and the serial number is derived from the content. Debian packages have no
version, because the build installs the newest; a scanner of the built image shows the versions.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from mlops_build import __version__
from mlops_build.packaging import grammar
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.recipe import Recipe

FILE = "sbom.cdx.json"
VERSION = "1.6"


def sbom(recipe: Recipe, contents: Contents, lock: str, wheels: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    """The document. wheels: file name → SHA-256 (hex) of the wheels next to the lock. labels: of the image."""
    tag = f"v{contents.models[0].version}"
    about = {
        "type": "container",
        "bom-ref": "image",
        "name": contents.image.rpartition(":")[0] if contents.image else contents.service,
        "version": contents.image.rpartition(":")[2] if contents.image else tag,
        "properties": [{"name": key, "value": value} for key, value in labels.items()],
    }
    locked, versions = grammar.hashes(lock), grammar.pinned(lock)
    components = [
        _base(recipe.base),
        *({"type": "library", "bom-ref": f"deb:{package}", "name": package, "purl": f"pkg:deb/debian/{package}"} for package in recipe.apt),
    ]
    components += [_library(name, version, locked[name]) for name, version in sorted(versions.items())]
    components.append(_library("torch", contents.torch, []))
    components += [_library(*_named(wheel), [digest]) for wheel, digest in sorted(wheels.items())]
    components += [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{model.name}",
            "name": model.name,
            "version": str(model.version),
            "properties": [{"name": "mlops-build:digest", "value": model.digest}],
        }
        for model in contents.models
    ]
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": VERSION,
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "mlops-build", "version": __version__}]},
            "component": about,
        },
        "components": components,
        "dependencies": [{"ref": "image", "dependsOn": [component["bom-ref"] for component in components]}],
    }
    content = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    return {**document, "serialNumber": f"urn:uuid:{uuid.UUID(bytes=content[:16], version=4)}"}


def as_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def _base(image: str) -> dict[str, Any]:
    tagged, _, digest = image.partition("@")
    name, _, tag = tagged.rpartition(":")
    last = name.rpartition("/")[2]
    identity = f"@{digest.replace(':', '%3A')}" if digest else ""
    return {
        "type": "container",
        "bom-ref": "base",
        "name": name,
        "version": tag,
        "purl": f"pkg:oci/{last}{identity}?{'' if last == name else f'repository_url={name}&'}tag={tag}",
        **({"hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]} if digest else {}),
    }


def _library(name: str, version: str, hashes: list[str]) -> dict[str, Any]:
    """A Python package with the hashes of all its files in the lock; a package outside the lock has none."""
    purl = f"pkg:pypi/{name}@{version}"
    component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return {**component, "hashes": [{"alg": "SHA-256", "content": digest} for digest in hashes]} if hashes else component


def _named(wheel: str) -> tuple[str, str]:
    name, version, _ = wheel.split("-", 2)
    return name.replace("_", "-").lower(), version
