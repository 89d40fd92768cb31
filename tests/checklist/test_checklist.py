"""The administrator's checklist, and `doctor --ci`, which looks at each of its lines and changes nothing."""

import base64
import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from mlops_build.checklist import agent, cluster, host, image_registry, items, names, storage
from mlops_build.checklist.look import Seen
from mlops_build.checklist.names import Names
from mlops_build.errors import NotFound, Refused
from tests.conftest import Render, git
from tests.git.bitbucket import bitbucket

SERVERS = {
    "mlflow_tracking_uri": "https://mlflow.example.com",
    "dvc_remote_url": "s3://ml-data/digits",
    "s3_endpoint_url": "https://s3.example.com",
}
TOKEN = "the-bots-token"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("MLOPS_GIT_", "MLOPS_BRIDGE_", "MLFLOW_TRACKING_", "AWS_", "bamboo_"))]:
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def service(render: Render, tmp_path: Path) -> Callable[..., Path]:
    """service(gpu="shared", more="git: …") is a service with these answers, with these lines at the end of service.yaml, committed."""

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


def ids(found: Names) -> list[str]:
    return [item.id for item in items.items(found)]


def test_names_come_from_the_services_own_files(service: Callable[..., Path]) -> None:
    found = names.read(service(bamboo_project_key="VISION"))
    assert (found.project, found.plans, found.deployment) == ("VISION", ("VISION-DIGITS", "VISION-DIGITSTRAIN"), "digits")
    assert found.capabilities == ("mlops.credentials",)
    assert found.origin == "https://git.example.com/scm/ml/digits.git"
    assert str(found.repository) == "ml/digits"
    assert (found.remote, found.endpoint) == ("s3://ml-data/digits", "https://s3.example.com")
    assert (found.image, found.image_host) == ("registry.example.com/ml/digits", "registry.example.com")
    assert found.python == "python3.11"


def test_without_specs_there_is_no_checklist(service: Callable[..., Path]) -> None:
    root = service()
    (root / names.SPECS).write_text("a: [")
    with pytest.raises(Refused, match="not valid YAML"):
        names.read(root)
    (root / names.SPECS).write_text("{}\n")
    with pytest.raises(NotFound, match="has no plan"):
        names.read(root)
    (root / names.SPECS).unlink()
    with pytest.raises(NotFound, match="is missing"):
        names.read(root)


@pytest.mark.parametrize("plan", ["", "plan:\n", "plan: DIGITS\n", "plan: {key: DIGITS}\n", "plan: {project-key: ML, key: [1]}\n"])
def test_stages_without_a_plan_are_refused(service: Callable[..., Path], plan: str) -> None:
    root = service()
    (root / names.SPECS).write_text(f"version: 2\n{plan}stages: []\n---\nversion: 2\nenvironments: [staging]\ndeployment:\n")
    with pytest.raises(Refused, match=r"document 1 has `stages:`, but no `plan:` with `project-key:` and `key:`"):
        names.read(root)


@pytest.mark.parametrize("specs", [None, "version: 2\nstages: []\n"])
def test_doctor_checks_the_rest_without_usable_specs(
    service: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], specs: str | None
) -> None:
    root = service(dvc_remote_url="dvc-remote", s3_endpoint_url="", mlflow_tracking_uri="http://127.0.0.1:9")
    (root / names.SPECS).unlink()
    if specs:
        (root / names.SPECS).write_text(specs)
    git(root, "remote", "remove", "origin")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    assert main(["doctor", "--ci", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    (finding,) = [finding for finding in document["findings"] if finding["rule"] == "bamboo-specs"]
    assert "bamboo.yaml" in finding["why"]
    assert finding["remedy"]
    # What the checklist would look at is checked as without --ci.
    assert {"system", "git", "service.yaml", "engine", "git remote", "registry"} <= {check["name"] for check in document["checks"]}
    (root / "service.yaml").write_text("schema: 1\n")
    assert main(["doctor", "--ci", "--json"]) == 4
    rules = [finding["rule"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert "service-yaml" in rules
    assert "bamboo-specs" not in rules


def test_every_line_has_an_id_what_to_do_and_a_look_or_somebody_to_ask(service: Callable[..., Path]) -> None:
    found = items.items(names.read(service(gpu="shared")))
    assert len({item.id for item in found}) == len(found)
    for item in found:
        assert item.what.endswith((".", "file."))
        assert item.how
        assert bool(item.look) != bool(item.ask), item.id


def test_the_list_has_what_this_service_needs_and_nothing_else(service: Callable[..., Path]) -> None:
    plain = set(ids(names.read(service())))
    assert {"bamboo-project", "git-push", "images-push", "cluster-rights", "mlflow", "data-write", "agent-lock"} <= plain
    assert {"cluster-namespace-ml", "cluster-namespace-ml-staging", "cluster-pull-secret-ml"} <= plain
    assert not {one for one in plain if one.startswith("gpu-")}
    assert "git-pull-requests" not in plain


@pytest.mark.parametrize(
    ("gpu", "wanted"), [("exclusive", {"gpu-device-plugin"}), ("shared", {"gpu-runtime-class", "gpu-lease-folder", "gpu-volumes"})]
)
def test_a_gpu_brings_its_lines(service: Callable[..., Path], gpu: str, wanted: set[str]) -> None:
    root = service("git: {pull_requests: bitbucket, api: https://git.example.com}\n", gpu=gpu)
    found = ids(names.read(root))
    assert {one for one in found if one.startswith("gpu-")} == wanted
    assert "git-pull-requests" in found


def test_it_is_printed_as_markdown_with_the_services_names(
    service: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = service(gpu="shared", team="vision")
    monkeypatch.chdir(root / "src")
    assert main(["doctor", "--ci", "--checklist"]) == 0
    text = " ".join(capsys.readouterr().out.split())  # long lines are wrapped
    for wanted in (
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
        assert wanted in text
    assert main(["doctor", "--checklist", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [line["id"] for line in document["checklist"]] == ids(names.read(root))
    monkeypatch.chdir(root.parent)
    assert main(["doctor", "--checklist"]) == 3


# On an agent.


def test_what_bamboo_tells_its_scripts_is_seen(service: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = names.read(service())
    assert agent.plan(found).state == agent.capability("mlops.credentials").state == "unseen"
    monkeypatch.setenv("bamboo_planKey", "ML-DIGITSTRAIN")
    monkeypatch.setenv("bamboo_buildNumber", "3")
    assert agent.plan(found).state == "ok"
    assert agent.capability("mlops.credentials").state == "no"
    monkeypatch.setenv("bamboo_capability_mlops_credentials", "true")
    assert agent.capability("mlops.credentials").state == "ok"
    monkeypatch.setenv("bamboo_planKey", "ML-OTHER")
    assert "ML-DIGITS, ML-DIGITSTRAIN" in agent.plan(found).what


def test_secrets_are_seen_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "xyzzy")
    assert agent.variables(["ONE"]) == Seen("ok", "set: ONE")
    assert agent.variables(["ONE", "OTHER"]) == Seen("no", "not set: OTHER")
    assert agent.programs(["sh"]).state == "ok"
    assert agent.programs(["sh", "no-such-program"]) == Seen("no", "not on PATH: no-such-program")


def test_the_package_index_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    seen = agent.package_index()
    assert seen.state == "no"
    assert "does not answer" in seen.what


# The Git host.


def test_the_right_to_push_is_asked_for_and_nothing_is_pushed(
    service: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bitbucket(tmp_path / "bitbucket", TOKEN) as server:
        root = service(f"git: {{pull_requests: bitbucket, api: {server.url}}}\n")
        git(root, "remote", "set-url", "origin", server.make("ml", "digits"))
        found = names.read(root)
        assert host.push(found).state == "no"
        assert "MLOPS_GIT_TOKEN is not set" in host.pull_requests(found).what
        monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
        assert host.push(found).state == "ok"
        assert host.pull_requests(found).state == "ok"
        assert git(tmp_path / "bitbucket/ml/digits.git", "for-each-ref") == ""
        assert server.pull_requests == []
        monkeypatch.setenv("MLOPS_GIT_TOKEN", "expired")
        seen = host.pull_requests(found)
        assert (seen.state, "401" in seen.what, "expired" in seen.what) == ("no", True, False)
        git(root, "remote", "remove", "origin")
        assert host.push(names.read(root)).what == "there is no Git remote called origin"


def test_who_signs_is_seen(service: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = names.read(service())
    assert "mlops-build@localhost" in host.identity(found).what
    assert host.identity(found).state == "no"
    monkeypatch.setenv("MLOPS_GIT_NAME", "The bot")
    monkeypatch.setenv("MLOPS_GIT_EMAIL", "no address")
    assert host.identity(found).state == "no"
    monkeypatch.setenv("MLOPS_GIT_EMAIL", "bot@example.com")
    assert host.identity(found).state == "ok"
    assert host.identity(found).what.startswith("The bot <bot@example.com>")


# The image registry.


@dataclass
class Distribution:
    """An image registry's door. how: open, basic, bearer or closed. calls: method, path, and whether a login came along."""

    how: str = "open"
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def distribution() -> Iterator[Distribution]:
    found = Distribution()
    login = "Basic " + base64.b64encode(b"bot:xyzzy").decode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.headers.get("Authorization", "")
            found.calls.append((self.command, self.path, sent.partition(" ")[0]))
            if self.path.startswith("/token"):
                self.reply(200 if sent == login else 401, {}, json.dumps({"token": "abc"}).encode())
            elif self.command == "DELETE":
                self.reply(204, {}, b"")
            elif found.how == "closed":
                self.reply(403, {}, b"")
            elif (found.how, sent) in (("open", ""), ("basic", login), ("bearer", "Bearer abc")):
                self.reply(202, {"Location": f"/v2/ml/digits/blobs/uploads/1?state={found.how}"}, b"")
            else:
                realm = f'Bearer realm="http://{found.address}/token",service="registry",scope="x"'
                self.reply(401, {"WWW-Authenticate": realm if found.how == "bearer" else 'Basic realm="x"'}, b"")

        do_DELETE = do_GET = do_POST  # noqa: N815

        def reply(self, status: int, fields: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**fields, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def docker_login(tmp_path: Path, host_name: str, user: str = "bot") -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    auth = base64.b64encode(f"{user}:xyzzy".encode()).decode()
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {host_name: {"auth": auth}}}))


@pytest.mark.parametrize(
    ("how", "user", "state"),
    [
        ("open", None, "ok"),
        ("basic", "bot", "ok"),
        ("basic", "other", "no"),
        ("basic", None, "no"),
        ("bearer", "bot", "ok"),
        ("bearer", "other", "no"),
        ("bearer", None, "no"),
        ("closed", "bot", "no"),
    ],
)
def test_the_right_to_push_images_is_asked_for_and_called_off(
    service: Callable[..., Path], distribution: Distribution, tmp_path: Path, how: str, user: str | None, state: str
) -> None:
    distribution.how = how
    if user:
        docker_login(tmp_path, distribution.address, user)
    seen = image_registry.push(names.read(service(image_registry=f"{distribution.address}/ml")))
    assert seen.state == state, seen
    assert "xyzzy" not in seen.what
    assert ("docker is not logged in there" in seen.what) == (state == "no" and user is None)
    begun = [path for method, path, _ in distribution.calls if method == "POST"]
    assert set(begun) == {"/v2/ml/digits/blobs/uploads/"}
    ended = [path for method, path, _ in distribution.calls if method == "DELETE"]
    assert ended == ([f"/v2/ml/digits/blobs/uploads/1?state={how}"] if state == "ok" else [])


def test_a_credential_helper_keeps_its_secret(service: Callable[..., Path], distribution: Distribution, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(json.dumps({"credHelpers": {distribution.address: "ecr-login"}}))
    seen = image_registry.push(names.read(service(image_registry=f"{distribution.address}/ml")))
    assert (seen.state, "ecr-login" in seen.what) == ("unseen", True)
    assert distribution.calls == []


@pytest.mark.slow
def test_the_real_registry_takes_the_look_and_keeps_nothing(service: Callable[..., Path]) -> None:
    address = os.environ.get("MLOPS_TEST_IMAGE_REGISTRY")
    if not address:
        pytest.skip("set MLOPS_TEST_IMAGE_REGISTRY to a registry to push to")
    assert image_registry.push(names.read(service(image_registry=f"{address}/looked-at"))).state == "ok"


def test_no_registry_is_told(service: Callable[..., Path]) -> None:
    assert "does not answer" in image_registry.push(names.read(service(image_registry="127.0.0.1:9/ml"))).what


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
    """A stand-in that answers for a cluster; what it was asked stands in `calls`."""
    real = shutil.which("kubectl")
    if not real:
        pytest.skip("put kubectl on PATH to render overlays (its `kustomize` needs no cluster)")
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "kubectl").write_text(KUBECTL.format(real=real, folder=folder))
    (folder / "kubectl").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_the_cluster_is_looked_at_and_nothing_is_changed(service: Callable[..., Path], kubectl: Path) -> None:
    found = names.read(service(gpu="shared"))
    assert cluster.reachable() == Seen("ok", "the cluster answers, context company")
    assert cluster.exists("namespace", "ml-staging").state == "ok"
    assert cluster.exists("namespace", "ml") == Seen("no", "namespace ml is not there")
    assert cluster.exists("secret", "registry-credentials", "ml").state == "unseen"
    assert cluster.exists("secret", "registry-credentials", "ml-staging").state == "ok"
    assert cluster.rights(found) == Seen("no", "may not patch ingress.networking.k8s.io in ml")
    assert cluster.cards() == Seen("ok", "3 on 3 nodes")
    assert cluster.volumes([]).state == "unseen"
    volume = found.root / "volume.yaml"
    volume.write_text("kind: PersistentVolume\nmetadata: {name: digits-leases}\n")
    assert cluster.volumes([volume]) == Seen("ok", "digits-leases are there")
    calls = (kubectl / "calls").read_text().splitlines()
    assert all(call.startswith(("get ", "auth can-i ", "version ", "config current-context")) for call in calls)
    asked = {tuple(call.split()[2:4]) for call in calls if call.startswith("auth")}
    assert {("create", "deployment.apps"), ("patch", "service"), ("watch", "deployment.apps")} <= asked
    assert {("delete", "poddisruptionbudget.policy"), ("get", "networkpolicy.networking.k8s.io")} <= asked


def test_a_cluster_that_does_not_answer_is_told_once(service: Callable[..., Path], kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "down")
    found = names.read(service())
    assert cluster.reachable().state == "no"
    others = [cluster.exists("namespace", "ml"), cluster.rights(found), cluster.volumes([])]
    assert [seen.state for seen in others] == ["unseen", "unseen", "unseen"]


def test_host_names_are_looked_up() -> None:
    assert cluster.addresses(["localhost"]).state == "ok"
    assert cluster.addresses(["localhost", "nowhere.invalid"]) == Seen("no", "no address for nowhere.invalid")


# Data.


def test_a_folder_is_asked(service: Callable[..., Path], tmp_path: Path) -> None:
    root = service(dvc_remote_url="dvc-remote", s3_endpoint_url="")
    seen = storage.write(names.read(root))
    assert seen == Seen("ok", f"{root / 'dvc-remote'} can be written to")
    assert not (root / "dvc-remote").exists()
    (root / ".dvc/config").write_text("[core]\n")
    assert storage.write(names.read(root)).what == "DVC has no default remote"


def test_no_gateway_is_told(service: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = service(s3_endpoint_url="http://127.0.0.1:9")
    assert storage.write(names.read(root)).state == "no"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "xyzzy")
    seen = storage.write(names.read(root))
    assert (seen.state, "xyzzy" in seen.what) == ("no", False)


@pytest.mark.slow
def test_the_real_gateway_takes_the_look_and_keeps_nothing(service: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
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
    bucket = "mlops-doctor-looks"
    client.create_bucket(Bucket=bucket)
    try:
        root = service(dvc_remote_url=f"s3://{bucket}/digits", s3_endpoint_url=endpoint)
        assert storage.write(names.read(root)).state == "ok"
        assert client.list_objects_v2(Bucket=bucket).get("KeyCount", 0) == 0
        assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert storage.write(names.read(root)).what.endswith("SignatureDoesNotMatch")
    finally:
        client.delete_bucket(Bucket=bucket)


# All of it.


def test_doctor_looks_at_every_line(
    service: Callable[..., Path], kubectl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert list(lines) == ids(names.read(root))
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


def test_a_file_is_no_mlflow_for_agents(service: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlops_build.registry import Registry

    found = names.read(service(mlflow_tracking_uri="sqlite:///mlflow.db"))
    Registry(f"sqlite:///{found.root / 'mlflow.db'}", create=True)
    (line,) = [item for item in items.items(found) if item.id == "mlflow"]
    assert line.look is not None
    assert "a file, which other agents do not see" in line.look().what
    assert subprocess.run(["git", "-C", str(found.root), "status", "--porcelain"], capture_output=True, check=True).stdout == b""
