"""A stand-in for a registry, and a repository in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_build.adapters import http
from mlops_build.adapters.image_registry import Repository
from tests import registries
from tests.registries import Registry


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the logins, certificates and proxies of the user who runs the tests."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "SSL_CERT_FILE", *http.BUNDLES):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.fixture
def registry() -> Iterator[Registry]:
    with registries.serve() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Registry]:
    """A server at another address, such as a storage or another company's."""
    with registries.serve() as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    """The seconds that the client wanted to wait."""
    return []


@pytest.fixture
def repository(registry: Registry, waits: list[float]) -> Repository:
    return Repository(f"{registry.host}/ml/points", sources=[f"{registry.host}/ml/base"], sleep=waits.append)
