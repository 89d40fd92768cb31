"""Promote and roll back against MLflow's real registry: what moves, what is remembered, what is refused."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service as service_file
from mlops_build.adapters.registry import Registry, RegistryUnreachable
from mlops_build.errors import MlopsBuildError, NotFound, Refused, UsageError
from mlops_build.model import identity, openapi
from mlops_build.model.contract import BreaksCallers
from mlops_build.model.version import BadVersion
from mlops_build.release import alias
from tests.release.world import SERVICE, Promote

DIGITS = service_file.parse(SERVICE)
DIRTY = {identity.DIRTY: "true"}
Register = Callable[..., Any]


@pytest.fixture
def promote(promote: Promote) -> Promote:
    """In the folder of the service digits, if nothing else is said."""
    return functools.partial(promote, service=DIGITS)


def test_a_rollback_without_mlflow_names_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnreachable) as unreachable:
        alias.rollback(Registry("http://127.0.0.1:1"), DIGITS, "digits", "production")
    assert "mlops-build rollback --from-git production" in str(unreachable.value.remedy)


def test_promoting_moves_the_alias_and_remembers(registry: Registry, promote: Promote) -> None:
    first = promote(1)
    assert (first.before, first.after, first.changed, str(first)) == (None, 1, True, "digits staging: none → 1")
    second = promote(2)
    assert str(second) == "digits staging: 1 → 2"
    assert registry.aliases("digits") == {"staging": 2}
    assert registry.version("digits", 2).tags["mlops_build.previous.staging"] == "1"
    assert "mlops_build.previous.staging" not in registry.version("digits", 1).tags


def test_an_environment_may_follow_another_alias(registry: Registry, promote: Promote) -> None:
    assert promote(1, "production").alias == "live"
    assert registry.aliases("digits") == {"live": 1}
    # Outside the service's folder nothing says so.
    assert promote(1, "production", service=None).alias == "production"


def test_promoting_from_one_environment_to_the_next(promote: Promote) -> None:
    promote(2)
    assert promote("staging", "production").after == 2


def test_the_same_version_again_is_a_new_promotion(registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(1)
    promote(2)
    before = registry.version("digits", 2).tags
    moved: list[object] = []
    monkeypatch.setattr(registry, "set_alias", lambda *arguments: moved.append(arguments))
    move = promote(2)
    assert not move.changed
    assert moved == [("digits", "staging", 2)], "MLflow sends an event for it"
    assert str(move) == "digits staging is version 2 already; the new promotion is stored"
    # It is a new promotion, which says so in Git.
    tags = registry.version("digits", 2).tags
    assert {name for name in tags if tags[name] != before[name]} == {"mlops_build.promotion.staging"}


def test_rolling_back_goes_step_by_step(registry: Registry, promote: Promote) -> None:
    for number in (1, 2, 3):
        promote(number)
    assert str(alias.rollback(registry, DIGITS, "digits", "staging")) == "digits staging: 3 → 2"
    assert str(alias.rollback(registry, DIGITS, "digits", "staging")) == "digits staging: 2 → 1"
    with pytest.raises(Refused, match="no previous version is stored") as refused:
        alias.rollback(registry, DIGITS, "digits", "staging")
    assert "other versions: 3, 2" in str(refused.value.remedy)
    assert registry.aliases("digits") == {"staging": 1}
    assert alias.rollback(registry, DIGITS, "digits", "staging", 3).after == 3


def test_promoting_an_older_version_is_undone_by_rollback_too(registry: Registry, promote: Promote) -> None:
    for number in (1, 2, 1):
        promote(number)
    assert str(alias.rollback(registry, DIGITS, "digits", "staging")) == "digits staging: 1 → 2"


def test_killed_between_tag_and_alias_a_second_run_finishes(registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(1)
    with monkeypatch.context() as killed:
        killed.setattr(Registry, "set_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            promote(2)
    assert registry.aliases("digits") == {"staging": 1}
    promote(2)
    assert alias.rollback(registry, DIGITS, "digits", "staging").after == 1


def test_an_alias_that_was_deleted_is_not_remembered(registry: Registry, promote: Promote) -> None:
    for number in (1, 2):
        promote(number)
    registry.delete_alias("digits", "staging")
    promote(2)
    with pytest.raises(Refused, match="no previous version is stored"):
        alias.rollback(registry, DIGITS, "digits", "staging")


@pytest.mark.parametrize("nonsense", ["0", "x", "-1", "1\n", "../1", "99999999999"])
def test_a_remembered_version_that_is_none_is_not_followed(registry: Registry, promote: Promote, nonsense: str) -> None:
    promote(1)
    registry.set_tag("digits", 1, identity.previous_tag("staging"), nonsense)
    with pytest.raises(Refused, match="no previous version is stored"):
        alias.rollback(registry, DIGITS, "digits", "staging")


def test_a_remembered_version_that_was_deleted_is_named(registry: Registry, promote: Promote) -> None:
    promote(1)
    registry.set_tag("digits", 1, identity.previous_tag("staging"), "7")
    with pytest.raises(NotFound, match="no version 7"):
        alias.rollback(registry, DIGITS, "digits", "staging")


@pytest.mark.parametrize(("service", "env"), [(DIGITS, "production"), (None, "production")])
def test_a_dirty_version_is_not_for_production(registry: Registry, register: Register, promote: Promote, service: Any, env: str) -> None:
    register(), register(tags=DIRTY)
    promote(1, env, service=service)
    assert promote(2, service=service).dirty
    with pytest.raises(Refused, match="made from uncommitted changes") as refused:
        promote(2, env, service=service)
    assert refused.value.exit_code == 4
    assert "--force-dirty" in str(refused.value.remedy)
    with pytest.raises(Refused, match="made from uncommitted changes"):
        alias.rollback(registry, service, "digits", env, 2)
    assert promote(2, env, service=service, force_dirty=True).after == 2


def test_an_environment_that_follows_production_is_production(register: Register, promote: Promote) -> None:
    register(tags=DIRTY)
    service = service_file.parse(SERVICE.replace("  staging:\n", "  eu:\n    alias: production\n"))
    with pytest.raises(Refused, match="made from uncommitted changes"):
        promote(1, "eu", service=service)


BAD_TAGS = [
    (identity.DIGEST_TAG, None),
    (identity.COMMIT_TAG, None),
    (identity.DIGEST_TAG, "sha256:" + "0" * 64 + "\n"),
    (identity.DIGEST_TAG, "../../etc"),
    (identity.COMMIT_TAG, "{{ 7 * 7 }}"),
    (identity.COMMIT_TAG, "a" * 40 + "\nSigned-off-by: x"),
    (identity.COMMIT_TAG, "none"),
    (identity.DATA, "x\n\nVersion: 9"),
]


@pytest.mark.parametrize(("tag", "value"), BAD_TAGS)
def test_a_version_with_other_tags_than_ours_is_refused(
    registry: Registry, register: Register, promote: Promote, tag: str, value: str | None
) -> None:
    register(tags={tag: value})
    with pytest.raises(BadVersion, match=tag.rpartition(".")[2]) as refused:
        promote(1)
    assert "'digits' version 1" in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.remedy
    assert registry.aliases("digits") == {}


@pytest.mark.parametrize(
    ("model", "version", "env", "kind", "why"),
    [
        ("nope", 1, "staging", NotFound, "no registered model 'nope'"),
        ("digits", 9, "staging", NotFound, "no version 9"),
        ("digits", "nope", "staging", NotFound, "no alias 'nope'"),
        ("digits", 1, "nowhere", NotFound, "no environment 'nowhere'"),
        ("other", 1, "../x", UsageError, "is not an environment"),
        ("other", 1, "latest", UsageError, "is not an environment"),
        ("x'y", 1, "staging", (NotFound, UsageError), "x'y"),
    ],
)
def test_what_does_not_exist_is_named(
    registry: Registry, register: Register, model: str, version: Any, env: str, kind: type[MlopsBuildError], why: str
) -> None:
    register()
    with pytest.raises(kind, match=why) as missing:
        alias.promote_all(registry, DIGITS, {model: version}, env)
    assert missing.value.remedy


def test_rolling_back_where_nothing_was_promoted(registry: Registry, register: Register) -> None:
    register()
    with pytest.raises(NotFound, match="no alias 'staging'"):
        alias.rollback(registry, DIGITS, "digits", "staging")


@pytest.mark.parametrize("in_file", [False, True])
def test_a_hold_is_mentioned(promote: Promote, checkout: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool) -> None:
    service = service_file.parse(SERVICE if in_file else SERVICE.replace("hold: {}", "hold: {staging: 'black friday'}"))
    if in_file:
        monkeypatch.chdir(checkout)
        (checkout / "deploy/overlays/staging/hold.yaml").write_text("schema: 1\nwhy: black friday\n")
    move = promote(1, service=service)
    assert move.changed
    assert alias.remarks(move, service) == [
        "staging is held, so nothing is released: black friday (to end it: mlops-build hold staging --remove)"
    ]
    assert alias.remarks(promote(1, service=None), None) == []


def test_another_services_model_is_remarked(promote: Promote) -> None:
    move = promote(1, "production", model="other")
    assert move.alias == "production"
    assert "not one of digits's models" in alias.remarks(move, DIGITS)[0]


def signature(*names: str) -> dict[str, str]:
    return {"inputs": json.dumps([{"type": "double", "name": name, "required": True} for name in names])}


def with_contract(version: Any, major: int, *names: str) -> None:
    """The version's openapi.json, as registering writes it."""
    document = openapi.openapi("digits", [openapi.Described("digits", None, signature(*names), None)], major)
    (Path(version.source.removeprefix("file://")) / "openapi.json").write_text(openapi.as_text(document))


def test_a_version_that_breaks_callers_is_not_promoted(registry: Registry, register: Register, promote: Promote) -> None:
    register(signature=signature("a", "b")), register(signature=signature("a", "c"))
    promote(1)
    with pytest.raises(BreaksCallers) as refused:
        promote(2)
    assert "digits: input column b (double) is gone; renamed to c?" in refused.value.message
    assert refused.value.exit_code == 4
    assert registry.aliases("digits") == {"staging": 1}
    assert "mlops_build.previous.staging" not in registry.version("digits", 2).tags
    # An environment that nobody calls yet breaks nobody.
    assert promote(2, "production").callers == ()


def test_a_higher_major_is_promoted_and_says_whom_it_breaks(registry: Registry, register: Register, promote: Promote) -> None:
    register(signature=signature("a", "b"))
    with_contract(register(), 2, "a")
    promote(1)
    move = promote(2)
    assert registry.aliases("digits") == {"staging": 2}
    assert alias.remarks(move, DIGITS) == ["digits: input column b (double) is gone (contract 1 → 2)"]
    # Back is a rollback, which asks nothing: whoever does it is in need.
    with pytest.raises(BreaksCallers):
        promote(1)
    assert alias.rollback(registry, DIGITS, "digits", "staging").after == 1


def test_contracts_that_cannot_be_read(register: Register, promote: Promote) -> None:
    first, second, third = (register(signature=signature("a")) for _ in range(3))
    promote(first.version)
    shutil.rmtree(first.source.removeprefix("file://"))
    move = promote(second.version)
    assert "callers of digits 1 may break, its contract could not be compared" in alias.remarks(move, DIGITS)[0]
    shutil.rmtree(third.source.removeprefix("file://"))
    move = promote(third.version)
    assert "MLmodel cannot be read" in alias.remarks(move, DIGITS)[0]


def test_the_next_step_is_a_promotion_that_will_work(registry: Registry, register: Register, promote: Promote) -> None:
    register(signature=signature("a", "b")), register(signature=signature("a", "b")), register(signature=signature("a", "c"))
    first = alias.next_step(registry, DIGITS, {"digits": 1})
    assert str(first) == "next: mlops-build promote digits 1 --to staging"
    promote(1)
    assert str(alias.next_step(registry, DIGITS, {"digits": 1})) == "", "it is there already"
    assert not alias.next_step(registry, DIGITS, {"digits": 2}).refusals
    broken = alias.next_step(registry, DIGITS, {"digits": 3})
    assert broken.command is None
    assert str(broken).startswith("digits 3 cannot be promoted to staging: digits 3 in the place of 1 breaks its callers")
    assert "contract: 2" in str(broken).splitlines()[-1]
    assert registry.aliases("digits") == {"staging": 1}, "nothing is promoted by asking"


def test_the_next_step_for_several_models_is_one_promotion(registry: Registry, register: Register) -> None:
    pair = service_file.parse(SERVICE.replace("  - name: digits\n", "  - name: digits\n  - name: letters\n", 1))
    register(), register(name="letters")
    assert str(alias.next_step(registry, pair, {"digits": 1, "letters": 1})) == "next: mlops-build promote digits=1 letters=1 --to staging"
    alias.promote_all(registry, pair, {"digits": 1, "letters": 1}, "staging")
    register(name="letters")
    both = {"digits": 1, "letters": 2}
    assert str(alias.next_step(registry, pair, both)) == "next: mlops-build promote letters 2 --to staging"


def test_the_next_step_goes_to_the_services_first_environment(registry: Registry, register: Register) -> None:
    alone = service_file.parse(SERVICE.replace("  staging:\n    namespace: ml-staging\n    host: digits-staging.example.com\n", ""))
    register(), register(tags=DIRTY)
    assert alias.next_step(registry, alone, {"digits": 1}).command == "mlops-build promote digits 1 --to production"
    assert "made from uncommitted changes" in str(alias.next_step(registry, alone, {"digits": 2}))


def test_a_version_that_was_never_in_staging_is_remarked_on_its_way_to_production(promote: Promote) -> None:
    for number in (1, 2, 3):
        promote(number)
    untried = promote(4, "production")
    assert untried.skipped == ("staging",)
    assert alias.remarks(untried, DIGITS) == [
        "MLflow has no promotion of digits 4 to staging; to try it there: mlops-build promote digits 4 --to staging"
    ]
    for number in (1, 2, 3):  # replaced, replaced, and there now
        assert alias.remarks(promote(number, "production"), DIGITS) == []
    # A promotion to staging comes first, and one without a change is old news.
    assert promote(4).skipped == ()
    assert promote(3, "production").skipped == ()
    # Outside of a service's folder the environments are called as always.
    assert promote(5, "production", service=None).skipped == ("staging",)


def test_a_version_that_was_in_staging_is_known_after_later_promotions(promote: Promote) -> None:
    for number in (1, 3, 2, 3):  # version 3 now says that it replaced 2
        promote(number)
    assert promote(1, "production").skipped == ()


def test_without_another_environment_nothing_is_skipped(promote: Promote) -> None:
    alone = service_file.parse(SERVICE.replace("  staging:\n    namespace: ml-staging\n    host: digits-staging.example.com\n", ""))
    assert promote(1, "production", service=alone).skipped == ()
