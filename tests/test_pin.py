"""The release that a service's pyproject.toml requires."""

from pathlib import Path

import pytest

from mlops_build.service import pin
from mlops_build.service.pin import Pin

EXTRA = '[project]\nname = "x"\n[project.optional-dependencies]\ntrain = ["numpy", "{}"] # "mlops-build~=0.1.0"\n'


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("mlops-build[train]~=0.4.0", Pin(0, 4)),
        ("mlops-build[serve,train] ~= 0.4.7", Pin(0, 4)),
        ("MLOps_Build==0.8.1", Pin(0, 8)),
        ("mlops-build==0.3.*", Pin(0, 3)),
        ("mlops-build===0.3.0", Pin(0, 3)),
        ("mlops-build>=0.2,<0.6", Pin(0, 5)),
        ("mlops-build<=0.4.2", Pin(0, 4)),
        ("mlops-build<0.9; python_version > '3'", Pin(0, 8)),
        ("mlops-build~=0.9.0", Pin(0, 9)),
        ("mlops-build==0.9.0rc1", Pin(0, 9)),
        ("mlops-build~=0.4", Pin(0, 9)),
        ("mlops-build>=0.1", Pin(0, 9)),
        ("mlops-build>=0.10", Pin(0, 10)),
        ("mlops-build==1.2.3", Pin(1, 2)),
        ("mlops-build", None),
        ("mlops-build @ git+https://git.example.com/mlops-build@0123", None),
        ("mlops-build-tools==0.4.0", None),
        ("mlops-build==0.4.0,==0.5.0", None),
        ("mlops-build===main", None),
        ("mlops-build==0." + "9" * 250, Pin(0, int("9" * 250))),
        ("mlops-build==0." + "9" * 5000, None),
        ("mlops-build ~~ 0.4", None),
        ("", None),
    ],
)
def test_a_requirement(requirement: str, expected: Pin | None) -> None:
    assert pin.pin_of(EXTRA.format(requirement)) == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "not TOML",
        "project = 1",
        "[project]\ndependencies = 'mlops-build==0.4.0'",
        "[project]\ndependencies = [1, ['mlops-build==0.4.0']]\noptional-dependencies = 3\n",
        "[dependency-groups]\ndev = {a = 'mlops-build==0.4.0'}",
        "a = " + "[" * 30000,
        ".".join("a" * 30000) + " = 1",
        "project = 1\n" * 2,
        "\x00",
    ],
)
def test_a_text_without_a_requirement(text: str | None) -> None:
    assert pin.pin_of(text) is None


def test_where_it_is_searched(tmp_path: Path) -> None:
    assert pin.pin_of("[project]\ndependencies = ['mlops-build==0.4.0']\n") == Pin(0, 4)
    assert pin.pin_of("[dependency-groups]\ndev = [{include-group = 'a'}, 'mlops-build==0.4.0']\n") == Pin(0, 4)
    assert pin.at(tmp_path) is None
    (tmp_path / "pyproject.toml").write_bytes(b"[dependency-groups]\na = ['mlops-build==0.5.0']\n# \xff\n")
    assert pin.at(tmp_path) == Pin(0, 5)
