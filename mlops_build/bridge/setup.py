"""The webhook at the MLflow server that wakes the bridge. Without it, the bridge notices a moved alias at its next pass."""

import re

from mlops_build.adapters.registry import Registry
from mlops_build.adapters.registry.webhooks import OF_BRIDGE
from mlops_build.bridge import webhook
from mlops_build.errors import UsageError
from mlops_build.finding import Finding

EVENTS = ["model_version_alias.created", "model_version_alias.deleted", "model_version.created"]


def setup(registry: Registry, url: str) -> tuple[bool, list[Finding]]:
    """Create the webhook, or update its address and secret; then let MLflow deliver a test event. Safe to repeat.

    Returns whether it was created, and why the test delivery failed (empty if it did not).
    url: of /webhook, as the MLflow server reaches it. Raises UsageError for another address, and without a secret.
    """
    if not re.fullmatch(r"https?://[^/?#]+(?:/[^?#]*)?/webhook", url):
        raise UsageError(
            f"{url[:200]!r} is not the address of the bridge's webhook",
            remedy="--url begins with http:// or https:// and ends with /webhook, such as https://bridge.example.com/webhook",
        )
    secrets = webhook.secrets()
    if not secrets:
        raise UsageError(
            f"{webhook.SECRET} is not set", remedy=f"export {webhook.SECRET}=$(openssl rand -hex 32), the same where the bridge runs"
        )
    existing = next((each for each in registry.webhooks() if each.name == OF_BRIDGE), None)
    saved = registry.save_webhook(OF_BRIDGE, url, EVENTS, secrets[0].decode(errors="replace"), existing)
    failure = registry.test_webhook(saved)
    findings = [Finding("webhook", "webhook", f"a test delivery failed: {failure[0]}", failure[1])] if failure else []
    return existing is None, findings
