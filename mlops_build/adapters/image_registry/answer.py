"""An answer of an image registry, and the errors of requests to one."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlops_build.errors import Failed, Refused, Unreachable

MOST_CHARACTERS = 300
# Signatures in a query, user:password@, and what a registry repeats of our header.
SECRETS = re.compile(r"[?#;]\S+|(?<=://)\S+(?=@)|(?<=\bbearer )\S+|(?<=\bbasic )\S+", re.IGNORECASE)


class ImageRegistryUnreachable(Unreachable):
    """The image registry does not answer. wait: seconds until another try is useful; None if it never is."""

    wait: float | None = 0.0


class LoginNeeded(Refused):
    """The image registry needs credentials, or refuses the given ones."""


class RefusedByRegistry(Failed):
    """The image registry refuses a request, or its answer is wrong."""


@dataclass(frozen=True)
class Answer:
    """host: the registry. action: what was requested, after "refused to". body: up to the limit of the request, and some bytes more."""

    host: str
    action: str
    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """The status, and the first error in the body: its code and message."""
        try:
            error = json.loads(self.body)["errors"][0]
            words = [str(error[key]) for key in ("code", "message") if error.get(key)]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # HTML, or the JSON of something else
            words = []
        return masked(": ".join([f"HTTP {self.status}", *words]))

    def confirms(self, digest: str) -> bool:
        """Whether the answer names the digest. Raises RefusedByRegistry if it names another."""
        named = self.headers.get("Docker-Content-Digest")
        if named not in (None, digest):
            raise self.wrong(f"names another digest than {digest}")
        return named is not None

    def wrong(self, what: str) -> RefusedByRegistry:
        """The error for an answer that cannot be right."""
        return RefusedByRegistry(
            f"{self.host} {what} ({self.action})", remedy="see the log of the image registry; a proxy can change answers"
        )


def masked(text: str) -> str:
    """The text without secrets, at most MOST_CHARACTERS of it."""
    return SECRETS.sub("…", " ".join(text.split()))[:MOST_CHARACTERS]
