"""The image's name: the same everywhere for the same input, another for any other input."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from mlops_build import service
from mlops_build.errors import Refused
from mlops_build.model.version import ModelVersion
from mlops_build.packaging import name

TEXT = """\
schema: 1
name: digits
team: ml
models: [{name: digits}, {name: letters}]
environments:
  staging: {namespace: ml-staging, host: digits-staging.example.com}
image: {registry: registry.example.com/ml, base: "python:3.11-slim", apt: [libgl1, curl]}
"""
MODELS = [ModelVersion("digits", 3, f"sha256:{'a' * 64}"), ModelVersion("letters", 1, f"sha256:{'b' * 64}")]


def image(text: str = TEXT, models: list[ModelVersion] = MODELS) -> str:
    return name.image_name(service.parse(text), models)


def test_the_name_is_that_of_earlier_releases() -> None:
    """Golden, from mlops-build 0.4 and 0.5: the bridge writes the name into a record, and a CI of another release computes it again."""
    assert image() == "registry.example.com/ml/digits:v3-15f049afba32"
    assert image(TEXT + "gpu: {mode: shared}\nserving: {port: 9000}\n") == "registry.example.com/ml/digits:v3-7cae214b8df7"


def test_it_has_the_form_that_records_and_registries_allow() -> None:
    assert re.fullmatch(r"registry\.example\.com/ml/digits:v3-[0-9a-f]{12}", image())


def test_every_input_counts() -> None:
    names = [
        image(),
        image(models=MODELS[:1]),
        image(models=[replace(MODELS[0], digest=f"sha256:{'c' * 64}"), MODELS[1]]),
        image(models=[MODELS[0], replace(MODELS[1], version=2)]),
        image(models=[MODELS[1], MODELS[0]]),
        image(TEXT.replace("3.11-slim", "3.12-slim")),
        image(TEXT.replace("libgl1, ", "")),
        image(TEXT.replace("registry.example.com/ml", "registry.example.com/other")),
        image(TEXT + "gpu: {mode: shared}\n"),
        image(TEXT + "serving: {port: 9000}\n"),
    ]
    assert len({one.rpartition("-")[2] for one in names}) == len(names)


def test_what_does_not_go_in_does_not_count() -> None:
    assert image(TEXT.replace("team: ml", "team: other")) == image()
    assert image(TEXT.replace("libgl1, curl", "curl, libgl1, curl")) == image()
    assert image(TEXT + "hold: {staging: why}\n") == image()
    assert image(TEXT.replace("digits-staging.example.com", "other.example.com")) == image()
    assert image(TEXT + "serving: {startup_seconds: 600}\n") == image()


def test_another_process_finds_the_same_name() -> None:
    script = f"""
from mlops_build import service
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.name import image_name
print(image_name(service.parse({TEXT!r}), {MODELS!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == image()


def test_a_name_needs_a_model() -> None:
    with pytest.raises(Refused):
        image(models=[])
