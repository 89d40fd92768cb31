"""openapi.json of the working tree, compared with the one at the commit of an environment's record."""

import json
import shutil
from pathlib import Path

import pytest

from mlops_build.model import openapi
from mlops_build.model.version import ModelVersion
from mlops_build.release.record import Record
from mlops_build.verify import check
from tests.conftest import git, mlops_build
from tests.release.world import alone, checkout, make_repository

__all__ = ["alone", "checkout", "make_repository"]

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")


def write_contract(root: Path, major: int, *names: str) -> str:
    """Commit a contract with these columns; returns the commit."""
    signature = {"inputs": json.dumps([{"type": "double", "name": name, "required": True} for name in names])}
    document = openapi.openapi("digits", [openapi.Described("digits", None, signature, None)], major)
    (root / "openapi.json").write_text(openapi.as_text(document))
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", f"--message=Contract {major} of {' '.join(names)}")
    return git(root, "rev-parse", "HEAD")


def record(env: str, commit: str, version: int = 1) -> Record:
    model = ModelVersion("digits", version, f"sha256:{'a' * 64}", "b" * 32)
    return Record(env, (model,), commit, f"registry.example.com/digits:v{version}-{'d' * 12}")


def release(root: Path, env: str, commit: str) -> None:
    (root / f"deploy/overlays/{env}/release/record.yaml").write_text(
        f"schema: 1\nenvironment: {env}\nmodels: [{{name: digits}}]\ncommit: {commit}\nimage: null\n"
    )


def breakages(root: Path) -> list[tuple[str, str | None, str]]:
    return [(finding.subject, finding.file, finding.why) for finding in check(root).findings if finding.rule == "contract-breaks"]


def test_a_change_that_breaks_clients_of_an_environment_is_a_finding(checkout: Path) -> None:
    first = write_contract(checkout, 1, "a", "b")
    release(checkout, "production", first)
    assert breakages(checkout) == []
    write_contract(checkout, 1, "a")
    assert breakages(checkout) == [("openapi.json in production", "openapi.json", "digits: input column b (double) is gone")]
    done = mlops_build(checkout, "verify", expect=4)
    assert "openapi.json\n" in done.stdout
    assert "[contract-breaks]\n      change it back, or write `contract: 2`" in done.stdout
    write_contract(checkout, 2, "a")
    assert breakages(checkout) == []
    # The next change is compared with the new release.
    release(checkout, "production", write_contract(checkout, 2, "a"))
    write_contract(checkout, 2, "a", "c")
    assert [why for _, _, why in breakages(checkout)] == ["digits: input column c (double) is new, and required"]


def test_service_yaml_can_ignore_it_with_a_reason(checkout: Path) -> None:
    release(checkout, "production", write_contract(checkout, 1, "a", "b"))
    write_contract(checkout, 1, "a")
    with (checkout / "service.yaml").open("a") as file:
        file.write("verify: {ignore: {contract-breaks: nobody calls it yet}}\n")
    report = check(checkout)
    assert [(finding.rule, why) for finding, why in report.ignored] == [("contract-breaks", "nobody calls it yet")]


def test_a_clone_without_the_commit_adds_a_note(checkout: Path) -> None:
    write_contract(checkout, 1, "a")
    release(checkout, "production", "c" * 40)
    assert breakages(checkout) == []
    assert (
        "openapi.json was not compared with the contract in production: its commit cccccccccccc is not in this clone"
        in check(checkout).notes
    )


def test_an_invalid_file_is_a_finding(checkout: Path) -> None:
    write_contract(checkout, 1, "a")
    (checkout / "openapi.json").write_text("{")
    assert "openapi.json is not JSON" in breakages(checkout)[0][2]
