"""`mlops-build audit` on a clean world, on one with a fault of each kind, and while something does not answer."""

import hashlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from mlops_build.audit import artifacts, known, policy
from tests.audit.world import World, clean, seed
from tests.conftest import git
from tests.release.world import SERVICE, alone, empty_database, registry

__all__ = ["alone", "empty_database", "registry"]

Audit = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def world(registry: Any, tmp_path: Path) -> World:
    def sql(statement: str) -> None:
        with sqlite3.connect(registry.uri.removeprefix("sqlite:///")) as database:
            database.execute(statement)

    return World(tmp_path, registry.uri, str(tmp_path / "artifacts"), str(tmp_path / "remote"), None, sql)


@pytest.fixture
def audit(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Audit:
    """audit("--deep"): the exit code, the document and stderr of an audit of all services."""
    monkeypatch.chdir(world.folder)

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        repositories = [word for name in world.works for word in ("--repo", world.url(name))]
        code = main(["audit", "--json", *repositories, *arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return run


def pairs(document: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted((each["rule"], each["subject"]) for each in document["findings"])


def test_a_clean_world_has_no_finding(world: World, audit: Audit) -> None:
    clean(world)
    world.put(world.store, "7/traces/tr-1/artifacts/traces.json", b"{}")
    world.client.register_prompt("greeting", "Hello {{name}}")
    # A folder is a single copy; nothing else is wrong.
    single = [("single-copy-data", world.remote), ("single-copy-files", world.store)]
    for option in ([], ["--deep"]):
        code, document, _ = audit(*option)
        assert (pairs(document), document["not_looked_at"], code) == (single, [], 0)


def test_each_seeded_fault_is_found_and_none_is_invented(world: World, audit: Audit, tmp_path: Path) -> None:
    expected, deep = seed(world)
    code, document, _ = audit("--csv", "audit.csv")
    assert pairs(document) == sorted(expected)
    assert (code, document["not_looked_at"]) == (4, [])
    assert len((tmp_path / "audit.csv").read_text().splitlines()) == len(expected) + 1
    assert all(each["why"] and each["remedy"] for each in document["findings"])
    _, document, _ = audit("--deep")
    altered = set(pairs(document))
    assert altered == deep
    assert {rule for rule, _ in expected | altered} == set(policy.rules())


def test_nothing_is_missing_in_what_does_not_answer(world: World, audit: Audit) -> None:
    clean(world)
    Path(world.store).rename(f"{world.store}-away")
    Path(world.remote).rename(f"{world.remote}-away")
    world.works["gone"] = world.folder / "gone"
    world.version(commit="f" * 40, files={}, service="gone", repository=world.url("gone"))
    code, document, err = audit()
    assert pairs(document) == [("single-copy-data", world.remote)]
    assert code == 5
    unseen = "\n".join(document["not_looked_at"])
    for place in (world.store, world.remote, world.url("gone")):
        assert place in unseen
    assert "not looked at:" in err
    code, document, _ = audit("--propose", "delete.sh")
    assert (code, "did not look at everything" in document["not_proposed"]) == (4, True)
    assert pairs(document) == [("single-copy-data", world.remote)]
    assert not Path("delete.sh").exists()


def test_files_that_the_server_hands_out_need_the_name_of_their_place(world: World, audit: Audit) -> None:
    clean(world)
    run = world.run_of(1)
    world.sql("update runs set artifact_uri = 'mlflow-artifacts:/7/' || run_uuid || '/artifacts'")
    world.change(1, f"source = 'mlflow-artifacts:/7/{run}/artifacts/versions/one', storage_location = null")
    code, document, _ = audit()
    assert (code, pairs(document)) == (5, [("single-copy-data", world.remote)])
    assert document["not_looked_at"] == ["the files that the MLflow server hands out itself: name where it keeps them: --artifacts URI"]
    assert audit("--artifacts", world.store)[1]["not_looked_at"] == []


def test_the_script_deletes_only_what_nothing_needs(world: World, audit: Audit, tmp_path: Path) -> None:
    clean(world)
    gone = world.version(commit=world.tracked("digits", world.data(b"later", days=50)))
    world.release("digits", "production", "digits", gone)
    world.release("digits", "production", "digits", 1)
    world.registry.set_alias("digits", "live", 1)
    run = world.run_of(gone)
    world.version(commit=None, service=None, repository=None, sha256="a" * 64)  # adopted: it needs no data
    world.client.delete_model_version("digits", str(gone))
    world.sql(f"delete from runs where run_uuid = '{run}'")  # noqa: S608
    erased = "9" * 32
    world.put(world.store, f"7/{erased}/artifacts/a b.pt", b"old", days=60)
    world.put(world.store, f"7/{'8' * 32}/artifacts/new.pt", b"new")
    world.put(world.store, f"{'7' * 32}; touch hacked/artifacts/x", b"hostile", days=60)
    world.put(world.store, "notes.txt", b"not of a run", days=60)
    old, new = world.data(b"nobody", days=60), world.data(b"nobody yet")
    for path in [*Path(world.store).rglob("*"), *Path(world.remote).rglob("*")]:
        if path.is_file() and "new" not in path.name and not path.as_posix().endswith(new[2:]):
            os.utime(path, (1_700_000_000, 1_700_000_000))
    code, document, _ = audit("--propose", "delete.sh")
    assert code == 0, document
    before = {path for base in (world.store, world.remote) for path in Path(base).rglob("*") if path.is_file()}
    script = (tmp_path / "delete.sh").read_text()
    for day in (0, 1):
        script = script.replace(f"{datetime.now(UTC) + timedelta(days=day):%Y-%m-%d}", "2026-01-01")
    late = subprocess.run(["sh", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (late.returncode, "write it again" in late.stderr) == (1, True)
    subprocess.run(["sh", "delete.sh"], check=True, cwd=tmp_path)
    deleted = before - {path for path in before if path.exists()}
    assert deleted == {Path(world.store) / f"7/{erased}/artifacts/a b.pt", Path(world.remote) / f"files/md5/{old[:2]}/{old[2:]}"}
    assert not (tmp_path / "hacked").exists()
    _, after, _ = audit("--deep")
    assert {rule for rule, _ in pairs(after)} <= {rule for rule, _ in pairs(document)}


def test_a_script_does_not_delete_data_while_it_is_not_known_what_is_needed(world: World, audit: Audit, tmp_path: Path) -> None:
    clean(world)
    world.data(b"nobody", days=60)
    world.version(commit="f" * 40)
    audit("--propose", "delete.sh")
    assert "rm " not in (tmp_path / "delete.sh").read_text()


def test_the_policy_says_what_fails_and_what_is_ignored(world: World, audit: Audit, tmp_path: Path) -> None:
    world.service("digits", "schema: 1\n", None)
    entry = "- {{rule: service-invalid, subject: '*digits.git', why: moved soon, until: {}}}\n"
    for text, code in [
        ("schema: 1\n", 4),
        ("schema: 1\nfail: [data-missing]\n", 0),
        ("schema: 1\nignore:\n" + entry.format("2999-01-01"), 0),
        ("schema: 1\nignore:\n" + entry.format("2999-01-01").replace("*digits", "*?igits"), 4),
        ("schema: 1\nignore:\n" + entry.format("2020-01-01"), 4),
    ]:
        (tmp_path / "audit.yaml").write_text(text)
        assert audit()[0] == code, text
    assert "not ignored since 2020-01-01 ended: *digits.git [service-invalid]: moved soon" in audit()[2]


@pytest.mark.parametrize(
    "text", ["fail: [data-missing]\n", "schema: 1\nfial: []\n", "schema: 1\nfail: [unknown]\n", "schema: 1\nkeep_days: 0\n", "[", "a: \x07"]
)
def test_an_invalid_policy_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "audit.yaml").write_text(text)
    assert main(["audit", "--policy", str(tmp_path / "audit.yaml"), "--repo", "file:///nothing"]) == 4
    assert "audit.yaml" in capsys.readouterr().err


def test_stages_become_aliases_but_no_alias_is_moved(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for archived in (None, None, None, None, "true"):
        world.version(commit="f" * 40, archived=archived)
    for version, stage in [(1, "Production"), (2, "Production"), (3, "Staging"), (4, "Archived"), (5, "Production")]:
        world.change(version, f"current_stage = '{stage}'")
    world.registry.set_alias("digits", "staging", 1)
    assert main(["registry", "migrate-stages"]) == 0
    assert world.registry.aliases("digits") == {"staging": 1}
    assert capsys.readouterr().out.splitlines() == [
        "models:/digits/2  production",
        "models:/digits/3  staging  kept: it points at 1 already",
    ]
    assert main(["registry", "migrate-stages", "--apply"]) == 0
    assert world.registry.aliases("digits") == {"staging": 1, "production": 2}


def test_what_a_version_of_an_erased_run_needs_is_kept(world: World, audit: Audit, tmp_path: Path) -> None:
    """Its run is not known, but its source names the run."""
    commit = clean(world)
    version = world.version(commit=commit)
    run = world.run_of(version)
    world.change(version, f"run_id = '{'e' * 32}'")
    world.sql(f"delete from runs where run_uuid = '{run}'")  # noqa: S608
    world.put(world.store, f"7/{run}/artifacts/versions/old/weights.pt", b"x", days=60)
    world.put(world.store, f"7/{'9' * 32}/artifacts/{'m-' + '8' * 32}/weights.pt", b"a logged model", days=60)
    world.put(world.store, f"7/{'9' * 32}/artifacts/a.pt", b"beside it", days=60)
    world.put(world.store, f"7/{'5' * 32}/artifacts/a.pt", b"of nobody", days=60)
    audit("--propose", "delete.sh")
    assert proposed(tmp_path) == [f"rm -r -- {world.store}/7/{'5' * 32}/artifacts"]


def proposed(folder: Path) -> list[str]:
    return [line for line in (folder / "delete.sh").read_text().splitlines() if line.startswith("rm ")]


@pytest.mark.parametrize("spelling", ["{0}//7//{1}", "{0}/./7/{1}", "{0}/7/../7/{1}", "file://{0}/7/%2e/{1}", "file:////{0}/7/{1}"])
def test_another_spelling_of_a_source_is_the_same_place(spelling: str, world: World, audit: Audit, tmp_path: Path) -> None:
    commit = clean(world)
    before = pairs(audit()[1])
    version = world.version(commit=commit)
    run = world.run_of(version)
    for path in (Path(world.store) / "7" / run).rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    world.sql(f"delete from runs where run_uuid = '{run}'")  # noqa: S608
    source = f"{spelling.format(world.store, run)}/artifacts/versions/one"
    world.change(version, f"source = '{source}', storage_location = '{source}'")
    world.put(world.store, f"7/{'5' * 32}/artifacts/a.pt", b"of nobody", days=60)
    _, document, _ = audit("--propose", "delete.sh")
    assert {rule for rule, _ in set(pairs(document)) - set(before)} == {"run-erased", "files-orphaned"}
    assert proposed(tmp_path) == [f"rm -r -- {world.store}/7/{'5' * 32}/artifacts"]


def test_a_remote_with_two_addresses_has_no_orphan_that_one_repository_needs(world: World, audit: Audit, tmp_path: Path) -> None:
    clean(world)
    (tmp_path / "link").symlink_to(world.remote)
    for number, address in enumerate([f"{world.remote}/../remote", f"{tmp_path}/link"]):
        name = f"other{number}"
        world.service(name, SERVICE.replace("digits", name), world.dvc(address))
        files = [world.data(f"{name} {part}".encode(), days=60) for part in (1, 2)]
        commit = world.tracked(name, world.data(world.list_of(*files), suffix=".dir", days=60))
        world.version(name, commit=commit, service=name, repository=world.url(name))
    world.data(b"nobody", days=60)
    _, document, _ = audit("--propose", "delete.sh")
    assert not {"data-missing", "remote-missing"} & {rule for rule, _ in pairs(document)}
    md5 = hashlib.md5(b"nobody", usedforsecurity=False).hexdigest()
    path = f"files/md5/{md5[:2]}/{md5[2:]}"
    assert sorted(proposed(tmp_path)) == sorted(f"rm -- {base}/{path}" for base in (world.remote, f"{tmp_path}/link"))


def test_nothing_is_deleted_in_a_store_without_files_of_the_registry(world: World, audit: Audit, tmp_path: Path) -> None:
    clean(world)
    other = tmp_path / "other"
    world.put(str(other), f"7/{'9' * 32}/artifacts/model.pt", b"of another MLflow", days=60)
    audit("--artifacts", str(other), "--propose", "delete.sh")
    assert "rm " not in (tmp_path / "delete.sh").read_text()


def test_data_of_a_release_whose_commit_is_missing_stops_all_deletions_of_data(world: World, audit: Audit, tmp_path: Path) -> None:
    clean(world)
    world.data(b"nobody", days=60)
    gone = world.version(commit="a" * 40)
    world.release("digits", "staging", "digits", gone)
    world.release("digits", "staging", "digits", 1)
    world.client.delete_model_version("digits", str(gone))
    audit("--propose", "delete.sh")
    assert "rm " not in (tmp_path / "delete.sh").read_text()


def test_hostile_texts_of_registry_repository_and_store_reach_no_terminal_and_no_formula(
    world: World, audit: Audit, tmp_path: Path
) -> None:
    evil = "\x1b[31m=cmd|' C calc'!A0;$(touch hacked)"
    commit = clean(world)
    files = {"a/x.dvc": f'outs: [{{md5: {"c" * 32}, path: "{evil[1:]}"}}]\n', "b/y.dvc": "outs: 7\n", "c/z.dvc": "[" * 5000}
    for path, text in files.items():
        world.commit("digits", {path: text})
        world.version(commit=git(world.works["digits"], "rev-parse", "HEAD").strip(), service=evil)
    world.version("=cmd " + evil[5:], commit=commit, repository=f"https://{evil}", layers='{"../x": 1}')
    world.version(commit=evil, source=f"/elsewhere/{evil}", layers="[" * 9999)
    world.put(world.store, f"{evil[1:]}/x", b"1", days=60)
    code, document, err = audit("--csv", "audit.csv")
    assert code == 4
    assert "b/y.dvc" not in err
    assert "not valid" in " ".join(document["not_looked_at"])
    assert main(["audit", "--repo", world.url("digits")]) == 4
    shown = json.dumps(document, ensure_ascii=False) + err + (tmp_path / "audit.csv").read_text()
    assert "\x1b" not in shown
    assert not [line for line in (tmp_path / "audit.csv").read_text().splitlines() for cell in line.split(",") if cell.startswith("=")]
    assert not (tmp_path / "hacked").exists()


def test_a_remedy_runs_nothing_that_a_name_holds(world: World, audit: Audit, tmp_path: Path) -> None:
    clean(world)
    for name in ("$(touch hacked)", "a`touch hacked`", "x; touch hacked", "it's", "a & b | c > hacked"):
        world.registry.set_alias(name, "production", world.version(name, commit=None, archived="true", sha256="a" * 64))
        world.version(name, commit="f" * 40)
        world.sql(f"""update model_versions set run_id = "{name}" where name = "{name}" """)  # noqa: S608
    _, document, _ = audit()
    remedies = {each["remedy"] for each in document["findings"] if "hacked" in each["remedy"] or "it's" in each["remedy"]}
    assert len(remedies) > 10
    programs, here = tmp_path / "programs", tmp_path / "here"
    programs.mkdir()
    here.mkdir()
    (programs / "touch").symlink_to("/usr/bin/touch")
    for remedy in remedies:
        subprocess.run(["/bin/sh", "-c", remedy], cwd=here, env={"PATH": str(programs)}, capture_output=True, check=False)
        assert list(here.iterdir()) == [], remedy


def test_data_that_a_commit_mentions_in_any_way_is_kept(world: World, audit: Audit, tmp_path: Path) -> None:
    """With a remote of its own, imported from another repository, not pushed, or of a commit that only a tag has."""
    clean(world)
    work = world.works["digits"]
    odd = [world.data(world.list_of(world.data(f"{name} in a folder".encode(), days=60)), suffix=".dir", days=60) for name in "abc"]
    out = "outs:\n- md5: {}\n  hash: md5\n  path: {}\n"
    imported = "deps:\n- path: raw.csv\n  repo: {url: 'https://example.com/spam.git', rev_lock: " + "a" * 40 + "}\n" + out
    files = {
        "data/own.dvc": out.format(odd[0], "own") + "  remote: storage\n",
        "data/imported.dvc": imported.replace("{}", odd[1], 1).replace("{}", "imported", 1),
        "data/stays.dvc": out.format(odd[2], "stays") + "  push: false\n",
    }
    world.version(commit=world.commit("digits", files))
    world.commit("digits", {"data/tagged.dvc": out.format(world.data(b"tagged", days=60), "tagged")})
    git(work, "tag", "--annotate", "--message=x", "v1")
    git(work, "push", "--quiet", "origin", "v1")
    git(work, "reset", "--quiet", "--hard", "HEAD~1")
    git(work, "push", "--quiet", "--force", "origin", "HEAD:main")
    nobody = world.data(b"nobody", days=60)
    _, document, _ = audit("--propose", "delete.sh")
    assert proposed(tmp_path) == [f"rm -- {world.remote}/files/md5/{nobody[:2]}/{nobody[2:]}"], document


def test_a_copy_of_a_version_has_the_files_of_the_other_one(world: World, audit: Audit) -> None:
    clean(world)
    before = pairs(audit()[1])
    world.client.copy_model_version("models:/digits/1", "copy")
    world.client.copy_model_version("models:/copy/1", "copy-of-copy")
    world.sql("update model_versions set source = 'models:/copy/1' where name = 'copy-of-copy'")
    after = set(pairs(audit("--deep")[1])) - set(before)
    assert not {rule for rule, _ in after} & {"source-unknown", "files-missing", "files-altered"}, after
    world.sql("update model_versions set source = 'models:/copy/1' where name = 'copy'")
    assert ("source-unknown", "models:/copy/1") in pairs(audit()[1])


def test_files_of_a_copy_whose_origin_was_deleted_and_whose_run_is_erased_are_kept(world: World, audit: Audit, tmp_path: Path) -> None:
    commit = clean(world)
    run = world.run_of(world.version(commit=commit))
    world.client.copy_model_version("models:/digits/2", "copy")
    world.client.delete_model_version("digits", "2")
    world.sql(f"delete from runs where run_uuid = '{run}'")  # noqa: S608
    world.put(world.store, f"7/{'5' * 32}/artifacts/a.pt", b"of nobody", days=60)
    for path in (Path(world.store) / "7" / run).rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    audit("--propose", "delete.sh")
    assert proposed(tmp_path) == [f"rm -r -- {world.store}/7/{'5' * 32}/artifacts"]


def test_a_templated_output_that_is_not_pushed_says_nothing_about_the_others(world: World, audit: Audit, tmp_path: Path) -> None:
    clean(world)
    weights = world.data(b"weights", days=60)
    lock = f"schema: '2.0'\nstages:\n  train:\n    cmd: x\n    outs:\n    - path: models/digits\n      hash: md5\n      md5: {weights}\n"
    pipeline = "stages:\n  train:\n    cmd: x\n    outs: [models/digits]\n    metrics:\n    - ${metrics}: {cache: false}\n"
    world.version(commit=world.commit("digits", {"dvc.yaml": pipeline, "dvc.lock": lock}))
    nobody = world.data(b"nobody", days=60)
    audit("--propose", "delete.sh")
    assert proposed(tmp_path) == [f"rm -- {world.remote}/files/md5/{nobody[:2]}/{nobody[2:]}"]


@pytest.mark.parametrize("below", ["", "artifacts/versions/one", "artifacts/versions/one/weights.pt"])
def test_what_is_behind_a_symbolic_link_is_not_said_to_be_missing(world: World, audit: Audit, tmp_path: Path, below: str) -> None:
    clean(world)
    before = pairs(audit()[1])
    linked = Path(world.store) / "7" / world.run_of(1) / below
    linked.rename(tmp_path / "moved")
    linked.symlink_to(tmp_path / "moved")
    code, document, _ = audit()
    assert (code, pairs(document)) == (5, before)
    assert document["not_looked_at"] == [f"what a symbolic link names: {linked}"]


@pytest.mark.parametrize("source", ["file://[/x", "file:///x%00y/7/{run}/artifacts", "/x\ud800/{run}", "s3://[/x", "a" * 5000, "\0"])
def test_a_source_that_cannot_be_is_a_finding_and_ends_nothing(world: World, audit: Audit, source: str) -> None:
    commit = clean(world)
    number = world.version(commit=commit)
    source = source.format(run=world.run_of(number))
    facts = known.read(world.registry, "", lambda _: None)
    facts.versions[-1] = replace(facts.versions[-1], source=source)
    facts.roots.append(known.resolved(source, ""))
    checked = artifacts.check(facts, (), (), None, lambda _: None)
    assert [each.rule for each in checked.findings if each.subject == f"models:/digits/{number}"] in (["source-unknown"], [])
    assert len(checked.findings) + len(checked.unseen) > 1


def test_runs_of_another_mlflow_beside_ours_are_not_deleted(world: World, audit: Audit, tmp_path: Path) -> None:
    """An experiment whose address ends with a number, such as a year, is no reason to look at the folder above."""
    clean(world)
    world.put(world.store, f"7/{'5' * 32}/artifacts/a.pt", b"of nobody", days=60)
    world.put(world.store, f"9/{'4' * 32}/artifacts/a.pt", b"of another MLflow", days=60)
    audit("--propose", "delete.sh")
    assert proposed(tmp_path) == [f"rm -r -- {world.store}/7/{'5' * 32}/artifacts"]


@pytest.mark.parametrize("text", ["url = {} # our disk", "url = '{}'", 'url = "{}"'])
def test_a_remote_is_read_as_dvc_reads_it(world: World, audit: Audit, text: str) -> None:
    config = world.dvc(world.remote).replace(f"url = {world.remote}", text.format(world.remote))
    world.service("spam", SERVICE.replace("digits", "spam"), config.replace("remote = storage", "remote = storage  # main"))
    world.version("spam", commit=world.tracked("spam", world.data(b"x")), service="spam", repository=world.url("spam"))
    found = pairs(audit()[1])
    assert ("single-copy-data", world.remote) in found
    assert not [rule for rule, _ in found if rule.startswith(("remote-", "data-"))]


@pytest.mark.parametrize("url", ["file://[x", "\x1b[31m", "a\0b"])
def test_a_remote_that_cannot_be_ends_no_audit(world: World, audit: Audit, url: str) -> None:
    world.service("spam", SERVICE.replace("digits", "spam"), world.dvc(url))
    world.version("spam", commit=world.tracked("spam", world.data(b"x")), service="spam", repository=world.url("spam"))
    _, document, err = audit()
    assert document["not_looked_at"] or ("remote-missing", world.url("spam")) in pairs(document)
    assert "\x1b" not in err
