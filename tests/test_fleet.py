"""fleet.yaml: its grammar, its freezes, and what holds while it cannot be read."""

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from mlops_build import fleet
from mlops_build.fleet import FleetError, Freeze, frozen, rules
from mlops_build.fleet.rules import Frozen, Rules
from tests.conftest import git

TEXT = """\
schema: 1
repositories:
  urls: [https://git.example.com/ml/digits.git, git@git.example.com:ml/spam.git]
  bitbucket: {api: https://git.example.com, project: ML}
  gitlab: {api: https://gitlab.example.com, group: ml/models}
freeze:
  - environments: [production]
    from: 2026-12-18T18:00+01:00
    until: "2027-01-04 08:00:00Z"
    why: Christmas
  - {environments: [production, staging], from: 2026-12-31T12:00Z, until: 2027-01-01T12:00Z, why: inventory}
notify: [mailto://ml@example.com]
"""
# Aliases of aliases: 8^8 values in ten lines.
ALIASES = "schema: 1\nx0: &a0 [1]\n" + "".join(f"x{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 8)}]\n" for n in range(8))
START = datetime(2026, 12, 18, 17, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def freeze(more: str = "") -> str:
    return f"schema: 1\nfreeze: [{{environments: [a], from: 2026-01-01T00:00Z, until: 2026-01-02T00:00Z, why: x{more}}}]"


def why(freeze: Freeze | None) -> str | None:
    return freeze.why if freeze else None


def test_a_freeze_begins_and_ends_at_its_times() -> None:
    made = fleet.parse(TEXT)
    times = [START - MINUTE, START, datetime(2026, 12, 31, 13, tzinfo=UTC), datetime(2027, 1, 4, 7, 59, tzinfo=UTC)]
    assert [why(frozen(made, "production", now)) for now in times] == [None, "Christmas", "Christmas", "Christmas"]
    assert [why(frozen(made, "staging", now)) for now in times] == [None, None, "inventory", None]
    assert frozen(made, "production", datetime(2027, 1, 4, 8, tzinfo=UTC)) is None
    assert frozen(made, "production", START.astimezone(timezone(timedelta(hours=9)))) == made.freeze[0]
    assert frozen(fleet.parse("schema: 1"), "production", START) is None


def test_the_schema_for_editors_agrees() -> None:
    schema = json.loads(json.dumps(fleet.json_schema()))
    content = YAML(typ="safe", pure=True).load(TEXT)
    for entry in content["freeze"]:
        entry["from"] = entry["until"] = "2026-12-18T18:00+01:00"
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "freezes": []}, schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a mapping"),
        ("a: [", "not valid YAML"),
        ("schema: 2", "schema"),
        ("schema: 1\nfreezes: []", "line 2: unknown key 'freezes'; did you mean 'freeze'?"),
        (freeze(", who: me"), "unknown key"),
        (freeze().replace("[a]", "[]"), "environments"),
        (freeze().replace("[a]", "[A/B]"), "an environment of service.yaml"),
        (freeze().replace("T00:00Z, until", ", until"), "line 2: freeze.0.from: '2026-01-01' is not a time with an offset"),
        (freeze().replace("2026-01-02T00:00Z", "2026-01-02T00:00"), "until: '2026-01-02T00:00' is not a time with an offset"),
        (freeze().replace("2026-01-02", "2026-13-02"), "month must be in 1..12"),
        (freeze().replace("2026-01-02", "2025-01-02"), "until must be after from"),
        (freeze().replace("why: x", "why: ''"), "printable characters"),
        (freeze().replace("why: x", 'why: "a\\nb"'), "printable characters"),
        ("schema: 1\nrepositories: {urls: [--upload-pack=x]}", "line 2: repositories.urls.0: '--upload-pack=x' is not a valid repository"),
        ("schema: 1\nrepositories: {urls: ['https://me:secret@git.example.com/a']}", "must not contain a password"),
        ("schema: 1\nrepositories: {urls: [1]}", "not a valid repository"),
        ("schema: 1\nrepositories: {bitbucket: {api: 'ftp://x', project: ML}}", "the host's address"),
        ("schema: 1\nrepositories: {gitlab: {api: https://x, group: ../up}}", "the group's path"),
        ("schema: 1\nnotify: ['']", "printable characters"),
        ("schema: 1\nnotify: ['json://x/${TOKEN}']", "line 2: notify.0: only ${MLOPS_NOTIFY_…}"),
        ("schema: 1\nnotify: ['json://x/${MLOPS_NOTIFY_a}']", "only ${MLOPS_NOTIFY_…}"),
        (ALIASES, "100000 values"),
        ("x: " + "[" * 800, "too deep"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(FleetError) as caught:
        fleet.parse(text)
    assert message in caught.value.message
    assert "secret" not in caught.value.message


def test_the_rules_of_a_file_and_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_git_settings: None) -> None:
    monkeypatch.delenv(rules.VARIABLE, raising=False)
    assert rules.read() == Rules()
    file = tmp_path / "fleet.yaml"
    file.write_text(TEXT)
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", "fleet.yaml")
    git(tmp_path, "commit", "--quiet", "--message=Set the fleet up")
    expected = Rules(fleet.parse(TEXT))
    assert rules.read(str(file)) == rules.read(tmp_path.as_uri()) == rules.read(f"{tmp_path.as_uri()}#main") == expected
    assert rules.read(str(tmp_path)) == rules.read(f"{tmp_path}#main") == expected
    monkeypatch.setenv(rules.VARIABLE, str(file))
    assert rules.read() == expected
    assert expected.freeze("production", START) == "frozen until 2027-01-04T08:00:00+00:00: Christmas"


def test_a_freeze_refuses_all_but_going_back() -> None:
    long = {"from": START - timedelta(days=9999), "until": START + timedelta(days=9999)}
    made = Rules(fleet.Fleet(schema=1, freeze=[Freeze.model_validate({"environments": ["production"], **long, "why": "always"})]))
    with pytest.raises(Frozen, match=r"production is not changed: frozen until .*: always"):
        made.check("production", goes_back=False)
    made.check("production", goes_back=True)
    made.check("staging", goes_back=False)


@pytest.mark.parametrize(
    "where", ["/nowhere/fleet.yaml", "file:///nowhere", "https://me:secret@git.example.com/a", "invalid", "folder", "binary"]
)
def test_while_it_cannot_be_read_production_only_goes_back(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("invalid").write_text("schema: 1\nfreezes: []\n")
    Path("folder").mkdir()
    Path("binary").write_bytes(os.urandom(99) + b"\xff")
    made = rules.read(where)
    assert made.error is not None
    assert "secret" not in made.error.message
    assert made.freeze("staging") is None
    with pytest.raises(Frozen, match="whether production is frozen is not known"):
        made.check("production", goes_back=False)
    made.check("production", goes_back=True)

    kept = tmp_path / "kept.yaml"
    assert rules.read(where, kept=kept).error is not None
    kept.write_text(TEXT)
    assert rules.read(where, kept=kept) == rules.read(None, kept=kept) == Rules(fleet.parse(TEXT))
