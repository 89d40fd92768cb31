"""Checks the permission to push images: starts an upload (docker distribution's API) and cancels it."""

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from mlops_build.checklist.names import Names
from mlops_build.checklist.result import SECONDS, Result, no, ok, unseen

LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?")


def push(names: Names) -> Result:
    """Whether images may be pushed: POST /v2/NAME/blobs/uploads/ then answers 202. The upload is deleted."""
    host, _, path = names.image.partition("/")
    base = f"{'http' if LOOPBACK.fullmatch(host) else 'https'}://{host}"
    login, helper = _login(host)
    if helper:
        return unseen(f"the login is in docker's credential helper {helper}; test it with `docker push`")
    try:
        status, fields = _call("POST", f"{base}/v2/{path}/blobs/uploads/", login)
        if status == 401 and (bearer := _bearer(fields.get("www-authenticate", ""), host, path, login)):
            status, fields = _call("POST", f"{base}/v2/{path}/blobs/uploads/", f"Bearer {bearer}")
            login = f"Bearer {bearer}"
        if status == 202:
            _cancel(base, fields.get("location", ""), login)
            return ok(f"{host} accepts a push to {path}")
    except (OSError, ValueError) as error:
        return no(f"{host} does not answer: {str(getattr(error, 'reason', error))[:200]}")
    if status in (401, 403):
        return no(f"{host} refuses a push to {path} ({status}{'' if login else ', docker is not logged in to it'})")
    return no(f"{host} answers {status} to a push to {path}")


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
    status, _, document = _request("GET", f"{realm}?{query}", login)
    token = document.get("token") or document.get("access_token") if status == 200 and isinstance(document, dict) else None
    return token if isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token) else None


def _cancel(base: str, location: str, login: str | None) -> None:
    """Cancel the upload. If that fails, the registry removes it later."""
    address = urllib.parse.urljoin(base, location)
    if urllib.parse.urlsplit(address).netloc == urllib.parse.urlsplit(base).netloc:
        _call("DELETE", address, login)


def _call(method: str, address: str, login: str | None) -> tuple[int, dict[str, str]]:
    return _request(method, address, login)[:2]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _request(method: str, address: str, login: str | None) -> tuple[int, dict[str, str], Any]:
    headers = {"Authorization": login} if login else {}
    request = urllib.request.Request(address, method=method, headers=headers)  # noqa: S310 # http(s), see above
    try:
        with urllib.request.build_opener(_NoRedirects()).open(request, timeout=SECONDS) as answer:
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}, _parsed(answer.read(2**20))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {key.lower(): value for key, value in error.headers.items()}, None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
