"""A model version as everything after the registry uses it. It is checked once, where it enters."""

from dataclasses import dataclass

from mlops_build.errors import Refused
from mlops_build.model.identity import DIGEST, NAME, RUN_ID, ModelRef

MOST = 10**10 - 1
SHOWN = 80  # characters of a refused value


class BadVersion(Refused):
    """A model version that mlops-build did not register, or that was changed since."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model. Raises BadVersion for an invalid value.

    digest: "sha256:…" of its files. run: the MLflow run that created it; empty where it is not known (context.json).
    """

    name: str
    version: int
    digest: str
    run: str = ""

    def __post_init__(self) -> None:
        checks = [("name", self.name, NAME), ("digest", self.digest, DIGEST)]
        if self.run != "":
            checks.append(("run", self.run, RUN_ID))
        for field, value, pattern in checks:
            if not isinstance(value, str) or not pattern.fullmatch(value):
                self._refuse(field, value)
        if not isinstance(self.version, int) or isinstance(self.version, bool) or not 0 < self.version <= MOST:
            self._refuse("version", self.version)

    def _refuse(self, field: str, value: object) -> None:
        raise BadVersion(
            f"the {field} of {str(self.name)[:SHOWN]!a} version {str(self.version)[:SHOWN]} is not valid: {str(value)[:SHOWN]!a}",
            remedy="it was changed in MLflow, or by hand: use another version, or restore the value",
        )

    @property
    def uri(self) -> str:
        return str(ModelRef(self.name, self.version))

    def __str__(self) -> str:
        return f"{self.name} {self.version}"
