"""The logins that docker, podman and buildah have stored: in their files, or in a credential helper."""

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops_build.adapters import program
from mlops_build.adapters.image_registry.answer import LoginNeeded
from mlops_build.errors import Unreachable

DOCKER_HUB = "docker.io"
# Docker Hub's name in docker's own files and helpers.
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
MOST_BYTES = 1 << 20
HELPER_SECONDS = 60


@dataclass(frozen=True)
class Login:
    """basic: an Authorization header. identity: a token that is exchanged for those of requests. Only one of the two is set."""

    basic: str | None = field(default=None, repr=False)
    identity: str | None = field(default=None, repr=False)


def stored(host: str, path: str) -> Login | None:
    """The login for a repository. Raises LoginNeeded for a file or a helper that does not work."""
    return next((login for file in _files() if (login := _in_file(file, host, path))), None)


def _files() -> list[Path]:
    """Where docker, podman and buildah store logins."""
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return [Path(named)]
    runtime, home = os.environ.get("XDG_RUNTIME_DIR"), Path.home()
    return [
        Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json",
        Path(runtime, "containers/auth.json") if runtime else Path(f"/run/containers/{os.getuid()}/auth.json"),
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "containers/auth.json"),
    ]


def _in_file(file: Path, host: str, path: str) -> Login | None:
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(MOST_BYTES))
        logins, helpers = _by_name(config.get("auths")), _by_name(config.get("credHelpers"))
        helper = helpers.get(host) or config.get("credsStore")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON in docker's format"
        raise LoginNeeded(
            f"{file}, which stores logins to image registries, cannot be read: {reason}",
            remedy=f"correct it, or remove it and log in to {host}",
        ) from None
    if helper and (login := _from_helper(str(helper), DOCKER_HUB_KEY if host == DOCKER_HUB else host, file)):
        return login
    # podman stores logins for a part of a host, too.
    parts = f"{host}/{path}".split("/")
    entries = (logins.get("/".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((login for entry in entries if (login := _of_entry(entry, file, host))), None)


def _by_name(table: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of a table by host[/path]: docker's keys can be addresses, and have several names for Docker Hub."""
    names = {re.sub(r"^https?://|/(?:v[12]/?)?$", "", key): entry for key, entry in (table or {}).items()}
    return {("docker.io" if name in ("index.docker.io", "registry-1.docker.io") else name): entry for name, entry in names.items()}


def _of_entry(entry: Any, file: Path, host: str) -> Login | None:
    if not isinstance(entry, dict):
        return None
    if identity := entry.get("identitytoken"):
        return Login(identity=str(identity))
    if not (auth := entry.get("auth")):
        return None
    try:
        user, _, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
    except ValueError:
        raise LoginNeeded(f"the login to {host} in {file} is not valid", remedy=f"run `docker login {host}` again") from None
    return _basic(user, password)


def _basic(user: str, password: str) -> Login:
    return Login(basic=f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")


def _from_helper(name: str, server: str, file: Path) -> Login | None:
    """The login that a program docker-credential-NAME returns."""
    command = f"docker-credential-{name}"
    remedy = f"run `echo {server} | {command} get`, or remove the helper from {file} and log in again"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise LoginNeeded(f"{file} names a credential helper {name!r}, which is not a valid name", remedy="correct the file")
    try:
        done = program.run([command, "get"], seconds=HELPER_SECONDS, stdin=server.encode())
    except Unreachable as error:
        raise LoginNeeded(f"the login to {server} is in a credential helper: {error.message}", remedy=remedy) from None
    if done.code and "credentials not found" in done.text + done.message:
        return None
    try:
        if done.code:
            raise ValueError
        document = json.loads(done.output)
        user, secret = str(document["Username"]), str(document["Secret"])
    except (ValueError, LookupError, TypeError, RecursionError):
        # Its output is not shown: it can contain the password.
        raise LoginNeeded(f"{command} exited with {done.code}, without a login to {server}", remedy=remedy) from None
    if not secret:
        return None
    return Login(identity=secret) if user == "<token>" else _basic(user, secret)
