"""Read YAML that anybody may have written: within bounds, or a small file could need minutes or all memory."""

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

# Brackets inside each other: the parser needs seconds for thousands of them.
MOST_BRACKETS = 100
# The parser reads about 20,000 characters per second.
MOST_CHARACTERS = 200_000
# Values of a document, those of an alias (*name) counted each time: aliases of aliases could need any amount of memory.
MOST_VALUES = 100_000
# Python does not show an integer with more than 4,300 digits.
MOST_BITS = 10_000


class Unreadable(YAMLError):
    """The text is outside the bounds, or a value is not one of its type."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def __str__(self) -> str:
        return self.why


def load_all(text: str, editor: YAML | None = None) -> list[Any]:
    """The documents of a text, with the types of `editor` (by default plain ones). Raises YAMLError."""
    if len(text) > MOST_CHARACTERS:
        raise Unreadable(f"more than {MOST_CHARACTERS} characters")
    brackets = (1 if match[0] in "[{" else -1 for match in re.finditer(r"[\[\]{}]", text))
    if max(accumulate(brackets), default=0) > MOST_BRACKETS:
        raise Unreadable("too deep")
    try:
        documents = list((editor or YAML(typ="safe", pure=True)).load_all(text))
        counted: dict[int, int] = {}
        number = sum(_count(document, counted) for document in documents)
    except RecursionError:
        raise Unreadable("too deep") from None
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # such as the date 2026-99-99
        raise Unreadable(f"a value is not valid: {error}") from None
    if number > MOST_VALUES:
        raise Unreadable(f"more than {MOST_VALUES} values: remove the aliases (*name)")
    return documents


def load(text: str, editor: YAML | None = None) -> Any:
    """The only document of a text; None if it is empty. Raises YAMLError."""
    documents = load_all(text, editor)
    if len(documents) > 1:
        raise Unreadable("more than one document: remove the lines with `---`")
    return documents[0] if documents else None


def _count(node: Any, counted: dict[int, int]) -> int:
    """The values below a node, with itself and its keys. counted: those of the nodes that were visited, by id."""
    if isinstance(node, int) and node.bit_length() > MOST_BITS:
        raise ValueError("a number is too large")
    if isinstance(node, str):
        node.encode()  # raises for half of a surrogate pair, which cannot be written anywhere
    if not isinstance(node, Mapping | list):
        return 1
    if id(node) not in counted:
        children = [*node.keys(), *node.values()] if isinstance(node, Mapping) else node
        counted[id(node)] = 1 + sum(_count(child, counted) for child in children)
    return counted[id(node)]
