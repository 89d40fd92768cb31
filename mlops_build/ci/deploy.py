"""`ci deploy ENV`: apply an environment's release by digest, wait for the rollout, and check the model's recorded examples."""

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlops_build import service as service_file
from mlops_build import tracking
from mlops_build.adapters import engine as builder
from mlops_build.adapters import http, kubectl
from mlops_build.adapters.registry import Registry, RegistryUnreachable
from mlops_build.ci import cluster, dry_run, image
from mlops_build.ci.attempt import Attempt
from mlops_build.errors import NotFound, Refused, Unreachable, UsageError
from mlops_build.finding import show_by_file
from mlops_build.fleet import rules
from mlops_build.model.answers import differences
from mlops_build.model.version import ModelVersion
from mlops_build.release import record as records
from mlops_build.release.objects import MANAGER, MANAGER_LABEL
from mlops_build.release.record import Record
from mlops_build.release.rollout import rollout
from mlops_build.service import Service
from mlops_build.verify import overlay

# The separator of documents in kustomize's output.
BETWEEN = "\n---\n"
EXAMPLES = "examples/recorded.json"
REQUEST_SECONDS = 30
ANSWER_BYTES = 64 << 20
# An ingress needs some seconds after a new pod is ready; until then errors of the gateway are retried.
ROUTE_SECONDS = 60
# The default time limit of a rollout is at least this long.
LEAST_SECONDS = 600


class ServiceUnreachable(Unreachable):
    """The deployed service does not answer at its address."""


class OtherAnswer(Refused):
    """The deployed service's answers differ from the recorded ones."""


def run(
    root: Path, env: str, *, url: str | None, timeout_s: int | None, say: Callable[[str], None], if_released: bool = False
) -> dict[str, Any]:
    """Deploy the record of `env` in the working tree. url: where to send the recorded examples, default http://HOST of service.yaml.
    timeout_s: time limit of the rollout, by default computed from replicas and startup_seconds of service.yaml. if_released: do nothing
    if nothing is released, instead of an error.

    If the rollout or an answer fails, the cluster returns to the revision that ran before, if mlops-build had released it.

    Raises NotFound (nothing released, or its image is not there), Frozen, Refused (by the API server), ClusterUnreachable, RolloutFailed,
    ServiceUnreachable, OtherAnswer, WentBack.
    The digest is taken from the file that the build of this release wrote, else from the model version, else from the image registry.
    While MLflow is down, the deployment continues without the examples (a rollback by Git must work) and prints this.
    """
    service = service_file.load(root)
    place = service.environment(env)
    address = _address(url or f"http://{place.host}")
    record = records.read(root, env)
    if not record.models and if_released:
        say(f"deploy: nothing is released to {env} yet")
        return {"environment": env, "namespace": place.namespace, "image": None, "models": []}
    if not record.models:
        raise NotFound(
            f"nothing is released to {env} yet",
            remedy=f"mlops-build promote {service.models[0].name} VERSION --to {env}; the bridge releases it",
        )
    kubectl.check_installed()
    try:
        registry: Registry | None = tracking.registry(root)
        from_version = image.of_version(registry, record) if registry else None
    except RegistryUnreachable as error:
        say(f"deploy: {error.message}; the digest is taken from another source, and the recorded examples are not checked")
        registry = from_version = None
    reference = image.of_build(root, record) or from_version or _reference(record)
    rendered = by_digest(cluster.render(root / "deploy" / "overlays" / env), record, reference)
    objects = [document for document in YAML(typ="safe", pure=True).load_all(rendered) if document]
    _accepted(rendered, root, service, env, say)
    say(f"deploy: applying {record} to {env} as {reference}")
    seconds = timeout_s or max(LEAST_SECONDS, rollout(service, env).update_seconds)
    attempt = Attempt(root, record, service.name, place.namespace, registry, seconds, say)
    rules.read(kept=root / image.FLEET).check(env, goes_back=attempt.is_going_back())
    _apply(attempt, rendered, objects)
    rows = None
    try:
        cluster.wait(service.name, place.namespace, seconds)
        if registry is not None and place.replicas:
            rows = sum(_check_example(registry, model, address, first=model == record.models[0]) for model in record.models)
            say(f"deploy: {rows} recorded rows have the recorded answers")
    except (cluster.RolloutFailed, OtherAnswer) as error:
        raise attempt.go_back(error) from None
    return {
        "environment": env,
        "namespace": place.namespace,
        "image": record.image,
        "reference": reference,
        "models": [{"name": model.name, "version": model.version} for model in record.models],
        "url": address,
        "examples": rows,
    }


def _apply(attempt: Attempt, rendered: str, objects: Sequence[Any]) -> None:
    """Apply the rendered manifests; `objects` are the same, parsed. Removes what this release no longer has."""
    name, namespace, say = attempt.name, attempt.namespace, attempt.say
    # Before anything is applied: a remaining scaler would change the number of replicas that is applied.
    cluster.remove_unwanted(name, namespace, objects, say)
    if scaler := scaler_of(objects, name):
        rendered = with_replicas(rendered, name, replicas(scaler, cluster.live_replicas(name, namespace)))
    volumes, rendered = without_volumes(rendered)
    for volume, manifest in volumes.items():
        file = f"{records.folder(attempt.record.environment)}/gpu-leases.yaml"
        cluster.make_volume(manifest, volume, f"kubectl --namespace {namespace} apply --filename {file}")
    cluster.apply(rendered)


def by_digest(rendered: str, record: Record, reference: str) -> str:
    """Replace the record's image by its digest in rendered manifests, because a tag can be moved. Raises Refused if it is missing."""
    line = re.compile(rf"^(?P<before>[ -]*image: )[\"']?{re.escape(str(record.image))}[\"']?$", re.MULTILINE)
    changed, count = line.subn(rf"\g<before>{reference}", rendered)
    if not count:
        raise Refused(
            f"the overlay of {record.environment} renders without the record's image {record.image}",
            remedy="check that its kustomization.yaml lists `components: [release]`",
        )
    return changed


def _accepted(rendered: str, root: Path, service: Service, env: str, say: Callable[[str], None]) -> None:
    """Raises Refused if the API server would refuse an object, before anything is changed."""
    sources = overlay.read_sources(root / "deploy" / "overlays" / env, root, {})
    answer = dry_run.ask(overlay.objects(rendered, sources), env, service.verify.ignore)
    for remark in answer.remarks:
        say(f"deploy: {remark}")
    if answer.findings:
        count = f"{len(answer.findings)} object{'s' if len(answer.findings) > 1 else ''}"
        remedy = "fix them and release again; nothing was applied"
        raise Refused(f"the API server refuses {count} of {env}:\n{show_by_file(answer.findings)}", remedy=remedy)


def scaler_of(objects: Sequence[Any], name: str) -> dict[str, Any] | None:
    """The HorizontalPodAutoscaler of the Deployment `name`; None if the Deployment sets its replicas itself."""
    for item in objects:
        if item["kind"] == "Deployment" and item["metadata"]["name"] == name and "replicas" in item["spec"]:
            return None
    scalers: list[dict[str, Any]] = [item for item in objects if item["kind"] == "HorizontalPodAutoscaler"]
    return next((scaler for scaler in scalers if scaler["spec"]["scaleTargetRef"]["name"] == name), None)


def replicas(scaler: dict[str, Any], live: int | None) -> int:
    """The number of replicas with which a scaled Deployment is applied: the current number, within the scaler's bounds.

    Without a number, Kubernetes would use 1 when the scaler is introduced, because kubectl removes the number that was applied before.
    A Deployment with 0 replicas is not scaled at all.
    """
    low, high = int(scaler["spec"].get("minReplicas", 1)), int(scaler["spec"]["maxReplicas"])
    return min(max(live or low, low), high)


def with_replicas(rendered: str, name: str, count: int) -> str:
    """Set the number of replicas of the Deployment `name` in rendered manifests. Raises Refused if there is no such Deployment."""
    documents = rendered.split(BETWEEN)
    for index, document in enumerate(documents):
        if re.search(r"^kind: Deployment$", document, re.MULTILINE) and _name(document) == name:
            documents[index] = re.sub(r"^spec:\n", f"spec:\n  replicas: {count}\n", document, count=1, flags=re.MULTILINE)
            return BETWEEN.join(documents)
    raise Refused(f"the overlay renders no Deployment {name}", remedy="check that its kustomization.yaml lists `../../base`")


def without_volumes(rendered: str) -> tuple[dict[str, str], str]:
    """The release's PersistentVolumes by name, and the manifests without them."""
    documents, ours = rendered.split(BETWEEN), f"{MANAGER_LABEL}: {MANAGER}"
    volumes = [document for document in documents if re.search(r"^kind: PersistentVolume$", document, re.MULTILINE) and ours in document]
    return {_name(volume): volume for volume in volumes}, BETWEEN.join(document for document in documents if document not in volumes)


def _name(document: str) -> str:
    """The name of an object in kustomize's output."""
    match = re.search(r"^metadata:\n(?:(?:  .*)?\n)*?  name: (\S+)$", document, re.MULTILINE)
    return match[1] if match else ""


def _reference(record: Record) -> str:
    name = str(record.image)
    digest = builder.choose().digest_of(name)
    if digest is None:
        raise NotFound(f"the image {name} does not exist", remedy="mlops-build ci image builds and pushes it")
    return image.reference(name, digest)


def _check_example(registry: Registry, model: ModelVersion, address: str, *, first: bool) -> int:
    """Send a model's recorded example; returns its number of rows. Raises OtherAnswer, ServiceUnreachable."""
    version = registry.version(model.name, model.version)
    try:
        recorded = json.loads(registry.read(version, EXAMPLES))
        body, wanted = json.dumps(recorded["input"]).encode(), recorded["predictions"]
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{version.uri}: {EXAMPLES} cannot be read", remedy="train and register the model again") from None
    url = f"{address}/invocations" if first else f"{address}/models/{model.name}/invocations"
    remedy = f"mlops-build rollback {model.name} --env ENV returns to the previous version"
    status, answer = _post(url, body)
    try:
        predictions = json.loads(answer)["predictions"]
    except (ValueError, KeyError, TypeError):
        raise OtherAnswer(f"{url} answered the recorded example of {model} with {status}: {_short(answer)}", remedy=remedy) from None
    differing = differences(wanted, predictions)
    if differing:
        shown = "\n".join(differing[:5])
        raise OtherAnswer(
            f"the answer of {url} to the recorded example of {model} differs in {len(differing)} places:\n{shown}", remedy=remedy
        )
    return len(wanted) if isinstance(wanted, list) else 1


def _post(url: str, body: bytes) -> tuple[int, str]:
    """Send a request, again while the route to the new pods is not ready. Raises ServiceUnreachable."""
    deadline = time.monotonic() + ROUTE_SECONDS
    while True:
        try:
            answer = http.call(
                "POST", url, headers={"Content-Type": "application/json"}, body=body, seconds=REQUEST_SECONDS, limit=ANSWER_BYTES
            )
            if answer.status not in (502, 503, 504) or time.monotonic() > deadline:
                return answer.status, answer.body.decode(errors="replace")
        except http.NoAnswer as error:
            if time.monotonic() > deadline:
                remedy = "check host in service.yaml and the ingress, or give another address with --url"
                raise ServiceUnreachable(f"{url}: {error.message}", remedy=remedy) from None
        time.sleep(1)


def _address(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(?:/[^\s?#]*)?", url):
        raise UsageError(f"{url!r} is not a valid address", remedy="write --url https://HOST")
    return url.rstrip("/")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
