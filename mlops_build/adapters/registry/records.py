"""What the registry knows: model versions and runs, where it is, and the errors that it raises."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import BinaryIO, TypeVar

from mlops_build.errors import NotFound, Unreachable, UsageError
from mlops_build.model.identity import ARCHIVED, DATE, DIGEST_TAG, EXCEPTION_UNTIL, NAME, ModelRef
from mlops_build.model.version import BadVersion, ModelVersion

T = TypeVar("T")
# A folder whose name can be that of a service (copier.yml, project_name).
SERVICE = re.compile(r"(?=.{2,40}\Z)[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


MOST_EMPTY = 100
LATEST_MS = 253_402_300_799_999  # the end of the year 9999


class RegistryUnreachable(Unreachable):
    """MLflow does not answer, or its database does not exist."""


class NoDatabase(RegistryUnreachable):
    """MLflow's sqlite file does not exist."""


class UnknownVersion(NotFound):
    """A registered model, a version or an alias that does not exist."""


class Rejected(Exception):
    """MLflow's own error: its code (such as RESOURCE_DOES_NOT_EXIST), the HTTP status and one line of text. Translated by Registry."""

    def __init__(self, code: str, status: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.status = status
        self.text = text

    @property
    def is_missing(self) -> bool:
        # MLflow's database store answers an unknown alias with INVALID_PARAMETER_VALUE.
        return self.code == "RESOURCE_DOES_NOT_EXIST" or (self.code == "INVALID_PARAMETER_VALUE" and "not found" in self.text)


class NoAnswer(Exception):
    """There was no complete response: no connection, a timeout, or a proxy that reaches no server. Translated by Registry."""


class NoFiles(Exception):
    """Files that cannot be read. Translated by Registry."""


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model. `source` is the artifact folder with its files; `created_ms` is Unix time in ms.

    status: MLflow's: READY, PENDING_REGISTRATION or FAILED_REGISTRATION. stage: MLflow's former way to mark a version, such as Production;
    empty without one.
    """

    name: str
    version: int
    run_id: str
    source: str
    tags: Mapping[str, str]
    created_ms: int
    status: str = "READY"
    stage: str = ""

    def __post_init__(self) -> None:
        # A registry may have any number; a date ends with the year 9999.
        object.__setattr__(self, "created_ms", min(max(self.created_ms, 0), LATEST_MS))

    @property
    def uri(self) -> str:
        return str(ModelRef(self.name, self.version))

    @property
    def shown(self) -> str:
        """Its name and number for a message, whatever the name contains."""
        return f"{self.name[:64]!a} version {self.version}"

    @property
    def make_servable(self) -> str:
        """The command that registers a servable version of the model, in the folder with adopt.csv."""
        name = self.name if NAME.fullmatch(self.name) else "NAME"
        return f"mlops-build adopt register adopt.csv --model {name} --code CODE.py --example ROWS.json --yes"

    @property
    def make_service(self) -> str:
        """The command that generates a service around an adopted version."""
        folder = f"{self.name}-service"
        return f"mlops-build scaffold {folder if SERVICE.fullmatch(folder) else 'adopted-service'} --model {self.uri}"

    def checked(self) -> ModelVersion:
        """This version, with the digest of its tag. Raises BadVersion without one, for an invalid name, digest or run, and for an archived
        version, which nothing can release, package or serve.
        """
        if archived := self.tags.get(ARCHIVED):
            raise BadVersion(
                f"{self.shown} is archived: {archived[:200]!a}",
                remedy=f"use another version; or make it servable: {self.make_servable}",
            )
        digest = self.tags.get(DIGEST_TAG)
        if not digest:
            raise BadVersion(
                f"{self.shown} has no tag {DIGEST_TAG}: it was not registered by mlops-build",
                remedy="register it with `mlops-build train`, which adds its digest, its lock and its wheels",
            )
        return ModelVersion(self.name, self.version, digest, self.run_id)

    @property
    def expired(self) -> str | None:
        """The last day of the exception of an unsafe file, as its tag says it, if that day is over or not valid; else None."""
        until = self.tags.get(EXCEPTION_UNTIL)
        if not until or (DATE.fullmatch(until) and until >= datetime.now(UTC).date().isoformat()):
            return None
        return until[:10]


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model. aliases: alias → version."""

    name: str
    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    description: str = ""

    @property
    def owner(self) -> str:
        """Its tag owner, else team; empty without one."""
        return self.tags.get("owner") or self.tags.get("team") or ""


@dataclass(frozen=True)
class Run:
    """An MLflow run: what was logged, as text and floats. is_deleted: it can be restored until `mlflow gc` erases it."""

    run_id: str
    artifact_uri: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    is_deleted: bool = False


@dataclass(frozen=True)
class StoredFile:
    """One file of a version. path: below the version's folder. size: bytes. open: for reading, with seek; raises as Registry.files."""

    path: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]] = field(repr=False, compare=False)


def shown(uri: str) -> str:
    """An address without user and password, and without control characters."""
    uri = "".join(character if character.isprintable() else "\ufffd" for character in uri)
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else uri


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters."""
    return str(error).strip().split("\n", 1)[0][:300]


def stage(value: object) -> str:
    """A version's stage as MLflow sends it; it sends the word None for a version without one."""
    return "" if value in (None, "None") else str(value)


def quoted(text: str) -> str:
    """For MLflow's filter language, which has no escape for a quote. Raises UsageError."""
    if "'" in text or "\n" in text:
        raise UsageError(f"{text[:100]!r} cannot be searched for", remedy="leave out quotes and line breaks")
    return text


def pages(page: Callable[[str], tuple[Sequence[T], str]]) -> Iterator[T]:
    """The entries of all pages. page: of a token, which is empty for the first one, and the token of the next one or "".

    Raises Rejected for a token that came before, and after MOST_EMPTY pages without an entry: the pages would have no end.
    """
    token, former, empty = "", set[str](), 0
    while True:
        entries, token = page(token)
        yield from entries
        if not token:
            return
        empty = 0 if entries else empty + 1
        if token in former or empty > MOST_EMPTY:
            raise Rejected("", 200, "it sends the same page again")
        former.add(token)
