from dataclasses import replace
from typing import Any

import pytest

from mlops_build.model.version import BadVersion, ModelVersion

VERSION = ModelVersion("digits", 3, f"sha256:{'0' * 64}", "1" * 32)
EVIL = ["x\ny", "../x", "{{ x }}", "a: b", "x" * 300, "$(id)", "é", "3\n", "\x00", None, 3, 1.5, ["x"]]


def test_a_model_version_has_an_address_and_a_text() -> None:
    assert (VERSION.uri, str(VERSION)) == ("models:/digits/3", "digits 3")
    assert replace(VERSION, run="").run == ""


@pytest.mark.parametrize("field", ["name", "digest", "run"])
@pytest.mark.parametrize("value", EVIL)
def test_any_other_text_is_refused_without_being_repeated(field: str, value: Any) -> None:
    with pytest.raises(BadVersion, match=rf"^the {field} of ") as refused:
        replace(VERSION, **{field: value})
    assert refused.value.message.isascii()
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 500
    assert refused.value.remedy


@pytest.mark.parametrize("version", [0, -1, 10**10, True, "3", None, 1.5])
def test_a_version_is_a_number_from_one(version: Any) -> None:
    with pytest.raises(BadVersion, match=r"^the version of 'digits' "):
        replace(VERSION, version=version)
