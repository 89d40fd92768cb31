"""HTTP requests to an MLflow server, with the settings that MLflow's own client reads. Does not import mlflow.

Every request has a timeout. A request is sent again only where the caller says that this is safe.
"""

import configparser
import importlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests

from mlops_build import __version__
from mlops_build.adapters.registry.quiet import quiet_mlflow
from mlops_build.adapters.registry.records import NoAnswer, Rejected, first_line, shown
from mlops_build.errors import UsageError

CONNECT_SECONDS = 10.0
# The same as MLflow's client: answers that can change when the request is sent again.
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
LONGEST_WAIT = 30.0
CHUNK = 1 << 20


class Http:
    """A session with the server at `uri` (http or https). Raises Rejected for an error of MLflow, NoAnswer where there is no answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.tries = 1 + max(0, int(_number("MLFLOW_HTTP_REQUEST_MAX_RETRIES", 2)))
        self._backoff = _number("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", 1)
        self._timeout = (CONNECT_SECONDS, _number("MLFLOW_HTTP_REQUEST_TIMEOUT", 30))
        self._verify = _verify()
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"mlops-build/{__version__}"
        if workspace := os.environ.get("MLFLOW_WORKSPACE", "").strip():
            self._session.headers["X-MLFLOW-WORKSPACE"] = workspace
        self._session.cert = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
        self._session.auth = _auth()

    def call(self, method: str, endpoint: str, fields: Mapping[str, Any], *, repeat: bool = True) -> dict[str, Any]:
        """One call of the REST API: `fields` are the query of a GET, else the JSON body. repeat: it is safe to send it again."""
        content = {"params" if method == "GET" else "json": fields}
        return self.document(self.send(method, f"{self.uri}/api/2.0/mlflow/{endpoint}", content, repeat=repeat))

    def send(
        self, method: str, url: str, content: Mapping[str, Any] | None = None, *, repeat: bool = True, file: Path | None = None
    ) -> requests.Response:
        """Send a request, and again after a transient failure. content: as requests takes it. file: its bytes are the body."""

        def once() -> requests.Response:
            if file is None:
                return self._once(method, url, content or {})
            with file.open("rb") as body:
                return self._once(method, url, {"data": body})

        return self._repeated(once, self.tries if repeat else 1)

    def version(self) -> str | None:
        """What /version answers; None where it is not a version (a server before 2.0, or a proxy)."""
        try:
            text = self.send("GET", f"{self.uri}/version").text.strip()
        except Rejected:
            return None
        return text if re.fullmatch(r"[0-9]{1,4}(?:\.[0-9a-z]{1,12}){1,4}", text) else None

    def save(self, url: str, file: Path) -> None:
        """Download into a file."""

        def once() -> requests.Response:
            response = self._once("GET", url, {"stream": True})
            with response:
                if not response.ok:
                    _ = response.content  # the error's text, read before the connection is closed
                    return response
                with file.open("wb") as copy:
                    for chunk in response.iter_content(CHUNK):
                        copy.write(chunk)
            return response

        self._repeated(once, self.tries)

    def _repeated(self, once: Callable[[], requests.Response], tries: int) -> requests.Response:
        for attempt in range(tries):
            delay = self.wait(attempt)
            try:
                response = once()
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema) as error:
                raise UsageError(
                    f"{shown(self.uri)} is not a valid address: {first_line(error)}", remedy="set MLFLOW_TRACKING_URI"
                ) from None
            except requests.exceptions.Timeout as error:  # a server that hangs would hang again
                raise NoAnswer(first_line(error)) from None
            except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: of the address of a redirect
                failure: Exception = NoAnswer(first_line(error))
            else:
                if response.ok:
                    return response
                failure = _rejected(response)
                if response.status_code not in TRANSIENT:
                    break
                delay = max(delay, _retry_after(response))
            if attempt + 1 < tries:
                time.sleep(delay)
        raise failure

    def wait(self, attempt: int) -> float:
        """Seconds to wait before the try after this one (the first is 0)."""
        return min(self._backoff * 2.0**attempt, LONGEST_WAIT)

    def document(self, response: requests.Response) -> dict[str, Any]:
        """The JSON object of a response."""
        try:
            document = response.json()
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            why = "the response is not JSON: this is not an MLflow server, or it is a login page"
            raise Rejected("", response.status_code, why)
        return document

    def _once(self, method: str, url: str, content: Mapping[str, Any]) -> requests.Response:
        # `verify` is given with each request: on the session, REQUESTS_CA_BUNDLE would replace it.
        return self._session.request(method, url, timeout=self._timeout, verify=self._verify, **content)


def _rejected(response: requests.Response) -> Exception:
    """The error that a response stands for."""
    try:
        document = response.json()
        code, text = str(document["error_code"]), str(document.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, requests.exceptions.RequestException):
        code, text = "", f"HTTP {response.status_code} {response.reason or ''}".rstrip()
    return Rejected(code, response.status_code, text.strip().split("\n", 1)[0][:300])


def is_set(name: str) -> bool:
    """Whether an environment variable is set to true, as MLflow reads it."""
    return os.environ.get(name, "").lower() in ("true", "1")


def _retry_after(response: requests.Response) -> float:
    try:
        return min(float(response.headers.get("Retry-After", "")), LONGEST_WAIT)
    except ValueError:
        return 0.0


def _number(name: str, default: float) -> float:
    text = os.environ.get(name)
    try:
        return float(text) if text else default
    except ValueError:
        raise UsageError(f"{name}={text[:100] if text else ''} is not a number", remedy=f"set {name} to a number, or unset it") from None


def _verify() -> bool | str:
    path = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    if not is_set("MLFLOW_TRACKING_INSECURE_TLS"):
        if path and not Path(path).exists():
            raise UsageError(f"MLFLOW_TRACKING_SERVER_CERT_PATH={path} does not exist", remedy="set it to a file of CA certificates")
        return path or True
    if path:
        raise UsageError(
            "MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set",
            remedy="unset MLFLOW_TRACKING_INSECURE_TLS",
        )
    return False


class _Bearer(requests.auth.AuthBase):
    """As a requests object and not as a header, or ~/.netrc would replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _auth() -> Any:
    """In MLflow's order: a plugin, user and password (each from the environment or from ~/.mlflow/credentials), a token."""
    if is_set("MLFLOW_TRACKING_AWS_SIGV4"):
        try:
            return importlib.import_module("requests_auth_aws_sigv4").AWSSigV4("execute-api")
        except ImportError:
            raise UsageError(
                "MLFLOW_TRACKING_AWS_SIGV4 needs a package that is not installed", remedy="pip install requests-auth-aws-sigv4"
            ) from None
    if plugin := os.environ.get("MLFLOW_TRACKING_AUTH"):
        quiet_mlflow()
        from mlflow.tracking.request_auth.registry import fetch_auth

        return fetch_auth(plugin)
    user, password = (os.environ.get(name) or _credential(name) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"))
    if user and password:
        return user.encode(), password.encode()  # bytes: requests encodes text as Latin-1
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return _Bearer(token) if token else None


def _credential(name: str) -> str | None:
    file = Path("~/.mlflow/credentials").expanduser()
    if not file.is_file():
        return None
    settings = configparser.ConfigParser()
    try:
        settings.read(file, encoding="utf-8")
        return settings.get("mlflow", name.lower(), fallback=None)
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}", remedy=f"correct {file}, or set {name}") from None
