"""What the repositories of services say, read from real bare repositories."""

import subprocess
from pathlib import Path

from mlops_build import inventory
from mlops_build.adapters.registry import Registry
from mlops_build.errors import Unreachable
from mlops_build.release.tree import NoService
from mlops_build.release.write import in_checkout
from mlops_build.service import ServiceError
from tests.conftest import git
from tests.release.world import (
    MakeRepository,
    Promote,
    alone,
    change_service,
    checkout,
    empty_database,
    make_repository,
    promote,
    register,
    registry,
    released,
)

__all__ = ["alone", "checkout", "empty_database", "make_repository", "promote", "register", "registry", "released"]


def test_a_service_with_its_environments_and_all_its_releases(released: Path) -> None:
    committed = int(git(released, "log", "-1", "--format=%ct", "--", "deploy/overlays/staging"))
    (repository,) = inventory.read([f"file://{released}.git"])
    assert (repository.url, repository.error, repository.models) == (f"file://{released}.git", None, ("digits",))
    staging, production = repository.environments
    assert (staging.name, staging.alias, staging.record and staging.record.numbers) == ("staging", "staging", (("digits", 2),))
    assert staging.released_at == committed
    assert (production.alias, production.record, production.released_at) == ("live", None, None)
    assert repository.released == {("digits", 1), ("digits", 2)}
    assert {model.run for record in repository.records for model in record.models} == {f"{number:032x}" for number in (1, 2)}


def test_releases_of_a_removed_environment_and_of_a_merge_that_was_dropped_are_known(
    released: Path, registry: Registry, promote: Promote
) -> None:
    promote(3)
    git(released, "switch", "--quiet", "--create", "aside")
    in_checkout(released, "staging", registry)
    git(released, "switch", "--quiet", "main")
    git(released, "commit", "--quiet", "--allow-empty", "--message=Other work")
    git(released, "merge", "--quiet", "--strategy=ours", "--message=Drop it", "aside")
    git(released, "rm", "--quiet", "-r", "deploy/overlays/staging")
    git(released, "commit", "--quiet", "--message=No staging")
    git(released, "push", "--quiet", "origin", "main")
    (repository,) = inventory.read([f"file://{released}.git"])
    assert repository.released == {("digits", 1), ("digits", 2), ("digits", 3)}
    assert [environment.record for environment in repository.environments] == [None, None]


def test_a_record_that_cannot_be_read_is_counted(released: Path) -> None:
    record = released / "deploy/overlays/staging/release/record.yaml"
    record.write_text("schema: 2\n")
    git(released, "commit", "--quiet", "--all", "--message=Newer")
    git(released, "push", "--quiet", "origin", "main")
    (repository,) = inventory.read([f"file://{released}.git"])
    assert (repository.unreadable, repository.environments[0].record) == (1, None)
    assert repository.released == {("digits", 1), ("digits", 2)}


def test_each_repository_that_cannot_be_read_says_why(make_repository: MakeRepository, tmp_path: Path) -> None:
    broken, other = make_repository(), make_repository("other")
    change_service(broken, "team: ml", "team: [")
    git(other, "rm", "--quiet", "service.yaml")
    git(other, "commit", "--quiet", "--all", "--message=Not a service")
    git(other, "push", "--quiet")
    urls = [f"file://{broken}.git", f"file://{other}.git", f"file://{tmp_path}/missing.git", "--upload-pack=touch"]
    errors = [repository.error for repository in inventory.read(urls)]
    assert [type(error) for error in errors[:2]] == [ServiceError, NoService]
    assert isinstance(errors[2], Unreachable)
    assert errors[3] is not None
    assert [repository.url for repository in inventory.read(urls, discovered=urls[1:2])] == [urls[0], *urls[2:]]
    (no_branch,) = inventory.read(urls[:1], "other")
    assert isinstance(no_branch.error, Unreachable)


def test_a_look_sees_all_branches_and_large_files(released: Path) -> None:
    git(released, "switch", "--quiet", "--create", "aside")
    (released / "large").write_bytes(b"x" * 100_000)
    git(released, "add", "large")
    git(released, "commit", "--quiet", "--message=Large")
    git(released, "push", "--quiet", "origin", "aside")
    commit = git(released, "rev-parse", "HEAD").strip()
    bare = released.with_name("digits.git")
    subprocess.run(["git", "-C", str(bare), "config", "uploadpack.allowFilter", "true"], check=True)
    (content,) = inventory.examine([f"file://{bare}"], "main", lambda _, mirror: mirror and mirror.read(commit, "large"))
    assert content == b"x" * 100_000
