"""README's two commands on a fresh machine: a minimal Debian 12 with Python 3.11.2, git and make."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

DEBOOTSTRAP = os.environ.get("MLOPS_TEST_DEBOOTSTRAP") or shutil.which("debootstrap") or ""
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not DEBOOTSTRAP, reason="MLOPS_TEST_DEBOOTSTRAP is not set, and debootstrap is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can create a Debian root (debootstrap, chroot)"),
]
PACKAGES = "python3,python3-venv,git,make,ca-certificates"
# This machine's settings of the package index. The rest of the environment is not passed on.
FORWARDED = ("PIP_", "UV_", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
ENTER = """set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do mount --rbind "$1" "$root$1"; shift; done
shift
exec chroot "$root" "$@"
"""


class Machine:
    """A Debian root. run: start a shell command in the folder of the clone, in mount and process namespaces of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clone = root / "root/mlops-build"
        self.environment = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
        # Reuse downloads. Files of a cache on another mount cannot be linked.
        cache = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache/uv"))
        cache.mkdir(parents=True, exist_ok=True)
        self.environment |= {"UV_CACHE_DIR": str(cache), "UV_LINK_MODE": "copy"}
        named = [cache, *(self.environment.get(name, "") for name in ("PIP_CERT", "SSL_CERT_FILE"))]
        named += self.environment.get("PIP_FIND_LINKS", "").split()
        self.shared = [Path(path) for path in dict.fromkeys(map(str, named)) if path and Path(path).is_absolute() and Path(path).exists()]
        for path in self.shared:
            inside = root / path.relative_to("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.mkdir(exist_ok=True) if path.is_dir() else inside.touch()

    def run(self, command: str, seconds: int) -> str:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **self.environment}
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", str(self.root), *map(str, self.shared)]
        inside = ["--", "sh", "-c", f"cd /root/mlops-build && {command}"]
        done = started([*enter, *inside], environment, seconds)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}"
        return done.stdout


def started(command: Sequence[str], environment: dict[str, str], seconds: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False
    )


@pytest.fixture(scope="module")
def machine(published: Path) -> Iterator[Machine]:
    # Not pytest's tmp_path, which would keep some gigabytes of the last three runs.
    with tempfile.TemporaryDirectory(prefix="mlops-build-debian-") as folder:
        root = Path(folder, "root")
        command = [DEBOOTSTRAP, "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
        done = started(command, dict(os.environ), 600)
        assert done.returncode == 0, done.stdout[-3000:]
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        machine = Machine(root)
        shutil.copytree(published, machine.clone, symlinks=True)
        yield machine


def test_install_demo_and_tests_run_on_a_fresh_debian_12(machine: Machine) -> None:
    assert machine.run("python3 --version", 60) == "Python 3.11.2\n"
    printed = machine.run("make install", 1200)
    assert "Traceback" not in printed
    assert "install: done" in printed

    printed = machine.run("make demo", 600)
    assert "Everything worked" in printed
    assert "Traceback" not in printed
    report = json.loads((machine.clone / "demo-service/demo-report.json").read_text())
    assert (report["model_uri"], len(report["steps"])) == ("models:/digits/2", 10)

    # `make test` starts there, too; its other tests do not depend on the machine.
    printed = machine.run("make test PYTEST='.venv/bin/python -m pytest -q tests/adapters/git/test_archive.py'", 300)
    assert " passed" in printed
