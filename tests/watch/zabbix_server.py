"""A temporary Zabbix server: PostgreSQL, zabbix_server, and the frontend's API served by PHP, from Debian's packages.

Everything runs from the folder that `scripts/debian-tools.sh server` unpacked, on free ports of 127.0.0.1, and is stopped by its pid.
"""

import gzip
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
PATIENCE = 120  # seconds; a busy machine is slow
EXTENSIONS = ("ctype", "bcmath", "mbstring", "xml", "xmlwriter", "xmlreader", "simplexml", "pgsql", "gd", "gettext", "sockets", "fileinfo")


def free_port() -> int:
    """A free port below 32768: Zabbix refuses higher ones, which the kernel would choose."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.randint(10_000, 32_000)))  # noqa: S311
            except OSError:
                continue
            return port


def until(probe: Callable[[], T | None], description: str, patience: float = PATIENCE) -> T:
    """Call `probe` until it returns a value."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if (answer := probe()) is not None:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {patience:.0f} s for {description}")


@dataclass
class Zabbix:
    """The server's API (JSON-RPC 2.0), logged in as Admin."""

    url: str
    version: str
    postgres: Path
    token: str = ""
    calls: int = field(default=0)

    def api(self, method: str, **parameters: Any) -> Any:
        return self.call(method, parameters)

    def call(self, method: str, parameters: Any) -> Any:
        self.calls += 1
        body: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": parameters, "id": self.calls}
        if self.token:
            body["auth"] = self.token
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json-rpc"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]


@contextmanager
def started(command: list[str | Path], log: Path, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in its own group until the end of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(
                signal.SIGINT if "postgres" in str(command[0]) else signal.SIGTERM
            )  # SIGINT: PostgreSQL does not wait for clients
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that are still running
        process.wait(20)


@contextmanager
def zabbix(packages: Path) -> Iterator[Zabbix]:
    """The server, with Debian's schema and without Zabbix's own templates."""
    with ExitStack() as stack:
        # Not pytest's folder: PostgreSQL does not run as root, and other users cannot read that folder.
        folder = Path(tempfile.mkdtemp(prefix="zabbix-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        database = postgres(stack, packages, folder)
        server_port, web_port = free_port(), free_port()
        _fill(packages, folder, database)
        _server(stack, packages, folder, database, server_port)
        url = _frontend(stack, packages, folder, database, server_port, web_port)
        server = Zabbix(url, "", database.programs / "postgres")
        server.version = until(lambda: _answer(server, "apiinfo.version"), "the API")
        server.token = server.api("user.login", user="Admin", password="zabbix")
        yield server


def _answer(server: Zabbix, method: str) -> str | None:
    try:
        return str(server.call(method, []))
    except (urllib.error.URLError, OSError, AssertionError):
        return None


@dataclass(frozen=True)
class Database:
    programs: Path
    port: int
    socket: Path


def postgres(stack: ExitStack, packages: Path, folder: Path) -> Database:
    programs = sorted([*(packages / "root/usr/lib/postgresql").glob("*/bin"), *Path("/usr/lib/postgresql").glob("*/bin")])[-1]
    home = folder / "postgres"
    home.mkdir()
    identity: dict[str, Any] = {}
    if os.getuid() == 0:
        user = next(user for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
        os.chown(home, user.pw_uid, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    subprocess.run(
        [programs / "initdb", "--pgdata", home / "data", "--auth=trust", "--username=zabbix", "--encoding=UTF8", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE,
        cwd=home,
        **identity,
    )
    port = free_port()
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": home, "fsync": "off", "synchronous_commit": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    stack.enter_context(started([programs / "postgres", "-D", home / "data", *words], folder / "postgres.log", cwd=home, **identity))
    database = Database(programs, port, home)
    until(lambda: sql(database, "postgres", "select 1") or None, "PostgreSQL")
    return database


@contextmanager
def mlflow_database() -> Iterator[Database]:
    """A PostgreSQL with an empty database `mlflow`; the test is skipped if it is not installed."""
    pytest.importorskip("psycopg2")
    packages = Path(os.environ.get("MLOPS_TEST_ZABBIX_SERVER", "/nonexistent"))
    if not [*packages.glob("root/usr/lib/postgresql/*/bin"), *Path("/usr/lib/postgresql").glob("*/bin")]:
        pytest.skip("PostgreSQL is not installed, and MLOPS_TEST_ZABBIX_SERVER is not set (scripts/debian-tools.sh server)")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="mlflow-postgres-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        database = postgres(stack, packages, folder)
        assert sql(database, "postgres", "create database mlflow")
        yield database


def _psql(database: Database, name: str) -> list[str | Path]:
    return [database.programs / "psql", "-h", "127.0.0.1", "-p", str(database.port), "-U", "zabbix", "-d", name]


def sql(database: Database, name: str, statement: str) -> bool:
    command = [*_psql(database, name), "-c", statement]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode == 0


def _fill(packages: Path, folder: Path, database: Database) -> None:
    assert sql(database, "postgres", "create database zabbix")
    for name in ("schema", "images", "data"):
        script = folder / f"{name}.sql"
        script.write_bytes(gzip.decompress((packages / f"root/usr/share/zabbix-server-pgsql/{name}.sql.gz").read_bytes()))
        subprocess.run(
            [*_psql(database, "zabbix"), "-q", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-f", script],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE,
            env={**os.environ, "PGOPTIONS": "-c client_min_messages=error"},  # data.sql contains its own transaction
        )


def _server(stack: ExitStack, packages: Path, folder: Path, database: Database, port: int) -> None:
    settings = folder / "server.conf"
    settings.write_text(
        f"ListenPort={port}\nListenIP=127.0.0.1\nLogType=console\nDBHost=127.0.0.1\nDBPort={database.port}\nDBName=zabbix\nDBUser=zabbix\n"
        f"AllowRoot=1\nSocketDir={folder}\nPidFile={folder}/server.pid\nCacheUpdateFrequency=2\nStartPollers=3\nStartPreprocessors=1\n"
        "StartDiscoverers=0\nStartHTTPPollers=0\nStartPingers=0\nStartLLDProcessors=1\nStartTimers=1\nStartEscalators=1\nTimeout=20\n"
        "StartAlerters=1\nStartODBCPollers=0\nStatsAllowedIP=127.0.0.1\n"
    )
    process = stack.enter_context(started([packages / "bin/zabbix_server", "-f", "-c", settings], folder / "server.log"))

    def listening() -> bool | None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            return None
        return True

    until(listening, "zabbix_server")


def _frontend(stack: ExitStack, packages: Path, folder: Path, database: Database, server_port: int, port: int) -> str:
    pages = folder / "frontend"
    shutil.copytree(
        packages / "root/usr/share/zabbix", pages, symlinks=True, ignore=shutil.ignore_patterns("locale", "fonts", "audio", "imgstore")
    )
    settings_file = pages / "conf/zabbix.conf.php"
    reader = pages / "include/classes/core/CConfigFile.php"  # Debian's version reads only /etc/zabbix
    reader.write_text(reader.read_text().replace("/etc/zabbix/zabbix.conf.php", str(settings_file)))
    settings_file.write_text(
        f"<?php\n$DB['TYPE'] = 'POSTGRESQL'; $DB['SERVER'] = '127.0.0.1'; $DB['PORT'] = '{database.port}'; $DB['DATABASE'] = 'zabbix';\n"
        "$DB['USER'] = 'zabbix'; $DB['PASSWORD'] = ''; $DB['SCHEMA'] = ''; $DB['ENCRYPTION'] = false; $DB['DOUBLE_IEEE754'] = true;\n"
        f"$ZBX_SERVER = '127.0.0.1'; $ZBX_SERVER_PORT = '{server_port}'; $ZBX_SERVER_NAME = 'test';\n"
        "$IMAGE_FORMAT_DEFAULT = IMAGE_FORMAT_PNG;\n"
    )
    modules = next((packages / "root/usr/lib/php").glob("2*"), None) or next(Path("/usr/lib/php").glob("2*"))
    settings = [f"-dextension_dir={modules}", *(f"-dextension={name}" for name in EXTENSIONS if (modules / f"{name}.so").exists())]
    settings += ["-dmemory_limit=512M", "-dmax_execution_time=300", "-dpost_max_size=32M", "-ddate.timezone=UTC"]
    stack.enter_context(
        started(
            [packages / "bin/php", "-n", *settings, "-S", f"127.0.0.1:{port}", "-t", pages],
            folder / "php.log",
        )
    )
    return f"http://127.0.0.1:{port}/api_jsonrpc.php"
