"""What the registry knows: models, versions and runs, read in pages, and the artifact stores that follow from them."""

import posixpath
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property

from mlops_build.adapters.git.command import masked
from mlops_build.adapters.registry import COPY, MOST_COPIES, RegisteredModel, RegisteredVersion, Registry
from mlops_build.adapters.storage.place import file_path
from mlops_build.inventory import Repository
from mlops_build.model import identity
from mlops_build.model.identity import COMMIT, NAME, ModelRef

PROXY = re.compile(r"mlflow-artifacts:(?://[^/]*)?/*")
RUNS = re.compile(r"runs:/+([0-9a-f]{32})/?(.*)")
URL = re.compile(r"(?:[a-z]+://)?(?:[^@/]*@)?([^/:]*)(?::[0-9]+(?=/))?[:/]+(?:scm/)?(.*?)(?:\.git)?/?")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Known:
    """models, versions: all. runs: run → whether it is deleted. addresses: of the runs that a version names as its source.

    roots: the artifact stores. homes: those of experiments, with the folders of runs. artifacts: where the server's proxy keeps its files.
    """

    models: dict[str, RegisteredModel]
    versions: list[RegisteredVersion]
    runs: dict[str, bool]
    addresses: dict[str, str]
    roots: list[str] = field(default_factory=list)
    homes: set[str] = field(default_factory=set)
    artifacts: str = ""

    @cached_property
    def numbered(self) -> dict[tuple[str, int], RegisteredVersion]:
        """The versions by name and number."""
        return {(version.name, version.version): version for version in self.versions}

    @cached_property
    def weights(self) -> set[str]:
        """The versions whose weights another version has."""
        return {version.tags[identity.WEIGHTS_FROM] for version in self.versions if identity.WEIGHTS_FROM in version.tags}

    def source(self, version: RegisteredVersion) -> str:
        """Where a version's files are; the source as it is, where that is not known. MLflow's copy of a version names the other one."""
        for _ in range(MOST_COPIES):
            if not (copied := COPY.fullmatch(version.source)) or (copied[1], int(copied[2])) not in self.numbered:
                break
            version = self.numbered[copied[1], int(copied[2])]
        if match := RUNS.fullmatch(version.source):
            return resolved(f"{self.addresses.get(match[1], version.source)}/{match[2]}", self.artifacts)
        return resolved(version.source, self.artifacts)


def read(registry: Registry, artifacts: str, say: Say) -> Known:
    """artifacts: where the server's proxy keeps its files; may be empty. Raises RegistryUnreachable."""
    models = {model.name: model for model in registry.models()}
    versions = sorted(registry.every_version(), key=lambda version: (version.name, version.version))
    say(f"{len(models):,} models, {len(versions):,} versions")
    named = {match[1] for version in versions if (match := RUNS.fullmatch(version.source))}
    runs: dict[str, bool] = {}
    addresses: dict[str, str] = {}
    homes: set[str] = set()
    roots = {resolved(artifacts, "")} if artifacts else set[str]()
    for run in registry.every_run():
        runs[run.run_id] = run.is_deleted
        if run.run_id in named:
            addresses[run.run_id] = run.artifact_uri
        home, of_run, _ = resolved(run.artifact_uri, artifacts).rpartition(f"/{run.run_id}/artifacts")
        if of_run:
            homes.add(home)
            roots.add(_root(home))
    say(f"{len(runs):,} runs")
    return Known(models, versions, runs, addresses, outermost(roots), homes, artifacts)


def resolved(uri: str, artifacts: str) -> str:
    """One spelling of an address: a path for file://, and the place behind the server's proxy. A bucket's keys are not paths: they stay."""
    if artifacts:
        uri = PROXY.sub(lambda _: f"{artifacts.rstrip('/')}/", uri, count=1)
    path = file_path(uri) or uri
    return posixpath.normpath(f"/{path.strip('/')}") if path.startswith("/") else path.rstrip("/")


def _root(home: str) -> str:
    """The store of an experiment's runs, which are in ROOT/EXPERIMENT/RUN/artifacts or ROOT/RUN/artifacts."""
    above, _, last = home.rpartition("/")
    return above if last.isdecimal() and above.strip(":/") not in ("", "s3") else home


def below(uri: str, root: str) -> str | None:
    """The path of an address below a store; None if it is elsewhere."""
    return uri[len(root) + 1 :] if uri.startswith(f"{root}/") else None


def outermost(roots: Collection[str]) -> list[str]:
    return sorted(root for root in roots if all(below(root, other) is None for other in roots))


def label(name: str, version: int) -> str:
    """A version as the subject of a finding."""
    return str(ModelRef(name if NAME.fullmatch(name) else ascii(name[:64]), version))


def commit(version: RegisteredVersion) -> str | None:
    tag = version.tags.get(identity.COMMIT_TAG, "")
    return tag if COMMIT.fullmatch(tag) else None


def is_adopted(version: RegisteredVersion) -> bool:
    """Whether `mlops-build adopt` registered a version, which has no commit and needs no data; not one that a service made from it."""
    return identity.FILE_TAG in version.tags and identity.COMMIT_TAG not in version.tags


def same(url: str) -> str:
    """An address of a repository without scheme, user and port: the same for ssh and https."""
    match = URL.fullmatch(masked(url)) if url else None
    return f"{match[1].lower()}/{match[2].strip('/')}" if match else url


def is_from(version: RegisteredVersion, repository: Repository) -> bool:
    """Whether a version is from a repository: as its tag says, else by its service."""
    if url := version.tags.get(identity.REPOSITORY):
        return same(url) == same(repository.url)
    return repository.service is not None and version.tags.get(identity.SERVICE) == repository.service.name
