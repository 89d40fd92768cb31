"""The logins that docker, podman and buildah have stored: in their files, or in a credential helper."""

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops_build.adapters import program
from mlops_build.adapters.image_registry.answer import LoginNeeded
from mlops_build.errors import Unreachable

DOCKER_HUB = "docker.io"
# Docker Hub's names in files; docker's helpers know the first.
DOCKER_HUB_NAMES = ("https://index.docker.io/v1/", DOCKER_HUB)
# The name of the user if the secret is a token, also in docker's helpers.
IDENTITY = "<token>"
MOST_BYTES = 1 << 20
HELPER_SECONDS = 60


@dataclass(frozen=True)
class Login:
    """A user's name and password, or IDENTITY and a token that is exchanged for those of requests."""

    user: str
    secret: str = field(repr=False)

    @property
    def is_identity(self) -> bool:
        """Whether the secret is a token."""
        return self.user == IDENTITY

    @property
    def basic(self) -> str:
        """The header Authorization."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.secret}'.encode()).decode()}"


def stored(host: str) -> Login | None:
    """The login to a registry. Raises LoginNeeded for a file or a helper that does not work."""
    return next((login for file in _files() if (login := _in_file(file, host))), None)


def _files() -> list[Path]:
    """Where docker, podman and buildah store logins."""
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        if not Path(named).exists():
            raise LoginNeeded(f"REGISTRY_AUTH_FILE={named} does not exist", remedy="set it to the file of a login, or unset it")
        return [Path(named)]
    runtime, home = os.environ.get("XDG_RUNTIME_DIR"), Path.home()
    return [
        Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json",
        Path(runtime, "containers/auth.json") if runtime else Path(f"/run/containers/{os.getuid()}/auth.json"),
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "containers/auth.json"),
    ]


def _in_file(file: Path, host: str) -> Login | None:
    names = DOCKER_HUB_NAMES if host == DOCKER_HUB else (host, f"https://{host}", f"https://{host}/v1/")
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(MOST_BYTES))
        entry = _first(config.get("auths"), names) or {}
        helper = _first(config.get("credHelpers"), names) or config.get("credsStore")
        identity = entry.get("identitytoken")
        user, _, password = base64.b64decode(entry.get("auth") or "", validate=True).decode().partition(":")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not in docker's format"
        raise LoginNeeded(
            f"{file}, which stores logins to image registries, cannot be read: {reason}",
            remedy=f"correct it, or remove it and log in to {host}",
        ) from None
    if helper and (login := _from_helper(str(helper), names[0], file)):
        return login
    if identity:
        return Login(IDENTITY, str(identity))
    return Login(user, password) if user else None


def _first(table: Mapping[str, Any] | None, names: Sequence[str]) -> Any:
    return next(filter(None, map((table or {}).get, names)), None)


def _from_helper(name: str, server: str, file: Path) -> Login | None:
    """The login that a program docker-credential-NAME returns."""
    command = f"docker-credential-{name}"
    try:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError
        done = program.run([command, "get"], seconds=HELPER_SECONDS, stdin=server.encode())
        if done.code and "credentials not found" in done.text + done.message:
            return None
        document = json.loads(done.output)
        login = Login(str(document["Username"]), str(document["Secret"]))
    except (Unreachable, OSError, ValueError, LookupError, TypeError, RecursionError):  # OSError: a program of another machine
        # What the program says is not shown: it can contain the password.
        raise LoginNeeded(
            f"{file} names the credential helper {command}, which gives no login to {server}",
            remedy=f"run `echo {server} | {command} get`, or remove the helper from {file} and log in again",
        ) from None
    return login if login.secret else None
