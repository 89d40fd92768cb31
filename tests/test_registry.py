"""MLflow's registry through our one door, on a real sqlite database and over HTTP to nobody."""

import os
from pathlib import Path

import pytest

from mlops_build import registry as border
from mlops_build.errors import MlopsBuildError, Unreachable, UsageError
from mlops_build.registry import Registry, RegistryUnreachable, UnknownVersion


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two versions of `digits`, the first of them with the alias staging."""
    folder = tmp_path_factory.mktemp("mlflow")
    store = Registry(f"sqlite:///{folder / 'mlflow.db'}", create=True)
    run = store._client.create_run(store.experiment("digits", folder / "artifacts")).info.run_id
    files = folder / "files"
    (files / "sub").mkdir(parents=True)
    (files / "sub/weights").write_bytes(b"\0\1")
    source = store.upload(run, files, "versions/one")
    store.create_version("digits", source, run, {"mlops_build.commit": "a" * 40})
    store.create_version("digits", source, run, {})
    store.set_alias("digits", "staging", 1)
    store.set_run_tag(run, "mlops_build.model", "sha256:one")
    return store


def test_versions_are_found_by_number_and_alias(store: Registry) -> None:
    first = store.version("digits", 1)
    assert (first.version, first.tags) == (1, {"mlops_build.commit": "a" * 40})
    assert store.version("digits", "1") == store.version("digits", "staging") == first
    assert [version.version for version in store.versions("digits")] == [2, 1]
    assert store.alias_map() == {"digits": {"staging": 1}}
    assert store.aliases("digits") == {"staging": 1}


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
    assert store.read(store.version("digits", 1), "sub/weights") == b"\0\1"
    with pytest.raises(UnknownVersion, match=r"lineage\.json cannot be read"):
        store.read(store.version("digits", 1), "lineage.json")
    assert list(tmp_path.glob("deep/.*")) == []


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
    assert not (tmp_path / "misspelt.db").exists()
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9 does not answer"):
        Registry("http://user:secret@127.0.0.1:9").alias_map()


def test_an_address_is_shown_without_its_password() -> None:
    with pytest.raises(MlopsBuildError) as caught:
        Registry("http://user:secret@127.0.0.1:9").version("digits", 1)
    assert "secret" not in f"{caught.value} {caught.value.remedy}"


def test_where_mlflow_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        border.tracking_uri()
    service = "schema: 1\nname: a\nteam: b\nmodels: [{name: a}]\nenvironments: {staging: {namespace: a, host: a}}\n"
    (tmp_path / "service.yaml").write_text(service)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert border.tracking_uri() == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    (tmp_path / "service.yaml").write_text(
        service + "tracking: {uri: 'https://mlflow.example.com', s3_endpoint_url: 'https://s3.example.com'}\n"
    )
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
    assert border.tracking_uri() == "https://mlflow.example.com"
    assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "https://s3.example.com"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert border.tracking_uri() == "http://elsewhere"


def test_talking_to_a_registry_leaves_the_environment_alone(store: Registry) -> None:
    store.alias_map()
    assert "MLFLOW_TRACKING_URI" not in os.environ
