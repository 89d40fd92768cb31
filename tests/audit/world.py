"""A registry, an artifact store, a DVC remote and repositories, on folders or on S3; clean, or with a fault of each kind."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.adapters.registry import Registry
from mlops_build.adapters.storage.address import place
from mlops_build.model import identity
from mlops_build.model.files import digest_of
from mlops_build.model.version import ModelVersion
from mlops_build.release import record as records
from mlops_build.release.record import Record
from tests.conftest import git
from tests.release.world import SERVICE, first_commit, write

IMAGE = "registry.example.com:5000/ml/digits:v1-0123456789ab"
DAY_MS = 86_400_000
Found = set[tuple[str, str]]


@dataclass
class World:
    """store, remote: addresses of the artifacts and of DVC's remote. sql: runs a statement in MLflow's database."""

    folder: Path
    uri: str
    store: str
    remote: str
    endpoint: str | None
    sql: Callable[[str], None]
    count: int = 0
    works: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(self.uri, registry_uri=self.uri)
        self.registry = Registry(self.uri)
        address = self.store if "://" in self.store else Path(self.store).as_uri()
        self.experiment = self.client.create_experiment("audit", artifact_location=f"{address}/7")

    def url(self, name: str) -> str:
        return f"file://{self.folder}/{name}.git"

    def put(self, base: str, path: str, content: bytes, days: int = 0) -> None:
        """Write a file of a store; one in a folder is `days` old."""
        file = self.folder / "scratch"
        file.write_bytes(content)
        if "://" not in base:
            Path(base).mkdir(parents=True, exist_ok=True)
        place(base, self.endpoint).put(path, file)
        if "://" not in base:
            then = file.stat().st_mtime - days * 86400
            os.utime(Path(base) / path, (then, then))

    def data(self, content: bytes, *, is_pushed: bool = True, suffix: str = "", days: int = 0) -> str:
        """The MD5 of data on the remote."""
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if is_pushed:
            self.put(self.remote, f"files/md5/{md5[:2]}/{md5[2:]}{suffix}", content, days)
        return md5 + suffix

    def list_of(self, *md5s: str) -> bytes:
        return json.dumps([{"md5": md5, "relpath": f"{number}.csv"} for number, md5 in enumerate(md5s)]).encode()

    def service(self, name: str, text: str, config: str | None) -> Path:
        bare, work = self.folder / f"{name}.git", self.folder / name
        git(self.folder, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        self.works[name] = first_commit(work, text, bare)
        if config is not None:
            write(work, {".dvc/config": config})
            self.commit(name)
        return work

    def dvc(self, url: str) -> str:
        endpoint = f"    endpointurl = {self.endpoint}\n" if self.endpoint else ""
        return f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {url}\n{endpoint}"

    def commit(self, name: str, files: dict[str, str] | None = None) -> str:
        work = self.works[name]
        write(work, files or {})
        git(work, "add", "--all")
        git(work, "commit", "--quiet", "--allow-empty", "--message=Work")
        git(work, "push", "--quiet", "origin", "HEAD:main")
        return git(work, "rev-parse", "HEAD").strip()

    def tracked(self, name: str, md5: str, path: str = "raw.csv") -> str:
        return self.commit(name, {f"data/{path}.dvc": f"outs:\n- md5: {md5}\n  hash: md5\n  path: {path}\n"})

    def version(
        self, name: str = "digits", *, commit: str | None, files: dict[str, bytes] | None = None, source: str = "", **tags: str | None
    ) -> int:
        """Register the next version, as `mlops-build train` would; a tag of None is left out."""
        self.count += 1
        run = self.client.create_run(self.experiment).info.run_id
        files = {"MLmodel": f"number: {self.count}\n".encode(), "weights.pt": b"w" * 10} if files is None else files
        for path, content in files.items():
            self.put(self.store, f"7/{run}/artifacts/versions/one/{path}", content)
        folder = f"{self.store if '://' in self.store else Path(self.store).as_uri()}/7/{run}/artifacts/versions/one"
        digest = digest_of((path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items())
        wanted = {
            identity.SERVICE: "digits",
            identity.REPOSITORY: self.url("digits"),
            identity.COMMIT_TAG: commit,
            identity.DIGEST_TAG: digest if files else f"sha256:{self.count:064x}",
            **{f"mlops_build.{key}": value for key, value in tags.items()},
        }
        kept = {key: value for key, value in wanted.items() if value is not None}
        return self.registry.create_version(name, source or folder, run, kept).version

    def release(self, service: str, env: str, name: str, version: int, digest: str | None = None, run: str | None = None) -> None:
        found = self.registry.version(name, version)
        model = ModelVersion(name, version, digest or found.tags[identity.DIGEST_TAG], run or found.run_id)
        record = Record(env, (model,), found.tags[identity.COMMIT_TAG], IMAGE)
        files = records.render(record, service_file.parse((self.works[service] / "service.yaml").read_text()))
        self.commit(service, {f"{records.folder(env)}/{path}": text for path, text in files.items()})

    def change(self, version: int, setting: str, name: str = "digits") -> None:
        self.sql(f"update model_versions set {setting} where name = '{name}' and version = {version}")  # noqa: S608

    def run_of(self, version: int, name: str = "digits") -> str:
        return self.registry.version(name, version).run_id


def clean(world: World) -> str:
    """The service digits with two releases, whose files and data are all there. Returns the commit."""
    world.service("digits", SERVICE, world.dvc(world.remote))
    files = [world.data(b"one"), world.data(b"two")]
    world.tracked("digits", world.data(world.list_of(*files), suffix=".dir"))
    lock = "schema: '2.0'\nstages:\n  train:\n    cmd: x\n    deps:\n    - path: src/x.py\n      md5: {0}\n      size: 1\n    outs:\n"
    lock += "    - path: models/digits\n      hash: md5\n      md5: {1}\n    - path: metrics.json\n      hash: md5\n      md5: {0}\n"
    pipeline = "stages:\n  train:\n    cmd: x\n    outs: [models/digits]\n    metrics:\n    - metrics.json: {cache: false}\n"
    commit = world.commit("digits", {"dvc.yaml": pipeline, "dvc.lock": lock.format("0" * 32, world.data(b"model"))})
    assert world.version(commit=commit) == 1
    world.registry.set_alias("digits", "staging", 1)
    world.release("digits", "staging", "digits", 1)
    return commit


def seed(world: World) -> tuple[Found, Found]:
    """A fault of each kind. Returns the findings (rule, subject), and those of --deep in their place."""
    commit = clean(world)
    found: Found = set()

    def expect(rule: str, version: int, name: str = "digits") -> None:
        found.add((rule, f"models:/{name}/{version}"))

    _registry_faults(world, commit, found, expect)
    _release_faults(world, commit, found, expect)
    _code_and_data_faults(world, found, expect)
    _file_faults(world, commit, found, expect)
    world.put(world.store, "7/" + "9" * 32 + "/artifacts/model.pt", b"x" * 100, days=400)
    world.put(world.store, "notes.txt", b"x")
    world.data(b"nobody needs it", days=40)
    found |= {("files-orphaned", f"{world.store}/7"), ("files-orphaned", world.store), ("data-orphaned", world.remote)}
    altered = world.version(commit=commit)
    world.put(world.store, f"7/{world.run_of(altered)}/artifacts/versions/one/weights.pt", b"changed")
    deep = {each for each in found if each[0] != "files-newer"} | {("files-altered", f"models:/digits/{altered}")}
    return found, deep


def _registry_faults(world: World, commit: str, found: Found, expect: Callable[..., None]) -> None:
    expect("version-without-service", world.version(commit=commit, service=None))
    expect("service-unknown", world.version(commit=commit, service="ghost"))
    expect("repository-unknown", world.version(commit=commit, repository="https://git.example.com/ml/other.git"))
    expect("version-without-commit", _without_commit(world))
    deleted = world.version(commit=commit)
    world.client.delete_run(world.run_of(deleted))
    expect("run-deleted", deleted)
    erased = world.version(commit=commit)
    world.change(erased, f"run_id = '{'e' * 32}'")
    expect("run-erased", erased)
    pending = world.version(commit=commit)
    world.change(pending, "status = 'PENDING_REGISTRATION'")
    expect("not-ready", pending)
    staged = world.version(commit=commit)
    world.change(staged, "current_stage = 'Production'")
    expect("stage", staged)
    expect("exception-expired", world.version(commit=commit, **{"exception.by": "Ada", "exception.until": "2020-01-31"}))
    world.version(commit=commit, **{"exception.by": "Ada", "exception.until": "9999-12-31"})
    world.version(commit=commit, content="sha256:" + "c" * 64)
    expect("duplicate-content", world.version(commit=commit, content="sha256:" + "c" * 64))
    adopted = world.version(commit=None, service="forgotten", repository=None, sha256="a" * 64)
    expect("adopted-without-service", adopted)
    expect("adopted-without-service", world.version(commit=None, service=None, repository=None, sha256="b" * 64, archived="no code"))
    used = world.version(commit=None, service=None, repository=None, sha256="c" * 64)
    world.version(commit=commit, weights_from=f"models:/digits/{used}", sha256="c" * 64)
    archived = world.version(commit=commit, archived="no code")
    world.registry.set_alias("digits", "old", archived)
    expect("alias-archived", archived)
    raw = world.version(commit=commit, digest=None)
    world.registry.set_alias("digits", "raw", raw)
    expect("alias-without-digest", raw)
    world.client.create_registered_model("empty", tags={"owner": "anna"})
    found.add(("model-empty", "empty"))
    world.version("nobody", commit=commit)
    found.add(("owner-missing", "nobody"))
    world.client.create_registered_model("ancient", tags={"owner": "anna"})
    ancient = world.version("ancient", commit=commit)
    world.change(ancient, "creation_time = creation_time - 63072000000", "ancient")
    found.add(("release-old", "ancient"))
    expect("files-newer", ancient, "ancient")


def _without_commit(world: World) -> int:
    version = world.version(commit="f" * 40)
    world.registry.delete_tag("digits", version, identity.COMMIT_TAG)
    return version


def _release_faults(world: World, commit: str, found: Found, expect: Callable[..., None]) -> None:
    url = world.url("digits")
    gone, before, altered = (world.version(commit=commit) for _ in range(3))
    world.release("digits", "staging", "digits", before)
    world.release("digits", "staging", "digits", altered, digest=f"sha256:{5:064x}")
    world.registry.set_alias("digits", "staging", altered)
    expect("release-altered", altered)
    world.release("digits", "production", "digits", gone)
    for version in (gone, before):
        world.client.delete_model_version("digits", str(version))
    expect("released-deleted", gone)
    expect("released-before-deleted", before)
    found.add(("alias-missing", f"production of {url}"))
    world.service("spam", SERVICE.replace("name: digits", "name: spam"), world.dvc("../storage"))
    world.service("eggs", SERVICE.replace("name: digits #", "name: eggs #").replace("- name: digits", "- name: ancient"), None)
    world.commit("eggs", {"data/raw.dvc": f"outs:\n- md5: {'a' * 32}\n  hash: md5\n  path: raw\n"})
    world.commit("eggs", {"deploy/overlays/staging/release/record.yaml": "schema: 2\n"})
    world.service("broken", "schema: 1\nname: [\n", None)
    found |= {("model-not-registered", world.url("spam")), ("remote-in-checkout", world.url("spam"))}
    found |= {("remote-missing", world.url("eggs")), ("record-unreadable", world.url("eggs")), ("service-invalid", world.url("broken"))}


def _code_and_data_faults(world: World, found: Found, expect: Callable[..., None]) -> None:
    work = world.works["digits"]
    expect("commit-missing", world.version(commit="f" * 40))
    git(work, "switch", "--quiet", "--create", "aside")
    git(work, "commit", "--quiet", "--allow-empty", "--message=Aside")
    aside = git(work, "rev-parse", "HEAD").strip()
    git(work, "push", "--quiet", "origin", "aside")
    git(work, "push", "--quiet", "origin", "--delete", "aside")
    git(work, "switch", "--quiet", "main")
    expect("commit-unreachable", world.version(commit=aside))
    head = git(work, "rev-parse", "HEAD").strip()
    gone, gone_list = world.data(b"gone", is_pushed=False), world.data(world.list_of("b" * 32), is_pushed=False, suffix=".dir")
    partial = world.data(world.list_of(world.data(b"there"), world.data(b"not there", is_pushed=False)), suffix=".dir")
    for md5 in (gone, gone_list, partial):
        expect("data-missing", world.version(commit=world.tracked("digits", md5)))
    subprocess.run(["git", "-C", str(work), "checkout", "--quiet", head, "--", "data"], check=True)
    world.commit("digits")


def _file_faults(world: World, commit: str, found: Found, expect: Callable[..., None]) -> None:
    expect("files-missing", world.version(commit=commit, files={}))
    expect("files-missing", world.version(commit=commit, files={"weights.pt": b"w"}))
    expect("files-missing", world.version(commit=commit, layers=json.dumps({"large.pt": f"sha256:{1:064x}"})))
    elsewhere = "s3://another/place" if world.endpoint else (world.folder / "elsewhere").as_uri()
    expect("source-unknown", world.version(commit=commit, source=elsewhere))
    newer = world.version(commit=commit)
    world.change(newer, f"creation_time = creation_time - {DAY_MS}")
    expect("files-newer", newer)
    if not world.endpoint:
        found |= {("single-copy-files", world.store), ("single-copy-data", world.remote)}
