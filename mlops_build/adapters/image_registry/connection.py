"""Requests to one image registry, with its login: tokens, certificates, time limits, another try after a transient failure."""

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from mlops_build import __version__
from mlops_build.adapters import http
from mlops_build.adapters.image_registry import login as logins
from mlops_build.adapters.image_registry.answer import (
    Answer,
    ImageRegistryUnreachable,
    LoginNeeded,
    RefusedByRegistry,
    login_needed,
    masked,
    refusal,
)

CONNECT_SECONDS, READ_SECONDS, CANCEL_SECONDS = 10.0, 60.0, 15.0
# Seconds before each further try.
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
MOST_BYTES = 1 << 16
CHUNK = 1 << 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NETWORK = "check image.registry in service.yaml, the network and the proxy"


class Body:
    """A request's body that is generated while it is sent, and again when it is sent again. failed: the error of its source.

    requests asks for __len__ and __iter__. An object with `read` would be sent in pieces of 16 KiB.
    """

    def __init__(self, size: int, chunks: Callable[[], Iterator[bytes]]) -> None:
        self._size, self._chunks = size, chunks
        self.failed: Exception | None = None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._chunks()
        except Exception as error:  # urllib3 would report an OSError as one of the connection
            self.failed = error
            raise


class Tries:
    """A limited number of tries, with waits between them."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep, self._waits = sleep, [*WAITS]

    def failed(self, error: ImageRegistryUnreachable) -> None:
        """Wait before the next try. Raises the error if there is none."""
        if error.wait is None or not self._waits:
            raise error
        self._sleep(max(self._waits.pop(0), error.wait))

    def renew(self) -> None:
        """Begin to count again: the last try achieved something."""
        self._waits = [*WAITS]


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts a company's certificates, besides those that requests brings."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        self.context = http.tls_context()
        super().init_poolmanager(*arguments, **options, ssl_context=self.context)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, **options, ssl_context=self.context)


class Connection:
    """Requests for a repository `path` of `host`. sources: paths of repositories that are read, too. For one thread."""

    def __init__(self, host: str, path: str, sources: Sequence[str], sleep: Callable[[float], None]) -> None:
        self.host, self.path, self._sources, self._sleep = host, path, sources, sleep
        server = "registry-1.docker.io" if host == logins.DOCKER_HUB else host
        self._is_local = urlsplit(f"//{server}").hostname in LOOPBACK
        self._api = f"{'http' if self._is_local else 'https'}://{server}/v2/{path}/"
        self._login: logins.Login | None = None
        self._authorization: str | None = None
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": f"mlops-build/{__version__}", "Accept-Encoding": "identity"})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # Harbor would want a CSRF token with its cookie
        self._session.auth = lambda request: request  # without it, requests would send the login of ~/.netrc
        if not self._is_local:
            try:
                self._session.mount("https://", _Adapter())
            except http.NoAnswer as error:
                raise ImageRegistryUnreachable(error.message, remedy=error.remedy) from None

    def tries(self) -> Tries:
        """For the requests that make one action."""
        return Tries(self._sleep)

    def send(
        self,
        method: str,
        address: str,
        action: str,
        expected: Collection[int],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        limit: int = MOST_BYTES,
        seconds: float = READ_SECONDS,
        once: bool = False,
    ) -> Answer:
        """Send a request; again with a new token if the registry wants one, and, unless `once`, after a transient failure.

        address: absolute, or relative to the API of the repository. action: for messages, after "refused to". expected: statuses of
        success. limit: bytes of the answer's body. seconds: until the answer begins. Raises ImageRegistryUnreachable, LoginNeeded, and
        RefusedByRegistry.
        """
        url, tries = self._checked(self._api, address), self.tries()
        request = partial(self._exchange, method, url, action, headers or {}, body, limit, seconds)
        while True:
            try:
                answer = request()
                if answer.status == 401 and _origin(url) == _origin(self._api):
                    self._authorize(answer, action)
                    answer = request()
                break
            except ImageRegistryUnreachable as error:
                if once:
                    raise
                tries.failed(error)
        if answer.status not in expected:
            raise refusal(self.host, self.path, action, answer, logged_in=self._login is not None)
        if len(answer.body) > limit:
            raise self.wrong(f"sent an answer that is longer than {limit} bytes", action)
        return answer

    def location(self, answer: Answer, action: str) -> str:
        """The address in an answer's Location."""
        if not (location := answer.headers.get("location")):
            raise self.wrong("sent no Location", action)
        return self._checked(answer.url, location)

    def confirms(self, digest: str, answer: Answer, action: str) -> bool:
        """Whether an answer names the digest. Raises RefusedByRegistry if it names another."""
        named = answer.headers.get("docker-content-digest")
        if named not in (None, digest):
            raise self.wrong(f"names another digest than {digest}", action)
        return named is not None

    def wrong(self, what: str, action: str) -> RefusedByRegistry:
        """The error for an answer that cannot be right."""
        return RefusedByRegistry(f"{self.host} {what} ({action})", remedy="see the log of the image registry; a proxy can change answers")

    def cancel(self, upload: str) -> None:
        """Cancel the upload at an address. If that fails, the registry removes it later."""
        with contextlib.suppress(ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry):
            self.send("DELETE", upload, "cancel an upload", range(200, 500), seconds=CANCEL_SECONDS, once=True)

    def _checked(self, base: str, address: str) -> str:
        """An absolute address. Raises RefusedByRegistry if a request to it would not be encrypted."""
        try:
            url = urljoin(base, address)
            parts = urlsplit(url)
            _ = parts.port  # raises ValueError if it is not a number
            is_address = parts.scheme in ("http", "https") and parts.hostname and not parts.username and re.fullmatch(r"[\x21-\x7e]+", url)
        except ValueError:
            is_address = False
        if not is_address or (parts.scheme == "http" and not (self._is_local and parts.hostname in LOOPBACK)):
            raise RefusedByRegistry(
                f"{self.host} refers to an address that is not {'https' if is_address else 'valid'}: {masked(address)}",
                remedy="if a proxy in front of the image registry accepts https, it must send X-Forwarded-Proto and Host",
            )
        return url

    def _exchange(
        self, method: str, url: str, action: str, headers: Mapping[str, str], body: bytes | Body | None, limit: int, seconds: float
    ) -> Answer:
        """One request and its answer, any status that is not transient."""
        is_own = _origin(url) == _origin(self._api)  # other addresses do not receive the login
        own = {"Authorization": self._authorization} if self._authorization and is_own else {}
        server, name = urlsplit(url).netloc, str(urlsplit(url).hostname)
        # The time to connect is also that of each write, and a registry can pause while it stores what it has received.
        connect = seconds if isinstance(body, Body) else CONNECT_SECONDS
        try:
            with self._session.request(
                method,
                url,
                headers={**own, **headers},
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=(connect, seconds),
                proxies={"no_proxy": name} if name in LOOPBACK else None,
            ) as response:
                fields = {key.lower(): value for key, value in response.headers.items()}
                answer = Answer(url, response.status_code, fields, _read(response, limit))
        except (requests.RequestException, ValueError) as error:  # ValueError: urllib3's, for a host's name
            if isinstance(body, Body) and body.failed:
                raise body.failed from None
            raise self._unreachable(server, action, error) from None
        if answer.is_transient:
            failure = ImageRegistryUnreachable(f"{server} cannot {action} now: {answer.reason}", remedy="run this again later")
            failure.wait = answer.wait
            raise failure
        return answer

    def _unreachable(self, server: str, action: str, error: Exception) -> ImageRegistryUnreachable:
        reason: Any = error.args[0] if error.args else error
        reason = masked(str(getattr(reason, "reason", reason)))
        is_certificate = "CERTIFICATE_VERIFY_FAILED" in reason
        remedy = http.CERTIFICATES if is_certificate else NETWORK
        failure = ImageRegistryUnreachable(f"{server} does not answer to a request to {action}: {reason}", remedy=remedy)
        failure.wait = None if is_certificate else 0.0
        return failure

    def _authorize(self, answer: Answer, action: str) -> None:
        """Set the header that the registry's challenge asks for."""
        self._authorization = None
        self._login = logins.stored(self.host, self.path)
        challenge = answer.headers.get("www-authenticate", "")
        if bearer := re.search(r"\bbearer\s(.*)", challenge, re.IGNORECASE):
            pairs = re.findall(r'\b(realm|service)=("[^"]*"|[^\s",]+)', bearer[1])
            values = {key: value.strip('"') for key, value in reversed(pairs)}  # reversed: another challenge may follow
            self._authorization = f"Bearer {self._token(values.get('realm', ''), values.get('service', ''), action)}"
        elif re.search(r"\bbasic\b", challenge, re.IGNORECASE) and self._login and self._login.basic:
            self._authorization = self._login.basic
        else:
            raise refusal(self.host, self.path, action, answer, logged_in=self._login is not None)

    def _token(self, realm: str, service: str, action: str) -> str:
        """A token for this repository and the sources, in exchange for the login."""
        url = self._checked("", realm)
        scopes = [f"repository:{self.path}:pull,push", *(f"repository:{source}:pull" for source in self._sources)]
        login = self._login or logins.Login()
        if login.identity:
            fields = {"grant_type": "refresh_token", "service": service, "client_id": "mlops-build", "scope": " ".join(scopes)}
            body = urlencode({**fields, "refresh_token": login.identity}).encode()
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._exchange("POST", url, action, form, body, MOST_BYTES, READ_SECONDS)
        else:
            query = urlencode([("service", service), *(("scope", scope) for scope in scopes)])
            headers = {"Authorization": login.basic} if login.basic else {}
            url = f"{url}{'&' if urlsplit(url).query else '?'}{query}"
            answer = self._exchange("GET", url, action, headers, None, MOST_BYTES, READ_SECONDS)
        token = _token_in(answer)
        if not token:
            known = "refused the stored login" if self._login else "gives no token without a login, and none is stored here"
            message = f"{urlsplit(url).netloc}, which {self.host} names for logins, {known}: {answer.reason}"
            raise login_needed(self.host, self.path, f"{message} ({action})")
        return token


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _read(response: requests.Response, limit: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(CHUNK):
        body += chunk
        if len(body) > limit:
            break
    return bytes(body)


def _token_in(answer: Answer) -> str | None:
    try:
        document = json.loads(answer.body) if answer.status == 200 else {}
        token = document.get("token") or document.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        return None
    return token if isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token) else None
