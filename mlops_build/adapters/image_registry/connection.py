"""Requests to one image registry, with its login: tokens, certificates, time limits, another try after a transient failure."""

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from mlops_build import __version__
from mlops_build.adapters import http
from mlops_build.adapters.image_registry import login as logins
from mlops_build.adapters.image_registry.answer import Answer, ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry, masked

# Seconds to connect or to write a part, and until an answer begins. A registry can pause while it stores what it has received, and it
# reads a blob again, or moves it in its storage, before it answers that the blob is complete.
SECONDS, PUT_SECONDS = (10.0, 60.0), (60.0, 300.0)
# Seconds before each further try, and the most that a registry can ask for with Retry-After.
WAITS, LONGEST_WAIT = (0.5, 1.0, 2.0, 4.0, 8.0), 60.0
MOST_BYTES, CHUNK = 4 << 20, 1 << 16
# What urllib3 writes in front of the reason of a failure.
URLLIB3 = re.compile(r"^\w+\(host=[^)]*\): ")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NETWORK = "check image.registry in service.yaml, the network and the proxy"
REFUSED = "check image.registry in service.yaml, and see the log of the image registry; some want the repository created first"
TOO_LARGE = "a proxy in front of the image registry limits the size of a request: allow the size of a layer there"


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
        self.host, self._path, self._sources, self._sleep = host, path, sources, sleep
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

    def send(
        self,
        method: str,
        address: str,
        action: str,
        expected: Collection[int],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        once: bool = False,
    ) -> Answer:
        """Send a request; again with a new token if the registry wants one, and, unless `once`, after a transient failure.

        address: absolute, or relative to the API of the repository. action: for messages, after "refused to". expected: statuses of
        success. Raises ImageRegistryUnreachable, LoginNeeded, and RefusedByRegistry.
        """
        url, waits = self._checked(self._api, address), iter(() if once else WAITS)
        while True:
            try:
                answer = self._exchange(method, url, action, self._own(url, headers), body)
                if answer.status == 401 and self._is_own(url):
                    self._authorize(answer)
                    answer = self._exchange(method, url, action, self._own(url, headers), body)
                break
            except ImageRegistryUnreachable as error:
                self.pause(waits, error)
        if answer.status not in expected:
            raise self._refusal(answer)
        if len(answer.body) > MOST_BYTES:
            raise answer.wrong(f"sent an answer that is longer than {MOST_BYTES} bytes")
        return answer

    def pause(self, waits: Iterator[float], error: ImageRegistryUnreachable) -> None:
        """Wait before another try. Raises the error if there is none."""
        seconds = next(waits, None)
        if seconds is None or error.wait is None:
            raise error
        self._sleep(max(seconds, error.wait))

    def location(self, answer: Answer) -> str:
        """The address in an answer's Location."""
        if not (location := answer.headers.get("Location")):
            raise answer.wrong("sent no Location")
        return self._checked(answer.url, location)

    def cancel(self, upload: str) -> None:
        """Cancel the upload at an address. If that fails, the registry removes it later."""
        with contextlib.suppress(ImageRegistryUnreachable, LoginNeeded, RefusedByRegistry):
            self.send("DELETE", upload, "cancel an upload", range(200, 500), once=True)

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

    def _is_own(self, url: str) -> bool:
        """Whether an address belongs to the registry: others do not receive the login."""
        return not self._session.should_strip_auth(self._api, url)

    def _own(self, url: str, headers: Mapping[str, str] | None) -> dict[str, str]:
        login = {"Authorization": self._authorization} if self._authorization and self._is_own(url) else {}
        return {**login, **(headers or {})}

    def _exchange(
        self, method: str, url: str, action: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> Answer:
        """One request and its answer, any status that is not transient."""
        server, name = urlsplit(url).netloc, str(urlsplit(url).hostname)
        try:
            with self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=PUT_SECONDS if method == "PUT" else SECONDS,
                proxies={"no_proxy": name} if name in LOOPBACK else None,
            ) as response:
                content = bytearray()
                for chunk in response.iter_content(CHUNK):
                    content += chunk
                    if len(content) > MOST_BYTES:
                        break
                answer = Answer(self.host, action, url, response.status_code, response.headers, bytes(content))
        except (requests.RequestException, ValueError) as error:  # ValueError: urllib3's, for a host's name
            reason = masked(URLLIB3.sub("", str(getattr(error.args[0] if error.args else error, "reason", error))))
            is_certificate = "CERTIFICATE_VERIFY_FAILED" in reason
            remedy = http.CERTIFICATES if is_certificate else NETWORK
            failure = ImageRegistryUnreachable(f"{server} does not answer to a request to {action}: {reason}", remedy=remedy)
            failure.wait = None if is_certificate or "resolve" in reason else 0.0  # neither changes within seconds
            raise failure from None
        if answer.status == 429 or answer.status >= 500:
            failure = ImageRegistryUnreachable(f"{server} cannot {action} now: {answer.reason}", remedy="run this again later")
            with contextlib.suppress(InvalidHeader):
                failure.wait = min(Retry().parse_retry_after(answer.headers.get("Retry-After", "0")), LONGEST_WAIT)
            raise failure
        return answer

    def _refusal(self, answer: Answer) -> LoginNeeded | RefusedByRegistry:
        """The error for an answer that is not a success."""
        message = f"{self.host} refused to {answer.action}: {answer.reason}"
        if answer.status in (401, 403):
            return self._login_needed(message, has_login=self._login is not None or answer.status == 403)
        return RefusedByRegistry(message, remedy=TOO_LARGE if answer.status == 413 else REFUSED)

    def _login_needed(self, message: str, *, has_login: bool) -> LoginNeeded:
        remedy = f"run `docker login {self.host}` or `buildah login {self.host}`, as a user who may push to {self._path}"
        return LoginNeeded(message if has_login else f"{message} (no login for it is stored here)", remedy=remedy)

    def _authorize(self, answer: Answer) -> None:
        """Set the header that the registry's challenge asks for."""
        self._authorization = None
        self._login = logins.stored(self.host)
        challenge = answer.headers.get("WWW-Authenticate", "")
        if bearer := re.search(r"\bbearer\s(.*)", challenge, re.IGNORECASE):
            values = requests.utils.parse_dict_header(bearer[1])
            self._authorization = f"Bearer {self._token(values.get('realm') or '', values.get('service') or '', answer.action)}"
        elif re.search(r"\bbasic\b", challenge, re.IGNORECASE) and self._login and not self._login.is_identity:
            self._authorization = self._login.basic
        else:
            raise self._refusal(answer)

    def _token(self, realm: str, service: str, action: str) -> str:
        """A token for this repository and the sources, in exchange for the login."""
        url, login = self._checked("", realm), self._login
        scopes = [f"repository:{self._path}:pull,push", *(f"repository:{source}:pull" for source in self._sources)]
        if login and login.is_identity:
            fields = {"grant_type": "refresh_token", "service": service, "client_id": "mlops-build", "scope": " ".join(scopes)}
            body = urlencode({**fields, "refresh_token": login.secret}).encode()
            answer = self._exchange("POST", url, action, {"Content-Type": "application/x-www-form-urlencoded"}, body)
        else:
            url += f"{'&' if urlsplit(url).query else '?'}{urlencode({'service': service, 'scope': scopes}, doseq=True)}"
            answer = self._exchange("GET", url, action, {"Authorization": login.basic} if login else {})
        try:
            document = json.loads(answer.body) if answer.status == 200 else {}
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            message = f"{urlsplit(url).netloc}, which {self.host} names for logins, gives no token to {action}: {answer.reason}"
            raise self._login_needed(message, has_login=login is not None)
        return token
