"""MLflow's webhooks: whether a delivery is signed, recent and new. What it says is not read: it only wakes the loop."""

import base64
import hashlib
import hmac
import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mlops_build.errors import UsageError

# The second secret is accepted too, while the first one is being replaced at the MLflow server.
SECRET, PREVIOUS = "MLOPS_BRIDGE_WEBHOOK_SECRET", "MLOPS_BRIDGE_WEBHOOK_SECRET_PREVIOUS"
SHORTEST_SECRET = 16
OLDEST_SECONDS = 300
DELIVERY_ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)
# Delivery ids that are remembered. A replay after more of them wakes the loop once more, which is harmless.
REMEMBERED = 10_000

Verdict = Literal["new", "replayed", "refused"]


def secrets() -> list[bytes]:
    """The accepted secrets, from the variables or the files that they name; the current one first. Raises UsageError."""
    accepted = []
    for variable in (SECRET, PREVIOUS):
        secret = os.environ.get(variable, "").encode()
        if file := os.environ.get(f"{variable}_FILE"):
            try:
                secret = Path(file).read_bytes().strip()
            except OSError as error:
                if variable == PREVIOUS and isinstance(error, FileNotFoundError):
                    continue  # it is mounted only during a rotation
                raise UsageError(f"{variable}_FILE: {file} cannot be read: {error.strerror}", remedy="mount the secret there") from None
        if 0 < len(secret) < SHORTEST_SECRET:
            raise UsageError(f"the secret in {variable} is shorter than {SHORTEST_SECRET} characters", remedy="openssl rand -hex 32")
        if secret:
            accepted.append(secret)
    return accepted


class Deliveries:
    """The deliveries received so far. The secrets are read for each delivery, so that they can be rotated without a restart."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def check(self, headers: Mapping[str, str], body: bytes) -> Verdict:
        """Whether a request is a delivery of MLflow. headers: with names in lower case."""
        identifier, sent_at = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        if not DELIVERY_ID.fullmatch(identifier) or not TIMESTAMP.fullmatch(sent_at):
            return "refused"
        try:
            accepted = secrets()
        except UsageError:
            return "refused"  # a mounted file may be absent for a moment
        signed = f"{identifier}.{sent_at}.".encode() + body
        given = headers.get("x-mlflow-signature", "").encode("latin-1", "replace")
        # All are compared, so that the time does not tell which secret it is.
        matches = [hmac.compare_digest(given, _signature(secret, signed)) for secret in accepted]
        if not any(matches) or abs(time.time() - int(sent_at)) > OLDEST_SECONDS:
            return "refused"
        if identifier in self._ids:
            return "replayed"
        self._ids[identifier] = None
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        return "new"


def _signature(secret: bytes, signed: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256))
