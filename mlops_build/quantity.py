"""Parse and format amounts of memory. Binary units only: 24 GiB are not 24 GB."""

import re

from mlops_build.errors import UsageError

UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class NotAnAmount(UsageError, ValueError):
    """A text that is not an amount of memory."""


def parse_bytes(text: str) -> int:
    """ "4GiB", "4Gi", "1.5 GiB", "512MiB" or "4294967296" in bytes, rounded down.

    Raises NotAnAmount for anything else, also for "4G" and "4GB", because programs disagree about their meaning.
    """
    match = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,9}))? ?([KMGT]iB?)|([0-9]{1,18})", text.strip(" "), re.ASCII)
    if not match:
        raise NotAnAmount(
            f"{text[:100]!r} is not an amount of memory", remedy="write a number and KiB, MiB, GiB or TiB, such as 4GiB, or bytes"
        )
    whole, fraction, unit, plain = match.groups()
    if plain:
        return int(plain)
    size = UNITS[unit]
    return int(whole) * size + (int(fraction) * size // 10 ** len(fraction) if fraction else 0)


def show_bytes(amount: int) -> str:
    """A readable text: 4294967296 is "4.0 GiB"; less than 1 KiB is in bytes."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(amount) >= UNITS[unit]:
            return f"{amount / UNITS[unit]:.1f} {unit}"
    return f"{amount} B"
