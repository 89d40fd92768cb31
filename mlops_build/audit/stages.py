"""Aliases for the versions with a stage, as MLflow used them before aliases."""

from collections.abc import Callable
from dataclasses import dataclass

from mlops_build.adapters.registry import Registry
from mlops_build.audit.known import label
from mlops_build.model import identity

ALIASES = {"Production": "production", "Staging": "staging"}


@dataclass(frozen=True)
class Move:
    """An alias for a version with a stage. kept: the version that the alias points at already, so that it is not set."""

    model: str
    alias: str
    version: int
    kept: int | None

    def __str__(self) -> str:
        detail = "" if self.kept is None else f"  kept: it points at {self.kept} already"
        return f"{label(self.model, self.version)}  {self.alias}{detail}"


def moves(registry: Registry) -> list[Move]:
    """What to set: for each model and stage, the newest version with it that is not archived. Raises RegistryUnreachable."""
    newest: dict[tuple[str, str], int] = {}
    for version in registry.every_version():
        if (alias := ALIASES.get(version.stage)) and identity.ARCHIVED not in version.tags:
            newest[version.name, alias] = max(version.version, newest.get((version.name, alias), 0))
    aliases = registry.alias_map()
    return [Move(name, alias, version, aliases.get(name, {}).get(alias)) for (name, alias), version in sorted(newest.items())]


def apply(registry: Registry, wanted: list[Move], done: Callable[[Move], None]) -> None:
    """Set those aliases that do not exist. Stages stay, since older programs may read them."""
    for move in wanted:
        if move.kept is None and move.alias not in registry.aliases(move.model):
            registry.set_alias(move.model, move.alias, move.version)
            done(move)
