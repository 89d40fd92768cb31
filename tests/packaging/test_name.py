"""The image's name: the same everywhere for the same input, another for any other input."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from mlops_build import service
from mlops_build.errors import Refused
from mlops_build.model.version import ModelVersion
from mlops_build.packaging import bases, dockerfile, name
from mlops_build.service.pin import Pin

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


def image(text: str = TEXT, models: list[ModelVersion] = MODELS, pin: Pin | None = None) -> str:
    return name.image_name(service.parse(text), models, pin=pin)


def asked(more: str) -> str:
    """The name for more keys in `image:`."""
    return image(TEXT.replace("curl]}", f"curl], {more}}}"))


def test_the_name_is_that_of_earlier_releases() -> None:
    """Golden: the bridge writes the name into a record, and a CI of another release computes it again."""
    other = TEXT + "gpu: {mode: shared}\nserving: {port: 9000}\n"
    assert [image(pin=Pin(0, minor)).rpartition("-")[2] for minor in (1, 2, 3)] == ["75c43e5d1058"] * 3
    assert [image(pin=Pin(0, minor)).rpartition("-")[2] for minor in range(4, 9)] == ["15f049afba32"] * 5
    assert image(other, pin=Pin(0, 8)) == "registry.example.com/ml/digits:v3-7cae214b8df7"
    for pin in (None, Pin(0, 9), Pin(1, 0)):
        assert image(pin=pin) == "registry.example.com/ml/digits:v3-368c48bde205"
        assert image(other, pin=pin) == "registry.example.com/ml/digits:v3-789def89e468"


def test_a_record_may_have_the_name_of_its_pin_or_else_of_any_release() -> None:
    settings, old = service.parse(TEXT), image(pin=Pin(0, 2))
    names = {old, image(pin=Pin(0, 4)), image()}
    assert len(names) == 3
    for pin in (None, Pin(0, 9), Pin(0, 10)):
        assert {each for each in names if name.is_valid(each, settings, MODELS, pin)} == names
    for pin in (Pin(0, 0), Pin(0, 1), Pin(0, 3)):
        assert {each for each in names if name.is_valid(each, settings, MODELS, pin)} == {old}
    assert not name.is_valid(old, settings, MODELS[:1])
    assert not name.is_valid(None, settings, MODELS)


def test_what_mlops_build_adds_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image(), image(pin=Pin(0, 8))
    monkeypatch.setattr(bases, "known", lambda: {"python:3.11-slim": f"sha256:{'d' * 64}"})
    monkeypatch.setattr(dockerfile, "TEMPLATE", "Another.jinja")
    assert (image(), image(pin=Pin(0, 8))) == before


def test_the_keys_that_are_set_count() -> None:
    keys = ["revision: 1", "revision: 2", "cuda: wheels", "cuda: base", "secrets: [netrc]", "secrets: [netrc, ca-bundle]"]
    names = {image(), *map(asked, keys)}
    assert len(names) == len(keys) + 1
    assert asked("secrets: [ca-bundle, netrc]") in names
    for nothing in ("secrets: []", "revision: null", "files: [config]"):
        assert asked(nothing) == image()
    reordered = TEXT.replace(
        'registry: registry.example.com/ml, base: "python:3.11-slim"', "base: python:3.11-slim, registry: registry.example.com/ml"
    )
    assert reordered != TEXT
    assert image(reordered) == image()
    for wrong in ("revision: 0", "revision: 1.5", "revision: '1'", "revision: x"):
        with pytest.raises(service.ServiceError, match="revision"):
            asked(wrong)


def test_a_key_of_a_newer_release_counts_as_it_will_there() -> None:
    """The bridge ignores keys that it does not know, while the service's CI may know them."""

    def bridge(image: str) -> str:
        return name.image_name(service.parse(TEXT.replace("curl]}", f"curl], {image}}}"), strict=False), MODELS)

    assert bridge("cuda: wheels") == asked("cuda: wheels")
    names = {
        bridge(keys) for keys in ("shell: [zsh, fish]", "shell: [fish, zsh, zsh]", "shell: {a: 1}", "shell: 2026-12-01", "shell: .nan")
    }
    assert len(names | {image()}) == 5


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
