"""Amounts of memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.quantity import UNITS, NotAnAmount, parse_bytes, show_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * GIB),
        ("4Gi", 4 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("512MiB", GIB // 2),
        ("4096", 4096),
        ("0.1KiB", 102),
        (" 1TiB ", 2**40),
    ],
)
def test_amounts(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4G", "4GB", "4gib", "-1GiB", "1.5", "1e9", "4 GiB GiB", "٤GiB", "4\nGiB", ".5GiB", "9" * 30, "inf"])
def test_what_is_no_amount_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(NotAnAmount) as refused:
        parse_bytes(text)
    assert refused.value.remedy
    assert refused.value.exit_code == 2


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)))
def test_whole_numbers_are_exact(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == number * UNITS[unit]


@given(st.integers(0, 2**50))
def test_what_is_shown_is_read_back_within_its_last_digit(amount: int) -> None:
    shown = show_bytes(amount)
    read = parse_bytes(shown.removesuffix(" B"))
    assert abs(read - amount) <= amount * 0.051 + 1


def test_shown() -> None:
    assert [show_bytes(amount) for amount in (0, 1023, 1536, 4 * GIB, 1536 * GIB)] == ["0 B", "1023 B", "1.5 KiB", "4.0 GiB", "1.5 TiB"]
