"""The servers that benchmarks/serving.py compares: their environments, how they start, and their clients."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ROOT / "benchmarks/serving_beside"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlops-build/benchmark-serving"
UV = str(Path(sys.executable).with_name("uv"))  # also where .venv is not activated
RIVALS = ["litserve==0.2.19", "bentoml==1.4.40"]
READY_SECONDS = 180
# What a container of the template may use, and the bodies that it receives at one time.
LIMIT_MIB = 1024
BODIES, AT_ONCE = 24, 8


@dataclass(frozen=True)
class Server:
    """command: of a model and a port. models: what it is asked for. payload: another model's form of request that it takes for `tab`."""

    command: Callable[[str, int], Sequence[str]]
    models: tuple[str, ...]
    ready: str = "/ping"
    payload: str = "tab"


def python(environment: str) -> str:
    return str(CACHE / environment / "bin/python")


def model(name: str) -> str:
    return str(CACHE / "models" / name)


OURS, MLFLOW, LITSERVE, BENTOML, BARE = "mlops-build", "MLflow", "LitServe", "BentoML", "bare"
SERVERS = {
    OURS: Server(
        lambda name, port: [python("ours"), "-m", "mlops_build", "serve", model(name), "--port", str(port), "--device", "cpu"],
        ("tab", "tabt", "img"),
    ),
    MLFLOW: Server(
        lambda name, port: [
            *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model(name), "--env-manager", "local"),
            *("--workers", "1", "--port", str(port)),
        ],
        ("tab", "tabt", "img"),
    ),
    LITSERVE: Server(lambda name, port: [python("rivals"), str(BESIDE / "lit.py"), name, str(port)], ("tab", "img"), "/health"),
    BENTOML: Server(
        lambda _, port: [
            str(CACHE / "rivals/bin/bentoml"), "serve", "--working-dir", str(BESIDE), "--port", str(port), "bento:Scores"
        ],
        ("tab", "img"), "/readyz", payload="tabt",
    ),
    BARE: Server(lambda name, port: [python("ours"), str(BESIDE / "bare.py"), name, str(port)], ("tab", "tabt", "img")),
}  # fmt: skip


# ── what is needed: environments, models, bodies, the clients ──


def prepare() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    torch = "torch==" + importlib.metadata.version("torch")
    lock = ["--constraint", str(ROOT / "requirements.lock")]
    environment("ours", [*lock, torch, "--requirement", str(ROOT / "pyproject.toml"), "--extra", "serve"])
    environment("rivals", [torch, "numpy", "uvloop", "httptools", *RIVALS])
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "mlops_build")], check=True)  # as installing does
    clients_and_models()


def clients_and_models() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-o", str(CACHE / "load"), str(BESIDE / "load.c")], check=True)
    shutil.rmtree(CACHE / "models", ignore_errors=True)
    saved = subprocess.run([sys.executable, str(BESIDE / "save.py"), str(CACHE / "models")], capture_output=True, text=True, check=False)
    if saved.returncode:
        raise SystemExit(saved.stderr)


def environment(name: str, packages: Sequence[str]) -> None:
    folder, stamp = CACHE / name, CACHE / f"{name}.installed"
    wanted = " ".join(packages) + (ROOT / "requirements.lock").read_text() * (name == "ours")
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"making {folder}", flush=True)
    settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    # uv ignores pip's settings.
    for ours, theirs in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("UV_FIND_LINKS", "PIP_FIND_LINKS")):
        if theirs in settings:
            settings.setdefault(ours, settings[theirs].replace(" ", ",") if ours == "UV_FIND_LINKS" else settings[theirs])
    backend = [] if "UV_FIND_LINKS" in settings else ["--torch-backend=cpu"]
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(folder)], env=settings, check=True)
    install = [UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", python(name), *backend]
    subprocess.run([*install, *packages], env=settings, cwd=ROOT, check=True)
    stamp.write_text(wanted)


# ── one server, one model, one round ──


class Running:
    """A started server. Guards its processes: `with` ends them all."""

    def __init__(self, server: Server, name: str, group: Path | None = None) -> None:
        """group: the control group of its processes."""

        def join() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLOPS_") and key != "MLFLOW_TRACKING_URI"}
        path = os.pathsep.join([str(ROOT), str(BESIDE)]) if server in (SERVERS[OURS], SERVERS[BENTOML]) else ""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        on_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # MLflow's server starts uvicorn
        own = {"PATH": on_path, "MODEL": name, "PYTHONPATH": path, "BENTOML_DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
        began = time.perf_counter()
        with (CACHE / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                server.command(name, self.port), env={**kept, **threads, **own}, cwd=CACHE, stdout=subprocess.DEVNULL, stderr=log,
                preexec_fn=join,
            )  # fmt: skip
        while not self.answers(server.ready):
            if self.process.poll() is not None or time.perf_counter() - began > READY_SECONDS:
                self.end()
                raise SystemExit(f"{server.command(name, self.port)} does not start:\n{(CACHE / 'server.log').read_text()[-2000:]}")
            time.sleep(0.02)
        self.seconds = time.perf_counter() - began

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu(self) -> float:
        return sum(sum(one.cpu_times()[:2]) for one in self.processes())

    def memory(self) -> dict[str, int]:
        """MiB of all its processes. rss counts what they share several times, pss once."""
        found = [one.memory_full_info() for one in self.processes()]
        return {"rss": round(sum(one.rss for one in found) / 2**20), "pss": round(sum(one.pss for one in found) / 2**20)}

    def load(self, name: str, rows: int, clients: int, seconds: float) -> dict[str, float]:
        before = self.cpu()
        body = CACHE / f"models/{name}-{rows}.json"
        command = [str(CACHE / "load"), str(self.port), "/invocations", str(body), str(clients), str(seconds), "200"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        found: dict[str, float] = json.loads(done.stdout)
        if found["not_200"]:
            raise SystemExit(f"{found['not_200']} answers were not 200:\n{(CACHE / 'server.log').read_text()[-2000:]}")
        found["cpu_ms"] = round((self.cpu() - before) * 1000 / (found["answers"] + found["before"]), 3)
        return found

    def burst(self, body: bytes) -> dict[str, int]:
        """Send this body BODIES times, AT_ONCE at one time. Returns the number of answers by status; "none" without an answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/invocations", body, {"Content-Type": "application/json"})

        def send(_: int) -> str:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answer.read()
                    return str(answer.status)
            except urllib.error.HTTPError as error:
                return str(error.code)
            except OSError:
                return "none"

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(Counter(pool.map(send, range(BODIES))))

    def end(self) -> None:
        try:
            everyone = self.processes()
        except psutil.NoSuchProcess:
            everyone = []
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(everyone, timeout=10)
        for one in alive:
            one.kill()
        self.process.wait()


@contextlib.contextmanager
def limited() -> Iterator[Path | None]:
    """A control group whose processes may use LIMIT_MIB of memory; None if this process may not create one."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory").is_dir()
    group = (root / "memory" if version_1 else root) / f"benchmark-serving-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT_MIB << 20))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        for _ in range(100):  # until the kernel has removed its processes
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def small_memory(server: str) -> dict[str, Any]:
    """MiB of a server with little memory: after its start, and after a burst of bodies of 7 MiB. None if it was killed."""
    one = SERVERS[server]
    document = json.loads((CACHE / f"models/{one.payload}-32.json").read_text())
    rows = document.get("dataframe_split", {}).get("data") or document["inputs"]
    rows *= 1000
    with limited() as group, Running(one, "tab", group) as running:
        started = running.memory()["rss"]
        answers = running.burst(json.dumps(document).encode())
        time.sleep(2)
        alive = running.process.poll() is None and running.answers(one.ready)
        return {"limit": group is not None, "started": started, "after": running.memory()["rss"] if alive else None, "answers": answers}
