"""`ci deploy` with a simulated cluster behind `kubectl`; rendering, digests, the service and its answers are real."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build.__main__ import main
from mlops_build.adapters.engine import docker
from mlops_build.adapters.git.objects import Identity
from mlops_build.ci import deploy
from mlops_build.errors import Refused
from mlops_build.model import identity
from mlops_build.model.answers import differences
from mlops_build.release import failure, hold
from mlops_build.release import record as records
from mlops_build.release.record import Record
from tests.ci.conftest import Release, simulate_kubectl
from tests.packaging.world import World
from tests.serving.conftest import free_port, serving

DIGEST = f"sha256:{'1' * 64}"

# kustomize is real. Other calls are recorded; CLUSTER defines the cluster's answers.
KUBECTL = """\
#!/bin/sh
if [ "$1" = kustomize ]; then exec "{real}" "$@"; fi
case "$*" in *--dry-run=server*) exit 0 ;; esac
echo "$*" >>"{folder}/calls"
if [ "$1" = apply ]; then
    cat >"{folder}/applied.yaml"
    [ -e "{folder}/after.json" ] && mv "{folder}/after.json" "{folder}/deployment.json"
    if grep -q '^kind: PersistentVolume$' "{folder}/applied.yaml"; then
        cp "{folder}/applied.yaml" "{folder}/volume.yaml"
        if [ "$CLUSTER" = modest ]; then echo 'Error from server (Forbidden): persistentvolumes is forbidden' >&2; exit 1; fi
    fi
fi
case "$1 $2" in
    "get deployment")
        case "$*" in *" json "*) cat "{folder}/deployment.json" 2>/dev/null ;; *) printf %s "$LIVE_REPLICAS" ;; esac
        exit ;;
    "get persistentvolume") printf %s "$LIVE_VOLUME"; exit ;;
    "get "*) printf '%s\\n' $LIVE_OBJECTS; exit ;;
esac
case "$1 $2" in "rollout undo") [ "$CLUSTER" = careful ] || touch "{folder}/undone" ;; esac
case "$CLUSTER:$1" in
    down:*) echo "Unable to connect to the server: dial tcp 127.0.0.1:6443: connect: connection refused" >&2; exit 1 ;;
    forbidden:apply) echo 'Error from server (Forbidden): deployments.apps "points" is forbidden' >&2; exit 1 ;;
    careful:delete) echo 'Error from server (Forbidden): you may not delete that' >&2; exit 1 ;;
    stuck:rollout) [ -e "{folder}/undone" ] || {{ echo "error: timed out waiting for the condition" >&2; exit 1; }} ;;
esac
echo "$1 done"
"""

Run = Callable[..., tuple[Any, str]]


@dataclass
class Cluster:
    """A simulated cluster. folder: with the recorded calls, and what was applied."""

    folder: Path

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []

    def objects(self, file: str = "applied.yaml") -> dict[str, Any]:
        """The applied objects by kind."""
        return {item["kind"]: item for item in YAML(typ="safe").load_all((self.folder / file).read_text())}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    folder = simulate_kubectl(tmp_path / "cluster", KUBECTL)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return Cluster(folder)


@pytest.fixture
def released(release: Release, world: World) -> Record:
    """staging runs version 1, whose image was built."""
    record = release("staging")
    world.registry.set_tag("points", 1, identity.IMAGE_NAME, str(record.image))
    world.registry.set_tag("points", 1, identity.IMAGE, f"{str(record.image).rpartition(':')[0]}@{DIGEST}")
    return record


@pytest.fixture
def run(service: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `mlops-build ci deploy` in the service; returns its JSON and its stderr."""
    monkeypatch.setattr(deploy, "ROUTE_SECONDS", 1)  # an ingress needs up to a minute

    def call(*arguments: str, expect: int = 0) -> tuple[Any, str]:
        monkeypatch.chdir(service)
        capsys.readouterr()
        assert main(["ci", "deploy", *arguments, "--json"]) == expect
        out, err = capsys.readouterr()
        return json.loads(out) if out else None, err

    return call


@pytest.fixture
def stuck(service: Path, release: Release, run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """stuck(old, new) edits service.yaml, releases staging and deploys it into a cluster without room for pods; returns stderr.

    The image registry has every image; test_image.py uses a real one.
    """
    monkeypatch.setattr(docker, "digest_of", lambda _: DIGEST)
    monkeypatch.setenv("CLUSTER", "stuck")

    def edit(old: str = "", new: str = "", expect: int = 1) -> str:
        text = (service / "service.yaml").read_text()
        assert old in text
        (service / "service.yaml").write_text(text.replace(old, new, 1))
        release("staging")
        return run("staging", expect=expect)[1]

    return edit


def test_a_release_is_applied_by_digest_and_answers_as_recorded(
    cluster: Cluster, released: Record, run: Run, world: World, tmp_path: Path
) -> None:
    with serving(tmp_path / "server", str(world.folder / "one"), "--port", "0") as server:
        document, printed = run("staging", "--url", server.url, "--timeout", "77")
    assert document == {
        "environment": "staging",
        "namespace": "ml-staging",
        "image": released.image,
        "reference": f"{str(released.image).rpartition(':')[0]}@{DIGEST}",
        "models": [{"name": "points", "version": 1}],
        "url": server.url,
        "examples": 2,
    }
    labels = "app.kubernetes.io/name=points,app.kubernetes.io/managed-by=mlops-build"
    kinds = "horizontalpodautoscalers.autoscaling,poddisruptionbudgets.policy,persistentvolumeclaims"
    assert cluster.calls() == [
        "get deployment points --namespace ml-staging --output json --ignore-not-found",
        f"get {kinds} --namespace ml-staging --selector {labels} --output name --ignore-not-found",
        "apply --filename -",
        "rollout status deployment/points --namespace ml-staging --timeout=77s",
    ]
    deployment = cluster.objects()["Deployment"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == document["reference"]
    assert deployment["metadata"]["namespace"] == "ml-staging"
    assert str(released.image) not in (cluster.folder / "applied.yaml").read_text()
    assert "2 recorded rows have the recorded answers" in printed


def test_another_models_answers_are_refused(cluster: Cluster, released: Record, run: Run, world: World, tmp_path: Path) -> None:
    with serving(tmp_path / "server", str(world.folder / "two"), "--port", "0") as server:
        _, printed = run("staging", "--url", server.url, expect=4)
    assert "predictions[0].score: recorded 2.0, answered 4.0" in printed
    assert "mlops-build rollback points" in printed


def test_nothing_released_is_not_found_and_nothing_is_applied(cluster: Cluster, run: Run) -> None:
    assert "nothing is released to staging yet" in run("staging", expect=3)[1]
    assert "staging, production" in run("stagin", expect=3)[1]
    document, printed = run("staging", "--if-released")
    assert (document["image"], document["models"]) == (None, [])
    assert "nothing is released to staging yet" in printed
    assert cluster.calls() == []


@pytest.mark.parametrize(
    ("state", "expect", "message"),
    [("down", 5, "the cluster does not answer: Unable to connect"), ("forbidden", 1, "is forbidden"), ("stuck", 1, "points in ")],
)
def test_the_cluster_s_message_is_shown(
    cluster: Cluster, released: Record, run: Run, monkeypatch: pytest.MonkeyPatch, state: str, expect: int, message: str
) -> None:
    monkeypatch.setenv("CLUSTER", state)
    assert message in run("staging", "--timeout", "5", expect=expect)[1]
    assert any("rollout" in call for call in cluster.calls()) == (state == "stuck")


def deployment(revision: int, *, models: str | None = None, complete: bool = True) -> str:
    """What `kubectl get deployment --output json` prints."""
    annotations = {"deployment.kubernetes.io/revision": str(revision), **({"mlops-build/models": models} if models else {})}
    reason = "NewReplicaSetAvailable" if complete else "ReplicaSetUpdated"
    conditions = [{"type": "Available", "reason": "Any"}, {"type": "Progressing", "reason": reason}]
    return json.dumps({"metadata": {"annotations": annotations}, "status": {"conditions": conditions}})


@pytest.mark.parametrize(
    ("running", "where", "message"),
    [
        (None, "fleet.yaml", "staging is not changed: frozen until 2999-01-01T00:00:00+00:00: Christmas"),
        ("models:/points/1", "fleet.yaml", "frozen until"),
        ("by hand", "fleet.yaml", "frozen until"),
        ("models:/points/2", "fleet.yaml", None),
        (None, "missing.yaml", None),  # it would be refused in production
        (None, "", None),
    ],
)
def test_in_a_freeze_a_deployment_only_goes_back(
    cluster: Cluster,
    released: Record,
    run: Run,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    running: str | None,
    where: str,
    message: str | None,
) -> None:
    frozen = "{environments: [staging], from: 2020-01-01T00:00Z, until: 2999-01-01T00:00Z, why: Christmas}"
    (tmp_path / "fleet.yaml").write_text(f"schema: 1\nfreeze: [{frozen}]\n")
    monkeypatch.setenv("MLOPS_FLEET", str(tmp_path / where) if where else "")
    (cluster.folder / "deployment.json").write_text(deployment(7, models=running))
    with serving(tmp_path / "server", str(world.folder / "one"), "--port", "0") as server:
        said = run("staging", "--url", server.url, expect=4 if message else 0)
    if message:
        assert message in said[0]["error"]
    assert (cluster.folder / "applied.yaml").exists() is (message is None)


def test_in_a_freeze_a_restored_release_is_deployed(
    cluster: Cluster, released: Record, run: Run, service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback from Git may restore a higher version, or only settings."""
    monkeypatch.setenv("MLOPS_FLEET", str(tmp_path / "missing.yaml"))
    (cluster.folder / "deployment.json").write_text(deployment(7, models="models:/points/1"))
    overlay = service / "deploy/overlays/production"
    shutil.copytree(service / "deploy/overlays/staging/release", overlay / "release", dirs_exist_ok=True)
    for path in (overlay / "release").iterdir():
        path.write_text(path.read_text().replace("environment: staging", "environment: production"))
    url = f"http://127.0.0.1:{free_port()}"
    assert "is not known" in run("production", "--url", url, expect=4)[0]["error"]
    files = {path.name: path.read_bytes() for path in (overlay / "release").iterdir()}
    (overlay / "hold.yaml").write_text(hold.begin("bad", Identity("Ada", "a@b", 1), records.digest(files)).text("production"))
    run("production", "--url", url, expect=5)
    assert (cluster.folder / "applied.yaml").exists()
    (overlay / "release/patch.yaml").write_text((overlay / "release/patch.yaml").read_text() + "# another release\n")
    assert "is not known" in run("production", "--url", url, expect=4)[0]["error"]


@pytest.mark.parametrize(("why", "registry_is_down"), [("stuck", False), ("stuck", True), ("other answers", False)])
def test_after_a_failure_the_cluster_returns_to_the_release_before(
    cluster: Cluster,
    released: Record,
    run: Run,
    world: World,
    service: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
    registry_is_down: bool,
) -> None:
    (cluster.folder / "deployment.json").write_text(deployment(7, models="models:/points/3"))
    (cluster.folder / "after.json").write_text(deployment(8, models="models:/points/1", complete=why != "stuck"))
    if registry_is_down:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/gone.db")
        monkeypatch.setattr(docker, "digest_of", lambda _: DIGEST)
    monkeypatch.setenv("CLUSTER", "stuck" if why == "stuck" else "")
    with serving(tmp_path / "server", str(world.folder / "two"), "--port", "0") as server:
        document, _ = run("staging", "--url", server.url, "--timeout", "9", expect=4)
    undo = "rollout undo deployment/points --namespace ml-staging --to-revision=7"
    assert cluster.calls()[-2:] == [undo, "rollout status deployment/points --namespace ml-staging --timeout=9s"]
    assert document["error"].endswith("\nstaging runs models:/points/3 again")
    assert "mlops-build rollback --from-git staging" in document["remedy"]
    assert (document["runs"], document["failed"]) == ("models:/points/3", "points 1")
    assert document["marked"] is not registry_is_down
    marked = failure.failed(world.registry.version("points", 1), "staging")
    if registry_is_down:
        assert marked is None
        return
    assert marked is not None
    assert ("did not become ready" if why == "stuck" else "differs") in marked.reason
    folder = service / "deploy/overlays/staging/release"
    assert marked.release == records.digest({str(path): path.read_bytes() for path in folder.iterdir()})
    assert failure.failed(world.registry.version("points", 1), "production") is None
    assert world.registry.aliases("points") == {failure.alias("staging"): 1}


@pytest.mark.parametrize(
    ("before", "after", "message", "marked"),
    [
        (None, deployment(1, complete=False), "no complete release ran there before", True),
        (deployment(1, models=None), deployment(2), "no complete release ran there before", True),
        (deployment(4, models="models:/points/3", complete=False), deployment(5), "no complete release ran there before", True),
        (deployment(4, models="models:/points/1"), deployment(4, complete=False), "are those that ran before", False),
    ],
)
def test_without_a_release_to_return_to_the_error_stays(
    cluster: Cluster,
    released: Record,
    run: Run,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    after: str,
    message: str,
    marked: bool,
) -> None:
    if before:
        (cluster.folder / "deployment.json").write_text(before)
    (cluster.folder / "after.json").write_text(after)
    monkeypatch.setenv("CLUSTER", "stuck")
    assert message in run("staging", "--timeout", "5", expect=1)[1]
    assert not any("undo" in call for call in cluster.calls())
    assert (failure.failed(world.registry.version("points", 1), "staging") is not None) is marked


def test_a_service_that_does_not_answer_is_an_error(cluster: Cluster, released: Record, run: Run) -> None:
    printed = run("staging", "--url", f"http://127.0.0.1:{free_port()}", expect=5)[1]
    assert "does not answer" in printed
    assert "--url" in printed
    assert "write --url https://HOST" in run("staging", "--url", "file:///etc/passwd", expect=2)[1]


@pytest.mark.parametrize(("live", "expected"), [("", 2), ("0", 2), ("1", 2), ("4", 4), ("9", 6)])
def test_a_scaled_deployment_keeps_its_number_of_pods(
    cluster: Cluster, stuck: Callable[..., str], monkeypatch: pytest.MonkeyPatch, live: str, expected: int
) -> None:
    monkeypatch.setenv("LIVE_REPLICAS", live)
    stuck("replicas: 1", "replicas: 2\n    autoscale: {max_replicas: 6, target: 4}")
    objects = cluster.objects()
    assert objects["Deployment"]["spec"]["replicas"] == expected
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    assert {"Service", "Ingress", "NetworkPolicy"} <= set(objects)


def test_only_objects_that_a_release_no_longer_has_are_removed_before_it_is_applied(
    cluster: Cluster, stuck: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = "horizontalpodautoscaler.autoscaling/points poddisruptionbudget.policy/points persistentvolumeclaim/points-gpu-leases-1 strange"
    monkeypatch.setenv("LIVE_OBJECTS", there)
    printed = stuck()
    calls = cluster.calls()
    assert calls[2].startswith("delete horizontalpodautoscalers.autoscaling/points --namespace ")
    assert calls[3].startswith("delete poddisruptionbudgets.policy/points --namespace ")
    assert calls[4] == "apply --filename -"
    assert "persistentvolumeclaim points-gpu-leases-1" in printed
    assert "delete it and its volume" in printed
    assert not any("persistentvolumeclaim" in call for call in calls[2:])
    monkeypatch.setenv("LIVE_OBJECTS", "poddisruptionbudget.policy/points")
    stuck("replicas: 1", "replicas: 2")
    assert not any("delete" in call for call in cluster.calls()[len(calls) :])
    assert "PodDisruptionBudget" in cluster.objects()


@pytest.mark.parametrize(("kind", "goes_on"), [("poddisruptionbudget.policy", True), ("horizontalpodautoscaler.autoscaling", False)])
def test_only_a_scaler_that_may_not_be_removed_stops_a_deployment(
    cluster: Cluster, released: Record, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str, goes_on: bool
) -> None:
    monkeypatch.setenv("LIVE_OBJECTS", f"{kind}/points")
    monkeypatch.setenv("CLUSTER", "careful")
    assert "may not delete" in run("staging", "--url", f"http://127.0.0.1:{free_port()}", expect=5 if goes_on else 1)[1]
    assert any("apply" in call for call in cluster.calls()) is goes_on


@pytest.mark.parametrize("state", ["absent", "there", "forbidden"])
def test_the_volume_of_gpu_leases_is_created_once(
    cluster: Cluster, stuck: Callable[..., str], service: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    stuck("mode: none", "mode: shared")
    leases = (service / "deploy/overlays/staging/release/gpu-leases.yaml").read_text().splitlines()
    volume = next(line.split()[1] for line in leases if line.startswith("  name: ml-"))
    for file in cluster.folder.glob("*.yaml"):
        file.unlink()
    before = len(cluster.calls())
    monkeypatch.setenv("LIVE_VOLUME", f"persistentvolume/{volume}" if state == "there" else "")
    if state == "forbidden":
        monkeypatch.setenv("CLUSTER", "modest")
        by_hand = "kubectl --namespace ml-staging apply --filename deploy/overlays/staging/release/gpu-leases.yaml"
        assert by_hand in stuck(expect=4)
        assert not any("rollout" in call for call in cluster.calls()[before:])
        return
    stuck()
    assert (cluster.folder / "volume.yaml").exists() is (state == "absent")
    assert "PersistentVolume" not in cluster.objects()
    claim = cluster.objects()["PersistentVolumeClaim"]
    assert claim["spec"]["volumeName"] == volume
    if state == "absent":
        made = cluster.objects("volume.yaml")["PersistentVolume"]
        assert made["metadata"]["name"] == volume
        names = {"namespace": claim["metadata"]["namespace"], "name": claim["metadata"]["name"]}
        assert made["spec"]["claimRef"] == {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **names}


def test_the_time_limit_depends_on_the_models_start(cluster: Cluster, stuck: Callable[..., str]) -> None:
    stuck("startup_seconds: 120", "startup_seconds: 1800")
    status = next(call for call in cluster.calls() if call.startswith("rollout status"))
    assert int(status.rstrip("s").rpartition("--timeout=")[2]) > 1800


def test_what_a_deployment_needs(
    cluster: Cluster, release: Release, run: Run, service: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release("staging")
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    assert "no-such-docker" in run("staging", expect=5)[1], "without a digest on the version the image registry is queried"
    monkeypatch.setattr(docker, "digest_of", lambda _: DIGEST)
    overlay = service / "deploy/overlays/staging/kustomization.yaml"
    overlay.write_text("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n")
    assert "components: [release]" in run("staging", expect=4)[1]
    assert cluster.calls() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "kubectl is not installed" in run("staging", expect=5)[1]


def test_the_digest_of_the_build_is_preferred_to_that_of_the_version(
    cluster: Cluster, released: Record, run: Run, service: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reference = f"{str(released.image).rpartition(':')[0]}@sha256:{'2' * 64}"
    (service / "build").mkdir()
    (service / "build/image-digests.json").write_text(json.dumps({"images": [{"image": released.image, "reference": reference}]}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/gone.db")
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    assert run("staging")[0]["reference"] == reference
    assert reference in (cluster.folder / "applied.yaml").read_text()


def test_while_mlflow_is_down_a_release_by_git_still_deploys(
    cluster: Cluster, released: Record, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(docker, "digest_of", lambda name: DIGEST if name == released.image else None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/gone.db")
    document, printed = run("staging")
    assert document["examples"] is None
    assert document["reference"].endswith(DIGEST)
    assert "the recorded examples are not checked" in printed
    assert any("rollout" in call for call in cluster.calls())


@pytest.mark.parametrize(
    ("recorded", "answered", "places"),
    [
        ([{"label": "3", "score": 0.5}], [{"label": "3", "score": 0.50005}], 0),
        ([1000.0], [1000.05], 0),
        ([1000.0], [1000.2], 1),
        ([0.0], [0.0002], 1),
        ([1], [1.0], 0),
        ([True], [1], 1),
        (["3"], [3], 1),
        ([None], [None], 0),
        ([float("nan")], [float("nan")], 0),
        ([float("nan")], [1.0], 1),
        ([float("inf")], [float("inf")], 0),
        ([[1.0, 2.0]], [[1.0, 2.0, 3.0]], 1),
        ([{"a": 1}], [{"b": 1}], 1),
        ([{"a": [1, 2, 3]}], [{"a": [1, 5, 9]}], 2),
        ("text", "text", 0),
    ],
)
def test_how_answers_are_compared(recorded: object, answered: object, places: int) -> None:
    assert len(differences(recorded, answered)) == places


def test_only_the_records_image_is_replaced(released: Record) -> None:
    rendered = f'image: {released.image}\n  - image: "{released.image}"\nimage: {released.image}-debug\ntext: {released.image}\n'
    made = deploy.by_digest(rendered, released, "registry.example.com/ml/points@" + DIGEST)
    assert made.count(DIGEST) == 2
    assert f"image: {released.image}-debug\ntext: {released.image}\n" in made
    with pytest.raises(Refused):
        deploy.by_digest("kind: Service\n", released, "x")
