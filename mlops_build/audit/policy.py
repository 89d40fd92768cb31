"""audit.yaml: which rules fail, and which findings are ignored until a day; and the rules themselves."""

import re
import shlex
import tomllib
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from mlops_build.errors import NotFound, Refused
from mlops_build.finding import Finding
from mlops_build.service import document

FILE = "audit.yaml"
REFERENCE = "docs/reference/audit-rules.md in the repository of mlops-build"


class PolicyError(Refused):
    """audit.yaml is not valid; the message has file, line and key."""


@lru_cache
def rules() -> dict[str, dict[str, Any]]:
    """Every rule, as in rules.toml."""
    return tomllib.loads(files("mlops_build.audit").joinpath("rules.toml").read_text(encoding="utf-8"))


def finding(rule: str, subject: str, **values: object) -> Finding:
    """A finding with the texts of its rule. Values are shown without control characters, and quoted in the remedy, which people type."""
    shown = {key: "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(value)) for key, value in values.items()}
    quoted = {key: shlex.quote(value) for key, value in {**shown, "subject": subject}.items()}
    return Finding(subject, rule, rules()[rule]["why"].format(**shown), rules()[rule]["remedy"].format(**quoted))


def _known(name: str) -> str:
    if name not in rules():
        raise ValueError(f"{name[:60]!r} is not a rule; rules: {', '.join(rules())}")
    return name


def _day(value: object) -> date:
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{str(value)[:40]!r} is not a day such as 2027-01-31") from None


Rule = Annotated[str, AfterValidator(_known), Field(description="the name of a rule")]
Day = Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "description": "the last day, such as 2027-01-31"})]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Ignore(_Section):
    """Findings that do not fail until a day."""

    rule: Rule
    subject: Annotated[str, Field(min_length=1, description="a pattern of the subject; * is any text")]
    why: Annotated[str, Field(min_length=1, max_length=500, description="the reason")]
    until: Day

    def matches(self, subject: str) -> bool:
        return bool(re.fullmatch(".*".join(map(re.escape, self.subject.split("*"))), subject, re.DOTALL))


class Policy(_Section):
    """Which findings of `mlops-build audit` fail. Every key but `schema` may be left out."""

    schema_version: Annotated[Literal[1], Field(alias="schema", description="the version of this file's format")]
    fail: Annotated[list[Rule] | None, Field(description="the rules that fail; without it those of the table")] = None
    ignore: list[Ignore] = []
    keep_days: Annotated[int, Field(ge=7, le=3650, description="no younger file is proposed for deletion")] = 30

    def fails(self, rule: str) -> bool:
        return rule in self.fail if self.fail is not None else bool(rules()[rule]["fails"])

    def ignored(self, about: Finding, today: date | None = None) -> Ignore | None:
        """The entry that ignores a finding today (UTC)."""
        today = today or datetime.now(UTC).date()
        matching = (each for each in self.ignore if each.rule == about.rule and each.matches(about.subject))
        return next((each for each in matching if today <= each.until), None)


def json_schema() -> dict[str, Any]:
    """The JSON schema of audit.yaml."""
    return document.json_schema(Policy, FILE)


def read(path: Path | None) -> Policy:
    """The policy in a file; without one the default. Raises NotFound or PolicyError."""
    if path is None:
        return Policy.model_validate({"schema": 1})
    try:
        if path.exists() and not path.is_file():
            raise NotFound(f"{path} is not a plain file", remedy="check --policy")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", remedy="check --policy") from None
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not UTF-8 text", remedy="save it as UTF-8") from None
    return document.parse(text, str(path), Policy, error=PolicyError, reference=REFERENCE)[0]


def over(policy: Policy) -> list[Ignore]:
    """The entries whose last day is over (UTC)."""
    return [entry for entry in policy.ignore if entry.until < datetime.now(UTC).date()]


def split(policy: Policy, findings: Sequence[Finding]) -> tuple[list[Finding], list[tuple[Finding, Ignore]]]:
    """The findings that count, and those that are ignored with their entry."""
    pairs = [(about, policy.ignored(about)) for about in findings]
    return [about for about, entry in pairs if entry is None], [(about, entry) for about, entry in pairs if entry]
