"""The webhooks of an MLflow server, which deliver events on a best-effort basis: three retries, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlops_build.adapters.registry.http import Http
from mlops_build.adapters.registry.records import Rejected

PAGE = 100
# The name of the webhook that wakes the bridge.
OF_BRIDGE = "mlops-build-bridge"


@dataclass(frozen=True)
class Webhook:
    """name: ours to choose, several can have the same. url: where events are delivered."""

    webhook_id: str
    name: str
    url: str


def listed(http: Http) -> list[Webhook]:
    """All webhooks."""
    webhooks: list[Webhook] = []
    token = ""
    while True:
        page = http.call("GET", "webhooks", {"max_results": PAGE, **({"page_token": token} if token else {})})
        webhooks += [_webhook(entity) for entity in page.get("webhooks", [])]
        token = page.get("next_page_token", "")
        if not token:
            return webhooks


def save(http: Http, name: str, url: str, events: list[str], secret: str, existing: Webhook | None) -> Webhook:
    """Create a webhook, or give these values to an existing one. events: such as "model_version.created"."""
    entities = [dict(zip(("entity", "action"), event.upper().split("."), strict=True)) for event in events]
    fields = {"name": name, "url": url, "events": entities, "secret": secret, "status": "ACTIVE"}
    # Not repeated: a second request could create a second webhook.
    method, endpoint = ("PATCH", f"webhooks/{existing.webhook_id}") if existing else ("POST", "webhooks")
    return _webhook(http.call(method, endpoint, fields, repeat=existing is not None).get("webhook"))


def delivered(http: Http, webhook: Webhook) -> str | None:
    """Let MLflow deliver a test event; None if it succeeded, else why not."""
    result = http.call("POST", f"webhooks/{webhook.webhook_id}/test", {}).get("result", {})
    if result.get("success"):
        return None
    status = f"{webhook.url} answered HTTP {result['response_status']}" if result.get("response_status") else ""
    return str(status or result.get("error_message") or "no answer")[:300]


def remedy(why: str) -> str:
    """What to do after MLflow refused an address, or could not deliver. MLflow's restrictions are variables of its server."""
    hints = {
        "scheme": "at the MLflow server, set MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and restart it, or use https",
        "public": "at the MLflow server, set MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true and restart it: it refuses private addresses",
        "InvalidToken": "at the MLflow server, set MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY, the same for all workers, and run this again",
        "HTTP 401": "run `mlops-build bridge setup` with the secret of the bridge. If it is the same, set"
        " MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY at the MLflow server: without it, each worker encrypts secrets with a key of its own",
    }
    # The answer of another program, or of a proxy, shows that the address is reached.
    hints["answered HTTP"] = "check that the bridge runs at this address, and that the address ends with /webhook"
    general = "check that the MLflow server reaches the address; it ignores a proxy and a company's own certificates"
    return next((hint for text, hint in hints.items() if text in why), general)


def _webhook(entity: Any) -> Webhook:
    if not isinstance(entity, Mapping) or "webhook_id" not in entity:
        raise Rejected("", 200, "the response has no valid webhook: this is not an MLflow server, or it is older than 3.4")
    return Webhook(str(entity["webhook_id"]), str(entity.get("name", "")), str(entity.get("url", "")))
