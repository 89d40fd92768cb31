"""A real MLflow server on PostgreSQL with two workers, whose webhooks wake the bridge."""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlops_build import doctor
from mlops_build.adapters.registry import Registry, webhooks
from mlops_build.bridge import setup, webhook
from mlops_build.errors import Failed, UsageError
from mlops_build.release import alias
from tests.adapters.registry.server import mlflow_server
from tests.bridge.test_loop import HOUR, metrics, process, subject, until
from tests.bridge.test_reconcile import head, url
from tests.bridge.test_webhook import BODY, OTHER, SECRET, signed
from tests.conftest import git
from tests.release.world import tags_of
from tests.watch.zabbix_server import mlflow_database

pytestmark = [pytest.mark.slow, pytest.mark.real_python]
# A Fernet key: 32 bytes in base64.
SERVER = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "N" * 43 + "=",
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",
}


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    with mlflow_database() as server:
        yield f"postgresql+psycopg2://zabbix@127.0.0.1:{server.port}/mlflow"


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """server(MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS="true") is the address of a server with these variables, started once."""
    started: dict[str, str] = {}
    with ExitStack() as stack:

        def start(**variables: str) -> str:
            key = str(variables)
            if key not in started:
                folder = tmp_path_factory.mktemp("mlflow")
                options = ["--workers", "2", "--backend-store-uri", database, "--serve-artifacts"]
                options += ["--artifacts-destination", str(folder / "artifacts")]
                started[key] = stack.enter_context(mlflow_server(folder, *options, environment={**SERVER, **variables}))
            return started[key]

        yield start


def deliver(where: str, headers: dict[str, str]) -> int:
    try:
        return int(urllib.request.urlopen(urllib.request.Request(f"{where}/webhook", BODY, headers), timeout=20).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_moved_alias_is_released_after_its_event(
    server: Callable[..., str], checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = server(MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS="true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv(webhook.SECRET, SECRET)
    registry = Registry(uri)
    run = MlflowClient(uri).create_run(registry.experiment("digits")).info.run_id
    (tmp_path / "model").mkdir()
    (tmp_path / "model/MLmodel").write_text('{"signature": {}}')
    source = registry.upload(run, tmp_path / "model", "model")
    for number in (1, 2, 3):
        registry.create_version("digits", source, run, tags_of(number))
    # No pass by time: only events make the bridge look at the registry.
    with process(url(checkout), interval=HOUR) as (_, where):
        until(lambda: metrics(where)["mlops_bridge_passes_total"])
        done = [setup.setup(registry, f"{where}/webhook") for _ in range(2)]
        assert done == [(True, []), (False, [])]
        assert len(registry.webhooks()) == 1
        assert doctor.webhook(checkout, deep=True).ok
        for number in (1, 2, 3, 2):
            alias.promote_all(registry, None, {"digits": number}, "staging")
            until(lambda number=number: subject(checkout) == f"Release digits {number} to staging")
        released = head(checkout)
        again = signed()
        assert [deliver(where, headers) for headers in (again, again, signed(secret=OTHER), {})] == [202, 202, 401, 401]
        until(lambda: metrics(where)["mlops_bridge_webhooks_total/replayed"] == 1)
        assert head(checkout) == released
        # A secret that differs is named by doctor.
        registry.save_webhook("mlops-build-bridge", f"{where}/webhook", setup.EVENTS, OTHER, registry.webhooks()[0])
        (finding,) = doctor.webhook(checkout, deep=True).findings
        assert "HTTP 401" in finding.why
        assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in finding.remedy
    git(checkout, "pull", "--quiet")
    git(checkout, "revert", "--no-edit", "HEAD")
    git(checkout, "push", "--quiet")
    with process(url(checkout), interval=HOUR) as (_, where):
        until(lambda: metrics(where)["mlops_bridge_environments/reverted"])
        setup.setup(registry, f"{where}/webhook")
        alias.promote_all(registry, None, {"digits": 2}, "staging")
        until(lambda: subject(checkout) == "Release digits 2 to staging")
        git(checkout.with_name("digits.git"), "update-ref", "refs/heads/main", "main~2")
    subjects = git(checkout.with_name("digits.git"), "log", "--format=%s", "main").splitlines()
    assert subjects == [*(f"Release digits {number} to staging" for number in (2, 3, 2, 1)), "First"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9401/webhook", "ftp://bridge/webhook", "http://127.0.0.1:9401", "https://bridge/webhook?a=1"]
)
def test_an_address_that_cannot_be_the_webhook_replaces_nothing(address: str, registry: Registry) -> None:
    with pytest.raises(UsageError, match="is not the address of the bridge's webhook"):
        setup.setup(registry, address)


def test_an_answer_of_another_program_is_explained() -> None:
    assert "ends with /webhook" in webhooks.remedy("https://bridge.example.com/x/webhook answered HTTP 404")
    assert "the secret of the bridge" in webhooks.remedy("https://bridge.example.com/webhook answered HTTP 401")


def test_the_restrictions_of_mlflow_are_explained(server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    strict = Registry(server())
    with pytest.raises(UsageError, match="MLOPS_BRIDGE_WEBHOOK_SECRET is not set"):
        setup.setup(strict, "https://bridge.example.com/webhook")
    monkeypatch.setenv(webhook.SECRET, SECRET)
    with pytest.raises(Failed) as refused:
        setup.setup(strict, "http://127.0.0.1:9401/webhook")
    assert "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true" in str(refused.value.remedy)
    with pytest.raises(UsageError, match="which sends no webhooks"):
        setup.setup(registry, "https://bridge.example.com/webhook")
