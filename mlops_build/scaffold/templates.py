"""Render the files of a generated service that are templates of this package, in files/ of its two subpackages."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(folder: Path, name: str, values: Mapping[str, Any]) -> str:
    """The text of FOLDER/NAME.jinja with these values."""
    return _environment(folder).get_template(f"{name}.jinja").render(values)


@cache
def _environment(folder: Path) -> Environment:
    loader = FileSystemLoader(folder)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701  (no HTML)
    environment.filters |= {"json": _json, "yaml": _yaml}
    return environment


def _json(value: object) -> str:
    """A value as JSON: a text as Python needs it, a number as YAML needs it (YAML 1.1 reads 1e-05 as a text)."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _yaml(text: str) -> str:
    """A text as a YAML scalar, with quotes if it needs them."""
    return text if re.fullmatch(r"[A-Za-z0-9_./-](?:[A-Za-z0-9_./ =${}-]*[A-Za-z0-9_./=${}-])?", text) else _json(text)
