"""`ci deploy ENV`: apply one environment's release by digest, wait for it, and ask it what was recorded when the model was trained."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlops_build import service as service_file
from mlops_build.ci import builder, cluster, image
from mlops_build.errors import NotFound, Refused, Unreachable, UsageError
from mlops_build.model.answers import differences
from mlops_build.registry import Registry, RegistryUnreachable, tracking_uri
from mlops_build.release import record as records
from mlops_build.release.objects import MANAGER, MANAGER_LABEL
from mlops_build.release.record import Record, ReleasedModel
from mlops_build.release.rollout import rollout

# As kustomize writes it.
BETWEEN = "\n---\n"
EXAMPLES = "examples/recorded.json"
ASK_SECONDS = 30
# A new pod is ready before the way to it is: an ingress needs some seconds. Then the answer counts.
ROAD_SECONDS = 60
# The least that a rollout is waited for, where nobody says how long.
LEAST_SECONDS = 600


class ServiceUnreachable(Unreachable):
    """The deployed service does not answer at its address."""


class OtherAnswer(Refused):
    """The deployed service answers its recorded examples otherwise."""


def run(
    root: Path, env: str, *, url: str | None, timeout_s: int | None, say: Callable[[str], None], if_released: bool = False
) -> dict[str, Any]:
    """Deploy what the record of `env` in the working tree says. url: where the examples are asked, default http://HOST of service.yaml.
    timeout_s: how long the rollout may take, default what replicas and startup_seconds of service.yaml allow for. if_released: nothing
    released is nothing to do, not an error.

    Raises NotFound (nothing released, or its image is not there), ClusterUnreachable, RolloutFailed, ServiceUnreachable, OtherAnswer.
    The digest is the one that the build of this release wrote beside its record, else the model version's, else the image registry's.
    While MLflow is down this still deploys (a rollback by Git must), without the examples, aloud.
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
    cluster.kubectl()
    try:
        registry: Registry | None = Registry(tracking_uri(root))
        noted = image.noted(registry, record) if registry else None
    except RegistryUnreachable as error:
        say(f"deploy: {error.message}; the digest comes from elsewhere, and the recorded examples are not asked")
        registry = noted = None
    reference = image.carried(root, record) or noted or _reference(record)
    rendered = by_digest(cluster.render(root / "deploy" / "overlays" / env), record, reference)
    objects = [one for one in YAML(typ="safe", pure=True).load_all(rendered) if one]
    # Before anything is applied: a scaler that stays a moment longer would change the number of replicas that is applied.
    cluster.remove_unwanted(service.name, place.namespace, objects, say)
    if scaler := scaler_of(objects, service.name):
        rendered = with_replicas(rendered, service.name, replicas(scaler, cluster.live_replicas(service.name, place.namespace)))
    volumes, rendered = without_volumes(rendered)
    for name, manifest in volumes.items():
        by_hand = f"kubectl --namespace {place.namespace} apply --filename {records.folder(env)}/gpu-leases.yaml"
        cluster.make_volume(manifest, name, by_hand)
    say(f"deploy: applying {record} to {env} as {reference}")
    cluster.apply(rendered)
    cluster.wait(service.name, place.namespace, timeout_s or max(LEAST_SECONDS, rollout(service, env).update_seconds))
    asked = None
    if registry is not None and place.replicas:
        asked = sum(_ask(registry, model, address, first=model == record.models[0]) for model in record.models)
        say(f"deploy: {asked} recorded rows answered as recorded")
    return {
        "environment": env,
        "namespace": place.namespace,
        "image": record.image,
        "reference": reference,
        "models": [{"name": model.name, "version": model.version} for model in record.models],
        "url": address,
        "examples": asked,
    }


def by_digest(rendered: str, record: Record, reference: str) -> str:
    """Rendered manifests with the record's image named by its digest, since a tag can be moved. Raises Refused where they lack it."""
    line = re.compile(rf"^(?P<before>[ -]*image: )[\"']?{re.escape(str(record.image))}[\"']?$", re.MULTILINE)
    changed, count = line.subn(rf"\g<before>{reference}", rendered)
    if not count:
        raise Refused(
            f"the overlay of {record.environment} renders without the record's image {record.image}",
            remedy="does its kustomization.yaml still list `components: [release]`?",
        )
    return changed


def scaler_of(objects: Sequence[Any], name: str) -> dict[str, Any] | None:
    """The HorizontalPodAutoscaler that sets the replicas of the Deployment `name`, where the Deployment itself sets none."""
    for one in objects:
        if one["kind"] == "Deployment" and one["metadata"]["name"] == name and "replicas" in one["spec"]:
            return None
    scalers: list[dict[str, Any]] = [one for one in objects if one["kind"] == "HorizontalPodAutoscaler"]
    return next((one for one in scalers if one["spec"]["scaleTargetRef"]["name"] == name), None)


def replicas(scaler: dict[str, Any], live: int | None) -> int:
    """How many pods a scaled Deployment is applied with: as many as are live, within the scaler's bounds.

    Without a number Kubernetes takes 1 on the day that the scaler comes in, since kubectl takes away the number that was applied before;
    and a Deployment that stands at 0 is not scaled at all.
    """
    low, high = int(scaler["spec"].get("minReplicas", 1)), int(scaler["spec"]["maxReplicas"])
    return min(max(live or low, low), high)


def with_replicas(rendered: str, name: str, count: int) -> str:
    """Rendered manifests whose Deployment `name` has so many replicas. Raises Refused where there is none."""
    documents = rendered.split(BETWEEN)
    for index, document in enumerate(documents):
        if re.search(r"^kind: Deployment$", document, re.MULTILINE) and _name(document) == name:
            documents[index] = re.sub(r"^spec:\n", f"spec:\n  replicas: {count}\n", document, count=1, flags=re.MULTILINE)
            return BETWEEN.join(documents)
    raise Refused(f"the overlay renders no Deployment {name}", remedy="does its kustomization.yaml still list `../../base`?")


def without_volumes(rendered: str) -> tuple[dict[str, str], str]:
    """A release's own PersistentVolumes by name, and the manifests without them."""
    documents, ours = rendered.split(BETWEEN), f"{MANAGER_LABEL}: {MANAGER}"
    volumes = [one for one in documents if re.search(r"^kind: PersistentVolume$", one, re.MULTILINE) and ours in one]
    return {_name(one): one for one in volumes}, BETWEEN.join(one for one in documents if one not in volumes)


def _name(document: str) -> str:
    """The name in an object as kustomize writes it."""
    found = re.search(r"^metadata:\n(?:(?:  .*)?\n)*?  name: (\S+)$", document, re.MULTILINE)
    return found[1] if found else ""


def _reference(record: Record) -> str:
    name = str(record.image)
    digest = builder.choose().digest_of(name)
    if digest is None:
        raise NotFound(f"the image {name} does not exist", remedy="mlops-build ci image builds and pushes it")
    return image.reference(name, digest)


def _ask(registry: Registry, model: ReleasedModel, address: str, *, first: bool) -> int:
    """Send a model's recorded example; returns its rows. Raises OtherAnswer, ServiceUnreachable."""
    version = registry.version(model.name, model.version)
    try:
        recorded = json.loads(registry.read(version, EXAMPLES))
        body, wanted = json.dumps(recorded["input"]).encode(), recorded["predictions"]
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{version.uri}: {EXAMPLES} cannot be read", remedy="train and register it again") from None
    url = f"{address}/invocations" if first else f"{address}/models/{model.name}/invocations"
    remedy = f"mlops-build rollback {model.name} --env ENV goes back to the version before"
    status, answer = _post(url, body)
    try:
        predictions = json.loads(answer)["predictions"]
    except (ValueError, KeyError, TypeError):
        raise OtherAnswer(f"{url} answers {model}'s recorded example with {status}: {_short(answer)}", remedy=remedy) from None
    found = differences(wanted, predictions)
    if found:
        shown = "\n".join(found[:5])
        raise OtherAnswer(f"{url} answers {model}'s recorded example otherwise, in {len(found)} places:\n{shown}", remedy=remedy)
    return len(wanted) if isinstance(wanted, list) else 1


def _post(url: str, body: bytes) -> tuple[int, str]:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 # http(s): see _address
    deadline = time.monotonic() + ROAD_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:  # noqa: S310
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            if error.code not in (502, 503, 504) or time.monotonic() > deadline:
                return error.code, error.read().decode(errors="replace")
        except OSError as error:
            if time.monotonic() > deadline:
                remedy = "check host in service.yaml and the ingress, or name another address with --url"
                raise ServiceUnreachable(f"{url} does not answer: {error}", remedy=remedy) from None
        time.sleep(1)


def _address(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(?:/[^\s?#]*)?", url):
        raise UsageError(f"{url!r} is no address", remedy="write --url https://HOST")
    return url.rstrip("/")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
