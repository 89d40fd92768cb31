"""The settings of `serve`: flags, environment, service.yaml."""

import dataclasses

import pytest

from mlops_build import service
from mlops_build.errors import UsageError
from mlops_build.serving_settings import Settings, settings

YAML = """
schema: 1
name: digits
team: Vision
models: [{name: digits}]
environments: {staging: {namespace: ml, host: digits.example.com}}
serving: %s
"""


def test_flags_come_before_the_environment_and_the_environment_before_defaults() -> None:
    environment = {"MLOPS_SERVE_MAX_BATCH": "7", "MLOPS_SERVE_NAN": "literal", "MLOPS_SERVE_COMPILE": "true", "MLOPS_SERVE_READ": ""}
    combined = settings({"max_batch": "9", "nan": None}, environment)
    assert combined == dataclasses.replace(Settings(), max_batch=9, nan="literal", compile=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_BATCH", "0"), ("MAX_BATCH", "many"), ("DEADLINE", "-1"), ("DEADLINE", "0"), ("DEADLINE", "inf"), ("NAN", "zero"),
        ("ACCESS_LOG", "maybe"),
        ("BODY_LIMIT", "0"), ("BODY_LIMIT", "16"), ("BODY_LIMIT", "16MB"), ("BODY_LIMIT", "-1"), ("DEADLINE", "1e9"), ("STUCK", "nan"),
        ("MAX_DELAY_MS", "-1"), ("CONNECTIONS", "1.5"),
    ],
)  # fmt: skip
def test_an_invalid_setting_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"MLOPS_SERVE_{name} is '{value}'"):
        settings({}, {f"MLOPS_SERVE_{name}": value})


def test_serve_accepts_what_service_yaml_accepts() -> None:
    assert settings({}, service.parse(YAML % "{deadline: 0.0005, max_batch: 65536}").serving.variables()).deadline == 0.0005
    assert settings({}, {"MLOPS_SERVE_MAX_BATCH": "100000"}).max_batch == 100_000  # as in earlier releases, and unlike service.yaml


def test_the_reason_for_pickles_is_one_line() -> None:
    assert settings({"unsafe_pickle": "the team made it"}, {}).unsafe_pickle == "the team made it"
    with pytest.raises(UsageError, match="MLOPS_SERVE_UNSAFE_PICKLE: ' ' is not a reason") as caught:
        settings({}, {"MLOPS_SERVE_UNSAFE_PICKLE": " "})
    assert "in quotes" in str(caught.value.remedy)


def test_serve_reads_the_settings_of_service_yaml() -> None:
    keys = (
        "{max_batch: 256, max_delay_ms: 2.5, max_queue: 100, deadline: 5, body_limit: 1MiB, nan: literal, ragged: pad, access_log: false,"
    )
    more = "compile: true, precision: bf16, unsafe_pickle: trusted, rows_independent: 'no layer: across rows'}"
    variables = service.parse(YAML % f"{keys} {more}").serving.variables()
    wanted = Settings(256, 2.5, 100, 5.0, body_limit=1 << 20, nan="literal", ragged="pad", access_log=False, compile=True, precision="bf16")
    wanted = dataclasses.replace(wanted, unsafe_pickle="trusted", rows_independent="no layer: across rows")
    assert settings({}, variables) == wanted


def test_the_reason_for_independent_rows_is_not_empty() -> None:
    with pytest.raises(UsageError, match="is not a reason"):
        settings({"rows_independent": " "}, {})
    with pytest.raises(service.ServiceError, match="rows_independent"):
        service.parse(YAML % "{rows_independent: ' '}")


def test_without_settings_no_variables_are_set() -> None:
    assert service.parse(YAML % "{port: 9000}").serving.variables() == {}
