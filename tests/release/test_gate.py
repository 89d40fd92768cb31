"""A release whose manifests are wrong does not land, unless it goes back or somebody says so; the bridge reports and leaves it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.errors import Refused
from mlops_build.model.version import ModelVersion
from mlops_build.release import alias, restore, write
from mlops_build.release.gate import goes_back
from mlops_build.release.protected import at
from mlops_build.release.record import Record
from tests.conftest import git, mlops_build
from tests.release.world import Promote

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")


def spoil(checkout: Path) -> str:
    """Somebody commits a Service that sends to a port that no pod has; returns the file."""
    (path,) = (path for path in (checkout / "deploy" / "base").glob("*.yaml") if "targetPort: http" in path.read_text())
    path.write_text(path.read_text().replace("targetPort: http", "targetPort: web"))
    git(checkout, "commit", "--quiet", "--all", "--message=Spoil")
    git(checkout, "push", "--quiet")
    return path.relative_to(checkout).as_posix()


def test_a_release_with_findings_does_not_land(checkout: Path, remote: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    file = spoil(checkout)
    head = git(checkout, "rev-parse", "HEAD")
    with pytest.raises(Refused, match=r"1 finding:") as refused:
        write.in_checkout(checkout, "staging", registry)
    assert "[service-target-port]" in refused.value.message
    assert file in refused.value.message
    assert refused.value.exit_code == 4
    assert git(checkout, "rev-parse", "HEAD") == git(remote, "rev-parse", "main") == head
    made = write.in_checkout(checkout, "staging", registry, despite_findings=True)
    assert made.pushed
    assert "service-target-port" in made.remarks[0]


def test_going_back_is_never_refused(checkout: Path, registry: Registry, promote: Promote) -> None:
    for number in (1, 2, 3):
        promote(number)
        write.in_checkout(checkout, "staging", registry)
    spoil(checkout)
    alias.rollback(registry, None, "digits", "staging", None)
    made = write.in_checkout(checkout, "staging", registry)
    assert (made.before, made.after) == ("digits 3", "digits 2")
    assert "service-target-port" in made.remarks[0]
    assert "released all the same" in made.remarks[0]
    assert str(restore.roll_back(at(checkout), "staging")[0].after) == "digits 1", "from Git alone, too"


def test_the_bridge_reports_findings_and_releases_nothing(checkout: Path, remote: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    file = spoil(checkout)
    head = git(remote, "rev-parse", "main")
    (staging, _) = reconcile.once([f"file://{remote}"], registry)
    assert staging.state == "failed"
    assert f"{file}\n  line " in str(staging.error)
    assert reconcile.exit_code([staging]) == 4
    assert git(remote, "rev-parse", "main") == head
    (staging, _) = reconcile.once([f"file://{remote}"], registry, despite_findings=True)
    assert staging.state == "released"
    assert any("service-target-port" in remark for remark in staging.remarks)


def test_a_machine_without_kubectl_says_what_it_did_not_see(
    checkout: Path, registry: Registry, promote: Promote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)
    spoil(checkout)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").symlink_to(str(shutil.which("git")))
    monkeypatch.setenv("PATH", str(programs))
    made = write.in_checkout(checkout, "staging", registry)
    assert made.commit
    assert "overlay staging was not rendered: kubectl is not installed" in made.remarks[0]


def test_the_command_line_refuses_and_can_be_told(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    file = spoil(checkout)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.uri}
    done = mlops_build(checkout, "release", "staging", expect=4, environment=environment)
    assert file in done.stderr
    assert "--despite-findings" in done.stderr
    done = mlops_build(checkout, "release", "staging", "--despite-findings", "--json", environment=environment)
    assert json.loads(done.stdout)["remarks"]


def model(version: int, name: str = "digits") -> ModelVersion:
    return ModelVersion(name, version, f"sha256:{'a' * 64}", "b" * 32)


def record(*models: ModelVersion) -> Record:
    return Record("staging", models, "c" * 40, f"registry.example.com/digits:v1-{'d' * 12}") if models else Record("staging")


@pytest.mark.parametrize(
    ("before", "after", "back"),
    [
        (None, record(model(1)), False),
        (record(), record(model(1)), False),
        (record(model(2)), record(model(1)), True),
        (record(model(1)), record(model(2)), False),
        (record(model(2)), record(model(2)), False),
        (record(model(2), model(5, "other")), record(model(1), model(5, "other")), True),
        (record(model(2), model(5, "other")), record(model(1), model(6, "other")), False),
        (record(model(2)), record(model(1), model(1, "other")), False),
    ],
)
def test_what_goes_back(before: Record | None, after: Record, back: bool) -> None:
    assert goes_back(before, after) is back
