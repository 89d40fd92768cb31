"""The real zabbix_agentd on a simulated node, with the shipped parameter file."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlops_build.watch import shipped
from tests.watch.zabbix_server import free_port, started, until


def settings(folder: Path, port: int) -> Path:
    """A configuration of the agent that includes our parameter file, as Debian's does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlops-gpu.conf").write_text(shipped.read("zabbix-userparameters.conf"))
    path = folder / "zabbix_agentd.conf"
    path.write_text(
        f"Server=127.0.0.1\nListenIP=127.0.0.1\nListenPort={port}\nHostname=node\nLogType=console\nStartAgents=2\nAllowRoot=1\n"
        f"PidFile={folder}/agentd.pid\nInclude={folder}/mlops-gpu.conf\n"
    )
    return path


@contextmanager
def running(program: str, folder: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """Run the agent; yields its port."""
    port = free_port()
    log = folder / "agentd.log"
    with started([program, "-f", "-c", settings(folder, port)], log, env=dict(environment)) as process:

        def listening() -> bool | None:
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return None
            return True

        until(listening, "zabbix_agentd")
        yield port
