"""An answer of an image registry, and the errors that it can stand for."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

from mlops_build.errors import Failed, MlopsBuildError, Refused, Unreachable

LONGEST_WAIT = 60.0
MOST_CHARACTERS = 300
# Signatures in a query, user:password@, and what a registry repeats of our header.
SECRETS = re.compile(r"\?[^\s'\"()<>]+|(?<=://)[^/@\s]+(?=@)|(?<=\bbearer )\S+|(?<=\bbasic )\S+", re.IGNORECASE)
REMEDIES = {
    404: "check image.registry in service.yaml; some image registries want the repository created first",
    413: "a proxy in front of the image registry limits the size of a request: allow the size of a layer there",
}


class ImageRegistryUnreachable(Unreachable):
    """The image registry does not answer. wait: seconds until another try is useful; None if it never is."""

    wait: float | None = 0.0


class LoginNeeded(Refused):
    """The image registry needs credentials, or refuses the given ones."""


class RefusedByRegistry(Failed):
    """The image registry refuses a request, or its answer is wrong."""


@dataclass(frozen=True)
class Answer:
    """url: of the request. status: HTTP's. headers: with names in lower case. body: up to the limit of the request, and some bytes more."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_transient(self) -> bool:
        """Whether the same request can have another answer later."""
        return self.status == 429 or self.status >= 500

    @property
    def wait(self) -> float:
        """Seconds that the registry wants to pass before the next request, at most LONGEST_WAIT."""
        text = self.headers.get("retry-after", "0")
        try:
            seconds = float(text) if re.fullmatch(r"[0-9]+", text) else parsedate_to_datetime(text).timestamp() - time()
        except (ValueError, OverflowError):
            return 0.0
        return min(max(seconds, 0.0), LONGEST_WAIT)

    @property
    def reason(self) -> str:
        """The status, and the first error in the body: its code and message."""
        try:
            error = json.loads(self.body)["errors"][0]
            words = [str(error[key]) for key in ("code", "message") if error.get(key)]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # HTML, or the JSON of something else
            words = []
        return masked(": ".join([f"HTTP {self.status}", *words]))


def masked(text: str) -> str:
    """The text without secrets, at most MOST_CHARACTERS of it."""
    return SECRETS.sub("…", " ".join(text.split()))[:MOST_CHARACTERS]


def login_needed(host: str, path: str, message: str) -> LoginNeeded:
    """The error for a host that wants another login."""
    return LoginNeeded(message, remedy=f"run `docker login {host}` or `buildah login {host}`, as a user who may push to {path}")


def refusal(host: str, path: str, action: str, answer: Answer, *, logged_in: bool) -> MlopsBuildError:
    """The error for an answer that is not a success. action: after "refused to"."""
    message = f"{host} refused to {action}: {answer.reason}"
    if answer.status in (401, 403):
        return login_needed(
            host, path, f"{message} (no login for it is stored here)" if answer.status == 401 and not logged_in else message
        )
    moved = "the address redirects: use the new one in image.registry in service.yaml"
    default = moved if 300 <= answer.status < 400 else "see the log of the image registry"
    return RefusedByRegistry(message, remedy=REMEDIES.get(answer.status, default))
