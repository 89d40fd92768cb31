"""Commits through plumbing, compare-and-swap pushes, and what git must never be made to do."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build.adapters.git import command
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.command import PushRejected, RemoteUnreachable
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.git.objects import Identity
from mlops_build.errors import Refused, UsageError
from tests.adapters.git.conftest import TOKEN, USER
from tests.conftest import git

BRIDGE = Identity("bridge", "bridge@example.com", 1_700_000_000)


def mirror(remote: Path, tmp_path: Path, name: str = "mirror") -> Mirror:
    return Mirror(f"file://{remote}", "main", tmp_path / name)


def test_a_commit_changes_just_these_files(remote: Path, tmp_path: Path) -> None:
    there = mirror(remote, tmp_path)
    head = there.fetch()
    made = there.commit(head, {"new/b.txt": b"b\n", "folder/a.txt": None, "run.sh": b"#!/bin/sh\nexit\n"}, "Subject\n", BRIDGE)
    assert made is not None
    assert there.files(made) == ["new/b.txt", "run.sh"]
    assert there.files(made, "new") == ["new/b.txt"]
    assert there.read(made, "new/b.txt") == b"b\n"
    assert there.read(made, "folder/a.txt") is None
    assert there.tree(made, "folder") is None
    assert there.differing(head, made) == ["folder/a.txt", "new/b.txt", "run.sh"]
    assert git(there.path, "ls-tree", made, "run.sh").startswith("100755")
    assert git(there.path, "log", "-1", "--format=%an %ae %cn %ce %ct %s", made) == (
        "bridge bridge@example.com bridge bridge@example.com 1700000000 Subject"
    )
    assert there.commit(made, {"new/b.txt": b"b\n"}, "Again\n", BRIDGE) is None


def test_a_symbolic_link_in_the_way_becomes_a_file(remote: Path, person: Path, tmp_path: Path) -> None:
    (person / "folder" / "a.txt").unlink()
    (person / "folder" / "a.txt").symlink_to("/etc/passwd")
    git(person, "commit", "--quiet", "--all", "--message=Link")
    git(person, "push", "--quiet", "origin", "main")
    there = mirror(remote, tmp_path)
    made = there.commit(there.fetch(), {"folder/a.txt": b"text"}, "x\n", BRIDGE)
    assert git(there.path, "ls-tree", str(made), "folder/a.txt").startswith("100644")


def test_the_same_inputs_are_the_same_commit_in_every_process(remote: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.git.objects import Identity
there = Mirror("file://{remote}", "main", Path(sys.argv[1]))
print(there.commit(there.fetch(), {{"x": b"1", "y/z": b"2"}}, "Same: é\\n", Identity("b", "b@example.com", 1_700_000_000)))
"""
    settings = tmp_path / "gitconfig"
    settings.write_text("[i18n]\n\tcommitEncoding = latin1\n[commit]\n\tgpgSign = true\n[core]\n\tautocrlf = true\n")
    made = set()
    for number, variables in enumerate([{}, {"GIT_CONFIG_GLOBAL": str(settings), "TZ": "Asia/Tokyo", "GIT_DIR": "/nowhere"}]):
        command = [sys.executable, "-c", script, str(tmp_path / f"m{number}")]
        made.add(subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True).stdout)
    assert len(made) == 1
    assert len(made.pop().strip()) == 40


def test_a_push_lands_only_on_what_was_seen(remote: Path, person: Path, tmp_path: Path) -> None:
    there = mirror(remote, tmp_path)
    head = there.fetch()
    made = there.commit(head, {"x": b"1"}, "x\n", BRIDGE)
    assert made is not None
    git(person, "commit", "--quiet", "--allow-empty", "--message=A person was quicker")
    git(person, "push", "--quiet", "origin", "main")
    with pytest.raises(PushRejected, match="stale info"):
        there.push(made, head)
    assert git(remote, "log", "-1", "--format=%s", "main") == "A person was quicker"


def test_pushing_what_is_there_already_is_nothing(remote: Path, tmp_path: Path) -> None:
    one, other = mirror(remote, tmp_path, "one"), mirror(remote, tmp_path, "other")
    head = one.fetch()
    assert other.fetch() == head
    made = one.commit(head, {"x": b"1"}, "x\n", BRIDGE)
    assert made is not None
    assert other.commit(head, {"x": b"1"}, "x\n", BRIDGE) == made
    one.push(made, head)
    other.push(made, head)
    assert git(remote, "rev-parse", "main") == made


def make_while_others_push(there: Mirror, person: Path, times: int, seen: list[str]) -> Callable[[str], str | None]:
    """What `publish` calls with each head, which gets into `seen`; so many times, a person pushes meanwhile."""

    def make(head: str) -> str | None:
        seen.append(head)
        if len(seen) <= times:
            git(person, "commit", "--quiet", "--allow-empty", f"--message=Person {len(seen)}")
            git(person, "push", "--quiet", "origin", "main")
        return there.commit(head, {"x": b"1"}, "x\n", BRIDGE)

    return make


def test_publishing_goes_on_from_whoever_was_quicker(remote: Path, person: Path, tmp_path: Path) -> None:
    there = mirror(remote, tmp_path)
    seen: list[str] = []
    made = there.publish(make_while_others_push(there, person, 2, seen))
    assert len(seen) == 3
    assert git(remote, "log", "--format=%s", "main").splitlines() == ["x", "Person 2", "Person 1", "First"]
    assert git(remote, "rev-parse", "main") == made
    assert there.publish(lambda _: None) is None


def test_publishing_gives_up_after_some_lost_races(remote: Path, person: Path, tmp_path: Path) -> None:
    there = mirror(remote, tmp_path)
    seen: list[str] = []
    with pytest.raises(PushRejected):
        there.publish(make_while_others_push(there, person, 100, seen))
    assert len(seen) == 6


def test_over_http_with_a_token_that_is_in_no_argv(http_remote: str, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteUnreachable, match=r"could not read Username|Authentication failed") as refused:
        Mirror(http_remote, "main", tmp_path / "nobody").fetch()
    assert "set MLOPS_GIT_TOKEN" in str(refused.value.remedy)
    monkeypatch.setenv("MLOPS_GIT_USER", USER)
    monkeypatch.setenv("MLOPS_GIT_TOKEN", "wrong")
    with pytest.raises(RemoteUnreachable, match="Authentication failed") as refused:
        Mirror(http_remote, "main", tmp_path / "wrong").fetch()
    assert "wrong" not in refused.value.message
    assert "set MLOPS_GIT_TOKEN" in str(refused.value.remedy)
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    there = Mirror(http_remote, "main", tmp_path / "mirror")
    seen: list[str] = []
    watch = threading.Event()

    def arguments_of_every_process() -> None:
        while not watch.is_set():
            for found in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(found.read_bytes().decode(errors="replace"))
                except OSError:
                    continue

    watcher = threading.Thread(target=arguments_of_every_process)
    watcher.start()
    made = there.publish(lambda head: there.commit(head, {"x": b"1"}, "x\n", BRIDGE))
    watch.set()
    watcher.join()
    assert git(remote, "rev-parse", "main") == made
    assert any("remote-http" in line for line in seen) or not Path("/proc").exists()
    assert not any(TOKEN in line for line in seen)


def test_a_rule_of_the_host_is_told_at_once_and_not_tried_again(http_remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_GIT_USER", USER)
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    there = Mirror(http_remote, "protected", tmp_path / "mirror")
    calls = []

    def make(head: str) -> str | None:
        calls.append(head)
        return there.commit(head, {"x": b"1"}, "x\n", BRIDGE)

    with pytest.raises(PushRejected, match="protected: open a pull request") as rejected:
        there.publish(make)
    assert rejected.value.exit_code == 4
    assert rejected.value.remedy
    assert len(calls) == 1


@pytest.mark.parametrize(
    "url",
    [
        *("ext::sh -c touch% /tmp/x", "--upload-pack=touch /tmp/x", "-u", "file://-x", "https://host/a\nb", "relative/path", ""),
        *("git@-host:x", "https://user:pass@host/x.git", "host:-x", "foo://host/x"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        Mirror(url, "main", tmp_path / "mirror")
    assert "pass" not in refused.value.message.removeprefix("https://host/x.git: an address must not contain a password")


@pytest.mark.parametrize("branch", ["-x", "a..b", "a b", "", "a:b", "refs/../x", "x@{1}", "+main", "a\n"])
def test_a_branch_that_is_none_is_refused(branch: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Mirror("file:///x", branch, tmp_path / "mirror")


def test_a_path_out_of_the_repository_is_refused(remote: Path, tmp_path: Path) -> None:
    there = mirror(remote, tmp_path)
    head = there.fetch()
    for path in ("../x", "/etc/passwd", "-x", ":(glob)*", "", "a/../../b", ".git/config", "a/.git/hooks/x", "a\nb"):
        with pytest.raises(UsageError):
            there.commit(head, {path: b"x"}, "x\n", BRIDGE)
        with pytest.raises(UsageError):
            there.read(head, path)


def test_an_unknown_repository_and_branch_are_named(remote: Path, tmp_path: Path) -> None:
    with pytest.raises(RemoteUnreachable) as unknown:
        Mirror(f"file://{tmp_path}/nothing.git", "main", tmp_path / "a").fetch()
    assert unknown.value.exit_code == 5
    with pytest.raises(RemoteUnreachable, match="no readable branch 'nope'"):
        Mirror(f"file://{remote}", "nope", tmp_path / "b").fetch()


def test_a_host_that_never_answers_is_given_up_with_all_its_processes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"
        began = time.monotonic()
        with pytest.raises(RemoteUnreachable, match="did not finish within 1 s"):
            command.run(tmp_path, "ls-remote", url, seconds=1)
        assert time.monotonic() - began < 5
        while [path for path in Path("/proc").glob("[0-9]*/cmdline") if url.encode() in _content(path)]:
            assert time.monotonic() - began < 10
            time.sleep(0.05)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_committing_paths_leaves_everything_else_alone(person: Path) -> None:
    assert Checkout.find(person.parent) is None
    assert Checkout.find(person / "folder") is None
    checkout = Checkout.find(person)
    assert checkout is not None
    hook = person / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    (person / "staged.txt").write_text("staged\n")
    git(person, "add", "staged.txt")
    (person / "untracked.txt").write_text("untracked\n")
    (person / "run.sh").write_text("changed\n")
    (person / "dvc.lock").write_text("lock\n")
    (person / "plots").mkdir()
    (person / "plots" / "curve.json").write_text("{}\n")
    assert checkout.changes() == ["dvc.lock", "plots/curve.json", "run.sh", "staged.txt", "untracked.txt"]
    assert checkout.changes(ignoring=["plots", "dvc.lock"]) == ["run.sh", "staged.txt", "untracked.txt"]
    parent = checkout.head()
    made = checkout.commit_paths(["dvc.lock", "plots"], "Train\n")
    assert made == checkout.head()
    assert git(person, "rev-parse", "HEAD~1") == parent
    assert git(person, "show", "--format=", "--name-only", "HEAD").splitlines() == ["dvc.lock", "plots/curve.json"]
    assert git(person, "status", "--porcelain").splitlines() == [" M run.sh", "A  staged.txt", "?? untracked.txt"]
    assert checkout.commit_paths(["dvc.lock", "plots"], "Train\n") is None


@pytest.mark.parametrize(
    ("variables", "signed"),
    [
        ({}, "mlops-build mlops-build@localhost"),
        ({"MLOPS_GIT_NAME": "CI", "MLOPS_GIT_EMAIL": "ci@example.com"}, "CI ci@example.com"),
        ({"GIT_CONFIG_PARAMETERS": "'user.name=Eve' 'user.email=eve@example.com'"}, "Eve eve@example.com"),
    ],
)
def test_who_signs(person: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], signed: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (person / "x").write_text("x\n")
    Checkout(person).commit_paths(["x"], "x\n")
    assert git(person, "log", "-1", "--format=%an %ae, %cn %ce") == f"{signed}, {signed}"


def test_a_branch_that_moved_is_not_overwritten(person: Path) -> None:
    checkout = Checkout(person)
    head = checkout.head()
    assert head is not None
    made = checkout.commit(head, {"x": b"1"}, "x\n", BRIDGE)
    assert made is not None
    git(person, "commit", "--quiet", "--allow-empty", "--message=Meanwhile")
    with pytest.raises(Refused, match="moved in the meantime"):
        checkout.advance(made, head, ["x"])
    assert git(person, "log", "-1", "--format=%s") == "Meanwhile"


def test_restoring_files_touches_only_them(person: Path) -> None:
    checkout = Checkout(person)
    head = checkout.head()
    assert head is not None
    (person / "run.sh").write_text("mine\n")
    made = checkout.commit(head, {"folder/a.txt": None, "folder/b.txt": b"b\n"}, "x\n", BRIDGE)
    assert made is not None
    paths = checkout.differing(head, made)
    checkout.advance(made, head, paths)
    checkout.restore(made, paths)
    assert (person / "folder" / "b.txt").read_text() == "b\n"
    assert not (person / "folder" / "a.txt").exists()
    assert git(person, "status", "--porcelain") == " M run.sh"


def test_a_star_in_a_path_is_a_character(person: Path) -> None:
    checkout = Checkout(person)
    for name in ("*", "a.txt"):
        (person / name).write_text("new\n")
    checkout.commit_paths(["*"], "Star\n")
    assert git(person, "show", "--format=", "--name-only", "HEAD") == "*"
    assert git(person, "status", "--porcelain") == "?? a.txt"


def test_the_branch_of_a_detached_head(person: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Checkout(person)
    assert checkout.branch() == "main"
    git(person, "checkout", "--quiet", "--detach")
    with pytest.raises(Refused, match="detached"):
        checkout.branch()
    monkeypatch.setenv("MLOPS_GIT_BRANCH", "main")
    assert checkout.branch() == "main"
    monkeypatch.setenv("MLOPS_GIT_BRANCH", "-x")
    with pytest.raises(UsageError):
        checkout.branch()


def test_origin_without_its_password(person: Path) -> None:
    assert Checkout(person).origin_url() == str(person.parent / "remote.git")
    git(person, "remote", "set-url", "origin", "https://ada:secret@git.example.com/x.git")
    assert Checkout(person).origin_url() == "https://git.example.com/x.git"
    git(person, "remote", "remove", "origin")
    assert Checkout(person).origin_url() is None


def test_where_an_agents_checkout_pushes_to(person: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CI system leaves an origin that leads nowhere, and names the plan's address; MLOPS_GIT_URL wins over both."""
    checkout = Checkout(person)
    monkeypatch.setenv("MLOPS_CI_REPOSITORY", remote.as_uri())
    assert checkout.origin_url() == str(remote), "an origin of one's own is kept"
    for nowhere in ("file:///nothing", "/nothing"):
        git(person, "remote", "set-url", "origin", nowhere)
        assert checkout.origin_url() == remote.as_uri()
    git(person, "commit", "--quiet", "--allow-empty", "--message=Second")
    checkout.push()
    assert git(remote, "rev-parse", "main") == checkout.head()
    monkeypatch.setenv("MLOPS_GIT_URL", "https://bot@git.example.com/scm/ml/digits.git")
    assert checkout.origin_url() == "https://git.example.com/scm/ml/digits.git"
    for bad in ("https://bot:word@git.example.com/scm/ml/digits.git", "--upload-pack=x"):
        monkeypatch.setenv("MLOPS_GIT_URL", bad)
        with pytest.raises(UsageError):
            checkout.origin_url()
    monkeypatch.delenv("MLOPS_GIT_URL")
    monkeypatch.delenv("MLOPS_CI_REPOSITORY")
    assert checkout.origin_url() is None


def test_branches_by_their_beginning_and_origins_word_counts(person: Path, remote: Path) -> None:
    checkout = Checkout(person)
    first = str(checkout.head())
    git(person, "branch", "retrain/1")
    git(person, "branch", "retrain/2")
    git(person, "branch", "retrained")
    git(person, "commit", "--quiet", "--allow-empty", "--message=Second")
    git(person, "push", "--quiet", "origin", "HEAD:refs/heads/retrain/2", "HEAD:refs/heads/retrain/30", "HEAD:refs/heads/retrains/4")
    second = str(checkout.head())
    assert checkout.branches("retrain/") == {"retrain/1": first, "retrain/2": second, "retrain/30": second}
    assert checkout.branches("retrain/3") == {"retrain/30": second}
    git(person, "remote", "set-url", "origin", "file:///nowhere")
    with pytest.raises(RemoteUnreachable):
        checkout.branches("retrain/")


def test_a_commit_on_a_branch_of_its_own(person: Path, remote: Path) -> None:
    checkout = Checkout(person)
    first = str(checkout.head())
    assert checkout.commit_paths(["folder/a.txt"], "Nothing\n", branch="retrain/1") is None
    assert checkout.branch() == "main", "nothing to commit, no branch"
    (person / "folder/a.txt").write_text("b\n")
    made = checkout.commit_paths(["folder/a.txt"], "Second\n", branch="retrain/1")
    assert (checkout.branch(), checkout.head(), git(person, "rev-parse", "main")) == ("retrain/1", made, first)
    assert checkout.parents(str(made)) == [first]
    assert git(person, "status", "--porcelain") == ""
    checkout.push()
    assert git(remote, "rev-parse", "retrain/1") == made
    assert git(remote, "rev-parse", "main") == first
    with pytest.raises(Refused, match="the branch retrain/1 exists at another commit"):
        checkout.switch("retrain/1", first)


def test_a_shallow_clone_takes_a_branch_that_stands_on_what_it_has(person: Path, remote: Path, tmp_path: Path) -> None:
    (person / "new.txt").write_text("new\n")
    (person / "run.sh").unlink()
    git(person, "add", "--all")
    git(person, "commit", "--quiet", "--message=Second")
    git(person, "push", "--quiet", "origin", "HEAD:refs/heads/retrain/1")
    git(tmp_path, "clone", "--quiet", "--depth=1", remote.as_uri(), "agent")
    agent = Checkout(tmp_path / "agent")
    git(agent.path, "checkout", "--quiet", "--detach")
    head, wanted = str(agent.head()), str(Checkout(person).head())
    assert not agent.has(wanted)
    assert agent.fetch("retrain/1") == wanted
    assert agent.has(wanted)
    assert agent.parents(wanted) == [head]
    assert set(agent.differing(head, wanted)) == {"new.txt", "run.sh"}
    agent.take("retrain/1", wanted, agent.differing(head, wanted))
    assert (agent.branch(), agent.head()) == ("retrain/1", wanted)
    assert git(agent.path, "status", "--porcelain") == ""
    assert not (agent.path / "run.sh").exists()


def test_a_tried_push_asks_and_sends_nothing(http_remote: str, remote: Path, person: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(person, "remote", "set-url", "origin", http_remote)
    checkout = Checkout(person)
    with pytest.raises(RemoteUnreachable):
        checkout.try_push("retrain/1")
    monkeypatch.setenv("MLOPS_GIT_USER", USER)
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    checkout.try_push("retrain/1")
    assert "retrain" not in git(remote, "for-each-ref")


def test_pushing_a_checkout_that_is_behind_is_refused(remote: Path, person: Path, tmp_path: Path) -> None:
    there = mirror(remote, tmp_path)
    there.publish(lambda head: there.commit(head, {"x": b"1"}, "x\n", BRIDGE))
    git(person, "commit", "--quiet", "--allow-empty", "--message=Behind")
    with pytest.raises(PushRejected) as rejected:
        Checkout(person).push()
    assert "git pull" in str(rejected.value.remedy)


def test_exporting_a_commit_and_a_dirty_tree(person: Path, tmp_path: Path) -> None:
    checkout = Checkout(person)
    head = checkout.head()
    assert head is not None
    (person / "run.sh").write_text("dirty\n")
    checkout.export(head, tmp_path / "clean")
    assert (tmp_path / "clean" / "run.sh").read_text() == "#!/bin/sh\n"
    assert not (tmp_path / "clean" / ".git").exists()
    patch = checkout.export_dirty(tmp_path / "dirty")
    assert (tmp_path / "dirty" / "run.sh").read_text() == "dirty\n"
    assert b"+dirty" in patch
    assert git(person, "status", "--porcelain") == " M run.sh"


def test_a_silent_transfer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SILENT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RemoteUnreachable, match="cannot be used"):
        command.run(tmp_path, "ls-remote", f"http://127.0.0.1:{silent.getsockname()[1]}/service.git")
