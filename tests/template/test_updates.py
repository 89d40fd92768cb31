"""A service made from any release, brought up to the template of the working tree."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest

from mlops_build.scaffold.ownership import owners, settings
from mlops_build.scaffold.update import update
from tests.conftest import MadeOnce, git
from tests.scaffold.trees import Content, commit, same, taken
from tests.template.releases import NEXT, RELEASES, ROOT, published

OWNERS = owners(settings((ROOT / "copier.yml").read_bytes()))
first, *_, last = RELEASES
# The description is an answer, since its default differs between releases.
SMALL = {"project_name": "Points", "description": "Finds the class of a point", "example": "none"}
LARGE = {
    "project_name": "Fraud score",
    "description": "Scores a payment",
    "example": "tabular",
    "team": "payments",
    "gpu": "shared",
    "gpu_memory": "6GiB",
    "python_version": "3.12",
    "dvc_remote_url": "s3://data/fraud",
    "s3_endpoint_url": "https://s3.example.com",
    "mlflow_tracking_uri": "https://mlflow.example.com",
    "monitoring": "prometheus-operator",
}


def fast_first(fast: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases as parameters. Those not in `fast` are slow; those of a release between the first and the last are for `make soak`."""
    fast, between, parameters = list(fast), list(RELEASES)[1:-1], []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        is_between = any(value in between for value in values if isinstance(value, str))
        marks = () if case in fast else pytest.mark.soak if is_between else pytest.mark.slow
        parameters.append(pytest.param(*values, marks=marks))
    return parameters


# make(version, answers): a folder with such a service, committed; a copy that a test may change.
Make = Callable[[str, dict[str, str]], Path]


@pytest.fixture(scope="module")
def source(made_once: MadeOnce) -> Path:
    return made_once("releases", published)


@pytest.fixture(scope="module")
def rendered(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[tuple[str, str], ...]], Path]:
    from copier import run_copy

    made: dict[tuple[str, tuple[tuple[str, str], ...]], Path] = {}

    def once(version: str, answers: tuple[tuple[str, str], ...]) -> Path:
        if (version, answers) not in made:
            folder = tmp_path_factory.mktemp("rendered") / "service"
            with pytest.MonkeyPatch.context() as patch:
                (folder.parent / "settings.yml").write_text("{}\n")
                patch.setenv("COPIER_SETTINGS_PATH", str(folder.parent / "settings.yml"))
                run_copy(str(source), folder, data=dict(answers), vcs_ref=version, defaults=True, quiet=True)
            commit(folder, "Start from the template")
            made[(version, answers)] = folder
        return made[(version, answers)]

    return once


@pytest.fixture
def make(rendered: Callable[[str, tuple[tuple[str, str], ...]], Path], tmp_path: Path) -> Make:
    def copy(version: str, answers: dict[str, str]) -> Path:
        folder = tmp_path / f"{version}-{len(list(tmp_path.iterdir()))}"
        return Path(shutil.copytree(rendered(version, tuple(answers.items())), folder, symlinks=True))

    return copy


def owned(files: dict[str, Content], *wanted: str) -> dict[str, Content]:
    return {path: content for path, content in files.items() if OWNERS.of(path) in wanted}


@pytest.mark.parametrize(("version", "answers"), fast_first([(first, LARGE), (last, SMALL)], product(RELEASES, (SMALL, LARGE))))
def test_an_update_without_edits_is_a_fresh_rendering(make: Make, version: str, answers: dict[str, str]) -> None:
    service, fresh = make(version, answers), taken(make(NEXT, answers))
    before = taken(service)
    by_copier = Path(shutil.copytree(service, service.with_name("by-copier"), symlinks=True))
    done = update(service, commit=True)
    assert (done.status, done.before.name, done.after.name) == ("merged", version, NEXT)
    after = taken(service)
    # No file too many, none too few; the template's are as new; what the team and machines own is as it was, or new.
    assert after.keys() == fresh.keys() | owned(before, "team", "machine").keys()
    assert same(owned(after, "template"), owned(fresh, "template"))
    assert same(owned(after, "team", "machine"), {**owned(fresh, "team", "machine"), **owned(before, "team", "machine")}) or (
        # A machine's folder is not touched in part: what the template has new in it comes with the next release record.
        same(owned(after, "team"), {**owned(fresh, "team"), **owned(before, "team")})
        and same(owned(after, "machine"), owned(before, "machine"))
    )
    assert not git(service, "status", "--porcelain")
    assert update(service).status == "nothing"

    # Plain copier goes on working, and comes to the same.
    environment = {"COPIER_SETTINGS_PATH": str(service.parent / "settings.yml")}
    (service.parent / "settings.yml").write_text("{}\n")
    command = [str(Path(sys.executable).with_name("copier")), "update", "--defaults", "--quiet"]
    subprocess.run(command, cwd=by_copier, env={**os.environ, **environment}, check=True, timeout=120)
    assert same(owned(taken(by_copier), "template"), owned(after, "template"))


def test_a_service_keeps_a_name_that_a_new_service_cannot_have(make: Make) -> None:
    service = make("0.7.0", {**SMALL, "project_name": "Calendar"})  # the last release that accepts it
    by_copier = Path(shutil.copytree(service, service.with_name("by-copier"), symlinks=True))
    assert any("the package calendar hides a module" in note for note in update(service, commit=True).notes)
    copier = [str(Path(sys.executable).with_name("copier")), "update", "--defaults"]
    done = subprocess.run(copier, cwd=by_copier, check=True, timeout=120, capture_output=True, text=True)
    assert "The package calendar hides a module" in done.stderr
    for updated in (service, by_copier):
        assert "project_name: Calendar\n" in (updated / ".copier-answers.yml").read_text()


WHERE = ("first", "middle", "last")


@pytest.mark.parametrize(("version", "where"), fast_first(zip(RELEASES, cycle(WHERE), strict=False), product(RELEASES, WHERE)))
def test_an_edit_in_every_file_is_kept_or_reported(make: Make, version: str, where: str) -> None:
    service = make(version, LARGE)
    before = taken(service)
    mine = {}
    for path, content in before.items():
        if path == ".copier-answers.yml" or not isinstance(content, str):
            continue
        lines = content.splitlines(keepends=True)
        at = {"first": 0, "middle": len(lines) // 2, "last": len(lines)}[where]
        mine[path] = f"# edited by the team in {path}\n"
        lines.insert(at, mine[path])
        (service / path).write_text("".join(lines))
    commit(service, "Edit everything")
    edited = taken(service)
    done = update(service)
    assert done.merged is not None
    conflicts = {conflict.path for conflict in done.merged.conflicts}
    # Most edits are not where the template changed: if they conflict, the merge is at fault.
    assert len(conflicts) <= len(mine) / 4, conflicts
    listed = git(service, "ls-tree", "-r", "-z", "--name-only", done.merged.tree).split("\0")
    renamed = {change.old: change.path for change in done.merged.changes}
    for path, line in mine.items():
        now = renamed.get(path, path)
        if {path, now} & conflicts:
            continue
        assert now in listed, path
        assert line in git(service, "show", f"{done.merged.tree}:{now}") + "\n", path
        if OWNERS.of(path) == "template":
            assert now in done.merged.kept
    if conflicts:
        assert taken(service) == edited
        assert all(conflict.why and conflict.remedy for conflict in done.merged.conflicts)


@pytest.mark.parametrize("version", fast_first([first, last], RELEASES))
def test_the_manifests_still_render(make: Make, version: str) -> None:
    """Old release records under a new base: what an update leaves is what is deployed next."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not on PATH")
    service = make(version, LARGE)
    assert update(service).status == "merged"
    for env in ("staging", "production"):
        done = subprocess.run(
            [kubectl, "kustomize", str(service / "deploy/overlays" / env)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "kind: Deployment" in done.stdout
