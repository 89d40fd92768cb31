"""An image registry's own API (docker distribution), as far as docker's and buildah's commands do not offer it."""

import json
import os
import re
import urllib.parse
from pathlib import Path

from mlops_build.adapters import http

LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?")
SECONDS = 15


class LoginElsewhere(Exception):
    """The login is in a credential helper of docker, whose name this is."""


def try_push(host: str, path: str) -> tuple[int, bool]:
    """Start an upload to an image's path, and cancel it: the status (202: a push is accepted), and whether docker is logged in.

    Raises LoginElsewhere and http.NoAnswer.
    """
    base = f"{'http' if LOOPBACK.fullmatch(host) else 'https'}://{host}"
    login, helper = _login(host)
    if helper:
        raise LoginElsewhere(helper)
    upload = f"{base}/v2/{path}/blobs/uploads/"
    answer = _call("POST", upload, login)
    if answer.status == 401 and (bearer := _bearer(answer.headers.get("www-authenticate", ""), host, path, login)):
        login = f"Bearer {bearer}"
        answer = _call("POST", upload, login)
    if answer.status == 202:
        _cancel(base, answer.headers.get("location", ""), login)
    return answer.status, login is not None


def _login(host: str) -> tuple[str | None, str | None]:
    """The Authorization header for a host from docker's configuration, and the credential helper that has it instead."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config = json.loads((folder / "config.json").read_text())
        helper = config.get("credHelpers", {}).get(host) or (config.get("credsStore") if host in config.get("auths", {}) else None)
        auth = config.get("auths", {}).get(host, {}).get("auth")
    except (OSError, ValueError, AttributeError):
        return None, None
    return (f"Basic {auth}" if auth and re.fullmatch(r"[A-Za-z0-9+/=]+", auth) else None), helper if not auth else None


def _bearer(challenge: str, host: str, path: str, login: str | None) -> str | None:
    """A token for pushing, from the address in the registry's challenge, in exchange for the login."""
    if not challenge.lower().startswith("bearer "):
        return None
    parameters = dict(re.findall(r'([a-z_]+)="([^"]*)"', challenge))
    realm = parameters.get("realm", "")
    # The login is sent over https only, except to this machine.
    if not realm.startswith("https://") and not LOOPBACK.match(realm.removeprefix("http://")):
        return None
    query = urllib.parse.urlencode({"service": parameters.get("service", host), "scope": f"repository:{path}:pull,push"})
    answer = _call("GET", f"{realm}?{query}", login)
    document = answer.document
    token = document.get("token") or document.get("access_token") if answer.status == 200 and isinstance(document, dict) else None
    return token if isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token) else None


def _cancel(base: str, location: str, login: str | None) -> None:
    """Cancel the upload. If that fails, the registry removes it later."""
    address = urllib.parse.urljoin(base, location)
    if urllib.parse.urlsplit(address).netloc == urllib.parse.urlsplit(base).netloc:
        _call("DELETE", address, login)


def _call(method: str, address: str, login: str | None) -> http.Answer:
    return http.call(method, address, headers={"Authorization": login} if login else {}, seconds=SECONDS)
