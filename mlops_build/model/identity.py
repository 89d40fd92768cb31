"""How a model version is named, and the tags it carries.

Names follow DNS-1123 labels, since they become image names, Kubernetes objects and paths.
"""

import re
from dataclasses import dataclass

from mlops_build.errors import UsageError

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
ALIAS = re.compile(r"[a-z](?:[a-z0-9_-]{0,62})")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
RUN_ID = re.compile(r"[0-9a-f]{32}")

# Tags stand on the version, not on its run: a run can be deleted.
SERVICE = "mlops_build.service"
REPOSITORY = "mlops_build.repository"
COMMIT_TAG = "mlops_build.commit"
DATA = "mlops_build.data"
PARAMS = "mlops_build.params"
DIGEST_TAG = "mlops_build.digest"
TEMPLATE = "mlops_build.template"
PACKAGE = "mlops_build.package"
CONTENT = "mlops_build.content"
DIRTY = "mlops_build.dirty"
WEIGHTS_FROM = "mlops_build.weights_from"
IMAGE = "mlops_build.image"
IMAGE_NAME = "mlops_build.image.name"
PREVIOUS_PREFIX = "mlops_build.previous."

# On a run: the digest of the model folder that it logged.
RUN_MODEL = "mlops_build.model"
# On a run of a script that logs no model itself: the digest of the weights that it left.
RUN_WEIGHTS = "mlops_build.weights"


class BadModelUri(UsageError):
    """A model URI that is not `models:/NAME/VERSION` or `models:/NAME@alias`."""


@dataclass(frozen=True)
class ModelRef:
    """A model version by number, or by alias: exactly one of `version` and `alias` is set."""

    name: str
    version: int | None = None
    alias: str | None = None

    @property
    def which(self) -> int | str:
        return self.version if self.version is not None else str(self.alias)

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}" if self.version is not None else f"models:/{self.name}@{self.alias}"


def parse_uri(uri: str) -> ModelRef:
    """`models:/NAME/VERSION` or `models:/NAME@alias`, MLflow's own spelling. Raises BadModelUri."""
    match = re.fullmatch(rf"models:/({NAME.pattern})(?:/([1-9][0-9]{{0,9}})|@({ALIAS.pattern}))", uri)
    if not match:
        raise BadModelUri(
            f"{uri[:200]!r} is not a model URI",
            remedy="write models:/NAME/VERSION or models:/NAME@ALIAS, for example models:/digits/3 or models:/digits@staging",
        )
    name, version, alias = match.groups()
    return ModelRef(name, version=int(version)) if version else ModelRef(name, alias=alias)


def previous_tag(alias: str) -> str:
    """The tag on a version that says which version `alias` pointed at before it was moved here."""
    return f"{PREVIOUS_PREFIX}{alias}"
