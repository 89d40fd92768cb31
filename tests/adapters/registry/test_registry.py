"""MLflow's registry through our one package: each test on a real sqlite database and on MLflow's own server."""

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_build import tracking
from mlops_build.adapters import registry as border
from mlops_build.adapters.registry import Registry, RegistryUnreachable, UnknownVersion
from mlops_build.adapters.registry.database import Database
from mlops_build.adapters.registry.sqlite import Sqlite
from mlops_build.errors import Failed, NotFound, Refused, Unreachable, UsageError
from mlops_build.tracking import Tracking
from tests.adapters.registry.server import Proxy, mlflow_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A start takes five seconds of CPU: one server for all tests of this file."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables in a sqlite file, and no model: they take two seconds of CPU."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert Registry(f"sqlite:///{file}", create=True).alias_map() == {}
    return file


@pytest.fixture(scope="module", params=["sqlite", "mlflow", "server"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two versions of `digits`, the first of them with the alias staging. "mlflow": a sqlite file whose schema we do not know."""
    folder = tmp_path_factory.mktemp("store")
    if request.param == "server":
        store = Registry(request.getfixturevalue("server"))
        experiment = store.experiment("digits")
    else:
        file = shutil.copy(request.getfixturevalue("database"), folder / "mlflow.db")
        store = Registry(f"sqlite:///{file}")
        if request.param == "mlflow":
            assert isinstance(store._store, Sqlite)
            store._store = Database(store.uri)
        experiment = store.experiment("digits", folder / "artifacts")
    assert store.experiment("digits") == experiment
    run = new_run(store, experiment)
    files = folder / "files"
    (files / "sub").mkdir(parents=True)
    (files / "sub/weights").write_bytes(b"\0\1")
    (files / "a name, b+c").write_bytes(b"2")
    source = store.upload(run, files, "versions/one")
    store.create_version("digits", source, run, {"mlops_build.commit": "a" * 40})
    store.create_version("digits", source, run, {})
    store.set_alias("digits", "staging", 1)
    store.set_run_tag(run, "mlops_build.model", "sha256:one")
    return store


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


def new_run(store: Registry, experiment: str) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    run = client.create_run(experiment)
    client.log_param(run.info.run_id, "rate", 0.1)
    client.log_metric(run.info.run_id, "loss", 0.5)
    return str(run.info.run_id)


def test_versions_are_found_by_number_and_alias(store: Registry) -> None:
    first = store.version("digits", 1)
    assert (first.version, first.tags) == (1, {"mlops_build.commit": "a" * 40})
    assert store.version("digits", "1") == store.version("digits", "staging") == first
    assert [version.version for version in store.versions("digits")] == [2, 1]
    assert store.alias_map() == {"digits": {"staging": 1}}
    assert store.aliases("digits") == {"staging": 1}
    assert "MLFLOW_TRACKING_URI" not in os.environ, "talking to a registry leaves the environment alone"


@pytest.mark.parametrize(
    ("name", "which", "said", "remedy"),
    [
        ("digits", 9, "digits has no version 9", "versions: 2, 1; aliases: staging → 1"),
        ("digits", "production", "digits has no alias 'production'", "versions: 2, 1; aliases: staging → 1"),
        ("letters", 1, "no registered model 'letters'", "registered models: digits"),
        ("letters", "staging", "no registered model 'letters'", "registered models: digits"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(store: Registry, name: str, which: int | str, said: str, remedy: str) -> None:
    with pytest.raises(UnknownVersion) as caught:
        store.version(name, which)
    assert said in caught.value.message
    assert caught.value.remedy == remedy
    assert caught.value.exit_code == 3


def test_files_come_back_as_they_went(store: Registry, tmp_path: Path) -> None:
    made = store.fetch(store.version("digits", 1), tmp_path / "deep/files")
    assert (made / "sub/weights").read_bytes() == b"\0\1"
    assert {path.name for path in made.iterdir()} == {"sub", "a name, b+c"}
    assert (made / "a name, b+c").read_bytes() == b"2"
    assert store.read(store.version("digits", 1), "sub/weights") == b"\0\1"
    with pytest.raises(UnknownVersion, match=r"lineage\.json cannot be read"):
        store.read(store.version("digits", 1), "lineage.json")
    assert list(tmp_path.glob("deep/.*")) == []


@pytest.mark.parametrize("way", ["", "large", "parts"])
def test_files_are_read_one_by_one(store: Registry, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """large: the server's own client copies each. parts: it lists them too."""
    if way == "large":
        monkeypatch.setattr("mlops_build.adapters.registry.artifacts.LARGE", 1)
    if way == "parts":
        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    listed = store.files(store.version("digits", 1))
    assert [(file.path, file.size) for file in listed] == [("a name, b+c", 1), ("sub/weights", 2)]
    with listed[1].open() as opened:
        assert opened.seek(1) == 1
        assert opened.read() == b"\1"
        with listed[0].open() as other:
            assert other.read() == b"2"
    assert list(tmp_path.iterdir()) == []
    missing = border.RegisteredVersion("digits", 9, "", f"{store.version('digits', 1).source}/none", {}, 0)
    with pytest.raises(UnknownVersion, match="its files cannot be read from") as caught:
        store.files(missing)
    assert "doctor" in str(caught.value.remedy)


def test_a_file_that_the_server_no_longer_has_as_listed_is_named(proxy: Proxy, tmp_path: Path) -> None:
    store = Registry(proxy.uri)
    run = new_run(store, store.experiment(next(NAMES)))
    (tmp_path / "a.txt").write_text("a")
    version = store.create_version(next(NAMES), store.upload(run, tmp_path, "files"), run, {})
    (file,) = store.files(version)
    (tmp_path / "a.txt").write_text("ab")
    store.upload(run, tmp_path, "files")
    with (
        pytest.raises(UnknownVersion, match=r"its file a\.txt cannot be read .* sent 2 bytes of a file that it lists with 1 bytes"),
        file.open(),
    ):
        pass
    proxy.lose["a.txt"] = [502] * 10
    with pytest.raises(UnknownVersion, match=r"its file a\.txt cannot be read .* HTTP 502"), file.open():
        pass


def test_a_listing_without_an_end_is_refused(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_build.adapters.registry.artifacts.ENTRIES", 20)
    store = Registry(proxy.uri)
    version = border.RegisteredVersion("a", 1, "", "mlflow-artifacts:/0/run/files", {}, 0)
    for name, said in {"again": "more than 20 files", "": "not a path below", ".": "not a path below"}.items():
        proxy.content = json.dumps({"files": [{"path": name, "is_dir": True}]}).encode()
        with pytest.raises(UnknownVersion, match=said):
            store.files(version)


def test_tags_and_aliases_move(store: Registry) -> None:
    store.set_alias("digits", "champion", 1)
    store.set_alias("digits", "champion", 2)
    assert store.aliases("digits")["champion"] == 2
    store.delete_alias("digits", "champion")
    assert "champion" not in store.aliases("digits")
    store.set_tag("digits", 2, "mlops_build.image", "x")
    assert store.version("digits", 2).tags == {"mlops_build.image": "x"}
    store.delete_tag("digits", 2, "mlops_build.image")
    assert store.version("digits", 2).tags == {}


def test_runs_are_found_by_what_they_made(store: Registry) -> None:
    found = store.find_run("digits", "mlops_build.model", "sha256:one")
    assert found is not None
    assert (found.params, found.metrics, found.tags["mlops_build.model"]) == ({"rate": "0.1"}, {"loss": 0.5}, "sha256:one")
    assert store.run(found.run_id) == found
    assert store.find_run("digits", "mlops_build.model", "sha256:two") is None
    assert store.find_run("letters", "mlops_build.model", "sha256:one") is None
    assert store.run("0" * 32) is None
    with pytest.raises(UsageError):
        store.find_run("digits", "mlops_build.model", "' OR 1=1")


def test_a_registry_that_is_not_there_is_said_within_seconds(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachable, match="does not exist") as caught:
        Registry(f"sqlite:///{tmp_path / 'misspelt.db'}")
    assert caught.value.exit_code == 5
    assert "Git does not contain it" in caught.value.message
    assert "mlops-build train" in str(caught.value.remedy)
    assert "tracking.uri" in str(caught.value.remedy)
    assert not (tmp_path / "misspelt.db").exists()
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9 does not answer") as unreachable:
        Registry("http://user:secret@127.0.0.1:9").alias_map()
    assert "secret" not in f"{unreachable.value} {unreachable.value.remedy}"


def test_where_mlflow_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        tracking.find()
    service = "schema: 1\nname: a\nteam: b\nmodels: [{name: a}]\nenvironments: {staging: {namespace: a, host: a}}\n"
    (tmp_path / "service.yaml").write_text(service)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert tracking.find().uri == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    (tmp_path / "service.yaml").write_text(
        service + "tracking: {uri: 'https://mlflow.example.com', s3_endpoint_url: 'https://s3.example.com'}\n"
    )
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
    assert tracking.find() == Tracking("https://mlflow.example.com", "https://s3.example.com")
    assert "MLFLOW_S3_ENDPOINT_URL" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking.find() == Tracking("http://elsewhere")


# A sqlite file

PROMPT = "mlflow.prompt.is_prompt"


def test_mlflow_sees_what_was_written_without_it(database: Path, tmp_path: Path) -> None:
    """And the other way round: both write to the same tables."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(database, tmp_path / 'mlflow.db')}"
    client, store = MlflowClient(uri, registry_uri=uri), Registry(uri)
    client.create_registered_model("digits")
    client.create_model_version("digits", "file:///nowhere", tags={"a": "b", "c": "d"})
    client.create_model_version("digits", "file:///nowhere")
    client.create_registered_model("empty")
    with sqlite3.connect(tmp_path / "mlflow.db") as opened:  # a prompt is not a model
        opened.execute("insert into registered_models (workspace, name) values ('default', 'text')")
        opened.execute("insert into registered_model_tags (workspace, name, key, value) values ('default', 'text', ?, 'true')", (PROMPT,))
    client.set_registered_model_alias("digits", "champion", "1")
    assert store.alias_map() == {"digits": {"champion": 1}, "empty": {}}
    assert [model.name for model in client.search_registered_models()] == ["digits", "empty"]
    store.set_alias("digits", "champion", 2)
    store.set_alias("digits", "staging", 1)
    store.set_tag("digits", 1, "a", "e")
    store.set_tag("digits", 1, "f", "")
    store.delete_tag("digits", 1, "c")
    assert client.get_registered_model("digits").aliases == {"champion": 2, "staging": 1}
    seen = client.get_model_version("digits", "1")
    assert seen.tags == {"a": "e", "f": ""}
    assert store.version("digits", 1) == border.RegisteredVersion("digits", 1, "", "file:///nowhere", seen.tags, seen.creation_timestamp)
    assert store.version("digits", "latest").version == 2
    store.delete_alias("digits", "staging")
    client.delete_model_version("digits", "2")
    assert [version.version for version in store.versions("digits")] == [1]
    assert store.aliases("digits") == client.get_registered_model("digits").aliases
    for number in (2, 3):
        with pytest.raises(NotFound, match=f"version {number}"):
            store.set_alias("digits", "staging", number)
    with pytest.raises(NotFound, match="version 3"):
        store.set_tag("digits", 3, "a", "b")


def test_a_schema_that_is_not_known_is_left_to_mlflow(database: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(database, tmp_path / "mlflow.db"))
    assert isinstance(Registry(f"sqlite:///{file}")._store, Sqlite)
    with sqlite3.connect(file) as opened:
        opened.execute("alter table model_versions rename column source to place")
    assert not isinstance(Registry(f"sqlite:///{file}")._store, Sqlite)


def test_a_file_that_cannot_be_used_is_named(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.db").write_text("This is not a database. " * 100)
    with pytest.raises(RegistryUnreachable, match="file is not a database"):
        Registry(f"sqlite:///{tmp_path / 'text.db'}").alias_map()
    monkeypatch.setattr("mlops_build.adapters.registry.sqlite.BUSY_SECONDS", 0.1)
    file = Path(shutil.copy(database, tmp_path / "mlflow.db"))
    with sqlite3.connect(file) as other:
        other.execute("begin exclusive")
        with pytest.raises(RegistryUnreachable, match="database is locked"):
            Registry(f"sqlite:///{file}").alias_map()


# The server


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with Proxy(server).serve() as proxy:
        yield proxy


NAMES = (f"model-{number}" for number in itertools.count())


@pytest.mark.parametrize("losses", [[502], [500], [502, 502, 502], [0], [0, 503]])
def test_a_version_is_made_once_where_responses_are_lost(proxy: Proxy, losses: list[int]) -> None:
    name = next(NAMES)
    proxy.lose["model-versions/create"] = [*losses]
    store = Registry(proxy.uri)
    made = store.create_version(name, "s3://bucket/one", "", {"mlops_build.content": "sha256:one"})
    assert [version.version for version in store.versions(name)] == [1]
    assert made == store.version(name, 1)
    assert made.tags == {"mlops_build.content": "sha256:one"}


def test_a_version_that_the_server_creates_after_the_gateways_answer_is_made_once(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0.1")
    name = next(NAMES)
    store = Registry(proxy.uri)
    proxy.late["model-versions/create"] = 0.5
    made = store.create_version(name, "s3://bucket/one", "", {"mlops_build.content": "sha256:one"})
    assert [version.version for version in store.versions(name)] == [made.version] == [1]


def test_an_unknown_outcome_is_an_error_and_not_sent_again(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0.01")
    name = next(NAMES)
    proxy.late["model-versions/create"] = 3600
    with pytest.raises(RegistryUnreachable, match="does not answer"):
        Registry(proxy.uri).create_version(name, "s3://bucket/one", "", {"mlops_build.content": "sha256:one"})
    assert sum(request.endswith("model-versions/create") for request in proxy.requests) == 1


def test_another_content_is_made_after_a_lost_response(proxy: Proxy) -> None:
    name = next(NAMES)
    store = Registry(proxy.uri)
    store.create_version(name, "s3://bucket/one", "", {"mlops_build.content": "sha256:one"})
    proxy.lose["model-versions/create"] = [502]
    made = store.create_version(name, "s3://bucket/two", "", {"mlops_build.content": "sha256:two"})
    assert (made.version, made.source) == (2, "s3://bucket/two")


def test_every_other_request_is_sent_again(proxy: Proxy, tmp_path: Path) -> None:
    """One lost response each: what was done is the same."""
    name = next(NAMES)
    endpoints = ("create", "get", "search", "alias", "set-tag", "delete-tag", "get-by-name", "a.txt", "artifacts")
    proxy.lose = {end: [502] for end in endpoints}
    store = Registry(proxy.uri)
    experiment = store.experiment(name)
    run = new_run(store, experiment)
    (tmp_path / "a.txt").write_text("a")
    source = store.upload(run, tmp_path, "files")
    version = store.create_version(name, source, run, {"a": "b"})
    store.set_alias(name, "staging", 1)
    store.set_tag(name, 1, "c", "d")
    store.delete_tag(name, 1, "a")
    store.set_run_tag(run, "e", "f")
    proxy.lose.update({end: [502] for end in endpoints})
    assert store.version(name, "staging").tags == {"c": "d"}
    assert store.alias_map()[name] == {"staging": 1}
    assert store.read(version, "a.txt") == b"a"
    proxy.lose["a.txt"] = [0]
    assert (store.fetch(version, tmp_path / "copy") / "a.txt").read_text() == "a"
    found = store.find_run(name, "e", "f")
    assert found is not None
    assert found.run_id == run
    store.delete_alias(name, "staging")
    assert store.aliases(name) == {}


def test_requests_are_not_repeated_for_ever(proxy: Proxy) -> None:
    store = Registry(proxy.uri)
    proxy.lose["registered-models/search"] = [503] * 10
    with pytest.raises(RegistryUnreachable, match="does not answer") as caught:
        store.alias_map()
    assert "mlops-build doctor" in str(caught.value.remedy)
    assert len(proxy.requests) == 3
    proxy.lose["model-versions/create"] = [400]
    with pytest.raises(Failed, match="HTTP 400"):
        store.create_version(next(NAMES), "s3://bucket/one", "", {})
    assert sum(request.endswith("model-versions/create") for request in proxy.requests) == 1


def test_a_server_that_never_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(RegistryUnreachable, match="does not answer"):
            Registry(f"http://127.0.0.1:{silent.getsockname()[1]}").alias_map()
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_json_of_another_server_is_named(proxy: Proxy) -> None:
    store = Registry(proxy.uri)
    for content in (b"{}", b'{"model_version": 5, "registered_model": [1]}'):
        proxy.content = content
        for call in (
            lambda: store.version("m", 1),
            lambda: store.version("m", "staging"),
            lambda: store.aliases("m"),
            lambda: store.run("r"),
        ):
            with pytest.raises(Failed, match="this is not an MLflow server"):
                call()


def test_pages_without_an_end_and_lists_that_are_none(proxy: Proxy) -> None:
    store = Registry(proxy.uri)
    for call in (lambda: list(store.every_version()), store.alias_map, lambda: store.versions("m"), lambda: list(store.every_run())):
        proxy.content = b'{"next_page_token": "a", "experiments": [{"experiment_id": "1"}]}'
        with pytest.raises(Failed, match="sends the same page again"):
            call()
        for content in (b'{"model_versions": 5, "registered_models": {"a": 1}, "experiments": "x"}', b'{"a":' + b"[" * 100_000):
            proxy.content = content
            with pytest.raises(Failed, match=r"not an MLflow server|is not a list"):
                call()


def test_what_is_not_an_mlflow_server_is_named(proxy: Proxy) -> None:
    proxy.lose["registered-models/search"] = [200]
    with pytest.raises(Failed, match="not an MLflow server"):
        Registry(proxy.uri).alias_map()
    with pytest.raises(Failed, match="HTTP 404"):
        Registry(f"{proxy.uri}/prefix").alias_map()
    with pytest.raises(UsageError, match="not a valid address"):
        Registry("http://").alias_map()
    for address in ("127.0.0.1:5621", "mlflow:5000/prefix", "mlflow.example.com"):
        with pytest.raises(UsageError, match="does not begin with http://") as refused:
            Registry(address)
        assert f"write http://{address} " in str(refused.value.remedy)
    proxy.lose["registered-models/search"] = [401]
    with pytest.raises(Refused, match="refused") as denied:
        Registry(proxy.uri).alias_map()
    assert "MLFLOW_TRACKING_TOKEN" in str(denied.value.remedy)


@pytest.mark.parametrize(
    ("variables", "credentials", "expected"),
    [
        ({}, None, None),
        ({"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "pä:ss"}, None, "Basic YWRhOnDDpDpzcw=="),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, None, "Bearer t"),
        ({"MLFLOW_TRACKING_TOKEN": "t", "MLFLOW_TRACKING_USERNAME": "a", "MLFLOW_TRACKING_PASSWORD": "b"}, None, "Basic YTpi"),
        ({}, "[mlflow]\nmlflow_tracking_username = a\nmlflow_tracking_password = b\n", "Basic YTpi"),
        ({"MLFLOW_TRACKING_USERNAME": "c"}, "[mlflow]\nmlflow_tracking_username = a\nmlflow_tracking_password = b\n", "Basic Yzpi"),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "[other]\na = b\n", "Bearer t"),
    ],
)
def test_logins_are_those_of_mlflow(
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    credentials: str | None,
    expected: str | None,
) -> None:
    """The same header as from MLflow's own client."""
    from mlflow import MlflowClient

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n" if expected else "")
    (tmp_path / ".netrc").chmod(0o600)
    if credentials is not None:
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow/credentials").write_text(credentials)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Registry(proxy.uri).alias_map()
    assert proxy.headers.get("Authorization") == expected
    (tmp_path / ".netrc").unlink()  # it replaces the login of MLflow's client
    MlflowClient(proxy.uri).search_registered_models()
    assert proxy.headers.get("Authorization") == expected


def test_settings_that_cannot_be_used_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match=r"none\.pem does not exist"):
        Registry("https://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    with pytest.raises(UsageError, match="both set"):
        Registry("https://127.0.0.1:9")
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "long")
    with pytest.raises(UsageError, match="MLFLOW_HTTP_REQUEST_TIMEOUT=long is not a number"):
        Registry("https://127.0.0.1:9")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text("no section")
    with pytest.raises(UsageError, match=r"\.mlflow/credentials cannot be read"):
        Registry("https://127.0.0.1:9")


def test_nothing_is_written_outside_the_folder(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops_build.adapters.registry.http import Http

    monkeypatch.setattr(Http, "document", lambda *_: {"files": [{"path": "../../evil", "is_dir": False}]})
    store = Registry(proxy.uri)
    version = border.RegisteredVersion("a", 1, "", "mlflow-artifacts:/0/run/files", {}, 0)
    with pytest.raises(UnknownVersion, match="not a path below"):
        store.fetch(version, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_python
@pytest.mark.parametrize("kind", ["server", "sqlite"])
def test_mlflow_is_not_imported(server: str, database: Path, kind: str) -> None:
    code = """
import json, sys
from pathlib import Path
from mlops_build.adapters.registry import Registry
store = Registry(sys.argv[1])
assert store.versions("none") == []
store.alias_map()
print(json.dumps([name for name in ("mlflow", "torch", "pandas", "boto3", "pydantic") if name in sys.modules]))
"""
    uri = server if kind == "server" else f"sqlite:///{database}"
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_whole_registry_is_listed_in_pages(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    client.set_registered_model_tag("digits", "owner", "ml-team")
    client.update_registered_model("digits", "reads digits")
    client.create_registered_model("unused")
    client.register_prompt("greeting", "Hello {{name}}")
    experiment = store.experiment("digits")
    deleted = new_run(store, experiment)
    client.delete_run(deleted)
    client.transition_model_version_stage("digits", "2", "Production")
    monkeypatch.setattr("mlops_build.adapters.registry.server.PAGE", 1)
    monkeypatch.setattr("mlops_build.adapters.registry.database.PAGE", 1)

    models = {model.name: model for model in store.models()}
    assert sorted(models) == ["digits", "unused"]
    assert models["digits"].aliases == {"staging": 1}
    assert models["digits"].tags == {"owner": "ml-team"}
    assert models["digits"].description == "reads digits"
    assert models["unused"].aliases == {}

    versions = {(version.name, version.version): version for version in store.every_version()}
    assert sorted(versions) == [("digits", 1), ("digits", 2)]
    assert versions["digits", 1] == store.version("digits", 1)
    assert [versions["digits", number].stage for number in (1, 2)] == ["", "Production"]

    runs = {run.run_id: run for run in store.every_run()}
    assert runs[deleted].is_deleted
    assert store.run(deleted) == runs[deleted]
    kept = runs[versions["digits", 1].run_id]
    assert (kept.params, kept.metrics, kept.is_deleted) == ({"rate": "0.1"}, {"loss": 0.5}, False)
