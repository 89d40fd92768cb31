"""The rules: what each one finds, why it matters and what to do. The texts are in rules.toml.

`make docs` writes docs/reference/verify-rules.md from them, SARIF includes them, and a finding without its own remedy uses the rule's.
"""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

# always: Kubernetes or Bamboo refuses it, or it cannot work. service: what a service made from the template must keep to; other manifests
# may have reasons for it.
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


def _families() -> dict[str, tuple[Rule, ...]]:
    table = tomllib.loads(files("mlops_build.verify").joinpath("rules.toml").read_text(encoding="utf-8"))
    return {family: tuple(Rule(name, **fields) for name, fields in rules.items()) for family, rules in table.items()}


FAMILIES = _families()
RULES: dict[str, Rule] = {rule.id: rule for rules in FAMILIES.values() for rule in rules}
