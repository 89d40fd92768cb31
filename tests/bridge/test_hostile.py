"""Hostile strings in the registry and in files: nothing gets into a file or a commit but a value in its place."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build import fleet, service
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.errors import MlopsBuildError
from mlops_build.model import identity
from mlops_build.packaging.name import image_name
from mlops_build.release import alias, failure, hold, promotion
from mlops_build.release import record as records
from mlops_build.release.tree import Tree
from tests.conftest import git
from tests.release.world import SERVICE, MakeRepository

STRINGS = [
    "", " ", "\n", "x\ny", "x\nPromoted-By: root", "x\r\nVersion: 9", "../../etc/passwd", "/etc/passwd", "--upload-pack=x", "-x",
    "$(id)", "`id`", "${IFS}x", "{{ 7 * 7 }}", "{% raw %}", "a: b", "- a", "x # y", "'", '"', "\\", "&a", "*a",
    "!!python/object:os.system x", "\x00", "\x1b[31m", "\x7f", "\u202ex", "\u2028", "\ufeff", "é", "🙂", "x" * 5000, "null", "true",
    "2026-99-99", "0x10", "9" * 5000, "%00", "a;b", "a|b", "<b>", "file:///etc/passwd", "ext::sh -c id", "http://169.254.169.254/",
    "https://me:secret@git.example.com/x", "a@b -oProxyCommand=id:x",
]  # fmt: skip
# Texts that are YAML, but not a file of ours.
TEXTS = [
    "[" * 5000, "- " * 5000, "a: {" * 500, "\n".join(" " * depth + "a:" for depth in range(500)), "why: 2026-99-99", "why: !!int x",
    "why: !!float x", "why: !!timestamp 1", "why: !!binary '*'", "? [a]\n: b", "{{a: 1}: 2}", "why: &a [*a]", "why: *a", "<<: 3",
    "why: 0b" + "1" * 20000, "why: 2026-01-01T00:00:00+99:99", "a: 1\n---\nb: 2", "%YAML 9.9", 'why: "\\ud800"',
    "why: !!python/object:os.system x", "why: a: b", "\t- a",
    "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 8)}]\n" for n in range(20)),
]  # fmt: skip
SECRET = "secret@"

FREEZE = "schema: 1\nfreeze: [{environments: [production], from: 2026-01-01T00:00Z, until: 2026-01-02T00:00Z, why: x}]\n"
FLEET_FIELDS = [
    FREEZE.replace("[production]", "[EVIL]"),
    *(FREEZE.replace(value, "EVIL") for value in ("2026-01-01T00:00Z", "2026-01-02T00:00Z")),
    "schema: 1\nrepositories: {urls: [EVIL]}\n",
    *(
        f"schema: 1\nrepositories: {{bitbucket: {{api: {api}, project: {project}}}}}\n"
        for api, project in (("EVIL", "ML"), ("https://x", "EVIL"))
    ),
    *(f"schema: 1\nrepositories: {{gitlab: {{api: {api}, group: {group}}}}}\n" for api, group in (("EVIL", "ml"), ("https://x", "EVIL"))),
    FREEZE.replace("why: x", "why: EVIL"),
    "schema: 1\nnotify: [EVIL]\n",
    "schema: 1\nEVIL: 1\n",
]
SERVICE_FIELDS = [
    *(
        SERVICE.replace(old, new)
        for old, new in (
            ("name: digits #", "name: EVIL #"),
            ("team: ml", "team: EVIL"),
            ("- name: digits", "- name: EVIL"),
            ("  staging:", "  EVIL:"),
            ("namespace: ml-staging", "namespace: EVIL"),
            ("host: digits-staging.example.com", "host: EVIL"),
            ("alias: live", "alias: EVIL"),
            ("memory: 1536MiB", "memory: EVIL"),
            ("gpu: {mode: none}", "gpu: {mode: EVIL}"),
            ('"registry.example.com:5000/ml"', "EVIL"),
            ("5000/ml\"", "5000/ml\", base: EVIL"),
            ("5000/ml\"", "5000/ml\", apt: [EVIL]"),
            ("5000/ml\"", "5000/ml\", revision: EVIL"),
            ("hold: {}", "hold: {staging: EVIL}"),
            ("hold: {}", "hold: {EVIL: x}"),
        )
    ),
    SERVICE + "git: {subject_prefix: EVIL}\n",
    SERVICE + "git: {pull_requests: gitlab, api: EVIL}\n",
    SERVICE + "tracking: {uri: EVIL}\n",
]  # fmt: skip


def accepted(parse: Callable[[str], Any], text: str) -> Any:
    """What a parser makes of a text; None if it refuses it, in printable lines without a secret, and with a remedy."""
    refused = None
    try:
        return parse(text)
    except MlopsBuildError as error:
        refused = error
    assert all(line.isprintable() for line in refused.message.splitlines())
    assert len(refused.message) < 2000
    assert SECRET not in refused.message
    assert refused.remedy
    return None


def shape(node: Any) -> Any:
    """Types and keys of a document, without its values."""
    if isinstance(node, dict):
        return {key: shape(value) for key, value in node.items()}
    return [shape(item) for item in node] if isinstance(node, list) else type(node).__name__


def structure(files: dict[str, str]) -> Any:
    return {name: [shape(document) for document in YAML(typ="safe", pure=True).load_all(text)] for name, text in files.items()}


MODEL = records.ModelVersion("digits", 2, f"sha256:{1:064x}", f"{2:032x}")
RECORD = records.Record("production", (MODEL,), f"{3:040x}", image_name(service.parse(SERVICE), [MODEL]))


def test_a_string_in_service_yaml_stays_a_value_of_the_release() -> None:
    expected = structure(records.render(RECORD, service.parse(SERVICE)))
    accepted_count = 0
    for field in SERVICE_FIELDS:
        for string in STRINGS:
            parsed = accepted(service.parse, field.replace("EVIL", json.dumps(string)))
            if parsed is not None:
                accepted_count += 1
                assert structure(records.render(RECORD, parsed)) == expected, (field, string)
    assert 0 < accepted_count < len(SERVICE_FIELDS) * len(STRINGS) / 4
    assert len(SERVICE_FIELDS) * len(STRINGS) > 200


def test_a_string_in_fleet_yaml_is_refused_or_a_text() -> None:
    for field in FLEET_FIELDS:
        for string in STRINGS:
            parsed = accepted(fleet.parse, field.replace("EVIL", json.dumps(string)))
            for freeze in parsed.freeze if parsed else ():
                assert freeze.why.isprintable()
    assert len(FLEET_FIELDS) * len(STRINGS) > 200


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_that_is_not_valid_is_refused_at_once(text: str) -> None:
    for start in ("", "schema: 1\n"):
        for parse in (service.parse, fleet.parse, records.parse):
            assert accepted(parse, start + text) is None
        held = hold.read((start + text).encode(errors="surrogatepass"), "staging", None)
        assert held
        assert held.isprintable()


def test_a_repository_that_cannot_be_examined_does_not_stop_the_others(
    make_repository: MakeRepository, registry: Registry, promote: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)
    first, second, third = (make_repository(name) for name in ("a", "b", "c"))
    (first / ".gitattributes").write_text("deploy/** export-ignore\nservice.yaml export-ignore\n")
    git(first, "add", "--all")
    git(first, "commit", "--quiet", "--message=Leave it out")
    git(first, "push", "--quiet")
    tree_at = Tree.at

    def defect(objects: Any, commit: str) -> Tree:
        if objects.url == f"file://{second}.git":
            raise ZeroDivisionError("a defect\x1b[2J")
        return tree_at(objects, commit)

    monkeypatch.setattr(Tree, "at", defect)
    outcomes = reconcile.once([f"file://{each}.git" for each in (first, second, third)], registry)
    assert [outcome.state for outcome in outcomes] == ["failed", "nothing promoted yet", "failed", "released", "nothing promoted yet"]
    assert "remove its `export-ignore`" in str(outcomes[0].error.remedy if outcomes[0].error else None)
    assert str(outcomes[2]) == f"file://{second}.git  failed  ZeroDivisionError: a defect\\x1b[2J"


def promoted(**change: Any) -> str:
    return json.dumps({"id": "0" * 16, "by": "Ada", "at": int(time.time()), "why": "x", "models": {"digits": 2}, **change})


FIELDS: dict[str, Callable[[str], dict[str, str]]] = {
    "commit": lambda string: {identity.COMMIT_TAG: string},
    "data": lambda string: {identity.DATA: string},
    "digest": lambda string: {identity.DIGEST_TAG: string},
    "service": lambda string: {identity.SERVICE: string},
    "failed": lambda string: {failure.tag("staging"): string},
    "promotion": lambda string: {promotion.tag("staging"): string},
    "promotion's id": lambda string: {promotion.tag("staging"): promoted(id=string)},
    "promotion's by": lambda string: {promotion.tag("staging"): promoted(by=string)},
    "promotion's why": lambda string: {promotion.tag("staging"): promoted(why=string)},
    "promotion's model": lambda string: {promotion.tag("staging"): promoted(models={"digits": 2, string: 1})},
}
TRAILERS = {"Model", "Version", "Run", "Alias", "Previous-Version", "Code", "Data", "Registered", "Promotion", "Promoted-By", "Why"}


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_a_string_in_the_registry_changes_nothing_else(
    checkout: Path, registry: Registry, register: Callable[..., Any], field: str
) -> None:
    register()
    alias.promote_all(registry, service.load(checkout), {"digits": 1}, "staging")
    remote = checkout.with_name("digits.git")
    assert reconcile.once([f"file://{remote}"], registry)[0].state == "released"
    first = git(remote, "rev-parse", "main")
    expected = structure(files_of(remote))
    version = register()
    registry.set_alias("digits", "staging", 2)
    tags = dict(version.tags)
    for string in STRINGS[2:32:3]:
        for name, value in {**tags, **FIELDS[field](string[:4000].replace("\x00", "NUL"))}.items():
            registry.set_tag("digits", 2, name, value)
        outcome = reconcile.once([f"file://{remote}"], registry)[0]
        assert str(outcome).isprintable(), string
        if git(remote, "rev-parse", "main") != first:
            assert structure(files_of(remote)) == expected, string
            assert outcome.after == "digits 2", string
            assert set(git(remote, "diff", "--name-only", first, "main").splitlines()) == set(files_of(remote)), string
            body = git(remote, "log", "-1", "--format=%B", "main")
            trailers = re.findall(r"^([A-Z][A-Za-z-]*): (.*)$", body, re.MULTILINE)
            assert {key for key, _ in trailers} <= TRAILERS, string
            assert [value for key, value in trailers if key in ("Model", "Version")] == ["digits", "2"], string
            assert len([key for key, _ in trailers if key == "Promoted-By"]) == 1, string
        else:
            assert outcome.state in ("failed", "waiting", "unchanged"), string
        git(remote, "update-ref", "refs/heads/main", first)
        for name in FIELDS[field](""):
            if name not in tags:
                registry.delete_tag("digits", 2, name)


def files_of(remote: Path) -> dict[str, str]:
    folder = records.folder("staging")
    return {
        path: git(remote, "show", f"main:{path}") for path in git(remote, "ls-tree", "-r", "--name-only", "main", f"{folder}/").splitlines()
    }
