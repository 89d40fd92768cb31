"""fleet.yaml: what a company sets for all of its services: their repositories, freezes, and who is notified."""

import re
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from mlops_build.adapters import notify
from mlops_build.adapters.git import command
from mlops_build.errors import Refused, UsageError
from mlops_build.model.identity import NAME
from mlops_build.service import GIT_API, document

FILE = "fleet.yaml"
REFERENCE = "docs/reference/fleet-yaml.md in the repository of mlops-build"
TIME = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:\d{2})")


class FleetError(Refused):
    """fleet.yaml is not valid; the message has file, line and key."""


def _time(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not TIME.fullmatch(value):
        raise ValueError(f"{value!r:.100} is not a time with an offset, such as 2026-12-18T18:00+01:00")
    return datetime.fromisoformat(value)


def _address(value: object) -> object:
    try:
        return command.checked_url(str(value))
    except UsageError as error:
        raise ValueError(error.message) from None


def _line(value: object) -> str:
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 500:
        return value
    raise ValueError("not a line of 1 to 500 printable characters")  # without the value, which may be a token


def _receiver(value: str) -> str:
    if "${" in notify.VARIABLE.sub("", value):
        raise ValueError("only ${MLOPS_NOTIFY_…}, of A-Z, 0-9 and _, is replaced by a variable; other ${…} would be sent as they are")
    return value


Time = Annotated[
    datetime,
    BeforeValidator(_time),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "a time with its offset, such as 2026-12-18T18:00+01:00"}),
]
Address = Annotated[str, BeforeValidator(_address), Field(description="the address of a service's Git repository, without a password")]
Api = Annotated[str, Field(pattern=f"^{GIT_API}$", description="the host's address, such as https://git.example.com")]
Line = Annotated[str, BeforeValidator(_line), WithJsonSchema({"type": "string", "pattern": r"^[^\x00-\x1f\x7f]{1,500}$"})]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Bitbucket(_Section):
    """All repositories of a project on Bitbucket Data Center that have a service.yaml."""

    api: Api
    project: Annotated[str, Field(pattern=r"^~?[A-Za-z0-9_.-]{1,128}$", description="the project's key, such as ML")]


class Gitlab(_Section):
    """All repositories of a GitLab group and its subgroups that have a service.yaml."""

    api: Api
    group: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$", description="the group's path, such as ml/models"),
    ]


class Repositories(_Section):
    """The repositories of the services: a list, and where to find more."""

    urls: list[Address] = []
    bitbucket: Bitbucket | None = None
    gitlab: Gitlab | None = None


class Freeze(_Section):
    """A time in which these environments do not change, except to go back."""

    environments: Annotated[
        list[Annotated[str, Field(pattern=f"^{NAME.pattern}$", description="an environment of service.yaml")]], Field(min_length=1)
    ]
    start: Annotated[Time, Field(alias="from")]
    until: Time
    why: Annotated[Line, Field(description="a line of 1 to 500 characters: the reason")]

    @model_validator(mode="after")
    def _ends(self) -> "Freeze":
        if self.until <= self.start:
            raise ValueError("until must be after from")
        return self


class Fleet(_Section):
    """What applies to all services of a company, in a file or at the top of a Git repository."""

    schema_version: Annotated[Literal[1], Field(alias="schema", description="the version of this file's format")]
    repositories: Repositories = Repositories()
    freeze: list[Freeze] = []
    notify: list[
        Annotated[
            Line,
            AfterValidator(_receiver),
            Field(
                description="an address of apprise, such as mmosts://HOST/${MLOPS_NOTIFY_TOKEN}; tokens come from variables MLOPS_NOTIFY_…"
            ),
        ]
    ] = []


def parse(text: str, where: str = FILE) -> Fleet:
    """Parse fleet.yaml's text; keys of a newer mlops-build are refused, because they may forbid something. Raises FleetError."""
    return document.parse(text, where, Fleet, error=FleetError, reference=REFERENCE)[0]


def frozen(fleet: Fleet, env: str, now: datetime) -> Freeze | None:
    """The freeze of an environment at a time, the one that ends last; None if there is none."""
    running = [freeze for freeze in fleet.freeze if env in freeze.environments and freeze.start <= now < freeze.until]
    return max(running, key=lambda freeze: freeze.until, default=None)


def without_effect(fleet: Fleet, environments: Collection[str | None], now: datetime) -> list[str]:
    """The environments of freezes that have not ended, and that are none of `environments`."""
    return sorted({env for freeze in fleet.freeze if now < freeze.until for env in freeze.environments} - set(environments))


def json_schema() -> dict[str, Any]:
    """The JSON schema of fleet.yaml, for editors."""
    return document.json_schema(Fleet, FILE)
