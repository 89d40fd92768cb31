"""YAML with line numbers: values and their lines, faults in the text, and bounded time for any text."""

import time
from itertools import pairwise

import pytest

from mlops_build.verify.document import Tagged, parse, plain

TEXT = """\
# a comment
kind: Deployment
spec:
  replicas: 2
  containers:
    - name: one
      args: [a,
        b]
    -
      name: two
---
---
kind: &kind Service
same: *kind
merged:
  <<: {port: 80, name: http}
  name: mine
"""


def test_every_value_knows_its_line() -> None:
    file = parse(TEXT, "x.yaml")
    assert file.problems == []
    first, second = file.documents
    assert first.value == {
        "kind": "Deployment",
        "spec": {"replicas": 2, "containers": [{"name": "one", "args": ["a", "b"]}, {"name": "two"}]},
    }
    lines = {
        (): (2, 0),
        ("kind",): (2, 1),
        ("spec", "replicas"): (4, 2),
        ("spec", "containers", 0, "args", 1): (8, 5),
        ("spec", "containers", 1, "name"): (10, 4),
        ("spec", "containers", 1, "image"): (10, 3),  # not there: the deepest part that is
        ("spec", "strategy", "type"): (3, 1),
    }
    assert {path: first.line_of(path) for path in lines} == lines
    assert second.value == {"kind": "Service", "same": "Service", "merged": {"name": "mine", "port": 80}}
    assert second.line_of(("same",)) == (14, 1)
    assert second.line_of(("merged", "port")) == (16, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True), ("Off", False), ("null", None), ("~", None), ("12", 12), ("-3", -3), ("0644", 420), ("0o644", 420), ("0x1F", 31),
        ("1e3", 1000.0), (".5", 0.5), ("1_000", 1000), ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("1.2.3", "1.2.3"), ("+", "+"),
        ("500m", "500m"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_a_plain_scalar_means_what_kubernetes_takes_it_for(text: str, value: object) -> None:
    assert plain(text) == value
    assert type(plain(text)) is type(value)


def test_quotes_and_tags() -> None:
    (document,) = parse("a: \"yes\"\nb: !!str 12\nc: !include jobs.yaml\nd: |\n  12\n'on': 1\n", "x").documents
    assert document.value == {"a": "yes", "b": "12", "c": "jobs.yaml", "d": "12\n", "on": 1}
    assert isinstance(document.value["c"], Tagged)


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "duplicate-key", 3),
        ("a:\n  b: {c: 1, c: 2}\n", "duplicate-key", 2),
        ("a: b: c\n", "yaml-syntax", 1),
        ("a: [1, 2\nb: 3\n", "yaml-syntax", 2),
        ("a: *nobody\n", "yaml-syntax", 1),
        ("a: &a\n  - *a\n", "yaml-syntax", 2),
        ("a: \t1\n\t- b\n", "yaml-syntax", 2),
        ("a: \x07\n", "yaml-syntax", 1),
        ("[" * 5000, "too-large", 1),
        ("- " * 5000 + "a", "too-large", 1),
        ("a: " + "x" * (16 * 2**20), "too-large", 1),
    ],
)
def test_faults_in_the_text_are_problems_and_nothing_is_raised(text: str, rule: str, line: int) -> None:
    began = time.monotonic()
    (problem, *_) = parse(text, "x").problems
    assert (problem.rule, problem.line) == (rule, line)
    assert time.monotonic() - began < 10


def test_aliases_do_not_expand_without_bound() -> None:
    names = "abcdefghij"
    bomb = "a: &a [" + ", ".join(["x"] * 9) + "]\n"
    bomb += "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise(names))
    assert [problem.rule for problem in parse(bomb, "x").problems] == ["too-large"]


def test_comments_that_ignore() -> None:
    text = "a: 1 # mlops-build: ignore bad-port: the proxy's\n# mlops-build: ignore image-tag\nb: 2\n"
    comments = [(comment.rule, comment.why, comment.line) for comment in parse(text, "x").ignored]
    assert comments == [("bad-port", "the proxy's", 1), ("image-tag", None, 3)]
