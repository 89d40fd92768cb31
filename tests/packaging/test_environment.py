"""The environment image: what its context holds, and what its tag counts."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops_build.packaging import context, dockerfile, environment
from mlops_build.packaging.context import Needs, write_context, write_environment
from mlops_build.packaging.recipe import Recipe
from mlops_build.packaging.wheelhouse import Incomplete
from tests.packaging.test_context import IMAGE, source, tree
from tests.packaging.test_hadolint import hadolint
from tests.packaging.world import LOCK, World

RECIPE = Recipe("points", "python:3.11-slim")
NEEDS = Needs("3.11", "2.13.0", LOCK, ("points-0.1.0-py3-none-any.whl",), {"points-0.1.0-py3-none-any.whl": "a" * 64}, False)
KINDS: list[dict[str, Any]] = [
    {},
    {"apt": ("libgomp1",)},
    {"gpu": True},
    {"gpu": True, "cuda": "base"},
    {"platform": "linux/arm64"},
    {"port": 9000},
    {"secrets": ("index-url", "netrc")},
    {"base": f"python:3.11-slim@sha256:{'a' * 64}"},
]


def tag(needs: Needs = NEEDS, revision: int | None = None, **changed: Any) -> str:
    return environment.tag(replace(RECIPE, **changed), needs, revision)


def test_the_tag_counts_what_the_image_is_built_from() -> None:
    others = [tag(**changed) for changed in KINDS if "secrets" not in changed]
    others += [
        tag(replace(NEEDS, torch="2.12.0")),
        tag(replace(NEEDS, python="3.12")),
        tag(replace(NEEDS, lock=LOCK.replace("2.4.6", "2.4.5"))),
    ]
    others += [tag(revision=1), tag(revision=2), tag(base="python:3.12-slim")]
    assert all(re.fullmatch(r"env-[0-9a-f]{12}", each) for each in others)
    assert len(set(others)) == len(others)


def test_the_tag_does_not_count_anything_else() -> None:
    for changed in ({"secrets": ("ca-bundle", "netrc")}, {"service": "other"}, {"unsafe_pickle": "the team made it"}):
        assert tag(**changed) == tag()
    other_code = replace(NEEDS, wheels=("points-0.2.0-py3-none-any.whl",), code={"points-0.2.0-py3-none-any.whl": "b" * 64}, pickled=True)
    assert tag(other_code) == tag()


@pytest.mark.parametrize("kind", KINDS, ids=range(len(KINDS)))
@pytest.mark.parametrize("wheelhouse", [False, True])
def test_the_dockerfile_begins_with_that_of_the_environment(world: World, tmp_path: Path, kind: dict[str, Any], wheelhouse: bool) -> None:
    recipe = replace(RECIPE, **kind)
    made = write_context(recipe, IMAGE, [source(world.folder / "one", version=7)], tmp_path / "context")
    whole = dockerfile.dockerfile(recipe, made, {"mlops-build.run.points": "e" * 32}, files="points", wheelhouse=wheelhouse)
    part = dockerfile.environment(recipe, python=made.python, torch=made.torch, wheelhouse=wheelhouse)
    head, found, rest = whole.partition(part)
    assert found == part
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert rest.count("FROM ") == 2
    assert "FROM environment\n" in rest
    for word in ("ENTRYPOINT", "USER", "HEALTHCHECK", "EXPOSE", "WORKDIR /app"):
        assert word in part
        assert word not in rest
    # Nothing of the version, nor of the service.
    for word in (IMAGE, "v7", "points", "LABEL", "MLOPS_FILES", "code/", "models/"):
        assert word not in part.replace("/opt/code/bin", "")
    assert hadolint(part) <= {"DL3008", "DL3029"}


def test_the_context_of_an_environment_holds_only_what_its_build_reads(tmp_path: Path) -> None:
    write_environment(RECIPE, NEEDS, tmp_path / "first")
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [".dockerignore", "Dockerfile", "requirements.lock"]
    assert (tmp_path / "first/requirements.lock").read_text() == LOCK
    assert (tmp_path / "first/Dockerfile").read_text() == dockerfile.environment(RECIPE, python="3.11", torch="2.13.0")
    before = os.umask(0o077)
    try:
        write_environment(RECIPE, NEEDS, tmp_path / "second")
    finally:
        os.umask(before)
    assert tree(tmp_path / "first") == tree(tmp_path / "second")


def test_an_environment_is_not_written_over_other_files_nor_without_its_wheels(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(context.NotOurs):
        write_environment(RECIPE, NEEDS, tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Incomplete, match=r"numpy==2\.4\.6"):
        write_environment(RECIPE, NEEDS, tmp_path / "out", wheels=tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine"]
