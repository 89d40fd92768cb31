"""The administrator's checklist, and the checks of `doctor --ci`, which change nothing."""

import base64
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from mlops_build.checklist import agent, checks, cluster, host, image_registry, items, names, storage
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import Result
from mlops_build.ci import bamboo, gitlab
from mlops_build.errors import NotFound, Refused
from tests import registries
from tests.ci.conftest import simulate_kubectl
from tests.conftest import Render, git
from tests.githosts import bitbucket
from tests.registries import Registry

SERVERS = {
    "mlflow_tracking_uri": "https://mlflow.example.com",
    "dvc_remote_url": "s3://ml-data/digits",
    "s3_endpoint_url": "https://s3.example.com",
}
TOKEN = "the-bots-token"
MakeService = Callable[..., Path]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the settings of the user who runs the tests."""
    for name in [
        name for name in os.environ if name.startswith(("MLOPS_GIT_", "MLOPS_BRIDGE_", "MLFLOW_TRACKING_", "AWS_", "bamboo_", "CI_"))
    ]:
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def service(render: Render, tmp_path: Path) -> MakeService:
    """service(more, **answers): a committed service with these answers, and the lines `more` at the end of service.yaml."""

    def make(more: str = "", **answers: str) -> Path:
        root = Path(shutil.copytree(render(**{**SERVERS, **answers}), tmp_path / "digits"))
        settings = root / "service.yaml"
        settings.write_text(settings.read_text() + more)
        git(root, "init", "--quiet", "--initial-branch=main")
        git(root, "add", "--all")
        git(root, "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "--quiet", "--message=Start")
        git(root, "remote", "add", "origin", "https://git.example.com/scm/ml/digits.git")
        return root

    return make


def read(root: Path) -> Names:
    return names.read(root, bamboo.plans(root))


def ids(service_names: Names) -> list[str]:
    return [item.id for item in items.items(service_names)]


def test_names_come_from_the_services_own_files(service: MakeService) -> None:
    service_names = read(service(bamboo_project_key="VISION"))
    assert service_names.plans.values == {
        "project": "VISION",
        "plans": "`VISION-DIGITS` and `VISION-DIGITSTRAIN`",
        "deployment": "digits",
    }
    assert service_names.plans.capabilities == ("mlops.credentials",)
    assert service_names.origin == "https://git.example.com/scm/ml/digits.git"
    assert str(service_names.repository) == "ml/digits"
    assert (service_names.remote, service_names.endpoint) == ("s3://ml-data/digits", "https://s3.example.com")
    assert (service_names.image, service_names.image_host) == ("registry.example.com/ml/digits", "registry.example.com")
    assert service_names.python == "python3.11"


NO_KEY = r"document 1 has `stages:`, but no `plan:` with `project-key:` and `key:`"


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("a: [", "not valid YAML"),
        ("{}\n", "has no plan"),
        (None, "is missing"),
        ("stages: []\n---\nenvironments: [staging]\ndeployment:\n", NO_KEY),
        ("plan:\nstages: []\n", NO_KEY),
        ("plan: DIGITS\nstages: []\n", NO_KEY),
        ("plan: {key: DIGITS}\nstages: []\n", NO_KEY),
        ("plan: {project-key: ML, key: [1]}\nstages: []\n", NO_KEY),
    ],
)
def test_specs_without_plans_are_refused(tmp_path: Path, specs: str | None, message: str) -> None:
    if specs is not None:
        (tmp_path / bamboo.SPECS).parent.mkdir()
        (tmp_path / bamboo.SPECS).write_text(specs)
    with pytest.raises(Refused if "missing" not in message and "has no" not in message else NotFound, match=message):
        bamboo.plans(tmp_path)


@pytest.mark.parametrize("specs", [None, "version: 2\nstages: []\n"])
def test_doctor_checks_the_rest_without_usable_specs(
    service: MakeService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], specs: str | None
) -> None:
    root = service(dvc_remote_url="dvc-remote", s3_endpoint_url="", mlflow_tracking_uri="http://127.0.0.1:9")
    (root / bamboo.SPECS).unlink()
    if specs:
        (root / bamboo.SPECS).write_text(specs)
    git(root, "remote", "remove", "origin")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    assert main(["doctor", "--ci", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    (finding,) = [finding for finding in document["findings"] if finding["rule"] == "bamboo-specs"]
    assert "bamboo.yaml" in finding["why"]
    assert finding["remedy"]
    # The rest is checked as without --ci.
    assert {"system", "git", "service.yaml", "engine", "git remote", "registry"} <= {check["name"] for check in document["checks"]}
    (root / "service.yaml").write_text("schema: 1\n")
    assert main(["doctor", "--ci", "--json"]) == 4
    rules = [finding["rule"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert "service-yaml" in rules
    assert "bamboo-specs" not in rules


PULL_REQUESTS = "git: {pull_requests: bitbucket, api: https://git.example.com}\n"


@pytest.mark.parametrize(
    ("gpu", "more", "expected"),
    [
        ("none", "", set()),
        ("exclusive", "", {"gpu-device-plugin"}),
        ("shared", PULL_REQUESTS, {"gpu-runtime-class", "gpu-lease-folder", "gpu-volumes", "git-pull-requests"}),
    ],
)
def test_the_list_has_only_the_items_that_the_service_needs(service: MakeService, gpu: str, more: str, expected: set[str]) -> None:
    checklist = items.items(read(service(more, gpu=gpu)))
    item_ids = {item.id for item in checklist}
    assert len(item_ids) == len(checklist)
    assert {item_id for item_id in item_ids if item_id.startswith(("gpu-", "git-pull"))} == expected
    assert {"bamboo-project", "git-push", "images-push", "cluster-rights", "mlflow", "data-write", "agent-lock"} <= item_ids
    assert {"cluster-namespace-ml", "cluster-namespace-ml-staging", "cluster-pull-secret-ml"} <= item_ids
    for item in checklist:
        assert item.what.endswith((".", "file."))
        assert item.how
        assert bool(item.check) != bool(item.ask), item.id


def test_it_is_printed_as_markdown_with_the_services_names(
    service: MakeService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = service(gpu="shared", team="vision")
    monkeypatch.chdir(root / "src")
    assert main(["doctor", "--ci", "--checklist"]) == 0
    text = " ".join(capsys.readouterr().out.split())  # long lines are wrapped
    for expected in (
        "- [ ] **`bamboo-project`** The project `ML` exists.",
        "`ML-DIGITS` and `ML-DIGITSTRAIN`",
        "<https://git.example.com/scm/ml/digits.git>",
        "`mlops.credentials`",
        "`registry.example.com/ml/digits`",
        "`kubectl create namespace ml-staging`",
        "install --directory --mode 1777 /run/mlops-gpu",
        "`digits-staging.example.com`, `digits.example.com`",
        "the group `vision`",
        "`MLFLOW_TRACKING_USERNAME`",
        "`s3://ml-data/digits`",
    ):
        assert expected in text
    assert main(["doctor", "--checklist", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [line["id"] for line in document["checklist"]] == ids(read(root))
    monkeypatch.chdir(root.parent)
    assert main(["doctor", "--checklist"]) == 3


# On an agent.


def test_variables_of_bamboo_are_checked(service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    bamboo_checks, credentials = bamboo.plans(service()).checks, {"capability": "mlops.credentials"}
    assert bamboo_checks["plan"]({}).state == bamboo_checks["capability"](credentials).state == "unseen"
    monkeypatch.setenv("bamboo_planKey", "ML-DIGITSTRAIN")
    monkeypatch.setenv("bamboo_buildNumber", "3")
    assert bamboo_checks["plan"]({}).state == "ok"
    assert bamboo_checks["capability"](credentials).state == "no"
    monkeypatch.setenv("bamboo_capability_mlops_credentials", "true")
    assert bamboo_checks["capability"](credentials).state == "ok"
    monkeypatch.setenv("bamboo_planKey", "ML-OTHER")
    assert "ML-DIGITS, ML-DIGITSTRAIN" in bamboo_checks["plan"]({}).detail


def test_a_pipeline_of_gitlab_has_its_own_items_and_checks(
    service: MakeService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = service(ci="gitlab", team="vision")
    plans, credentials = gitlab.plans(root), {"capability": "mlops.credentials"}
    assert (plans.system, plans.capabilities) == ("GitLab", ("mlops.credentials",))
    assert plans.checks["protected"]({}).state == plans.checks["tag"](credentials).state == "unseen"
    for branch, protected, state in (("main", "true", "ok"), ("main", "false", "no"), ("x", "false", "unseen"), ("x", "true", "no")):
        monkeypatch.setenv("CI_COMMIT_BRANCH", branch)
        monkeypatch.setenv("CI_COMMIT_REF_PROTECTED", protected)
        assert plans.checks["protected"]({}).state == state
    for tags, state in (('["a", "mlops.credentials"]', "ok"), ("a, mlops.credentials", "ok"), ('["mlops"]', "no"), ("[]", "no")):
        monkeypatch.setenv("CI_RUNNER_TAGS", tags)
        assert plans.checks["tag"](credentials).state == state
    monkeypatch.chdir(root)
    assert main(["doctor", "--checklist"]) == 0
    printed = capsys.readouterr().out
    assert "Bamboo" not in printed.replace("Bitbucket", "")
    assert all(expected in printed for expected in ("`gitlab-protected`", "tag `mlops.credentials`", "the group `vision`"))
    for text, error in (("a: [", Refused), ("stages: []\n", NotFound), (None, NotFound)):
        (root / gitlab.SPECS).write_text(text) if text else (root / gitlab.SPECS).unlink()
        with pytest.raises(error):
            gitlab.plans(root)
    (root / gitlab.SPECS).write_text("stages: []\n")
    assert main(["doctor", "--ci", "--json"]) == 4
    assert ".gitlab-ci.yml" in {finding["rule"] for finding in json.loads(capsys.readouterr().out)["findings"]}


def test_values_of_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "xyzzy")
    assert agent.variables(["ONE"]) == Result("ok", "set: ONE")
    assert agent.variables(["ONE", "OTHER"]) == Result("no", "not set: OTHER")
    assert agent.programs(["sh"]).state == "ok"
    assert agent.programs(["sh", "no-such-program"]) == Result("no", "not on PATH: no-such-program")


def test_an_unreachable_package_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    result = agent.package_index()
    assert (result.state, "package index" in result.detail) == ("no", True)


# The Git host.


def test_a_push_is_a_dry_run(service: MakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bitbucket(tmp_path / "bitbucket", TOKEN) as server:
        root = service(f"git: {{pull_requests: bitbucket, api: {server.url}}}\n")
        git(root, "remote", "set-url", "origin", server.make("ml", "digits"))
        service_names = read(root)
        assert host.push(service_names).state == "no"
        assert "MLOPS_GIT_TOKEN is not set" in host.pull_requests(service_names).detail
        monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
        assert host.push(service_names).state == "ok"
        assert host.pull_requests(service_names).state == "ok"
        assert git(tmp_path / "bitbucket/ml/digits.git", "for-each-ref") == ""
        assert server.pull_requests == []
        monkeypatch.setenv("MLOPS_GIT_TOKEN", "expired")
        result = host.pull_requests(service_names)
        assert (result.state, "401" in result.detail, "expired" in result.detail) == ("no", True, False)
        git(root, "remote", "remove", "origin")
        assert host.push(read(root)).detail == "there is no Git remote called origin"


def test_the_author_of_commits_is_checked(service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    service_names = read(service())
    assert "mlops-build@localhost" in host.identity(service_names).detail
    assert host.identity(service_names).state == "no"
    monkeypatch.setenv("MLOPS_GIT_NAME", "The bot")
    monkeypatch.setenv("MLOPS_GIT_EMAIL", "no address")
    assert host.identity(service_names).state == "no"
    monkeypatch.setenv("MLOPS_GIT_EMAIL", "bot@example.com")
    assert host.identity(service_names).state == "ok"
    assert host.identity(service_names).detail.startswith("The bot <bot@example.com>")


# The image registry.


@pytest.fixture
def distribution() -> Iterator[Registry]:
    with registries.serve() as server:
        yield server


def test_an_upload_of_an_image_is_started_and_cancelled(service: MakeService, distribution: Registry, tmp_path: Path) -> None:
    distribution.mode = "bearer"
    service_names = read(service(image_registry=f"{distribution.host}/ml"))
    refused = image_registry.push(service_names)
    assert (refused.state, "is stored here" in refused.detail) == ("no", True)
    (tmp_path / "docker").mkdir()
    auth = base64.b64encode(distribution.login.encode()).decode()
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {distribution.host: {"auth": auth}}}))
    assert image_registry.push(service_names).state == "ok"
    assert distribution.calls("DELETE /v2/ml/digits/blobs/uploads/")
    assert distribution.uploads == {}


@pytest.mark.slow
def test_the_real_registry_accepts_an_upload(service: MakeService) -> None:
    address = os.environ.get("MLOPS_TEST_IMAGE_REGISTRY")
    if not address:
        pytest.skip("set MLOPS_TEST_IMAGE_REGISTRY to a registry to push to")
    assert image_registry.push(read(service(image_registry=f"{address}/checked"))).state == "ok"


# The cluster.

KUBECTL = """\
#!/bin/sh
if [ "$1" = kustomize ]; then exec "{real}" "$@"; fi
echo "$*" >>"{folder}/calls"
case "$CLUSTER" in
    down) echo "The connection to the server 127.0.0.1:8080 was refused - did you specify the right host or port?" >&2; exit 1 ;;
esac
case "$*" in
    "get namespace ml "*) echo 'Error from server (NotFound): namespaces "ml" not found' >&2; exit 1 ;;
    "get secret "*"--namespace ml "*) echo 'Error from server (Forbidden): secrets is forbidden' >&2; exit 1 ;;
    "get nodes "*) printf '1 0 2'; exit ;;
    "auth can-i patch ingress.networking.k8s.io --namespace ml "*) exit 1 ;;
    "auth can-i create persistentvolume "*) exit 1 ;;
    "config "*) echo company ;;
esac
exit 0
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that simulates a cluster and writes its arguments to the file `calls`."""
    folder = simulate_kubectl(tmp_path / "cluster", KUBECTL)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_the_cluster_is_only_read(service: MakeService, kubectl: Path) -> None:
    service_names = read(service(gpu="shared"))
    assert cluster.reachable() == Result("ok", "the cluster answers, context company")
    assert cluster.exists("namespace", "ml-staging").state == "ok"
    assert cluster.exists("namespace", "ml") == Result("no", "namespace ml does not exist")
    assert cluster.exists("secret", "registry-credentials", "ml").state == "unseen"
    assert cluster.exists("secret", "registry-credentials", "ml-staging").state == "ok"
    assert cluster.rights(service_names) == Result("no", "may not patch ingress.networking.k8s.io in ml")
    assert cluster.gpus() == Result("ok", "3 on 3 nodes")
    assert cluster.volumes([]).state == "unseen"
    volume = service_names.root / "volume.yaml"
    volume.write_text("kind: PersistentVolume\nmetadata: {name: digits-leases}\n")
    assert cluster.volumes([volume]) == Result("ok", "digits-leases exist")
    calls = (kubectl / "calls").read_text().splitlines()
    assert all(call.startswith(("get ", "auth can-i ", "version ", "config current-context")) for call in calls)
    permissions = {tuple(call.split()[2:4]) for call in calls if call.startswith("auth")}
    assert {("create", "deployment.apps"), ("patch", "service"), ("watch", "deployment.apps")} <= permissions
    assert {("delete", "poddisruptionbudget.policy"), ("get", "networkpolicy.networking.k8s.io")} <= permissions


def test_an_unreachable_cluster_is_reported_once(service: MakeService, kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "down")
    service_names = read(service())
    assert cluster.reachable().state == "no"
    results = [cluster.exists("namespace", "ml"), cluster.rights(service_names), cluster.volumes([])]
    assert [result.state for result in results] == ["unseen", "unseen", "unseen"]


def test_host_names_must_resolve() -> None:
    assert cluster.addresses(["localhost"]).state == "ok"
    assert cluster.addresses(["localhost", "nowhere.invalid"]) == Result("no", "no address for nowhere.invalid")


# Data.


def test_a_folder_must_be_writable(service: MakeService, tmp_path: Path) -> None:
    root = service(dvc_remote_url="dvc-remote", s3_endpoint_url="")
    result = storage.write(read(root))
    assert result == Result("ok", f"{root / 'dvc-remote'} is writable")
    assert not (root / "dvc-remote").exists()
    (root / ".dvc/config").write_text("[core]\n")
    assert storage.write(read(root)).detail == "DVC has no default remote"


def test_an_unreachable_gateway(service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    root = service(s3_endpoint_url="http://127.0.0.1:9")
    assert storage.write(read(root)).state == "no"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "xyzzy")
    result = storage.write(read(root))
    assert (result.state, "xyzzy" in result.detail) == ("no", False)


@pytest.mark.slow
def test_the_real_gateway_keeps_nothing_of_the_upload(service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ("MLOPS_TEST_S3_ENDPOINT", "MLOPS_TEST_S3_ACCESS_KEY", "MLOPS_TEST_S3_SECRET_KEY")
    for variable in needed:
        if not os.environ.get(variable):
            pytest.skip(f"set {variable} (and the others of {', '.join(needed)}) to use a real S3 gateway")
    from boto3.session import Session

    endpoint, access, secret = (os.environ[variable] for variable in needed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "default")
    client = Session().client("s3", endpoint_url=endpoint)
    bucket = "mlops-doctor-checks"
    client.create_bucket(Bucket=bucket)
    try:
        root = service(dvc_remote_url=f"s3://{bucket}/digits", s3_endpoint_url=endpoint)
        assert storage.write(read(root)).state == "ok"
        assert client.list_objects_v2(Bucket=bucket).get("KeyCount", 0) == 0
        assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert storage.write(read(root)).detail.endswith("SignatureDoesNotMatch")
    finally:
        client.delete_bucket(Bucket=bucket)


# All items.


def test_doctor_checks_every_item(
    service: MakeService, kubectl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = service(
        image_registry="127.0.0.1:9/ml", dvc_remote_url="dvc-remote", s3_endpoint_url="", mlflow_tracking_uri="http://127.0.0.1:9"
    )
    git(root, "remote", "set-url", "origin", "file:///nowhere/digits.git")
    monkeypatch.chdir(root)
    monkeypatch.setenv("UV_OFFLINE", "true")
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    assert main(["doctor", "--ci", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    lines: dict[str, dict[str, Any]] = {line["id"]: line for line in document["checklist"]}
    assert list(lines) == ids(read(root))
    states = {name: line["state"] for name, line in lines.items()}
    expected = {
        "agent-lock": "no",
        "agent-engine": "no",
        "agent-index": "no",
        "agent-secrets": "no",
        "git-push": "no",
        "git-main": "unseen",
        "images-push": "no",
        "cluster-access": "ok",
        "cluster-namespace-ml": "no",
        "cluster-rights": "no",
        "mlflow": "no",
        "data-write": "ok",
        "bamboo-project": "unseen",
    }
    assert {name: states[name] for name in expected} == expected
    wrong = {finding["rule"]: finding for finding in document["findings"]}
    assert {name for name, state in states.items() if state == "no"} <= set(wrong)
    assert all(finding["remedy"] for finding in wrong.values())
    assert "ask a repository administrator" in lines["git-main"]["seen"]
    assert main(["doctor", "--ci"]) == 4
    printed = capsys.readouterr().out
    assert "NO  cluster-namespace-ml " in printed
    assert "??  git-main" in printed


def test_a_file_is_not_a_tracking_server_for_agents(service: MakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlops_build.adapters.registry import Registry

    service_names = read(service(mlflow_tracking_uri="sqlite:///mlflow.db"))
    Registry(f"sqlite:///{service_names.root / 'mlflow.db'}", create=True).alias_map()
    result = checks.CHECKS["mlflow"](service_names, {})
    assert "a file, which other agents do not see" in result.detail
    assert git(service_names.root, "status", "--porcelain") == ""
    (item,) = [item for item in items.items(service_names) if item.id == "mlflow"]
    assert "agents need a server" in item.what


def test_every_check_of_the_data_files_exists_and_is_used(service: MakeService) -> None:
    plans = bamboo.plans(service())
    documents = (plans.items, files("mlops_build.checklist").joinpath("items.toml").read_text())
    used = {entry["check"] for document in documents for entry in tomllib.loads(document)["item"] if "check" in entry}
    assert used == {*checks.CHECKS, *plans.checks}
