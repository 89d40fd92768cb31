"""Kills at every step and at random, bridges of two versions side by side, and aliases that move during a pass.

In the end Git equals the registry. A promotion has at most one commit, and no commit is empty or mixes two promotions.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlops_build
from mlops_build import service as service_file
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.release import alias, record
from tests.conftest import ROOT, git
from tests.release.world import SERVICE, MakeRepository

pytestmark = pytest.mark.soak

Register = Callable[..., Any]
MODELS = ("digits", "letters")
TWO = SERVICE.replace("  - name: digits\n", "  - name: digits\n  - name: letters\n").replace("    alias: live\n", "")
KILLS = int(os.environ.get("SOAK_EXAMPLES", "200"))
# Counts the programs that a bridge starts, and kills it before or after one of them.
KILLED = """
import os, signal, sys
from mlops_build.adapters import program
from mlops_build.__main__ import main
point, run, calls = int(sys.argv[1]), program.run, 0
def counted(*arguments, **options):
    global calls
    calls += 1
    if 2 * calls - 1 == point: os.kill(os.getpid(), signal.SIGKILL)
    done = run(*arguments, **options)
    if 2 * calls == point: os.kill(os.getpid(), signal.SIGKILL)
    return done
program.run = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def service(make_repository: MakeRepository, register: Register) -> Path:
    """A service with two models, which have 120 versions each."""
    checkout = make_repository(service=TWO)
    for number in range(240):
        register(MODELS[number % 2])
    return checkout


@pytest.fixture
def another_version(tmp_path: Path) -> Path:
    """A copy of the package with another version number, another template of the Dockerfile, and another text in each release."""
    folder = tmp_path / "another"
    package = Path(shutil.copytree(ROOT / "mlops_build", folder / "mlops_build", ignore=shutil.ignore_patterns("__pycache__")))
    for path, old, new in (
        (package / "__init__.py", f'"{mlops_build.__version__}"', '"0.99.0"'),
        (package / "release" / "record.py", record.HEADER[:12], "# As another version says, " + record.HEADER[2:12]),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    for template in package.rglob("*ockerfile*.j2"):
        template.write_text(f"# Another version.\n{template.read_text()}")
    return folder


def start(checkout: Path, registry: Registry, *before: str, package: Path = ROOT) -> "subprocess.Popen[bytes]":
    command = [sys.executable, *(before or ("-m", "mlops_build")), "bridge", "once", "--repo", f"file://{checkout}.git"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.uri, "PYTHONPATH": str(package)}
    return subprocess.Popen(
        command, env=environment, cwd=checkout.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def promote(registry: Registry, checkout: Path, env: str, version: int) -> None:
    service = service_file.load(checkout)
    alias.promote_all(registry, service, dict.fromkeys(MODELS, version), env)


def check(checkout: Path, registry: Registry) -> None:
    """What must be true in the end."""
    bare = checkout.with_name(f"{checkout.name}.git")
    released: list[str] = []
    for commit in git(bare, "rev-list", "main").split()[:-1]:
        assert git(bare, "rev-parse", f"{commit}^{{tree}}") != git(bare, "rev-parse", f"{commit}~1^{{tree}}"), "an empty commit"
        text = git(bare, "show", "--no-patch", "--format=%B", commit)
        versions = set(re.findall(r"^Version: (\d+)$", text, re.MULTILINE))
        assert len(versions) == 1, f"a mix of two promotions: {text}"
        released += re.findall(r"^Promotion: (\w+)$", text, re.MULTILINE)
        assert re.search(r"^Promoted-By: (?!unknown)", text, re.MULTILINE), text
    assert len(released) == len(set(released)), "a promotion with two commits"
    aliases = registry.alias_map()
    git(checkout, "pull", "--quiet")
    for env in ("staging", "production"):
        assert dict(record.read(checkout, env).numbers) == {name: aliases[name][env] for name in MODELS}


def test_killed_before_and_after_each_program_that_it_starts(service: Path, registry: Registry) -> None:
    point, ended = 0, False
    while not ended:
        point += 1
        assert point < 400, "a pass starts fewer than 200 programs"
        promote(registry, service, "staging", point % 120 + 1)
        process = start(service, registry, "-c", KILLED, str(point))
        ended = process.wait(timeout=120) == 0
        assert ended or process.returncode == -signal.SIGKILL
        assert start(service, registry).wait(timeout=120) == 0
    promote(registry, service, "production", 1)
    assert start(service, registry).wait(timeout=120) == 0
    check(service, registry)
    commits = int(git(service, "rev-list", "--count", "HEAD"))
    assert commits == 1 + point + 1, "one commit for each promotion"
    print(f"{point - 1} kill points")


def test_aliases_that_move_a_hundred_times_during_a_pass(service: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, moves, is_moving = random.Random(21), 0, False  # noqa: S311 # a seed

    def moving(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal moves, is_moving
            if not is_moving:
                is_moving = True
                for _ in range(15):
                    promote(registry, service, chance.choice(["staging", "production"]), chance.randrange(1, 121))
                    moves += 1
                is_moving = False
            return method(*arguments)

        return call

    for name in ("alias_map", "aliases", "version", "run"):
        monkeypatch.setattr(Registry, name, moving(getattr(Registry, name)))
    url = f"file://{service}.git"
    for _ in range(5):
        before = moves
        assert {outcome.state for outcome in reconcile.once([url], registry)} <= {"released", "waiting", "unchanged"}
        assert moves - before >= 100
    is_moving = True
    reconcile.once([url], registry)
    check(service, registry)
    assert {outcome.state for outcome in reconcile.once([url], registry)} == {"unchanged"}
    print(f"{moves} promotions during 5 passes, {git(service, 'rev-list', '--count', 'HEAD')} commits")


def test_eight_bridges_of_two_versions_killed_at_random_while_aliases_move(
    service: Path, registry: Registry, another_version: Path
) -> None:
    chance, kills, moves = random.Random(21), 0, 0  # noqa: S311 # a seed
    running: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + 45 * 60
    while kills < KILLS or moves < KILLS // 2:
        assert time.monotonic() < deadline, f"{kills} kills, {moves} promotions"
        while len(running) < 8:
            running.append(start(service, registry, package=chance.choice([ROOT, another_version])))
        if chance.random() < 0.7:
            promote(registry, service, chance.choice(["staging", "production"]), chance.randrange(1, 121))
            moves += 1
        time.sleep(chance.uniform(0, 0.5))
        victim = chance.choice(running)
        if victim.poll() is None and chance.random() < 0.8:
            os.killpg(victim.pid, signal.SIGKILL)
            kills += 1
        for process in running:
            process.poll()
        running = [process for process in running if process.returncode is None]
    for process in running:
        process.wait(timeout=300)
    for env in ("staging", "production"):
        promote(registry, service, env, 7)
    for package in (ROOT, another_version) * 2:
        assert start(service, registry, package=package).wait(timeout=120) == 0
    check(service, registry)
    head = git(service, "rev-parse", "HEAD")
    assert start(service, registry, package=another_version).wait(timeout=120) == 0
    assert git(service.with_name(f"{service.name}.git"), "rev-parse", "main") == head
    print(f"{kills} kills, {moves} promotions, {git(service, 'rev-list', '--count', 'HEAD')} commits")
