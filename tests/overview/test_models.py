"""`mlops-build models`: the rows, the filters, and what is not known."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from tests.overview.conftest import HOSTILE, World

Models = Callable[..., tuple[int, str, str]]


@pytest.fixture
def models(world: World, capsys: pytest.CaptureFixture[str]) -> Models:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["models", *arguments])
        return code, *capsys.readouterr()

    return run


def rows(models: Models, *arguments: str) -> list[dict[str, Any]]:
    _, out, _ = models("--json", *arguments)
    listed: list[dict[str, Any]] = json.loads(out)["models"]
    return listed


def places(listed: list[dict[str, Any]]) -> list[tuple[str, str, int | None]]:
    return [(row["model"], row["environment"], row["version"]) for row in listed]


def test_a_row_for_each_model_in_each_environment(models: Models, world: World) -> None:
    code, out, _ = models("--json", "--repo", world.url)
    listed = json.loads(out)["models"]
    assert code == 0
    assert places(listed) == [
        (HOSTILE, "", 1),
        ("digits", "staging", 10),
        ("digits", "production", 2),
        ("digits", "best", 11),
        ("empty", "", None),
        ("legacy", "production", 1),
    ]
    staging = listed[1]
    assert {key: staging[key] for key in ("alias", "newest", "service", "owner", "size_bytes", "released_version")} == {
        "alias": "staging",
        "newest": 11,
        "service": "digits",
        "owner": "ml",
        "size_bytes": 10240,
        "released_version": 9,
    }
    assert staging["registered_at"] == 1_700_000_000 + 10 * 86400
    assert staging["released_at"] > 1_700_000_000
    assert staging["data"] == f"sha256:{10:064x}"
    assert staging["metrics"] == {"accuracy": pytest.approx(0.91), "loss": 0.1}
    production = listed[2]
    assert (production["alias"], production["released_version"], production["released_at"]) == ("live", None, None)


def test_without_repositories_service_and_environment_are_what_the_registry_says(models: Models) -> None:
    listed = rows(models)
    assert places(listed)[1:] == [("digits", "best", 11), ("digits", "live", 2), ("digits", "staging", 10), *places(listed)[4:]]
    assert [(row["service"], row["owner"]) for row in listed if row["model"] == "legacy"] == [("old-shop", "search")]
    assert {(row["service"], row["owner"]) for row in listed if row["model"] == "digits"} == {("", "")}


def test_in_a_service_its_own_environments_are_listed(models: Models, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder / "digits/deploy")
    found = {(row["environment"], row["released_version"], row["service"]) for row in rows(models) if row["model"] == "digits"}
    assert found == {("staging", 9, "digits"), ("production", None, "digits"), ("best", None, "digits")}


def test_the_repositories_of_fleet_yaml_are_read(models: Models, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fleet.yaml").write_text(f"schema: 1\nrepositories: {{urls: ['{world.url}']}}\n")
    monkeypatch.setenv("MLOPS_FLEET", "fleet.yaml")
    assert ("digits", "production", 2) in places(rows(models))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "digits", "--env", "production"], [("digits", "production", 2)]),
        (["--model", "e*"], [("empty", "", None)]),
        (["--service", "old-*"], [("legacy", "production", 1)]),
        (["--owner", "ml", "--env", "s*"], [("digits", "staging", 10)]),
        (["--owner", "nobody"], []),
        (["--owner", "", "--model", "*"], [("empty", "", None)]),
    ],
)
def test_filters(models: Models, world: World, arguments: list[str], expected: list[tuple[str, str, int | None]]) -> None:
    assert places(rows(models, "--repo", world.url, *arguments)) == expected


def test_the_table_has_columns_with_values_and_nothing_that_changes_the_terminal(models: Models, world: World) -> None:
    _, out, _ = models("--repo", world.url)
    head, *lines = out.splitlines()
    assert head.split("  ")[0] == "model"
    staging = next(line for line in lines if " staging " in line)
    for text in ("10 (newest 11)", "10.0 KiB", "ago (9)", "accuracy 0.91, loss 0.1"):
        assert text in staging
    assert len(lines) == 6
    assert not {"\u202e", "\x1b"} & set(out)
    _, out, _ = models("--model", "empty")
    assert out.splitlines() == ["model", "empty"]
    assert models("--model", "none")[1] == ""


def test_a_metric_without_a_number_is_valid_json(models: Models) -> None:
    (row,) = rows(models, "--model", "legacy")
    assert row["metrics"] == {"auc": "nan", "gain": "inf"}


def test_a_repository_that_does_not_answer_and_files_that_are_gone_are_named(models: Models, world: World) -> None:
    shutil.rmtree(world.folder / "digits.git")
    shutil.rmtree(world.folder / "files")
    code, out, err = models("--json", "--repo", world.url)
    document = json.loads(out)
    assert code == 5
    assert world.url in document["not_read"][0]
    assert world.url in err
    assert "the files of 5 versions cannot be listed" in err
    assert {row["size_bytes"] for row in document["models"]} == {None}
    assert ("digits", "live", 2) in places(document["models"])


def test_a_registry_that_does_not_exist_is_an_error(models: Models) -> None:
    code, out, _ = models("--json", "--tracking-uri", "sqlite:////nowhere/mlflow.db")
    assert code == 5
    assert json.loads(out)["remedy"]
