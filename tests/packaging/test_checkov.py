"""What checkov, a scanner for infrastructure, says of every kind of Dockerfile that is generated."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_build.packaging.recipe import Recipe
from tests.packaging.test_hadolint import written

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpu": {"gpu": True, "apt": ("libgomp1",)},
    "secrets": {"secrets": ("ca-bundle", "index-url", "netrc")},
    "cuda-base": {"gpu": True, "cuda": "base"},
    "platform": {"platform": "linux/arm64"},
    "digest": {"base": f"python:3.11-slim@sha256:{'a' * 64}"},
}
BAD = "FROM debian:latest\nRUN sudo id\nEXPOSE 22\n"


@pytest.mark.slow
def test_checkov_has_no_finding(tmp_path: Path) -> None:
    program = Path(sys.prefix) / "checkov" / "bin" / "checkov"
    if not program.exists():
        pytest.skip("checkov is not in .venv/checkov: make checkov")
    for name, more in KINDS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text(written(Recipe(**{"service": "points", "base": "python:3.11-slim", **more}), 1))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/Dockerfile").write_text(BAD)
    # One process for all, since its start takes seconds. It asks nobody: no key, no downloads.
    command = [str(program), "--directory", ".", "--framework", "dockerfile", "--output", "json", "--compact", "--skip-download"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BC_", "CKV_", "CHECKOV_", "PRISMA_"))}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 50
    found = {(one["check_id"], Path(one["file_path"]).parent.name) for one in report["results"]["failed_checks"]}
    assert {"CKV_DOCKER_1", "CKV_DOCKER_2", "CKV_DOCKER_7"} <= {check for check, name in found if name == "bad"}
    assert {one for one in found if one[1] != "bad"} == set()
