"""`mlops-build models --html` with many versions: seconds, the most memory of its process, and the size of the page.

    .venv/bin/python benchmarks/models.py [--models 50] [--versions 20]

Each version has a run with five metrics and three small files in a folder; each model has the aliases staging and production, and a service
whose bare repository has two releases. The registry is a sqlite file, then a real `mlflow server` on it.
"""

import argparse
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from audit import measured  # beside this script; it adds the root of the repository to sys.path

from mlops_build.adapters.registry import Registry
from mlops_build.release.write import in_checkout
from tests.adapters.registry.server import mlflow_server
from tests.conftest import git
from tests.release import world

RESULT = Path(__file__).with_suffix(".json")
METRICS = ("accuracy", "f1", "loss", "precision", "recall")
DAY_MS = 86_400_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--versions", type=int, default=20)
    options = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_CONFIG_GLOBAL": os.devnull}
    for role in ("AUTHOR", "COMMITTER"):
        os.environ |= {f"GIT_{role}_NAME": "Ann", f"GIT_{role}_EMAIL": "ann@example.com"}
    with tempfile.TemporaryDirectory(prefix="mlops-build-bench-") as scratch:
        folder = Path(scratch)
        names = [f"model-{number}" for number in range(options.models)]
        uri = registry(folder, names, options.versions)
        repositories(folder, names, uri)
        figures = {"sqlite": measure(folder, uri)}
        backend = ("--backend-store-uri", uri, "--default-artifact-root", f"{folder}/artifacts", "--no-serve-artifacts")
        with mlflow_server(folder, *backend) as server:
            figures["server"] = measure(folder, server)
    result = {"models": options.models, "versions": options.models * options.versions, "figures": figures}
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def registry(folder: Path, names: list[str], count: int) -> str:
    """The address of a registry, whose rows are written with SQL: through MLflow that takes minutes."""
    from mlflow import MlflowClient

    file = folder / "mlflow.db"
    uri = f"sqlite:///{file}"
    Registry(uri, create=True).alias_map()
    client = MlflowClient(uri, registry_uri=uri)
    experiment = int(client.create_experiment("bench", artifact_location=f"file://{folder}/artifacts"))
    now = int(time.time() * 1000)
    for name in names:
        client.create_registered_model(name)
    with sqlite3.connect(file) as database:
        for index, name in enumerate(names):
            for number in range(1, count + 1):
                run = f"{(index << 32) + number + (1 << 100):032x}"
                made, files = now - (count - number) * 7 * DAY_MS, folder / "artifacts" / run / "artifacts"
                files.mkdir(parents=True)
                for path in ("MLmodel", "weights.pt", "lineage.json"):
                    (files / path).write_bytes(b"x" * 1000)
                database.execute(
                    "insert into runs (run_uuid, name, status, start_time, lifecycle_stage, artifact_uri, experiment_id, source_type, "
                    "user_id) values (?, 'r', 'FINISHED', ?, 'active', ?, ?, 'LOCAL', 'x')",
                    (run, made, files.as_uri(), experiment),
                )
                for metric in METRICS:
                    value = (run, metric, (number % 7 + index) / 100, made, 0, 0)
                    database.execute(
                        "insert into latest_metrics (run_uuid, key, value, timestamp, step, is_nan) values (?, ?, ?, ?, ?, ?)", value
                    )
                database.execute(
                    "insert into model_versions (name, version, creation_time, last_updated_time, current_stage, source, run_id, status) "
                    "values (?, ?, ?, ?, 'None', ?, ?, 'READY')",
                    (name, number, made, made, files.as_uri(), run),
                )
                tags = {"service": name, "commit": f"{number:040x}", "data": f"sha256:{number:064x}", "digest": f"sha256:{number + 1:064x}"}
                for key, value in tags.items():
                    row = (name, number, f"mlops_build.{key}", value)
                    database.execute("insert into model_version_tags (name, version, key, value) values (?, ?, ?, ?)", row)
    return uri


def repositories(folder: Path, names: list[str], uri: str) -> None:
    """A service for each model, released to staging and production."""
    known, base, nothing = Registry(uri), world.BASE, world.NOTHING
    for name in names:
        for env, back in (("staging", 0), ("production", 1)):
            known.set_alias(name, env, len(known.versions(name)) - back)
        bare, work = folder / f"{name}.git", folder / "work"
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        world.BASE, world.NOTHING = base.replace("digits", name), nothing.replace("digits", name)
        world.first_commit(work, world.SERVICE.replace("digits", name).replace("    alias: live\n", ""), bare)
        for env in ("staging", "production"):
            in_checkout(work, env, known)
        git(work, "push", "--quiet")
        shutil.rmtree(work)
    urls = "".join(f"    - file://{folder}/{name}.git\n" for name in names)
    (folder / "fleet.yaml").write_text(f"schema: 1\nrepositories:\n  urls:\n{urls}")


def measure(folder: Path, uri: str) -> dict[str, float]:
    page = folder / "models.html"
    command = [sys.executable, "-m", "mlops_build", "models", "--json", "--tracking-uri", uri, "--html", str(page)]
    alone = measured(command, folder)
    with_fleet = measured([*command, "--fleet", str(folder / "fleet.yaml")], folder)
    rows = json.loads((folder / "out").read_text())["models"]
    assert all(row["released_version"] == row["version"] and row["size_bytes"] == 3000 and len(row["metrics"]) == 5 for row in rows)
    return {**with_fleet, "seconds without repositories": alone["seconds"], "rows": len(rows), "page, bytes": page.stat().st_size}


if __name__ == "__main__":
    main()
