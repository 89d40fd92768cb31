"""The name of a model version, and its tags.

Names are DNS-1123 labels, since they become names of images and Kubernetes objects, and paths.
"""

import re
from dataclasses import dataclass

from mlops_build.errors import UsageError

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
ALIAS = re.compile(r"[a-z](?:[a-z0-9_-]{0,62})")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
DATE = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])")
RUN_ID = re.compile(r"[0-9a-f]{32}")

# Tags are set on the version, not on its run, since a run can be deleted.
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
LAYERS = "mlops_build.layers"
IMAGE = "mlops_build.image"
IMAGE_NAME = "mlops_build.image.name"
IMAGE_TIME_PREFIX = "mlops_build.image.time."
# Of an adopted file: where it came from, its SHA-256 (64 hex digits), what it is, who decided, and why it cannot be released.
ORIGIN = "mlops_build.origin"
FILE_TAG = "mlops_build.sha256"
KIND = "mlops_build.kind"
DECIDED_BY = "mlops_build.decided_by"
ARCHIVED = "mlops_build.archived"
# Who accepts a pickle, why, and the last day on which it is accepted.
EXCEPTION_BY = "mlops_build.exception.by"
EXCEPTION_REASON = "mlops_build.exception.reason"
EXCEPTION_UNTIL = "mlops_build.exception.until"
PREVIOUS_PREFIX = "mlops_build.previous."

# Tag of a run: the digest of the model folder that it logged.
RUN_MODEL = "mlops_build.model"
# Tag of a run whose script logs no model: the digest of the weights file that it wrote.
RUN_WEIGHTS = "mlops_build.weights"
# Tag of the run that has the files of a model's adopted versions: the model.
RUN_ADOPTED = "mlops_build.adopted"


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
    """Parse `models:/NAME/VERSION` or `models:/NAME@ALIAS`, as MLflow writes them. Raises BadModelUri."""
    match = re.fullmatch(rf"models:/({NAME.pattern})(?:/([1-9][0-9]{{0,9}})|@({ALIAS.pattern}))", uri)
    if not match:
        raise BadModelUri(
            f"{uri[:200]!r} is not a model URI",
            remedy="write models:/NAME/VERSION or models:/NAME@ALIAS, for example models:/digits/3 or models:/digits@staging",
        )
    name, version, alias = match.groups()
    return ModelRef(name, version=int(version)) if version else ModelRef(name, alias=alias)


def previous_tag(alias: str) -> str:
    """The name of the tag for the version that `alias` pointed to before it was moved to the tagged version."""
    return f"{PREVIOUS_PREFIX}{alias}"
