"""The rules: what each one finds, why it matters and what to do. The texts are in rules.toml; those about CI specs are beside their checks.

`make docs` writes docs/reference/verify-rules.md from them, SARIF includes them, and a finding without its own remedy uses the rule's.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

# always: Kubernetes or the CI system refuses it, or it cannot work. service: what a service made from the template must keep to; others may
# have reasons for it.
Scope = Literal["always", "service"]


@dataclass(frozen=True)
class Rule:
    """One rule. id: stable; comments, service.yaml and SARIF use it. example: YAML that has the fault."""

    id: str
    title: str
    why: str
    remedy: str
    example: str
    scope: Scope = "always"


Families = Mapping[str, tuple[Rule, ...]]


def read(package: str) -> Families:
    """The families of rules in a package's rules.toml."""
    table = tomllib.loads(files(package).joinpath("rules.toml").read_text(encoding="utf-8"))
    return {family: tuple(Rule(name, **fields) for name, fields in rules.items()) for family, rules in table.items()}


def by_name(families: Families) -> dict[str, Rule]:
    """The rules of families, by their names."""
    return {rule.id: rule for rules in families.values() for rule in rules}


FAMILIES = read("mlops_build.verify")
RULES = by_name(FAMILIES)
# Rules of earlier releases. Services still name them in comments and in service.yaml.
RETIRED = {"claim-volume", "hpa-min-max", "hpa-no-request", "hpa-twice"}
