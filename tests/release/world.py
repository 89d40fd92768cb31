"""A world to release in: MLflow's real registry in a sqlite file, a service's bare repository, and a person's checkout of it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.model import identity
from mlops_build.release.alias import Move, promote_all
from mlops_build.release.write import in_checkout
from mlops_build.service import Service
from tests.conftest import MadeOnce, git

SERVICE = """\
# What this service is.
schema: 1
name: digits # the image is named after it
team: ml
models: # the first answers
  - name: digits
environments:
  staging:
    namespace: ml-staging
    host: digits-staging.example.com
  production:
    alias: live
    namespace: ml
    host: digits.example.com
    replicas: 2
    memory: 1536MiB

gpu: {mode: none}
image: {registry: "registry.example.com:5000/ml"}
hold: {} # `production: why` stops the bridge
"""
BASE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: digits, labels: {app.kubernetes.io/name: digits}}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: digits}}
  template:
    metadata: {labels: {app.kubernetes.io/name: digits}, annotations: {mine: kept}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 10001}
      containers:
        - name: digits
          image: digits
          env: [{name: HOME, value: /tmp}]
          ports: [{name: http, containerPort: 8080}]
          startupProbe: {httpGet: {path: /health, port: http}, periodSeconds: 5, failureThreshold: 1}
          readinessProbe: {httpGet: {path: /ping, port: http}}
---
apiVersion: v1
kind: Service
metadata: {name: digits}
spec: {selector: {app.kubernetes.io/name: digits}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: digits}
spec: {rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: digits, port: {name: http}}}}]}}]}
"""
UNRELEASED = "schema: 1\nenvironment: {env}\nmodels: [] # nothing released yet\ncommit: null\nimage: null\n"
NOTHING = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nreplicas:\n  - name: digits\n    count: 0\n"


@pytest.fixture(autouse=True)
def alone(without_git_settings: None) -> None:
    """For all tests that import this fixture."""


@pytest.fixture(scope="session")
def empty_database(made_once: MadeOnce) -> Path:
    """MLflow's tables, made once: that takes longer than most tests."""

    def make(folder: Path) -> None:
        assert Registry(f"sqlite:///{folder}/mlflow.db", create=True).alias_map() == {}

    return made_once("registry", make) / "mlflow.db"


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty registry, which MLFLOW_TRACKING_URI names."""
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Registry(uri)


Register = Callable[..., RegisteredVersion]


def tags_of(number: int) -> dict[str, str]:
    """What `mlops-build train` puts on a version."""
    return {
        identity.SERVICE: "digits",
        identity.COMMIT_TAG: f"{number:040x}",
        identity.DATA: f"sha256:{number:064x}",
        identity.DIGEST_TAG: f"sha256:{number + 1000:064x}",
    }


@pytest.fixture
def register(registry: Registry, tmp_path: Path) -> Register:
    """register("digits", extra tags) registers the next version as mlops-build would; a tag of None is left out."""
    count = 0

    def one(
        name: str = "digits",
        tags: Mapping[str, str | None] | None = None,
        run: str | None = None,
        signature: Mapping[str, str] | None = None,
    ) -> RegisteredVersion:
        nonlocal count
        count += 1
        wanted = {key: value for key, value in {**tags_of(count), **(tags or {})}.items() if value is not None}
        source = tmp_path / "files" / name / str(count)
        source.mkdir(parents=True)
        (source / "MLmodel").write_text(json.dumps({"signature": signature or {}}))
        return registry.create_version(name, source.as_uri(), f"{count:032x}" if run is None else run, wanted)

    return one


Promote = Callable[..., Move]


@pytest.fixture
def promote(registry: Registry, register: Register) -> Promote:
    """promote(2) points staging at digits 2, after registering the versions up to it. why, force_dirty: as for `promote_all`."""

    def one(version: int | str, env: str = "staging", *, model: str = "digits", service: Service | None = None, **options: Any) -> Move:
        missing = version - len(registry.versions(model)) if isinstance(version, int) else 0
        for _ in range(missing):
            register(model)
        (move,), _ = promote_all(registry, service, {model: version}, env, **options)
        return move

    return one


@pytest.fixture
def released(checkout: Path, registry: Registry, promote: Promote) -> Path:
    """A checkout in which staging was released twice: digits 1 and 2."""
    for number in (1, 2):
        promote(number)
        in_checkout(checkout, "staging", registry)
    return checkout


Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run mlops-build; returns the exit code, the JSON and stderr."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return call


def service_files(service: str = SERVICE) -> dict[str, str]:
    """A service's repository as far as a release needs it, before the first release."""
    files = {"service.yaml": service, "deploy/base/all.yaml": BASE, "deploy/base/kustomization.yaml": "resources: [all.yaml]\n"}
    for env in ("staging", "production"):
        overlay = f"deploy/overlays/{env}"
        files[f"{overlay}/kustomization.yaml"] = "resources: [../../base]\ncomponents: [release]\n"
        files[f"{overlay}/release/record.yaml"] = UNRELEASED.format(env=env)
        files[f"{overlay}/release/kustomization.yaml"] = NOTHING
    return files


def write(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def first_commit(work: Path, service: str, bare: Path) -> Path:
    """A person's checkout of a new service at `work`, with an empty bare repository as its origin."""
    git(work.parent, "init", "--quiet", "--initial-branch=main", str(work))
    write(work, service_files(service))
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message=First")
    git(work, "remote", "add", "origin", f"file://{bare}")
    git(work, "push", "--quiet", "--set-upstream", "origin", "main")
    return work


MakeRepository = Callable[..., Path]


@pytest.fixture
def make_repository(tmp_path: Path, made_once: MadeOnce) -> MakeRepository:
    """make_repository("digits", service=…) is a person's checkout of a new bare repository `digits.git`."""

    def make_both(folder: Path, name: str, service: str) -> None:
        bare, work = folder / f"{name}.git", folder / name
        git(folder, "init", "--quiet", "--template=", "--bare", "--initial-branch=main", str(bare))
        git(folder, "init", "--quiet", "--template=", "--initial-branch=main", str(work))
        for hooks in (bare / "hooks", work / ".git/hooks"):
            hooks.mkdir()
        write(work, service_files(service))
        git(work, "add", "--all")
        git(work, "commit", "--quiet", "--message=First")
        git(work, "remote", "add", "origin", f"file://{bare}")
        git(work, "push", "--quiet", "--set-upstream", "origin", "main")

    def make(name: str = "digits", service: str = SERVICE) -> Path:
        content = hashlib.sha256(f"{name} {service}".encode()).hexdigest()
        shutil.copytree(made_once(f"repository-{content}", lambda folder: make_both(folder, name, service)), tmp_path, dirs_exist_ok=True)
        work = tmp_path / name
        git(work, "remote", "set-url", "origin", f"file://{work}.git")
        git(work, "update-index", "--refresh")  # the copies have other inodes
        return work

    return make


@pytest.fixture
def checkout(make_repository: MakeRepository) -> Path:
    """A person's checkout of the service digits, in `tmp_path`/digits; its remote is `tmp_path`/digits.git."""
    return make_repository()


@pytest.fixture
def remote(checkout: Path) -> Path:
    return checkout.with_name("digits.git")


def change_service(checkout: Path, old: str, new: str) -> None:
    """A person edits service.yaml, commits and pushes."""
    git(checkout, "pull", "--quiet", "--rebase")
    text = (checkout / "service.yaml").read_text()
    assert old in text
    (checkout / "service.yaml").write_text(text.replace(old, new))
    git(checkout, "commit", "--quiet", "--all", "--message=Edit service.yaml")
    git(checkout, "push", "--quiet")
