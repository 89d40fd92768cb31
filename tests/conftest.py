"""What tests of several packages share: services made from the template as it stands in the working tree, MLflow in a folder."""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from mlops_build import __version__
from mlops_build.scaffold import child
from tests import warm

ROOT = Path(__file__).parent.parent
# render(example="none", …): the folder of a service with these answers.
Render = Callable[..., Path]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]

# The tests' settings of git, copier, MLflow and DVC, not those of the user.
PERSON = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in (("NAME", "Ada"), ("EMAIL", "ada@example.com"))}
GIT_CONFIG = str(ROOT / "tests/gitconfig")
os.environ.update(
    GIT_CONFIG_GLOBAL=GIT_CONFIG,
    GIT_CONFIG_SYSTEM=os.devnull,
    **PERSON,
    MLFLOW_DISABLE_TELEMETRY="true",
    DVC_NO_ANALYTICS="1",
    OMP_NUM_THREADS="1",  # several tests run at once, each with processes of its own
)
for name in ("MLFLOW_TRACKING_URI", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_ADDOPTS"):  # `make test` sets the three of make
    os.environ.pop(name, None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # users do not set it: what Python writes beside a model's code must not change its digest

# Whoever started us in the background may have had these ignored, and children inherit it: Ctrl-C would end none of them.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# No test asserts a time: on a busy machine a case takes many times as long.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


# Their files take long, some with few tests. They come first, so that short files are left when the other workers have nothing more to do.
LONG = ("training", "e2e", "ci", "bridge", "scaffold_existing", "template", "scaffold", "release", "verify")
# It uses an image that test_agents.py builds, and would wait for that build.
LATE = "test_assembled_image.py"


@pytest.hookimpl(tryfirst=True)  # before pytest itself selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a Docker engine takes long, too: one marker fewer to write. `make test` distributes the files in this order."""
    items.sort(key=lambda item: (item.path.name == LATE, LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG)))
    for item in items:
        if item.get_closest_marker("docker"):
            item.add_marker("slow")


# Tests here are about processes: their ids, their end, what they import.
REAL_PYTHON = {ROOT / "tests" / name for name in ("cli", "gpu", "gpu_device", "watch")}


MEMORY = Path("/dev/shm")  # Linux' file system in memory
GIB = 1 << 30


def pytest_configure(config: pytest.Config) -> None:
    fast, soak = "not slow" in config.option.markexpr, "not soak" not in config.option.markexpr
    if not soak and "TMPDIR" not in os.environ and MEMORY.is_dir():
        use_memory(4 if fast else 12)
    if fast:
        os.environ |= {"GOGC": "off", "GOMAXPROCS": "1"}  # kubectl needs a quarter less CPU without its garbage collector and threads
    os.environ["MLOPS_TEST_WARM_VENV"] = str(warm.venv())


def use_memory(wanted: int) -> None:
    """Put temporary files into memory if `wanted` GiB are free: the tests create and remove some hundred thousand small files.

    pytest's own folder remains after a failure, as always.
    """
    memory = os.statvfs(MEMORY)
    if memory.f_flag & os.ST_NOEXEC or memory.f_bavail * memory.f_frsize < wanted * GIB:
        return
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
    os.environ["TMPDIR"] = folder = tempfile.mkdtemp(prefix="mlops-build-tests-", dir=MEMORY)
    Path(folder).chmod(0o1777)  # some tests start processes of other users
    tempfile.tempdir = None  # it is determined again
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let `sys.executable`, and the programs on PATH, be the warm ones (tests/warm.py), for fixtures as well."""
    if item.path.parent in REAL_PYTHON or any(item.iter_markers("real_python")):
        return (yield)
    programs = warm.venv() / "bin"
    if "mlflow.store.db.utils" in sys.modules:
        warm.copy_tables(warm.venv())
    if "jinja2" in sys.modules:
        warm.keep_compiled(warm.venv())
    if "copier" in sys.modules:
        warm.lighten_copier()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(programs / "python"))
        patch.setenv("PATH", str(programs), prepend=os.pathsep)
        return (yield)


def git(folder: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run git in a folder as a person called Ada; a failure fails the test. Names that are not UTF-8 become surrogates, as in `os`."""
    environment = {**os.environ, **PERSON}
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(
        command, env=environment, input=stdin, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=60, check=False
    )
    assert done.returncode == 0, f"git {arguments}: {done.stderr}"
    return done.stdout.strip("\n")


@pytest.fixture
def without_git_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an agent where nobody has configured a name, a token or a CI variable."""
    prefixes = ("GIT_", "MLOPS_GIT_", "MLOPS_CI_", "MLOPS_BRIDGE_", "bamboo_", "CI_", "GITLAB_CI")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", GIT_CONFIG)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


def mlops_build(
    where: Path, *arguments: str, expect: int = 0, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a process of its own, in a folder."""
    command = [sys.executable, "-m", "mlops_build", *arguments]
    done = subprocess.run(
        command, cwd=where, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == expect, f"mlops-build {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert "Traceback (most recent call last)" not in done.stderr, done.stderr
    return done


@pytest.fixture(autouse=True)
def no_tracking_uri() -> Iterator[None]:
    """mlflow.set_tracking_uri writes into the environment, where the next test and the next fixture must not find it."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """made_once(name, make): a folder of this test run, which all workers share. `make` fills it once; no test may change it."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent
    return lambda name, make: warm.made_once(folder / "shared" / name, make)


@pytest.fixture(scope="session")
def template(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The template as it stands in the working tree, tagged as if it were the newest release; copier reads no user's settings."""

    def make(source: Path) -> None:
        for name in ("copier.yml", "cookiecutter.json"):
            shutil.copy(ROOT / name, source)
        for name in ("template", "{{cookiecutter.__folder}}", "hooks", "mlops_build"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        (source / ".gitignore").write_text("__pycache__/\n")
        git(source, "init", "--quiet", "--initial-branch=main")
        git(source, "add", "--all")
        git(source, "commit", "--quiet", "--message=The template")
        git(source, "tag", __version__)
        git(source, "repack", "-adq")  # each rendering clones it and removes the clone: two files, not a folder for every object

    source = made_once("template", make)
    child.compile_once()
    settings = tmp_path_factory.mktemp("copier") / "settings.yml"
    settings.write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPIER_SETTINGS_PATH", str(settings))
        yield source


@pytest.fixture(scope="session")
def render(template: Path, made_once: MadeOnce) -> Render:
    """render(example="none", …) is a folder with the service of these answers; the same answers give the same folder."""
    from copier import run_copy

    warm.lighten_copier()

    def once(**answers: str) -> Path:
        def make(folder: Path) -> None:
            run_copy(str(template), folder, data=answers, defaults=True, quiet=True)

        answered = json.dumps(answers, sort_keys=True)
        return made_once(f"service-{hashlib.sha256(answered.encode()).hexdigest()}", make)

    return once


@pytest.fixture(scope="session")
def rendered_none(render: Render) -> Path:
    """A service with the small synthetic example."""
    return render(project_name="Points", model_name="points", example="none")


@pytest.fixture(scope="session")
def with_data(rendered_none: Path, made_once: MadeOnce) -> Path:
    """The same under Git, with its data under DVC; nothing has run yet."""

    def make(folder: Path) -> None:
        shutil.copytree(rendered_none, folder, dirs_exist_ok=True)
        git(folder, "init", "--quiet", "--initial-branch=main")
        subprocess.run(["make", "--silent", "data", f"VENV={Path(sys.executable).parent.parent}"], cwd=folder, check=True, timeout=120)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message=Start")

    return made_once("with-data", make)


@pytest.fixture(scope="session")
def piped(with_data: Path, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the pipeline run, and nothing committed, pushed or registered: where `mlops-build train` is after its first step.

    Copies share the folder that MLflow's artifacts are in, since its database holds absolute paths: one for each worker.
    """

    def make(folder: Path) -> None:
        from mlops_build.adapters import dvc

        shutil.copytree(with_data, folder, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            dvc.repro(folder)

    made = made_once("piped", make)
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("piped") / "points", symlinks=True))
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")):
            database.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(made), str(folder)))  # noqa: S608
    return folder
