"""Holding an environment: where the hold is, which release commands respect it, and how it ends."""

from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build import verify
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.objects import Identity
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.errors import Refused, UsageError
from mlops_build.release import alias, hold, restore, tree, write
from mlops_build.release import record as records
from mlops_build.release.protected import at
from mlops_build.scaffold.ownership import owners, settings
from mlops_build.service import ServiceError
from tests.conftest import ROOT, git
from tests.release.world import Promote, Run

FILE = "deploy/overlays/staging/hold.yaml"
ADA = Identity("Ada", "ada@example.com", 1_764_500_000)


def commit(checkout: Path, *, remove: str | None = None, **texts: str) -> str:
    """Commit and push these files ("/" in a name is written "__"); returns the commit."""
    for name, text in texts.items():
        (checkout / name.replace("__", "/").replace("_yaml", ".yaml").replace("_toml", ".toml")).write_text(text)
    if remove:
        (checkout / remove).unlink()
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message=Edit")
    git(checkout, "push", "--quiet")
    return git(checkout, "rev-parse", "HEAD")


def effective(checkout: Path) -> str | None:
    objects = Checkout(checkout)
    head = git(checkout, "rev-parse", "HEAD")
    try:
        service = tree.service_at(objects, head)
    except ServiceError:
        service = None
    return hold.read(objects.read(head, hold.file("staging")), "staging", service)


@pytest.mark.parametrize(
    ("pin", "in_service"), [('"mlops-build[serve,train]~=0.8.0"', True), ('"mlops-build[serve,train]~=0.9.0"', False), ("", True)]
)
@pytest.mark.parametrize("why", ["it answers nonsense", 'it\'s: {a} # "x"', "é" * 200, "😀", "null"])
def test_a_hold_is_read_as_it_was_written_and_ends_in_both_places(checkout: Path, pin: str, in_service: bool, why: str) -> None:
    head = commit(checkout, pyproject_toml=f"[project.optional-dependencies]\ntrain = [{pin}]\n")
    before = (checkout / "service.yaml").read_text()
    objects = Checkout(checkout)
    files = hold.changes(objects, head, "staging", hold.begin(f"{why}\n", ADA))
    assert set(files) == {FILE, *(["service.yaml"] if in_service else [])}
    assert (files[FILE] or b"").decode().endswith('by: "Ada <ada@example.com>"\nat: "2025-11-30T10:53:20+00:00"\n')
    for path, content in files.items():
        (checkout / path).write_bytes(content or b"")
    head = commit(checkout)
    assert effective(checkout) == why
    assert service_file.load(checkout).hold == ({"staging": why} if in_service else {})
    ended = hold.changes(objects, head, "staging", None)
    assert ended[FILE] is None
    if in_service:
        assert (ended["service.yaml"] or b"").decode() == before
    assert hold.changes(objects, git(checkout, "rev-parse", "HEAD~1"), "staging", None) == {}


@pytest.mark.parametrize("text", ["why: [\n", "[]\n", "", "schema: 2\nwhy: x\n", "schema: 1\n", "schema: 1\nwhy: 3\n", "why: \x07\n"])
def test_a_hold_that_cannot_be_read_holds(checkout: Path, registry: Registry, promote: Promote, text: str) -> None:
    commit(checkout, deploy__overlays__staging__hold_yaml=text)
    promote(1)
    outcome = reconcile.once([f"file://{checkout}.git"], registry)[0]
    assert (outcome.state, outcome.why) == ("held", f"{FILE} cannot be read: restore or remove it")
    with pytest.raises(Refused, match="mlops-build hold staging --remove"):
        write.in_checkout(checkout, "staging", registry)


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_in_the_place_of_a_hold_holds(checkout: Path, registry: Registry, promote: Promote, kind: str) -> None:
    (checkout / FILE).symlink_to("../../../service.yaml") if kind == "link" else (checkout / FILE).mkdir()
    if kind == "folder":
        (checkout / FILE / "x").touch()
    commit(checkout)
    promote(1)
    assert reconcile.once([f"file://{checkout}.git"], registry)[0].state == "held"


def test_service_yaml_alone_holds_too_and_is_left_alone_while_it_is_broken(checkout: Path) -> None:
    commit(checkout, service_yaml=(checkout / "service.yaml").read_text().replace("hold: {}", "hold: {staging: by hand}"))
    assert effective(checkout) == "by hand"
    head = commit(checkout, service_yaml="models: [\n")
    assert effective(checkout) is None
    assert set(hold.changes(Checkout(checkout), head, "staging", hold.begin("bad", ADA))) == {FILE}


def test_neither_verify_nor_an_update_changes_a_hold(checkout: Path) -> None:
    before = verify.check(checkout)
    hold_yaml = checkout / FILE
    hold_yaml.write_text(hold.begin("bad", ADA).text("staging"))
    report = verify.check(checkout)
    assert (report.findings, report.objects) == (before.findings, before.objects)
    assert owners(settings((ROOT / "copier.yml").read_bytes())).of(FILE) == "machine"


@pytest.mark.parametrize("why", ["", " \n", "x" * 501, "bell \x07"])
def test_what_is_no_reason(why: str) -> None:
    with pytest.raises(UsageError):
        hold.begin(why, ADA)


@pytest.fixture
def run(run: Run, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """In the checkout."""
    monkeypatch.chdir(checkout)
    return run


@pytest.fixture
def rolled_back(released: Path) -> Path:
    """staging was rolled back in Git from digits 2 to digits 1, while the alias still points at digits 2."""
    restore.roll_back(at(released), "staging")
    return released


@pytest.mark.parametrize("place", [[], ["--repo"]])
def test_holding_and_ending_the_hold(checkout: Path, remote: Path, registry: Registry, run: Run, place: list[str]) -> None:
    place = [*place, f"file://{remote}"] if place else []
    code, document, _ = run("hold", "staging", "--why", "an audit", *place)
    assert (code, document["pushed"], document["commit"]) == (0, True, git(remote, "rev-parse", "main"))
    git(checkout, "pull", "--quiet")
    assert effective(checkout) == "an audit"
    assert run("hold", "staging", "--remove", *place)[0] == 0
    git(checkout, "pull", "--quiet")
    assert effective(checkout) is None
    assert git(checkout, "status", "--porcelain") == ""
    assert run("hold", "staging", "--remove", *place)[1]["commit"] is None
    assert run("hold", "nowhere", "--remove", *place)[0] == 3
    assert run("hold", "staging", "--why", "x", "--release")[0] == 2


def test_a_hold_does_not_end_while_the_alias_points_at_the_bad_version(rolled_back: Path, registry: Registry, run: Run) -> None:
    code, document, _ = run("hold", "staging", "--remove")
    assert code == 4
    assert "staging has digits 1 in Git, but its aliases point at digits 2" in document["error"]
    assert (document["registry"], document["git"]) == ({"digits": 2}, {"digits": 1})
    assert effective(rolled_back) is not None
    first, second = (line for line in document["remedy"].splitlines() if "mlops-build" in line)
    assert second == "to release digits 2: mlops-build hold staging --remove --release, then mlops-build release staging"
    assert run(*first.split()[1:])[0] == 0
    assert run("hold", "staging", "--remove")[0] == 0
    assert reconcile.once([f"file://{rolled_back}.git"], registry)[0].state == "unchanged"


def test_an_old_clone_ends_the_hold_that_origin_has(rolled_back: Path, registry: Registry, run: Run) -> None:
    alias.rollback(registry, None, "digits", "staging", None)
    git(rolled_back, "reset", "--quiet", "--hard", "HEAD~1")
    code, document, _ = run("hold", "staging", "--remove")
    assert (code, document["pushed"]) == (0, True)
    assert reconcile.once([f"file://{rolled_back}.git"], registry)[0].state == "unchanged"


def test_a_hold_can_end_in_favour_of_the_alias(rolled_back: Path, registry: Registry, run: Run) -> None:
    assert run("hold", "staging", "--remove", "--release")[0] == 0
    assert run("release", "staging")[0] == 0
    assert str(records.read(rolled_back, "staging")) == "digits 2"
    assert reconcile.once([f"file://{rolled_back}.git"], registry)[0].state == "unchanged"


def test_without_mlflow_a_hold_ends_only_on_request(rolled_back: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/gone.db")
    code, document, _ = run("hold", "staging", "--remove")
    assert code == 5
    assert "mlops-build hold staging --remove --release" in document["remedy"]
    assert run("hold", "staging", "--remove", "--release")[0] == 0
