"""A second `python`: same environment, but its processes are forked from one that has imported this package, MLflow, torch and DVC.

A command of the package, or a stage of a pipeline, takes 3 CPU seconds to import these and much less to do its work. With `venv()/bin`
first on PATH, and its `python` as `sys.executable`, hundreds of tests share one import (tests/conftest.py says which). Everything else is
as for a process of its own: arguments, folder, environment, standard streams, exit code, signals. Tests of process ids, kills and imports
use the real Python.
"""

import atexit
import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import logging
import marshal
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

# Imported once, and all modules of the package after them.
PRELOADED = (
    "torch",
    "torch._dynamo",  # an optimizer imports it
    "matplotlib.figure",
    "matplotlib.pyplot",
    "pandas",
    "sklearn.datasets",
    "mlflow.pyfunc",
    "mlflow.pytorch",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.artifact.local_artifact_repo",
    "dvc.cli",
    "dvc.cli.parser",
    "dvc.commands.repro",
    "dvc.repo.datasets",
    "dvc.repo.experiments",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.repo.worktree",
    "dvc.rwlock",
    "dvc.scm",
    "dvc_data.index",
    "dvc_data.index.checkout",
    "dvc_data.index.fetch",
    "dvc_data.index.push",
    "dulwich.porcelain",
    "networkx",
    "scmrepo.git",
    "git",  # MLflow imports it for a run
    "mlflow.tracing.processor.base_mlflow",
    "mlflow.pyfunc.scoring_server",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "hatchling.cli",
    "hatchling.builders.wheel",
    "hatchling.metadata.core",
    "hatchling.version.core",
    "jinja2.sandbox",
    "jinja2_ansible_filters",
    "cookiecutter.cli",
    "dunamai",
    "pydantic.dataclasses",
    "ruamel.yaml",
    "copier._cli",
    "cookiecutter.extensions",
    "uvicorn",
    # What the modules above import inside functions.
    "configobj",
    "dvc.cachemgr",
    "dvc.data_cloud",
    "dvc.repo.artifacts",
    "dvc.repo.brancher",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.stage",
    "dvc.repo.trie",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.index",
    "dvc_data.hashfile.db.local",
    "dvc_data.hashfile.status",
    "dvc_s3",
    "fsspec.implementations.memory",
    "hatchling.bridge.app",
    "hatchling.builders.app",
    "hatchling.builders.binary",
    "hatchling.builders.custom",
    "hatchling.builders.plugin.hooks",
    "hatchling.builders.sdist",
    "hatchling.plugin.specs",
    "hatchling.version.source.plugin.hooks",
    "jsonschema",
    "kubernetes_validate",
    "packaging.licenses",
    "pyarrow.pandas_compat",
    "pygit2",
    "rich.json",
    "ruamel.yaml.mergevalue",
    "scmrepo.fs",
    "torch.utils.serialization.config",
    "trove_classifiers",
)
# What Jinja's code for a template depends on.
LEXER_OPTIONS = (
    *(f"{kind}_{end}_string" for kind in ("block", "variable", "comment") for end in ("start", "end")),
    *("line_statement_prefix", "line_comment_prefix", "trim_blocks", "lstrip_blocks", "newline_sequence", "keep_trailing_newline"),
)
# A fork copies the page tables: 7 ms with its end instead of 33.
HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SCRIPTS = ("mlops-build", "dvc", "mlflow", "copier", "cookiecutter", "pytest")

# Started as `python -IS`: 15 ms. What the server cannot do as a new process would, a new process does.
LAUNCHER = """\
#!{python} -IS
import os, sys
arguments = sys.argv[1:]
plain = arguments and (arguments[0] in ("-m", "-c") or not arguments[0].startswith("-"))
ours = ("PYTHONPATH", "PYTHONWARNINGS", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
if not plain or any(name.startswith(("PYTHON", "LD_")) and name not in ours for name in os.environ):
    os.execv({python!r}, [{python!r}, *arguments])
import json, signal, socket
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = {{"executable": {launcher!r}, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}}
request = json.dumps(request).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
status = int.from_bytes(server.recv(4), "big", signed=True)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, which `make` fills in the first process that needs it; the others wait for it. No test may change it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.done")
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # an attempt that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@cache
def venv() -> Path:
    """The folder of an environment whose `bin/python` is the launcher; the rest of `bin` is the real environment's.

    One for all processes of a test run, which inherit MLOPS_TEST_WARM_VENV from the first.
    """
    if "MLOPS_TEST_WARM_VENV" in os.environ:
        return Path(os.environ["MLOPS_TEST_WARM_VENV"])
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    real = Path(sys.executable).parent
    address = str(folder / "socket")
    (folder / "bin").mkdir()
    launcher = folder / "bin/python"
    launcher.write_text(LAUNCHER.format(python=sys.executable, address=address, launcher=str(launcher)))
    launcher.chmod(0o755)
    for program in real.iterdir():
        link = folder / "bin" / program.name
        if program.name in SCRIPTS:
            lines = program.read_text().split("\n", 1)
            link.write_text(f"#!{launcher}\n{lines[1]}")
            link.chmod(0o755)
        elif program.name.startswith("python"):
            if program.name != "python":
                link.symlink_to("python")
        else:
            link.symlink_to(program)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    # The server ends when this process does: its standard input is at its end then.
    command = [sys.executable, __file__, str(listener.fileno()), str(folder)]
    # Libraries that look at standard output when they are imported must not find a terminal there.
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    subprocess.Popen(command, env={**os.environ, **HUGE_PAGES}, **streams, pass_fds=[listener.fileno()])
    return folder


def run(executable: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Do in this process what `python ARGUMENTS` does in a new one."""
    import plumbum

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.setdefault("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a service's environment has none; importing ours takes a second
    plumbum.local.env.__init__()  # type: ignore[misc]  # a copy of the environment, which copier passes on
    sys.executable = executable
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, buffering=1 if os.isatty(1) or unbuffered else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    if environment.get("PYTHONPATH"):
        sys.path[1:1] = environment["PYTHONPATH"].split(os.pathsep)
    if environment.get("PYTHONWARNINGS"):
        warnings._processoptions(environment["PYTHONWARNINGS"].split(","))  # type: ignore[attr-defined]
    kind, rest = arguments[0], arguments[1:]
    sys.path[0] = folder if kind == "-m" else "" if kind == "-c" else str(Path(kind).resolve().parent)
    forget_another_package()
    if kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        if rest[0].startswith("mlops_build."):
            sys.modules.pop(rest[0], None)  # runpy warns about a module that is imported already
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), vars(main))  # noqa: S102
    else:
        sys.argv = list(arguments)
        runpy.run_path(kind, run_name="__main__")


def forget_another_package() -> None:
    """Forget the package if this process would import it from another folder: a test of an earlier release."""
    import mlops_build

    other = PathFinder.find_spec("mlops_build")
    if other and other.origin != mlops_build.__file__:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mlops_build"]:
            del sys.modules[name]


def become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """The forked process: it becomes what was requested."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        try:
            run(**request)
            status = 0
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
            if isinstance(stopped.code, str):
                print(stopped.code, file=sys.stderr)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            status = 130 if isinstance(error, KeyboardInterrupt) else 1
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons, as the end of a process does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


def supervise(connection: socket.socket, descriptors: list[int], size: int) -> NoReturn:
    """Fork the process, pass the launcher's signals on to it and its status back; kill it when the launcher was killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.recv(size, socket.MSG_WAITALL))
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        connection.close()
        become(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    ended = os.pidfd_open(pid)
    while True:
        ready, _, _ = select.select([connection, ended], [], [])
        if ended in ready:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(status.to_bytes(4, "big", signed=True))
            os._exit(0)
        number = connection.recv(1)
        if number and number[0] == signal.SIGINT:
            os.killpg(pid, signal.SIGINT)  # Ctrl-C also reaches what the process has started
        else:
            os.kill(pid, number[0] if number else signal.SIGKILL)
        if not number:
            os._exit(0)


def serve(listener: socket.socket, folder: Path) -> None:
    """Fork a process for each connection. Ends with its standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([0, listener], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        preload(folder)
        size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
        if os.fork() == 0:
            listener.close()
            supervise(connection, descriptors, int.from_bytes(size, "big"))
        connection.close()
        for descriptor in descriptors:
            os.close(descriptor)


@cache
def copy_tables(folder: Path) -> None:
    """Let MLflow create its tables in SQLite by copying a database: its 60 migrations take 3 CPU seconds for each new file."""
    from mlflow.store.db import utils
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def create(tables: Path) -> None:
        logging.getLogger(utils.__name__).setLevel(logging.WARNING)
        SqlAlchemyStore(f"sqlite:///{tables}/mlflow.db", str(tables)).engine.dispose()
        logging.getLogger(utils.__name__).setLevel(logging.NOTSET)

    database = made_once(folder / "tables", create) / "mlflow.db"
    migrate = utils._upgrade_db

    def upgrade(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or not engine.url.database:
            migrate(engine)
            return
        with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(engine.url.database)) as target:
            source.backup(target)

    utils._upgrade_db = upgrade


@cache
def keep_compiled(folder: Path) -> None:
    """Let Jinja read from files what another process has compiled: half of the time of a rendering goes there."""
    from jinja2 import Environment

    kept = folder / "jinja"
    kept.mkdir(exist_ok=True)
    compile_anew = Environment.compile

    def compile_or_read(self: Environment, source: Any, name: Any = None, filename: Any = None, *rest: Any, **more: Any) -> Any:
        if not isinstance(source, str) or rest or more or not isinstance(self.autoescape, bool):
            return compile_anew(self, source, name, filename, *rest, **more)
        settings = [getattr(self, option) for option in LEXER_OPTIONS]
        key = (source, name, type(self).__module__, settings, self.autoescape, sorted(self.extensions), sorted(self.filters))
        file = kept / hashlib.sha256(repr(key).encode()).hexdigest()
        try:
            code = marshal.loads(file.read_bytes())  # noqa: S302  (ours)
        except FileNotFoundError:
            code = compile_anew(self, source, name, filename)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_bytes(marshal.dumps(code))
            part.rename(file)
            return code
        self.preprocess(source, name, filename)  # extensions note that a template begins
        return code.replace(co_filename=filename or "<template>")

    Environment.compile = compile_or_read  # type: ignore[method-assign]


@cache
def lighten_copier() -> None:
    """Let copier leave out what has no effect here: most of the time of a rendering that asks and writes little goes there."""
    import yaml
    from copier import _main, _template, _vcs

    # The same documents and errors, read by libyaml.
    _template.yaml = SimpleNamespace(**{**vars(yaml), "SafeLoader": yaml.CSafeLoader})  # type: ignore[attr-defined]
    # Runs git for each file, and changes something only where core.fileMode is false.
    _main.Worker._sync_git_index_executable_bit = lambda *_: None  # type: ignore[method-assign]
    is_git_bundle, get_git = _vcs.is_git_bundle, _vcs.get_git
    _vcs.is_git_bundle = lambda path: not path.is_dir() and is_git_bundle(path)  # creates a repository, and runs git in it

    class WithoutSubmodules:  # the template has none, and `git submodule` starts a shell and ten other processes
        def __init__(self, context_dir: Path | None = None) -> None:
            self.git = get_git(context_dir)

        def __call__(self, *arguments: Any) -> Any:
            return "" if arguments[0] == "submodule" else self.git(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.git, name)

        def __getitem__(self, arguments: Any) -> Any:
            return self.git[arguments]

    _vcs.get_git = WithoutSubmodules  # type: ignore[assignment]


@cache
def preload(folder: Path) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    import mlops_build

    for module in pkgutil.walk_packages(mlops_build.__path__, "mlops_build."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    from dvc.cli import parser
    from mlflow.utils import requirements_utils

    commands = parser.get_main_parser()
    parser.get_main_parser = lambda: commands
    requirements_utils._init_modules_to_packages_map()
    copy_tables(folder)
    keep_compiled(folder)
    lighten_copier()
    logging.root.handlers.clear()  # importing mlflow.pytorch adds one
    logging.root.setLevel(logging.WARNING)  # MLflow's migrations raise it
    from torch._dynamo.utils import dump_compile_times

    # At the end of each process torch would spend 110 ms on a table of compile times and on freeing what the kernel frees.
    atexit.unregister(dump_compile_times)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.path[0] = os.devnull  # this folder's packages are called as libraries are
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
