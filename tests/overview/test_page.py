"""The page of `mlops-build models --html`: as a file, and in a headless Chromium (MLOPS_TEST_CHROMIUM)."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from tests.overview.browser import Browser, started
from tests.overview.conftest import HOSTILE, World

CHROMIUM = os.environ.get("MLOPS_TEST_CHROMIUM", "")
SHOWN = HOSTILE.replace("\u202e", "\ufffd").replace("\x1b", "\ufffd")


class Parsed(HTMLParser):
    """elements: name and attributes. texts: the text of each style and script, and of each cell of the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.cells: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("style", "script", "td", "th"):
            self._into = self.cells if tag in ("td", "th") else self.inline
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "script", "td", "th"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


@pytest.fixture
def page(world: World) -> Path:
    assert main(["models", "--repo", world.url, "--html", "models.html"]) == 0
    return Path("models.html").resolve()


def test_the_page_has_every_row_without_its_script_and_allows_nothing_else(page: Path) -> None:
    text = page.read_text()
    parsed = Parsed(text)
    style, data, script = parsed.inline
    (policy,) = [
        attributes["content"] or "" for _, attributes in parsed.elements if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in (style, script)]
    assert policy == f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]}; base-uri 'none'; form-action 'none'"
    assert [
        name
        for name, attributes in parsed.elements
        if {"src", "href", "style"} & attributes.keys() or any(k.startswith("on") for k in attributes)
    ] == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    cells = [" ".join(cell.split()) for cell in parsed.cells]
    assert cells.count("digits") == 3 + 3
    for cell in ("staging", "10 newest 11", "10.0 KiB", "ml", "search", "accuracy 0.91 loss 0.1", "auc nan gain inf", SHOWN):
        assert cell in cells
    assert f"{SHOWN} 1 m0 0 m1 1 m2 2 m3 3 m4 4 3 more m5 5 m6 6 m7 7" in cells
    assert not {"\u202e", "\x1b"} & set(text)
    models = {model["name"]: model for model in json.loads(data)}
    assert models["digits"]["versions"] == list(range(1, 12))
    assert models["digits"]["metrics"][0]["values"][0] == pytest.approx(0.901)
    assert models["digits"]["environments"] == [["staging", 10], ["production", 2], ["best", 11]]
    assert models["legacy"]["metrics"] == [{"name": "auc", "values": ["nan"]}, {"name": "gain", "values": ["inf"]}]
    assert models["empty"]["versions"] == []


def test_a_page_that_cannot_be_written_is_an_error(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = page.read_bytes()
    assert main(["models", "--html", "missing/models.html"]) == 1
    assert "give a file in an existing folder" in capsys.readouterr().err
    assert page.read_bytes() == before
    assert [path.name for path in page.parent.iterdir() if "models.html" in path.name] == ["models.html"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("set MLOPS_TEST_CHROMIUM to a Chromium")
    with started(CHROMIUM, tmp_path) as running:
        yield running


def column(browser: Browser, number: int) -> list[str]:
    found: list[str] = browser.value(
        f"[...document.querySelectorAll('#models tbody tr:not([hidden]) > :nth-child({number})')].map(cell => cell.innerText.trim())"
    )
    return found


def state(browser: Browser, number: int) -> Any:
    return browser.value(f"document.querySelector('thead th:nth-child({number})').getAttribute('aria-sort')")


@pytest.mark.slow
def test_people_sort_filter_and_plot(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = column(browser, 1)
    assert sorted(before) == sorted([SHOWN, "digits", "digits", "digits", "empty", "legacy"])
    # By click: numbers as numbers, empty cells last in both directions.
    browser.click("thead th:nth-child(3) button")
    assert [cell.split()[0] if cell else "" for cell in column(browser, 3)] == ["1", "1", "2", "10", "11", ""]
    assert state(browser, 3) == "ascending"
    browser.click("thead th:nth-child(3) button")
    assert [cell.split()[0] if cell else "" for cell in column(browser, 3)] == ["11", "10", "2", "1", "1", ""]
    assert (state(browser, 3), state(browser, 1)) == ("descending", None)
    # By keyboard.
    browser.value("document.querySelector('thead th:nth-child(2) button').focus()")
    browser.press("Enter", 13, "\r")
    assert column(browser, 2) == ["best", "production", "production", "staging", "", ""]
    assert (state(browser, 2), state(browser, 3)) == ("ascending", None)
    # Filter.
    browser.click("#filter")
    browser.write("DIGITS stag")
    assert column(browser, 2) == ["staging"]
    assert browser.value("document.getElementById('count').textContent") == "1 of 6 rows"
    browser.value("document.getElementById('filter').value = ''")
    browser.write(" ")
    assert len(column(browser, 1)) == 6
    # Plot: a point for each version; environments are marked.
    browser.click("tr[data-model=digits] th button")
    circles = "document.querySelectorAll('#chart .point').length"
    marks = "[...document.querySelectorAll('#chart .name')].map(each => each.textContent)"
    assert (browser.value(circles), browser.value(marks)) == (11, ["staging", "production", "best"])
    assert browser.value("[...document.getElementById('metric').options].map(each => each.text)") == ["accuracy", "loss"]
    line = "document.querySelector('#chart .series').getAttribute('d')"
    accuracy = browser.value(line)
    heights = [float(point.rpartition(",")[2]) for point in re.split("[ML]", accuracy)[1:]]
    assert heights == sorted(heights, reverse=True)  # it rises
    assert len(set(heights)) == 11
    browser.value("document.getElementById('metric').focus()")
    browser.press("ArrowDown", 40)
    assert browser.value(line) != accuracy
    browser.click("#chart .point:last-child")
    assert browser.value("document.getElementById('point').textContent").startswith("version 11 · loss 0.09091 · 2023-11-25 · best")
    # Metrics that are not numbers.
    browser.click("tr[data-model=legacy] th button")
    assert browser.value(circles) == 0
    assert browser.value("document.getElementById('missing').textContent") == "Not plotted: version 1: nan"


@pytest.mark.slow
def test_nothing_from_the_registry_runs_and_nothing_is_fetched(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("tr[data-model^='</script'] th button")
    assert browser.value("document.getElementById('metric').selectedOptions[0].text") == SHOWN
    assert browser.value("document.title") == "Models"
    assert browser.value("document.scripts.length") == 2
    requests = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert requests == [page.as_uri()]
    wrong = [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert wrong == []
    # A script that gets into the page nevertheless does not run.
    browser.value("{const made = document.createElement('script'); made.textContent = 'document.title = 1'; document.body.append(made);}")
    assert browser.value("document.title") == "Models"


@pytest.mark.slow
def test_light_dark_narrow_and_without_javascript(browser: Browser, page: Path) -> None:
    def luminance(property_: str) -> float:
        colour = browser.value(f"getComputedStyle(document.querySelector('tbody td')).{property_}")
        if property_ == "backgroundColor":
            colour = browser.value("getComputedStyle(document.querySelector('.wide')).backgroundColor")
        return sum(map(float, re.findall(r"\d+", colour)[:3]))

    for scheme, is_dark in (("light", False), ("dark", True)):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(page)
        assert (luminance("backgroundColor") < luminance("color")) is is_dark
    browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= 400  # only the table scrolls
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    assert len(column(browser, 1)) == 6
    assert browser.value("[document.getElementById('plot'), document.getElementById('find')].every(each => each.hidden)") is True
