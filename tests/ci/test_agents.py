"""Run both plans and the deployment project on simulated Bamboo agents (agent.py), in a service from the template.

Real: the repository behind a Git host with pull requests, the training, MLflow, the container engine and the image registry, rendering, and
the image that answers. Simulated: the cluster, which records kubectl's calls and runs the applied image behind its ingress. Left out:
`make install`, since MLOPS_BUILD names an installed mlops-build (test_generated_service.py and `make demo` test it).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build.adapters.engine import docker
from mlops_build.adapters.registry import Registry
from mlops_build.model import identity
from tests import servers
from tests.ci.agent import Agent, Bamboo, Build, Job, NotInterpreted, bare_environment
from tests.ci.conftest import answer, client, simulate_kubectl
from tests.conftest import Render, git, mlops_build
from tests.githosts import Bitbucket, bitbucket
from tests.serving.conftest import free_port

TOKEN = "the-bots-token"
RELEASE, TRAIN = "ML-POINTS", "ML-POINTSTRAIN"

KUBECTL = """\
#!/bin/sh
if [ "$1" = kustomize ]; then exec "{real}" "$@"; fi
case "$*" in *--dry-run=server*) exit 0 ;; esac
echo "$*" >>"{folder}/calls"
if [ "$1" = apply ]; then cat >"{folder}/applied.yaml"; fi
if [ "$1" != get ]; then echo "$1 done"; fi
"""


CURIOUS = """\
#!/bin/sh
mkdir -p build/test-reports
echo '<testsuites><testsuite tests="1" failures="0" errors="0"/></testsuites>' >build/test-reports/tests.xml
env | grep -E 'TOKEN|TRACKING|DOCKER' || echo found nothing
"""


@dataclass
class Cluster:
    """folder: calls, applied.yaml, and the kubectl that writes them. hosts: the host names in requests to the ingress."""

    folder: Path
    hosts: list[str] = field(default_factory=list)
    container: str | None = None
    port: int = 0

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []

    def objects(self) -> dict[str, Any]:
        return {item["kind"]: item for item in YAML(typ="safe").load_all((self.folder / "applied.yaml").read_text()) if item}

    def image(self) -> str:
        (container,) = self.objects()["Deployment"]["spec"]["template"]["spec"]["containers"]
        return str(container["image"])

    def answer(self, host: str, path: str, body: bytes) -> bytes:
        """The answer of the applied image, which is started at the first request."""
        self.hosts.append(host)
        if not self.container:
            self.port = free_port()
            self.container = client("run", "--detach", "--network", "host", self.image(), "--port", str(self.port), "--host", "127.0.0.1")
        return answer(f"http://127.0.0.1:{self.port}{path}", body).encode()


@dataclass
class Company:
    """folder: contains everything. person: a developer's clone of the service."""

    folder: Path
    host: Bitbucket
    bamboo: Bamboo
    cluster: Cluster
    person: Path
    uri: str

    @property
    def registry(self) -> Registry:
        return Registry(self.uri)

    def head(self, branch: str) -> str | None:
        return self.host.head("ml", "points", f"refs/heads/{branch}")

    def push(self, branch: str, path: str, text: str) -> None:
        """Push a commit with this file from the current branch of the developer."""
        (self.person / path).write_text(text)
        git(self.person, "add", "--all")
        git(self.person, "commit", "--quiet", f"--message=Change {path}")
        git(self.person, "push", "--quiet", "origin", branch)

    def push_branch(self, branch: str, path: str, text: str) -> None:
        git(self.person, "switch", "--quiet", "--create", branch, "main")
        self.push(branch, path, text)
        git(self.person, "switch", "--quiet", "main")


@pytest.fixture(scope="module")
def cluster(repository: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A simulated cluster, whose ingress runs images of `repository`."""
    yield (cluster := Cluster(simulate_kubectl(tmp_path_factory.mktemp("agents") / "cluster", KUBECTL)))
    if cluster.container:
        client("rm", "--force", cluster.container)


@pytest.fixture(scope="module")
def ingress(cluster: Cluster) -> Iterator[str]:
    """The address of a proxy that sends requests for service.yaml's host names to the deployed image."""

    class Handler(servers.Handler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            host, _, path = self.path.removeprefix("http://").partition("/")
            self.reply(200, cluster.answer(host, f"/{path}", body))

    with servers.serve(Handler) as host:
        yield f"http://{host}"


@pytest.fixture(scope="module")
def company(render: Render, cluster: Cluster, ingress: str, repository: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """A service on main with data under DVC and no training; an agent without credentials, and one with them."""
    folder = tmp_path_factory.mktemp("company")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    answers = {"project_name": "Points", "model_name": "points", "example": "none", "dvc_remote_url": str(folder / "dvc-remote")}
    person = Path(shutil.copytree(render(**answers), folder / "person"))
    with bitbucket(folder / "bitbucket", TOKEN) as host:
        url = host.make("ml", "points")
        settings = person / "service.yaml"
        text = settings.read_text().replace("registry: registry.example.com/ml", f"registry: {repository}")
        settings.write_text(f"{text}git: {{pull_requests: bitbucket, api: {host.url}}}\n")
        git(person, "init", "--quiet", "--initial-branch=main")
        subprocess.run(["make", "--silent", "data", f"VENV={Path(sys.executable).parent.parent}"], cwd=person, check=True, timeout=300)
        subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], cwd=person, check=True, timeout=300)
        git(person, "add", "--all")
        git(person, "commit", "--quiet", "--message=Start")
        git(person, "remote", "add", "origin", (folder / "bitbucket/ml/points.git").as_uri())
        git(person, "push", "--quiet", "origin", "main")
        # As on a server, artifacts are kept after an agent's folder is removed.
        Registry(uri, create=True).experiment("points", folder / "mlartifacts")
        agents = make_agents(folder, cluster, ingress, uri)
        yield Company(folder, host, Bamboo(folder, folder / "bitbucket/ml/points.git", url, agents), cluster, person, uri)


def make_agents(folder: Path, cluster: Cluster, ingress: str, uri: str) -> list[Agent]:
    installed = {"MLOPS_BUILD": str(Path(sys.executable).parent / "mlops-build"), "OMP_NUM_THREADS": "1"}
    bare = {**bare_environment([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]), **installed}
    credentials = {
        **bare,
        "PATH": f"{cluster.folder}{os.pathsep}{bare['PATH']}",
        "MLFLOW_TRACKING_URI": uri,
        "MLOPS_GIT_TOKEN": TOKEN,
        "MLOPS_GIT_NAME": "Points bot",
        "MLOPS_GIT_EMAIL": "points-bot@example.com",
        **{name: os.environ[name] for name in ("DOCKER_HOST", "DOCKER_CLI", "MLOPS_BUILD_DOCKER_ARGS")},
        "http_proxy": ingress,
        "no_proxy": "127.0.0.1",
    }
    agents = [
        Agent("plain", frozenset(), bare, folder / "home-plain"),
        Agent("credentials", frozenset({"mlops.credentials"}), credentials, folder / "home-credentials"),
    ]
    for agent in agents:
        agent.home.mkdir()
    return agents


@pytest.fixture(scope="module")
def untouched(company: Company) -> tuple[Build, Job]:
    """The first build of main, before anything is trained, and what follows it."""
    build = company.bamboo.build(RELEASE)
    assert build.ok, build.log
    return build, company.bamboo.deploy(build, "staging")


@pytest.fixture(scope="module")
def training(company: Company) -> Build:
    return company.bamboo.build(TRAIN)


@pytest.fixture(scope="module")
def releases(company: Company, training: Build, untouched: tuple[Build, Job]) -> tuple[Build, Build]:
    """The retraining is merged, promoted and released by the bridge. Then main is built, and built again for an unrelated commit."""
    assert training.ok, training.log
    git(company.person, "fetch", "--quiet", "origin")
    git(company.person, "merge", "--quiet", "--no-edit", "origin/retrain/1")
    git(company.person, "push", "--quiet", "origin", "main")
    environment = {"MLFLOW_TRACKING_URI": company.uri, "MLOPS_GIT_TOKEN": TOKEN}
    for env in ("staging", "production"):
        mlops_build(company.person, "promote", "points", "1", "--to", env, environment=environment)
    mlops_build(company.person, "bridge", "once", "--repo", company.bamboo.url, environment=environment)
    first = company.bamboo.build(RELEASE)
    git(company.person, "pull", "--quiet", "--rebase", "origin", "main")
    company.push("main", "README.md", "# points\n")
    return first, company.bamboo.build(RELEASE)


@pytest.mark.docker
def test_the_first_commit_passes_and_deploys_nothing(company: Company, untouched: tuple[Build, Job]) -> None:
    build, staging = untouched
    assert [job.name for job in build.jobs] == ["Check", "Image"]
    assert build.job("Check").tests
    assert "nothing is released yet" in build.job("Image").log
    assert company.bamboo.follows("staging")
    assert staging.ok, staging.log
    assert "nothing is released to staging yet" in staging.log
    assert not company.bamboo.follows("production")


@pytest.mark.docker
def test_a_branch_is_checked_without_credentials_and_a_failing_test_is_counted(company: Company, untouched: tuple[Build, Job]) -> None:
    company.push_branch("bugfix/red", "tests/test_red.py", "def test_red() -> None:\n    raise AssertionError\n")
    build = company.bamboo.build(RELEASE, "bugfix/red")
    assert not build.ok
    assert [(job.name, job.agent.name) for job in build.jobs] == [("Check", "plain")]
    assert build.job("Check").tests == (untouched[0].job("Check").tests or 0) + 1
    assert "checks failed: tests" in build.log
    assert build.artifacts == {}


@pytest.mark.docker
def test_with_the_plan_of_main_no_code_of_a_branch_runs_with_credentials(company: Company) -> None:
    """A branch whose script prints the credentials that it sees, and reports that its tests passed."""
    company.push_branch("feature/curious", "ci/mlops-build", CURIOUS)
    company.bamboo.specs_of_branches = False
    try:
        build = company.bamboo.build(RELEASE, "feature/curious")
    finally:
        company.bamboo.specs_of_branches = True
    assert build.ok, build.log
    assert (build.job("Check").agent.name, build.job("Image").agent.name) == ("plain", "credentials")
    assert build.job("Check").log == "found nothing\n"
    assert (build.job("Image").scripts, build.job("Image").skipped, build.job("Image").log) == ([], ["script"], "")
    assert build.artifacts == {}


@pytest.mark.docker
def test_training_creates_a_branch_a_version_and_a_pull_request_once(company: Company, training: Build) -> None:
    """test_train.py has the details."""
    assert training.ok, training.log
    assert [(job.name, job.agent.name) for job in training.jobs] == [("Train", "credentials")]
    pushed = company.head("retrain/1")
    assert git(company.bamboo.bare, "rev-parse", f"{pushed}^") == training.commit, "main was not pushed"
    assert TOKEN not in training.log
    again = company.bamboo.build(TRAIN, again=training.number)
    assert again.ok, again.log
    assert company.head("retrain/1") == pushed
    (version,) = company.registry.versions("points")
    assert version.tags[identity.COMMIT_TAG] == pushed
    (pull,) = company.host.pull_requests
    assert (pull["fromRef"]["id"], pull["toRef"]["id"]) == ("refs/heads/retrain/1", "refs/heads/main")


@pytest.mark.docker
def test_a_release_build_makes_the_image_once(company: Company, releases: tuple[Build, Build]) -> None:
    first, second = releases
    assert first.ok, first.log
    assert second.ok, second.log
    assert "does not exist; assembling it" in first.job("Image").log
    assert "exists, sha256:" in second.job("Image").log
    assert "assembling it" not in second.job("Image").log
    tags = company.registry.version("points", 1).tags
    assert tags[identity.IMAGE].endswith(str(docker.digest_of(tags[identity.IMAGE_NAME])))
    assert set(second.artifacts) == {"release"}


@pytest.mark.docker
def test_a_deployment_uses_the_results_of_its_build(company: Company, releases: tuple[Build, Build]) -> None:
    """Deploy the older of two releases after newer commits on main, and after MLflow's tag was moved."""
    _, build = releases
    reference = company.registry.version("points", 1).tags[identity.IMAGE]
    git(company.person, "pull", "--quiet", "--rebase", "origin", "main")
    company.push("main", "service.yaml", (company.person / "service.yaml").read_text().replace("ml-staging", "ml-newer"))
    company.registry.set_tag("points", 1, identity.IMAGE, f"{reference.partition('@')[0]}@sha256:{'0' * 64}")

    job = company.bamboo.deploy(build, "staging")
    assert job.ok, job.log
    assert company.cluster.image() == reference
    assert company.cluster.objects()["Deployment"]["metadata"]["namespace"] == "ml-staging"
    rollouts = [call for call in company.cluster.calls() if call.startswith("rollout")]
    assert rollouts[-1].startswith("rollout status deployment/points --namespace ml-staging ")
    assert company.cluster.hosts[-1] == "points-staging.example.com"
    assert "recorded rows have the recorded answers" in job.log

    with pytest.raises(NotInterpreted, match="not approved"):
        company.bamboo.deploy(build, "production")
    job = company.bamboo.deploy(build, "production", approved=True)
    assert job.ok, job.log
    assert company.cluster.objects()["Deployment"]["metadata"]["namespace"] == "ml"
    assert company.cluster.objects()["Deployment"]["spec"]["replicas"] == 2
    assert company.cluster.image() == reference
    assert company.cluster.hosts[-1] == "points.example.com"


# The simulation itself.

SPEC = """\
version: 2
plan: {project-key: ML, key: TRY, name: try}
stages: [{One: {jobs: [Make]}}, {Two: {jobs: [Use, Secret]}}, {Three: {jobs: [Never]}}]
Make:
  key: MAKE
  tasks:
    - script: {interpreter: SHELL, scripts: ['mkdir out; echo built >out/a.txt; cp /bin/sh out/run; echo hidden >b.txt']}
  artifacts: [{name: out, location: out, pattern: '**/*'}, {name: b, pattern: b.txt, shared: false}]
Use:
  key: USE
  tasks:
    - script: {interpreter: SHELL, scripts: ['cat a.txt; test ! -x run && test ! -e b.txt && echo $bamboo_buildNumber; env | grep ^SECRET']}
Secret:
  key: SECRET
  requirements: [secret]
  tasks:
    - checkout: {force-clean-build: "true"}
    - script: {interpreter: SHELL, scripts: ['echo "secret $SECRET"; git remote get-url origin; git symbolic-ref HEAD || ls']}
Never: {key: NEVER, tasks: []}
"""


def test_the_simulation_passes_on_declared_artifacts_and_variables_only(tmp_path: Path) -> None:
    work = tmp_path / "try"
    (work / "bamboo-specs").mkdir(parents=True)
    git(work, "init", "--quiet", "--initial-branch=main")

    def commit(spec: str) -> None:
        (work / "bamboo-specs/bamboo.yaml").write_text(spec)
        git(work, "add", "--all")
        git(work, "commit", "--quiet", "--message=Specs")

    environment = bare_environment(["/usr/bin", "/bin"])
    plain, able = (
        Agent("plain", frozenset(), environment, tmp_path),
        Agent("able", frozenset({"secret"}), {**environment, "SECRET": "x"}, tmp_path),
    )
    bamboo = Bamboo(tmp_path / "bamboo", work, "https://git.example.com/scm/ml/try.git", [plain, able])
    commit(SPEC)
    build = bamboo.build("ML-TRY")
    assert [job.name for job in build.jobs] == ["Make", "Use", "Secret"]
    assert (build.job("Use").agent, build.job("Use").ok, build.job("Use").log) == (plain, False, "built\n1\n")
    assert build.job("Secret").log == "secret x\nfile:///nothing\nfatal: ref HEAD is not a symbolic ref\nbamboo-specs\n"
    assert set(build.artifacts) == {"out"}
    for bad in (SPEC.replace("key: MAKE", "key: MAKE\n  arifacts: []"), SPEC.replace("interpreter: SHELL", "interpreter: PYTHON")):
        commit(bad)
        with pytest.raises(NotInterpreted):
            bamboo.build("ML-TRY")
