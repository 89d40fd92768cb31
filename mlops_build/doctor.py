"""Check what is installed, reachable and configured. Each check returns its observation and findings with remedies.

It must run with incomplete installations, so each check imports its own requirements.
"""

import contextlib
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from mlops_build import __version__
from mlops_build.adapters.program import probe
from mlops_build.errors import MlopsBuildError
from mlops_build.finding import Finding

PROBE_SECONDS = 15
GIB = 2**30
DISK_BYTES = 5 * GIB
GIT_MINIMUM = (2, 30)
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Check:
    """The result of a check: its name, its observation, and its findings. absent: what it checks is not there, and need not be."""

    name: str
    seen: str
    findings: list[Finding] = field(default_factory=list)
    absent: bool = False

    @property
    def ok(self) -> bool:
        return not self.findings


def examine(root: Path | None, *, ci: bool = False, deep: bool = False) -> list[Check]:
    """Run every check of this machine, and of the service at `root` if there is one.

    ci: skip the checks that the checklist does in more detail (mlops_build/checklist): engine, kubectl, remotes and registry. deep: DVC
    also compares the data remote with the local data, which takes seconds, and MLflow delivers a test event to the bridge.
    """
    checks: list[Callable[[], Check]] = [system, extras, git, lambda: disk(root or Path.cwd()), gpu, gpu_leases, fleet]
    checks += [] if ci else [lambda: engine(required=False), kubectl]
    if root:
        checks += [lambda: service_file(root), lambda: tasks(root), lambda: versions(root)]
        checks += [] if ci else [lambda: images(root), lambda: remote(root), lambda: data_remote(root, deep=deep), lambda: registry(root)]
        checks += [lambda: webhook(root, deep=deep)]
    elif os.environ.get("MLFLOW_TRACKING_URI"):
        checks += [lambda: registry(None)]
    return [_examined(check) for check in checks]


def _examined(check: Callable[[], Check]) -> Check:
    """Run a check; a missing extra or an invalid service.yaml becomes a finding."""
    try:
        return check()
    except MlopsBuildError as error:
        return Check("service", "cannot be checked", [Finding("service", "unreadable", error.message, error.remedy or "fix it")])
    except ModuleNotFoundError as error:
        why = f"cannot be checked: the Python package {error.name!r} is not installed"
        remedy = "pip install 'mlops-build[train]'"
        return Check("extras", why, [Finding("extras", "extra-missing", why, remedy)])


def system() -> Check:
    """Python and platform. The tested versions of Python are only in the package's classifiers (pyproject.toml)."""
    seen = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, mlops-build {__version__}"
    tested = [name.rpartition(" ")[2] for name in _metadata("Classifier") if name.startswith("Programming Language :: Python :: 3.")]
    if tested and platform.python_version().rpartition(".")[0] not in tested:
        seen += f" (tested with Python {', '.join(tested)})"
    problems: list[Finding] = []
    if sys.platform == "win32":
        problems.append(Finding("platform", "platform", "Windows is not supported", "use WSL 2"))
    return Check("system", seen, problems)


def extras() -> Check:
    """The complete extras of mlops-build. A missing extra is not a finding: a pod has only what it uses."""
    complete = [extra for extra in _metadata("Provides-Extra") if extra != "all" and all(map(_installed, _requirements(extra)))]
    return Check("extras", ", ".join(complete) or "none (the base only)")


def _metadata(field: str) -> list[str]:
    """A field of this package's metadata; empty if it is not installed."""
    try:
        return metadata.metadata("mlops-build").get_all(field) or []
    except metadata.PackageNotFoundError:
        return []


def _requirements(extra: str) -> set[str]:
    """The packages of an extra of mlops-build, including those of its nested extras."""
    names = set()
    for line in metadata.requires("mlops-build") or []:
        if not re.search(rf"extra == ['\"]{extra}['\"]", line):
            continue
        if included := re.match(r"mlops-build\[([a-z,]+)\]", line):
            names |= {name for other in included[1].split(",") for name in _requirements(other)}
        elif name := re.match(r"[A-Za-z0-9._-]+", line):
            names.add(name[0])
    return names


def _installed(name: str) -> bool:
    return _version(name) != NOT_INSTALLED


def git() -> Check:
    """git is installed, new enough, and has an identity."""
    output = _output(["git", "--version"])
    if output is None:
        return Check("git", "not found", [Finding("git", "git-missing", "git is not installed", "install git ≥ 2.30")])
    version = tuple(map(int, re.findall(r"\d+", output)[:2]))
    findings = []
    if version < GIT_MINIMUM:
        findings.append(Finding("git", "git-old", f"{output} is too old", "install git ≥ 2.30"))
    if not _output(["git", "config", "user.email"]):
        remedy = "git config --global user.name NAME; git config --global user.email ADDRESS"
        findings.append(Finding("git", "git-identity", "git has no identity for commits", remedy))
    return Check("git", output.removeprefix("git version "), findings)


def disk(folder: Path) -> Check:
    """Free disk space for an environment, a model and an image."""
    free = shutil.disk_usage(folder).free
    seen = f"{free / GIB:.1f} GiB free at {folder}"
    remedy = "free disk space: docker system prune, dvc gc --workspace, remove old environments"
    return Check("disk", seen, [] if free >= DISK_BYTES else [Finding("disk", "disk-full", f"only {seen}", remedy)])


def gpu() -> Check:
    """The GPUs and their driver. A machine without a GPU is not a finding."""
    from mlops_build.gpu import health

    seen, findings = health.look()
    return Check("gpu", seen, findings, absent=seen.startswith(health.NONE))


def gpu_leases() -> Check:
    """The lease directory of the GPUs."""
    from mlops_build.gpu import health

    seen, findings = health.leases()
    return Check("gpu leases", seen, findings, absent=seen.startswith(health.NONE))


def engine(*, required: bool) -> Check:
    """A container engine answers, or buildah is installed, which needs none."""
    # The same choice as in `ci image`: MLOPS_BUILD_ENGINE=docker or DOCKER_CLI selects docker.
    named = os.environ.get("MLOPS_BUILD_ENGINE") or ("docker" if os.environ.get("DOCKER_CLI") else "")
    client = None if named == "buildah" else os.environ.get("DOCKER_CLI") or shutil.which("docker")
    version = _output([client, "version", "--format", "{{.Server.Version}}"]) if client else None
    if version:
        return Check("engine", f"Docker {version}")
    buildah = None if named == "docker" else shutil.which(os.environ.get("BUILDAH_CLI") or "buildah")
    if buildah and (version := _output([buildah, "--version"])):
        return Check("engine", version)
    why = "the Docker Engine does not answer" if client else "neither docker nor buildah is installed"
    findings = [Finding("engine", "engine", why, "install buildah or Docker, start it, or set DOCKER_HOST; only `ci image` needs it")]
    return Check("engine", why, findings) if required else Check("engine", f"{why} (only building an image here needs it)", absent=True)


def images(root: Path) -> Check:
    """How `ci image` makes images here, and why. Neither way is a finding."""
    from mlops_build import service
    from mlops_build.service import assembling

    settings = service.load(root)
    why = assembling.refusal(settings)
    if why is None:
        return Check("images", f"assembled at {settings.image.registry}; only a new environment image needs a container engine")
    return Check("images", f"built by a container engine: {why.message}", absent=True)


def kubectl() -> Check:
    """kubectl, which renders and applies manifests. A machine without it is not a finding."""
    path = shutil.which("kubectl")
    if path:
        return Check("kubectl", (_output([path, "version", "--client"]) or path).splitlines()[0])
    return Check("kubectl", "not found", absent=True)


def service_file(root: Path) -> Check:
    """service.yaml is valid."""
    from mlops_build import service

    try:
        settings = service.load(root)
    except MlopsBuildError as error:
        return Check("service.yaml", "not valid", [Finding("service.yaml", "service-yaml", error.message, error.remedy or "fix it")])
    holds = [env for env in settings.environments if env in settings.hold or (root / "deploy/overlays" / env / "hold.yaml").exists()]
    held = f", held: {', '.join(holds)}" if holds else ""
    reason = settings.serving.unsafe_pickle
    pickles = f", pickles are accepted (serving.unsafe_pickle): {reason}" if reason else ""
    names = ", ".join(model.name for model in settings.models)
    return Check("service.yaml", f"{settings.name}: {names}; {', '.join(settings.environments)}{held}{pickles}")


def versions(root: Path) -> Check:
    """This version of mlops-build is in the range that the service requires."""
    from mlops_build.service.pin import requirement

    path = root / "pyproject.toml"
    if not path.is_file():
        return Check("versions", "no pyproject.toml", [Finding("pyproject.toml", "versions", f"{path} is missing", "restore it from Git")])
    wanted = requirement(path.read_text(encoding="utf-8", errors="replace"))
    if wanted and not wanted.specifier.contains(__version__, prereleases=True):
        why = f"the service requires mlops-build{wanted.specifier}, but this is {__version__}"
        return Check(
            "versions", why, [Finding("mlops-build", "versions", why, "run `make install` in the service, or update it: copier update")]
        )
    return Check(
        "versions", f"mlops-build {__version__} fits {wanted.specifier if wanted else 'no range given'}, torch {_version('torch')}"
    )


def remote(root: Path) -> Check:
    """Git's origin answers."""
    url = _output(["git", "-C", str(root), "remote", "get-url", "origin"])
    if not url:
        remedy = "git remote add origin URL; until then commits stay on this machine"
        return Check("git remote", "none", [Finding("git remote", "git-remote", "there is no remote called origin", remedy)])
    if _output(["git", "-C", str(root), "ls-remote", "--heads", "origin"]) is None:
        return Check(
            "git remote",
            "no answer",
            [Finding("git remote", "git-remote", "origin does not answer", "check its address and your permission to read it")],
        )
    return Check("git remote", re.sub(r"//[^/@]*@", "//", url))


def data_remote(root: Path, *, deep: bool = False) -> Check:
    """DVC has a default remote that others can read, and the tracked data is on this machine. deep: the remote answers."""
    from mlops_build.adapters import dvc, dvc_remote
    from mlops_build.adapters.git.checkout import Checkout

    default = dvc_remote.default_remote(root)
    # DVC also reads settings of the user and the machine, so it is run if the repository has none.
    if (deep or not default) and (why := dvc.check_remote(root)):
        remedy = "check .dvc/config and your credentials; dvc remote add --default NAME URL"
        return Check("data remote", why, [Finding("data remote", "data-remote", why, remedy)])
    findings = []
    try:
        dvc_remote.check_present(root)
    except dvc.DataMissing as error:
        findings.append(Finding("data", "data-missing", error.message, error.remedy or "dvc pull"))
    checkout = Checkout.find(root)
    if default and checkout and checkout.origin_url() and default.is_inside(root):
        why = f"{default.in_checkout(root)}, which no clone has"
        findings.append(Finding("data remote", "data-not-shared", why, dvc_remote.SHARE.format(name=default.name)))
    is_new = default is not None and default.folder is not None and not default.folder.exists()
    if default and default.folder and is_new and not default.is_inside(root):
        # For example a share that is not mounted: dvc push would create the folder, and the data would stay on this machine.
        why = f"the DVC remote {default.name!r} is the folder {default.folder}, which does not exist on this machine"
        remedy = f"mount it; or, for a new one: mkdir -p {shlex.quote(str(default.folder))}"
        return Check("data remote", "a folder that does not exist", [Finding("data remote", "data-remote", why, remedy), *findings])
    seen = default.shown(root) if default else ", ".join(dvc.remotes(root).values())
    seen += " (a folder that does not exist yet: dvc push creates it)" if is_new else ""
    seen += "" if deep or not default or default.folder else " (not contacted: `mlops-build doctor --deep` does)"
    return Check("data remote", seen, findings)


def registry(root: Path | None) -> Check:
    """MLflow answers, and a server has aliases. root: None outside of a service, where MLFLOW_TRACKING_URI is set."""
    from mlops_build import tracking
    from mlops_build.adapters.registry import UnknownVersion

    place = tracking.find(root)
    try:
        mlflow = tracking.registry(root)
        models, version = mlflow.alias_map(), mlflow.server_version()
        for name in list(models)[:1]:
            with contextlib.suppress(UnknownVersion):
                mlflow.version(name, "mlops-build-doctor")
    except MlopsBuildError as error:
        return Check("registry", "cannot be used", [Finding("registry", "registry", error.message, error.remedy or "start it")])
    server = f"MLflow {version}, " if version else ""
    return Check("registry", f"{place.uri.rpartition('@')[2]}: {server}{len(models)} registered models")


def webhook(root: Path, *, deep: bool = False) -> Check:
    """The webhook that wakes the bridge, if there is one. deep: MLflow can deliver to it."""
    from mlops_build import tracking
    from mlops_build.adapters.registry.webhooks import OF_BRIDGE

    try:
        mlflow = tracking.registry(root)
        own = next((each for each in mlflow.webhooks() if each.name == OF_BRIDGE), None)
    except MlopsBuildError:
        return Check("webhook", "none: MLflow does not answer, or sends no webhooks", absent=True)
    if own is None:
        return Check("webhook", "none: a bridge notices a moved alias at its next pass (`mlops-build bridge setup`)", absent=True)
    if not deep:
        return Check("webhook", f"{own.url} (not tested: `mlops-build doctor --deep` does)")
    failure = mlflow.test_webhook(own)
    seen = f"{own.url}. MLflow sends none for a deleted version, and gives up after three retries: the bridge then notices at its next pass"
    return Check("webhook", seen, [Finding("webhook", "webhook", *failure)] if failure else [])


def fleet() -> Check:
    """The fleet.yaml that MLOPS_FLEET names can be read, if there is one."""
    from mlops_build.adapters.git.command import masked
    from mlops_build.fleet import FILE, rules

    where = rules.configured()
    if where is None:
        return Check(FILE, f"none, so nothing is frozen ({rules.VARIABLE} is not set)", absent=True)
    known = rules.read()
    if known.fleet is None:
        error = known.error or MlopsBuildError("it cannot be read")
        return Check(FILE, "cannot be read", [Finding(FILE, "fleet", error.message, error.remedy or f"check {rules.VARIABLE}")])
    return Check(FILE, f"{masked(where)}: {len(known.fleet.freeze)} freezes")


def tasks(root: Path) -> Check:
    """The code has no open task of TODO.md."""
    from mlops_build.service.tasks import open_tasks

    is_open = open_tasks(root)
    remedy = "do what TODO.md says: training fails until then"
    findings = [Finding(path, "task-open", f"{task} of TODO.md is not done yet", remedy) for task, path in is_open.items()]
    return Check("tasks", f"{', '.join(is_open)} of TODO.md" if is_open else "none of TODO.md is open in the code", findings)


def lock(root: Path) -> Check:
    """A lock is committed, so that an agent does not resolve the requirements again."""
    tracked = _output(["git", "-C", str(root), "ls-files", "requirements.lock"])
    if tracked:
        return Check("lock", "requirements.lock is committed")
    return Check(
        "lock", "missing", [Finding("requirements.lock", "lock", "no lock is committed", "make lock, then commit requirements.lock")]
    )


def _output(command: list[str]) -> str | None:
    """The output of a program; None if it is missing, fails or takes too long."""
    done = probe(command, seconds=PROBE_SECONDS, environment={**os.environ, "GIT_TERMINAL_PROMPT": "0"})
    return done.text.strip() if done is not None and done.code == 0 else None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED
