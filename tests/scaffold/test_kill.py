"""An update killed at any time, with every process it has started: the Git command that the next one names restores the old state."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import git, mlops_build
from tests.scaffold.conftest import FIRST, SECOND, MakeService, MakeTemplate
from tests.scaffold.test_update import follow_the_remedy
from tests.scaffold.trees import taken

ROUNDS = max(int(os.environ.get("SOAK_EXAMPLES", "400")) // 10, 10)
# Enough files for the writing to take a while.
MANY = 400


def killed(service: Path, while_writing: bool) -> bool:
    """Start an update and kill it and its children; whether it was still alive."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_build", "update"], cwd=service, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    family = psutil.Process(process.pid)
    if while_writing:
        index = (service / ".git/index").stat().st_ino
        while (service / ".git/index").stat().st_ino == index and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.03))  # noqa: S311
    else:
        time.sleep(random.uniform(0.1, 2))  # noqa: S311
    try:
        everyone = [*family.children(recursive=True), family]
    except psutil.NoSuchProcess:
        everyone = []
    for one in everyone:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    alive = process.wait() == -signal.SIGKILL
    psutil.wait_procs(everyone, timeout=10)
    return alive


@pytest.mark.soak
def test_killed_at_any_time(make_template: MakeTemplate, make_service: MakeService) -> None:
    many = {f"template/many/{number}.txt": f"{number}\n" * 50 for number in range(MANY)}
    changed = {f"template/many/{number}.txt": f"{number}\n" * 49 + "new\n" for number in range(0, MANY, 2)}
    service = make_service(make_template({"0.1.0": {**FIRST, **many}, "0.2.0": {**SECOND, **many, **changed}}))
    before = taken(service)
    mlops_build(service, "update")
    after = taken(service)
    git(service, "reset", "--quiet", "--hard")
    assert taken(service) == before
    seen = {"half": 0}
    for number in range(ROUNDS):
        if killed(service, while_writing=number % 3 != 0) and taken(service) not in (before, after):
            seen["half"] += 1
        (service / ".git/index.lock").unlink(missing_ok=True)  # of the killed git
        follow_the_remedy(service)
        assert (taken(service), git(service, "status", "--porcelain")) == (before, ""), f"round {number}"
    print(f"after {ROUNDS} kills: {seen}")
    assert seen["half"], "no kill hit the writing: the test has shown nothing"
