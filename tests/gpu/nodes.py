"""A simulated node whose lease directory is shared by several containers and users, and the services (tenants) on it."""

import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import Promise
from mlops_build.gpu.testing.build import NAMES

GIB = 1 << 30
CONTEXT = 300 << 20  # bytes of a CUDA context on a simulated card
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds; for a busy machine, not part of any test
BASE = Path(sys.base_prefix).resolve()
LOOK = """
import json
from mlops_build import gpu
print(json.dumps([{
    "uuid": card.uuid, "total_bytes": card.total_bytes, "used_bytes": card.used_bytes, "committed_bytes": card.committed_bytes,
    "external_bytes": card.external_bytes,
    "leases": [
        {name: getattr(lease, name) for name in ("id", "uid", "service", "bytes", "exclusive")} | {"seen": dict(lease.seen)}
        for lease in card.leases
    ],
} for card in gpu.cards()]))
"""


def user(uid: int) -> list[str]:
    """A command prefix that runs a command as this user; empty for -1.

    A Python below a folder that other users cannot enter, such as /root, is bind-mounted in a mount namespace of the command.
    """
    if uid < 0:
        return []
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    closed = [folder for folder in reversed(BASE.parents) if not folder.stat().st_mode & 0o001]
    if not closed:
        return become
    script = f"""
        base={shlex.quote(str(BASE))}; mount --bind $base /mnt && mount -t tmpfs -o mode=755 none {shlex.quote(str(closed[0]))} &&
        mkdir -p $base && mount --bind /mnt $base && umount /mnt && exec "$@"
    """
    return ["unshare", "--mount", "sh", "-c", script, "sh", *become]


class Tenant:
    """A running `tests.gpu.tenant`. events: its last line of each event."""

    def __init__(self, command: Sequence[str], events: set[str], **options: Any) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed in end()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True, **options
        )
        self.events: dict[str, dict[str, Any]] = {}
        self._rest = b""
        if events:
            self.until(events)

    def until(self, events: set[str]) -> None:
        """Read until one of these events, or until it ends."""
        assert self.process.stdout
        deadline = time.monotonic() + PATIENCE
        while not events & self.events.keys():
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"only these events came: {self.events}: {self.warnings()}"
            read = os.read(self.process.stdout.fileno(), 65536)
            if not read:
                return
            *lines, self._rest = (self._rest + read).split(b"\n")
            self.events |= {line["event"]: line for line in map(json.loads, lines)}

    def warnings(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def end(self) -> int:
        """End it like a service that stops by itself."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


class Shared:
    """The node, its lease directory, and all services started on it."""

    def __init__(self, node: "testing.Node", folder: Path) -> None:
        self.node, self.folder = node, folder
        self.environment = {**os.environ, **node.environment, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.leases = Path(self.environment["MLOPS_GPU_LEASE_DIR"])
        self.tenants: list[Tenant] = []

    def tenant(
        self,
        memory: str,
        *,
        size: int = 0,
        seconds: float = 0.0,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        until: set[str] | None = None,
        uid: int = -1,
        umask: int = -1,
        **wishes: object,
    ) -> Tenant:
        """Start a tenant, and wait until it has loaded, or for one of the events in `until`."""
        command = [*wrapper, sys.executable, "-m", "tests.gpu.tenant", json.dumps({"memory": memory, **wishes}), str(size), str(seconds)]
        until = {"loaded" if size else "leased", "full", "refused"} if until is None else until
        tenant = Tenant([*user(uid), *command], until, env=self._in(environment), cwd=ROOT, umask=umask)
        self.tenants.append(tenant)
        return tenant

    def refused(self, memory: str, **options: Any) -> str:
        """The error of a refused tenant, with its type."""
        tenant = self.tenant(memory, **options)
        assert "refused" in tenant.events, tenant.events
        tenant.end()
        return "{error}: {message}".format(**tenant.events["refused"])

    def cards(self, *, wrapper: Sequence[str] = (), environment: Mapping[str, str] | None = None, uid: int = -1) -> list[dict[str, Any]]:
        """`gpu.cards()` in a separate process."""
        command = [*user(uid), *wrapper, sys.executable, "-c", LOOK]
        done = subprocess.run(command, env=self._in(environment), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        cards: list[dict[str, Any]] = json.loads(done.stdout)
        return cards

    def _in(self, view: Mapping[str, str] | None) -> dict[str, str]:
        """The environment of a container: the node's, with the variables of a view."""
        return self.environment | {name: value for name, value in (view or {}).items() if name.startswith("MLOPS_")}

    def leased(self) -> list[str]:
        """The ids of the leases that are alive."""
        return sorted({lease["id"] for card in self.cards() for lease in card["leases"]})


@contextlib.contextmanager
def shared_node(folder: Path, cards: int = 1, total: str = "24GiB") -> Iterator[Shared]:
    with testing.Node([total] * cards, directory=folder) as node:
        (folder / "node.state").chmod(0o666)  # for other users, who cannot read this user's cache of the libraries either
        shared = Shared(node, folder)
        (folder / "lib").mkdir()
        first, *others = NAMES
        shutil.copy(node.libraries / first, folder / "lib" / first)
        for other in others:  # one file with three names, so that a process loads the library only once
            (folder / "lib" / other).hardlink_to(folder / "lib" / first)
        shared.environment["LD_LIBRARY_PATH"] = str(folder / "lib")
        try:
            yield shared
        finally:
            for tenant in shared.tenants:
                with contextlib.suppress(ProcessLookupError):
                    tenant.signal(signal.SIGKILL)
                tenant.end()
                tenant.errors.close()


def promises(node: testing.Node) -> list[Promise]:
    with Ledger.open(node.directory / "leases") as ledger:
        return ledger.promises()


def tickets(node: testing.Node) -> list[Promise]:
    """The requests that wait."""
    with Ledger.open(node.directory / "leases") as ledger:
        return ledger.tickets()


def backdate(directory: Path, seconds: float) -> None:
    """Set the times in the peaks' files back, as if the last read had been earlier."""
    for file in directory.glob("peaks-*.json"):
        document = json.loads(file.read_text())
        for keys in document["cards"].values():
            for numbers in keys.values():
                numbers[1] -= seconds
                numbers[3] -= seconds
        file.write_text(json.dumps(document))
