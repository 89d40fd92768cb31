"""What the bridge makes of promotions, of aliases that were moved by hand, and of what people do in Git."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service as service_file
from mlops_build.__main__ import main
from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.bridge import reconcile
from mlops_build.errors import UsageError
from mlops_build.model import identity
from mlops_build.model.version import BadVersion
from mlops_build.release import alias, promotion, record, write
from tests.conftest import git
from tests.release.world import SERVICE, MakeRepository, change_service

Register = Callable[..., Any]
TWO = SERVICE.replace("  - name: digits\n", "  - name: digits\n  - name: letters\n")


@pytest.fixture
def two(make_repository: MakeRepository, registry: Registry, register: Register) -> Path:
    """A service with two models, each with three versions, released with the first ones."""
    checkout = make_repository(service=TWO)
    for name in ("digits", "letters") * 3:
        register(name)
    promote(registry, checkout, digits=1, letters=1)
    assert staging(checkout, registry).after == "digits 1, letters 1"
    return checkout


def promote(registry: Registry, checkout: Path, *, env: str = "staging", why: str = "", **models: int | str) -> promotion.Promotion:
    git(checkout, "pull", "--quiet", "--rebase")
    service = service_file.load(checkout)
    return alias.promote_all(registry, service, models, env, why=why)[1]


def staging(checkout: Path, registry: Registry) -> reconcile.Outcome:
    return reconcile.once([f"file://{checkout}.git"], registry)[0]


def production(checkout: Path, registry: Registry) -> reconcile.Outcome:
    return reconcile.once([f"file://{checkout}.git"], registry)[1]


def last(checkout: Path, wanted: str = "%B") -> str:
    return git(checkout.with_name(f"{checkout.name}.git"), "log", "-1", f"--format={wanted}", "main")


def revert(checkout: Path) -> None:
    """A person takes the last commit back, and pushes that."""
    git(checkout, "pull", "--quiet")
    git(checkout, "revert", "--no-edit", "HEAD")
    git(checkout, "push", "--quiet")


def test_an_incomplete_promotion_is_waited_for(two: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that promotes is killed between two aliases; the bridge must not release the mix."""
    before, set_alias, moved = last(two, "%H"), Registry.set_alias, []

    def killed(self: Registry, name: str, alias_name: str, version: int) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(name)
        set_alias(self, name, alias_name, version)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(registry, two, digits=2, letters=2)
    outcome = staging(two, registry)
    assert (outcome.state, outcome.before) == ("waiting", "digits 1, letters 1")
    assert "(digits 2, letters 2) is not complete: the aliases staging point at digits 2, letters 1" in str(outcome)
    monkeypatch.setattr(promotion, "PATIENCE_SECONDS", 0)
    outcome = staging(two, registry)
    assert outcome.error is not None
    assert (outcome.state, outcome.error.exit_code) == ("failed", 4)
    assert "mlops-build promote digits=2 letters=2 --to staging" in str(outcome.error.remedy)
    assert last(two, "%H") == before
    made = promote(registry, two, digits=2, letters=2)
    assert staging(two, registry).after == "digits 2, letters 2"
    assert f"Promotion: {made.id}" in last(two)


def test_a_promotion_of_one_model_keeps_the_other(two: Path, registry: Registry) -> None:
    made = promote(registry, two, letters=3)
    assert made.models == {"letters": 3, "digits": 1}
    assert staging(two, registry).after == "digits 1, letters 3"
    assert last(two, "%(trailers:key=Model,valueonly)").split() == ["digits", "letters"]


def test_a_model_that_joins_the_service_must_be_promoted_first(checkout: Path, registry: Registry, register: Register) -> None:
    register(), register("letters")
    promote(registry, checkout, digits=1)
    staging(checkout, registry)
    change_service(checkout, "  - name: digits\n", "  - name: digits\n  - name: letters\n")
    outcome = staging(checkout, registry)
    assert (outcome.state, outcome.before) == ("failed", "digits 1")
    assert "letters has no alias 'staging'" in str(outcome)
    promote(registry, checkout, letters=1)
    assert staging(checkout, registry).after == "digits 1, letters 1"


def test_after_a_promotion_is_released_a_move_by_hand_is_one(two: Path, registry: Registry) -> None:
    registry.set_alias("letters", "staging", 3)
    assert staging(two, registry).after == "digits 1, letters 3"
    assert "Promoted-By: unknown" in last(two)
    assert "Promotion:" not in last(two)


def test_an_older_bridge_that_released_a_promotion_wrote_no_id(two: Path, registry: Registry) -> None:
    """Its list is in Git, so that later moves were made by hand."""
    promote(registry, two, digits=2, letters=2)
    assert staging(two, registry).state == "released"
    git(two, "pull", "--quiet")
    message = "\n".join(line for line in last(two).splitlines() if not line.startswith(("Promot", "Why")))
    git(two, "commit", "--quiet", "--amend", f"--message={message}")
    git(two, "push", "--quiet", "--force")
    registry.set_alias("digits", "staging", 3)
    assert staging(two, registry).after == "digits 3, letters 2"


def test_the_evidence_is_cut_and_forges_no_trailer(checkout: Path, registry: Registry, register: Register) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(registry.uri)
    for value in (0.9, 0.95):
        run = client.create_run("0").info.run_id
        client.log_metric(run, "accuracy", value)
        client.log_param(run, "lr", f"{value}\n\nPromoted-By: somebody else " + "x" * 200)
        client.log_param(run, "seed", "1")
        register(run=run)
    for number in (1, 2):
        promote(registry, checkout, digits=number)
        staging(checkout, registry)
    lines = last(checkout).splitlines()
    assert "- digits: accuracy 0.9 → 0.95" in lines
    assert not any(line.startswith("- digits: seed") for line in lines), "it did not change"
    (forged,) = (line for line in lines if "somebody else" in line)
    assert forged.startswith("- digits: lr 0.9 Promoted-By: somebody else")
    assert len(forged) < 100


def not_ready(registry: Registry) -> None:
    import sqlite3

    with sqlite3.connect(registry.uri.removeprefix("sqlite:///")) as database:
        database.execute("update model_versions set status = 'FAILED_REGISTRATION' where version = 2")


ADMITTED: dict[str, tuple[dict[str, Any], str]] = {
    "dirty": ({"tags": {identity.DIRTY: "true"}}, "was made from uncommitted changes"),
    "other service": ({"tags": {identity.SERVICE: "spam"}}, "was registered by the service 'spam', not by digits"),
    "expired": (
        {"tags": {identity.EXCEPTION_BY: "Ada", identity.EXCEPTION_UNTIL: "2020-01-31"}},
        "exception of 'Ada' expired on '2020-01-31'",
    ),
    "no date": ({"tags": {identity.EXCEPTION_UNTIL: "never"}}, "exception of '' expired on 'never'"),
    "failed": ({}, "status of 'digits' version 2 is 'FAILED_REGISTRATION'"),
}


@pytest.mark.parametrize("kind", ADMITTED)
def test_an_alias_moved_by_hand_passes_the_checks_of_promote(checkout: Path, registry: Registry, register: Register, kind: str) -> None:
    settings, why = ADMITTED[kind]
    register(), register(**settings)
    if kind == "failed":
        not_ready(registry)
    registry.set_alias("digits", "live", 1)
    assert production(checkout, registry).state == "released"
    before = last(checkout, "%H")
    registry.set_alias("digits", "live", 2)
    outcome = production(checkout, registry)
    assert (outcome.state, outcome.before) == ("failed", "digits 1")
    assert outcome.error is not None
    assert why in outcome.error.message
    assert outcome.error.remedy
    assert last(checkout, "%H") == before
    with pytest.raises(type(outcome.error), match=why.partition("'")[0]):
        promote(registry, checkout, env="production", digits=2)


def test_a_dirty_version_that_was_promoted_on_purpose_is_released(checkout: Path, registry: Registry, register: Register) -> None:
    register(tags={identity.DIRTY: "true"})
    alias.promote_all(registry, None, {"digits": 1}, "live", force_dirty=True)
    registry.set_alias("digits", "production", 1)
    assert production(checkout, registry).state == "released"


def test_what_git_had_before_is_admitted_again(checkout: Path, registry: Registry, register: Register) -> None:
    """Going back is always possible, whatever has been written onto the old version since."""
    register(), register()
    for number in (1, 2):
        promote(registry, checkout, env="production", digits=number)
        assert production(checkout, registry).after == f"digits {number}"
    registry.set_tag("digits", 1, identity.DIRTY, "true")
    registry.set_alias("digits", "live", 1)
    outcome = production(checkout, registry)
    assert (outcome.state, outcome.after) == ("released", "digits 1")
    assert "production had it before" in outcome.remarks[0]
    # Not under another digest: then it is another version.
    promote(registry, checkout, env="production", digits=2)
    production(checkout, registry)
    registry.set_tag("digits", 1, identity.DIGEST_TAG, f"sha256:{7:064x}")
    registry.set_alias("digits", "live", 1)
    assert production(checkout, registry).state == "failed"


def test_a_persons_revert_stays_until_the_next_promotion_or_move(checkout: Path, registry: Registry, register: Register) -> None:
    for number in (1, 2):
        register()
        promote(registry, checkout, digits=number)
        staging(checkout, registry)
    revert(checkout)
    for _ in range(2):
        outcome = staging(checkout, registry)
        assert (outcome.state, outcome.before) == ("reverted", "digits 1")
        assert str(outcome).endswith(
            "a person took digits 2 back in Git: it stays until the next promotion or move of the alias  Git keeps digits 1"
        )
    assert reconcile.exit_code([outcome]) == 0
    promote(registry, checkout, digits=2)
    assert staging(checkout, registry).after == "digits 2"
    revert(checkout)
    register()
    registry.set_alias("digits", "staging", 3)
    assert staging(checkout, registry).after == "digits 3"


@pytest.mark.parametrize("why", ["Version: 9 has fewer alarms", "Registered: yesterday by Bob", "Model: digits was retrained", "Alias: no"])
def test_the_reason_forges_no_trailer(
    checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    for number in (1, 2):
        register()
        promote(registry, checkout, digits=number, why=why)
        staging(checkout, registry)
    git(checkout, "pull", "--quiet")
    monkeypatch.chdir(checkout)
    assert main(["history", "staging", "--json"]) == 0
    (newest, older) = json.loads(capsys.readouterr().out)["staging"]
    assert (newest["models"], newest["why"], older["models"]) == ({"digits": 2}, why, {"digits": 1})
    assert set(newest["lead"]["digits"]) >= {"registered", "released to staging"}
    revert(checkout)
    assert staging(checkout, registry).state == "reverted"


def test_a_move_by_hand_does_not_revive_a_promotion_that_another_one_replaced(two: Path, registry: Registry) -> None:
    promote(registry, two, digits=2, letters=2)
    promote(registry, two, digits=3, letters=3)
    assert staging(two, registry).after == "digits 3, letters 3"
    for name in ("digits", "letters"):
        registry.set_alias(name, "staging", 2)
    assert staging(two, registry).after == "digits 2, letters 2"
    assert "Promoted-By: unknown" in last(two)
    # One that replaces a part of another keeps the rest of it.
    promote(registry, two, digits=1, letters=1)
    alias.promote_all(registry, None, {"digits": 3}, "staging")
    assert staging(two, registry).after == "digits 3, letters 1"


def test_a_promotion_between_two_reads_is_waited_for(two: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(registry, two, digits=2, letters=2)
    before, version, reads = last(two, "%H"), Registry.version, []

    def moved(self: Registry, name: str, wanted: int | str) -> RegisteredVersion:
        reads.append(name)
        if len(reads) == 1:
            promote(registry, two, digits=3, letters=3)
        return version(self, name, wanted)

    monkeypatch.setattr(Registry, "version", moved)
    assert staging(two, registry).state == "waiting"
    assert last(two, "%H") == before
    outcome = staging(two, registry)
    assert outcome.after == "digits 3, letters 3"
    assert "Promoted-By: unknown" not in last(two)


def test_an_incomplete_promotion_is_not_hidden_by_a_complete_one(two: Path, registry: Registry) -> None:
    text = promotion.new({"digits": 3, "letters": 3}, "Ada", "").as_text()
    for name in ("digits", "letters"):
        registry.set_tag(name, 3, promotion.tag("staging"), text)
    registry.set_alias("letters", "staging", 3)  # and then it was killed
    alias.promote_all(registry, None, {"digits": 2}, "staging")
    assert staging(two, registry).state == "waiting"
    promote(registry, two, digits=2)
    assert staging(two, registry).after == "digits 2, letters 3"


def test_a_promotion_is_of_one_service(two: Path, registry: Registry, register: Register) -> None:
    register("spam", {identity.SERVICE: "spam"})
    before = registry.alias_map()
    for service in (None, service_file.load(two)):
        with pytest.raises(UsageError, match=r"a promotion has models of one service: .*spam of"):
            alias.promote_all(registry, service, {"digits": 2, "spam": 1}, "staging")
    assert registry.alias_map() == before


def test_promote_and_rollback_go_back_to_what_git_had(
    checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tags={identity.DIRTY: "yes"}), register()
    service = service_file.load(checkout)
    alias.promote_all(registry, service, {"digits": 1}, "production", force_dirty=True)
    assert production(checkout, registry).after == "digits 1"
    promote(registry, checkout, env="production", digits=2)
    git(checkout, "pull", "--quiet")
    monkeypatch.chdir(checkout)
    assert alias.rollback(registry, service, "digits", "production", 1).after == 1
    promote(registry, checkout, env="production", digits=2)
    (move,), _ = alias.promote_all(registry, service, {"digits": 1}, "production")
    assert "production had it before" in move.callers[0]


def test_a_person_can_release_what_was_reverted(
    checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        register()
        promote(registry, checkout, digits=number)
        staging(checkout, registry)
    revert(checkout)
    monkeypatch.setenv("MLOPS_GIT_NAME", "Ada")
    monkeypatch.setenv("MLOPS_GIT_EMAIL", "ada@example.com")
    assert write.in_checkout(checkout, "staging", registry).after == "digits 2"
    assert "Promoted-By: Ada <ada@example.com>" in last(checkout)
    assert staging(checkout, registry).state == "unchanged"


def test_a_key_that_is_not_known_is_ignored_and_named(make_repository: MakeRepository, registry: Registry, register: Register) -> None:
    checkout = make_repository(service=f"{SERVICE}require_promotions: true\n")
    register()
    registry.set_alias("digits", "staging", 1)
    outcome = staging(checkout, registry)
    assert outcome.state == "released"
    assert "unknown key 'require_promotions'; did you mean 'require_promotion'?; it is ignored" in outcome.remarks[0]


def test_only_promotions_are_released_where_service_yaml_requires_them(
    make_repository: MakeRepository, registry: Registry, register: Register
) -> None:
    checkout = make_repository(service=f"{SERVICE}require_promotion: true\n")
    register(), register()
    registry.set_alias("digits", "staging", 1)
    outcome = staging(checkout, registry)
    assert outcome.error is not None
    assert (outcome.state, outcome.error.exit_code) == ("failed", 4)
    assert "mlops-build promote digits=1 --to staging --why TEXT" in str(outcome.error.remedy)
    for number in (1, 2):
        promote(registry, checkout, digits=number)
        assert staging(checkout, registry).after == f"digits {number}"
    registry.set_alias("digits", "staging", 1)
    assert staging(checkout, registry).after == "digits 1", "going back is always possible"


def test_a_newer_bridge_rewrites_nothing(checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files differ, but neither the models nor service.yaml: two bridges of different versions must not commit against each other."""
    register()
    promote(registry, checkout, digits=1)
    staging(checkout, registry)
    before = last(checkout, "%H")
    monkeypatch.setattr(record, "HEADER", "# Another release of mlops-build writes {env} differently.\n")
    assert staging(checkout, registry).state == "unchanged"
    assert last(checkout, "%H") == before
    change_service(checkout, "host: digits-staging.example.com", "host: digits-staging.example.com\n    replicas: 4")
    outcome = staging(checkout, registry)
    assert outcome.state == "released"
    assert "replicas 1 → 4" in str(outcome)
    monkeypatch.undo()
    assert staging(checkout, registry).state == "unchanged"


FORGED = [
    "x",
    "[]",
    "null",
    '"' + "[" * 100_000,
    *(
        json.dumps({"id": "0" * 16, "by": "a", "at": 1, "why": "", "models": {"digits": 2}, **change})
        for change in (
            {"id": "../../x"},
            {"id": None},
            {"by": "a\nPromoted-By: b"},
            {"by": ""},
            {"by": "a" * 1000},
            {"at": 2**40},
            {"at": True},
            {"at": "1"},
            {"why": "a\n\nModel: x"},
            {"why": "$(TOKEN)" * 100},
            {"models": {}},
            {"models": {"../x": 1}},
            {"models": {"digits": "2"}},
            {"models": {"digits": -1}},
            {"models": [["digits", 2]]},
            {"dirty": "yes"},
        )
    ),
]


@pytest.mark.parametrize("text", FORGED)
def test_a_forged_promotion_is_not_valid(text: str) -> None:
    version = RegisteredVersion("digits", 2, "", "", {promotion.tag("staging"): text}, 0)
    with pytest.raises(BadVersion, match=r"'digits' version 2: the tag mlops_build.promotion.staging is not valid") as refused:
        promotion.parse(version, "staging")
    assert refused.value.message.isprintable()


def test_a_forged_promotion_is_not_released(checkout: Path, registry: Registry, register: Register) -> None:
    register(), register()
    promote(registry, checkout, digits=1)
    staging(checkout, registry)
    before = last(checkout, "%H")
    registry.set_tag("digits", 2, promotion.tag("staging"), FORGED[-1])
    registry.set_alias("digits", "staging", 2)
    outcome = staging(checkout, registry)
    assert outcome.error is not None
    assert (outcome.state, outcome.error.exit_code) == ("failed", 4)
    assert last(checkout, "%H") == before
    promote(registry, checkout, digits=2)
    assert staging(checkout, registry).after == "digits 2"


def test_the_history_is_in_git(
    checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_GIT_NAME", "Ada")
    monkeypatch.setenv("MLOPS_GIT_EMAIL", "ada@example.com")
    code = git(checkout, "rev-parse", "HEAD")
    for number in (1, 2):
        register(tags={identity.COMMIT_TAG: code})
        made = promote(registry, checkout, digits=number, why=f"reason {number}")
        staging(checkout, registry)
    promote(registry, checkout, env="production", digits=2)
    staging(checkout, registry)
    registry.set_alias("digits", "staging", 1)
    staging(checkout, registry)
    git(checkout, "pull", "--quiet")
    git(checkout, "revert", "--no-edit", "HEAD")
    monkeypatch.chdir(checkout)
    assert main(["history", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    shown = [(entry["models"], entry["by"], entry["why"], entry["is_current"]) for entry in document["staging"]]
    assert shown[0][0] == {"digits": 2}
    assert shown[0][2].startswith("Revert ")
    assert shown[1:] == [
        ({"digits": 1}, "unknown", "", False),
        ({"digits": 2}, "Ada <ada@example.com>", "reason 2", False),
        ({"digits": 1}, "Ada <ada@example.com>", "reason 1", False),
    ]
    assert document["staging"][2]["promotion"] == made.id
    (released,) = document["production"]
    assert list(released["lead"]["digits"]) == ["committed", "registered", "released to staging", "released to production"]
    assert sorted(released["lead"]["digits"].values()) == list(released["lead"]["digits"].values())
    assert main(["history", "production"]) == 0
    assert "digits 2: committed 2" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["history", "--most", "0"])
    assert "'0' is not between 1 and 1000000" in capsys.readouterr().err
    assert main(["history", "nowhere"]) == 3
