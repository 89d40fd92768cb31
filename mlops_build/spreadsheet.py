"""Cells of a CSV file for people: a spreadsheet must not take text that anybody chose for a formula."""

import re

# What a spreadsheet takes for a formula at the start of a cell; the wide forms count in some languages. ' marks a text.
FORMULA = "=+-@'\t\r\uff1d\uff0b\uff0d\uff20"
# Where the list separator is a semicolon, a formula could begin behind one.
HIDDEN = re.compile(rf";(?=\s*[{re.escape(FORMULA)}])")


def cell(text: str) -> str:
    """The text as a cell: a formula begins with ', and a semicolon that one could follow is written as \\x3b."""
    text = HIDDEN.sub(r"\\x3b", text)
    return f"'{text}" if text.startswith(tuple(FORMULA)) else text
