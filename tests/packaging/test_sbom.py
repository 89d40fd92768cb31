"""What a context says of itself: the image's labels, and its bill of materials."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlops_build import __version__
from mlops_build.adapters.dvc import data_hash
from mlops_build.errors import Refused
from mlops_build.packaging.context import write_context
from mlops_build.packaging.recipe import Recipe
from tests.packaging.test_context import IMAGE, source
from tests.packaging.world import COMMIT, World

RUN = "0123456789abcdef0123456789abcdef"
DATA = {"data/points.csv": "md5:0123456789abcdef0123456789abcdef"}
LINEAGE = {
    "schema": 1,
    "code": {"commit": COMMIT, "repository": "https://git.example.com/ml/points.git", "dirty": False},
    "data": DATA,
    "run": RUN,
    "environment": {"template": "0.3.0"},
}
RECIPE = Recipe("points", f"mirror.example.com/python:3.11-slim@sha256:{'d' * 64}", apt=("libgomp1",))


@pytest.fixture(scope="module")
def told(world: World) -> Path:
    """A version whose lineage says everything."""
    folder = world.files("told")
    (folder / "lineage.json").write_text(json.dumps(LINEAGE))
    return folder


@pytest.fixture
def bill(told: Path, tmp_path: Path) -> dict[str, Any]:
    write_context(RECIPE, IMAGE, [source(told)], tmp_path / "context")
    found: dict[str, Any] = json.loads((tmp_path / "context/sbom.cdx.json").read_text())
    return found


def said(dockerfile: str) -> dict[str, str]:
    """The labels of a Dockerfile."""
    block = re.search(r"^LABEL ((?:.*\\\n)*.*\n)", dockerfile, re.MULTILINE)
    assert block
    return dict(re.findall(r'([a-z.-]+)="([^"]*)"', block[1]))


def test_the_labels_say_where_everything_comes_from(told: Path, tmp_path: Path) -> None:
    one = source(told)
    write_context(RECIPE, IMAGE, [one], tmp_path / "context")
    assert said((tmp_path / "context/Dockerfile").read_text()) == {
        "org.opencontainers.image.title": "points",
        "org.opencontainers.image.version": "v1",
        "org.opencontainers.image.revision": COMMIT,
        "org.opencontainers.image.source": "https://git.example.com/ml/points.git",
        "org.opencontainers.image.base.name": "mirror.example.com/python:3.11-slim",
        "org.opencontainers.image.base.digest": f"sha256:{'d' * 64}",
        "mlops-build.template": "0.3.0",
        "mlops-build.model.points": f"1 {one.model.digest}",
        "mlops-build.run.points": RUN,
        "mlops-build.data.points": data_hash(DATA),
    }


@pytest.mark.parametrize(
    "lineage",
    [
        {**LINEAGE, "run": 'x" \\\nRUN id'},
        {**LINEAGE, "run": 7},
        {**LINEAGE, "environment": {"template": '0.3.0" evil="1'}},
        {**LINEAGE, "code": {"commit": "main"}},
    ],
)
def test_a_lineage_that_says_something_else_is_refused(told: Path, tmp_path: Path, lineage: dict[str, Any]) -> None:
    kept = (told / "lineage.json").read_text()
    try:
        (told / "lineage.json").write_text(json.dumps(lineage))
        with pytest.raises(Refused, match=r"lineage\.json: (?:run|template|commit)"):
            write_context(RECIPE, IMAGE, [source(told)], tmp_path / "context")
    finally:
        (told / "lineage.json").write_text(kept)
    assert not (tmp_path / "context").exists()


@pytest.mark.parametrize(
    "repository", ["https://user:password@git.example.com/ml/points", "/srv/git/points", 'https://x/" evil="1', "", None, "https://x/a b"]
)
def test_an_address_that_is_not_plain_is_left_out(told: Path, tmp_path: Path, repository: str | None) -> None:
    """A clone's address may hold a password, or be a folder."""
    kept = (told / "lineage.json").read_text()
    try:
        (told / "lineage.json").write_text(json.dumps({**LINEAGE, "code": {"commit": COMMIT, "repository": repository}}))
        write_context(RECIPE, IMAGE, [source(told)], tmp_path / "context")
    finally:
        (told / "lineage.json").write_text(kept)
    assert "org.opencontainers.image.source" not in (tmp_path / "context/Dockerfile").read_text()
    assert "password" not in (tmp_path / "context/sbom.cdx.json").read_text()


def test_the_bill_lists_all_that_goes_in(bill: dict[str, Any], told: Path, tmp_path: Path) -> None:
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    about = bill["metadata"]["component"]
    assert (about["type"], f"{about['name']}:{about['version']}") == ("container", IMAGE)
    assert {"name": "mlops-build.run.points", "value": RUN} in about["properties"]
    found = {component["name"]: component for component in bill["components"]}
    assert sorted(found) == sorted(["mirror.example.com/python", "libgomp1", "numpy", "pandas", "torch", "mlops-build", "points"]), (
        "points is the service's wheel and its model"
    )
    assert found["numpy"]["purl"] == "pkg:pypi/numpy@2.4.6"
    assert [one["content"] for one in found["numpy"]["hashes"]] == ["a" * 64, "b" * 64]
    assert found["torch"]["version"] == json.loads((told / "environment/environment.json").read_text())["torch"]
    assert "hashes" not in found["torch"]
    assert found["mirror.example.com/python"]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    ours = (told / f"environment/wheels/mlops_build-{__version__}-py3-none-any.whl").read_bytes()
    assert found["mlops-build"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(ours).hexdigest()}]
    models = [one for one in bill["components"] if one["type"] == "machine-learning-model"]
    assert [(one["name"], one["version"]) for one in models] == [("points", "1")]
    assert models[0]["properties"] == [{"name": "mlops-build:digest", "value": source(told).model.digest}]


def test_the_bill_holds_together(bill: dict[str, Any]) -> None:
    """What CycloneDX asks beyond the shape of each part: references that are unique and lead somewhere, and a serial number."""
    references = [bill["metadata"]["component"]["bom-ref"], *(component["bom-ref"] for component in bill["components"])]
    assert len(set(references)) == len(references)
    for dependency in bill["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= set(references)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", bill["serialNumber"])
    assert "timestamp" not in json.dumps(bill)


def test_another_version_has_another_serial_number_and_the_bill_stays_out_of_the_image(
    bill: dict[str, Any], world: World, tmp_path: Path
) -> None:
    write_context(RECIPE, IMAGE, [source(world.folder / "two", version=2)], tmp_path / "other")
    assert json.loads((tmp_path / "other/sbom.cdx.json").read_text())["serialNumber"] != bill["serialNumber"]
    ignored = (tmp_path / "other/.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert "!sbom.cdx.json" not in ignored
