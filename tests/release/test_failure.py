"""The mark of a failed deployment: everybody with access to MLflow can write it, so only what mlops-build can have written counts."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.release import failure
from mlops_build.release import record as records
from mlops_build.release.failure import Failure
from mlops_build.release.record import Record

GOOD = {"at": "2025-11-30T12:00:00+00:00", "reason": "it did not become ready", "release": f"sha256:{'1' * 64}"}


def test_a_mark_is_read_as_it_was_written(register: Callable[..., Any]) -> None:
    made = Failure(**GOOD)
    version = register(tags={failure.tag("staging"): str(made)})
    assert failure.failed(version, "staging") == made
    assert made.seconds == 1_764_504_000
    assert failure.failed(version, "production") is None
    assert failure.failed(register(), "staging") is None


@pytest.mark.parametrize(
    "change",
    [
        {"at": "yesterday"},
        {"at": "2025-11-30T12:00:00"},
        {"at": 5},
        {"release": "abc"},
        {"release": None},
        {"reason": ""},
        {"reason": "x\n\nVersion: 9"},
        {"reason": "x" * 201},
        {"more": 1},
    ],
)
def test_another_mark_counts_as_none(register: Callable[..., Any], change: dict[str, Any]) -> None:
    version = register(tags={failure.tag("staging"): json.dumps({**GOOD, **change})})
    assert failure.failed(version, "staging") is None


@pytest.mark.parametrize("value", ["", "{}", "[]", "null", "[" * 3000, "\ud800"])
def test_a_mark_that_is_no_document_counts_as_none(register: Callable[..., Any], value: str) -> None:
    version = register(tags={})
    assert failure.failed(type(version)(**{**vars(version), "tags": {failure.tag("staging"): value}}), "staging") is None


def test_only_the_release_that_failed_is_marked(registry: Registry, register: Callable[..., Any]) -> None:
    version, files = register(), {"record.yaml": b"1"}
    record = Record("staging", (version.checked(),), "1" * 40, f"registry.example.com/digits:v1-{'0' * 12}")
    assert failure.of_release(registry, registry.alias_map(), record, files) is None
    made = Failure(**{**GOOD, "release": records.digest(files)})
    failure.mark(registry, record, made)
    assert failure.of_release(registry, registry.alias_map(), record, files) == made
    assert failure.of_release(registry, registry.alias_map(), record, {"record.yaml": b"2"}) is None
    failure.forget(registry, registry.version("digits", 1), "staging")
    assert registry.version("digits", 1).tags == version.tags
    assert registry.aliases("digits") == {}
    failure.forget(registry, registry.version("digits", 1), "staging")


def test_the_digest_covers_names_and_contents() -> None:
    files = {"a/record.yaml": b"1", "a/patch.yaml": b"2"}
    assert records.digest(files) == records.digest({"patch.yaml": b"2", "record.yaml": b"1"})
    for other in ({"record.yaml": b"2", "patch.yaml": b"1"}, {"record.yaml": b"1"}, {**files, "pdb.yaml": b""}):
        assert records.digest(other) != records.digest(files)
