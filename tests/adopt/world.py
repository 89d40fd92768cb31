"""A folder with old files and an MLflow, and `mlops-build adopt` as people use it."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlops_build.adapters.registry import Registry
from tests.adopt import mess
from tests.conftest import mlops_build


class World:
    """A folder with old files, and an MLflow."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.source, self.csv, self.marker = folder, folder / "old", folder / "adopt.csv", folder / "executed"
        self._database = database
        self.reset()
        self.environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
        self.kinds = mess.make(self.source, self.marker)

    def reset(self) -> None:
        """An empty registry."""
        for file in self.folder.glob("mlflow.db*"):
            file.unlink()
        shutil.rmtree(self.folder / "mlartifacts", ignore_errors=True)
        shutil.copyfile(self._database, self.folder / "mlflow.db")

    def adopt(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        done = mlops_build(self.folder, "adopt", *arguments, "--json", expect=expect, environment=self.environment)
        self.stderr = done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def register(self, *arguments: str, expect: int = 0) -> dict[str, dict[str, str]]:
        """The outcomes by file name."""
        found = self.adopt("register", str(self.csv), *arguments, expect=expect)["files"]
        return {entry["file"].removeprefix(f"{self.source}/"): entry for entry in found}

    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(self.csv.open(encoding="utf-8", newline="")))

    def edit(self, change: Callable[[dict[str, str]], Mapping[str, str] | None]) -> None:
        """Change rows as a person does."""
        rows = [{**row, **(change(row) or {})} for row in self.rows()]
        with self.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def adopt_all(self) -> None:
        self.edit(lambda row: {"action": "adopt", "decided_by": "Ada", "model": row["model"] or "misc"})

    @property
    def registry(self) -> Registry:
        return Registry(self.environment["MLFLOW_TRACKING_URI"])
