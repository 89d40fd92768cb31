"""Render the files of a service that are templates here (files/)."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(name: str, values: Mapping[str, Any]) -> str:
    """The text of files/NAME.jinja with these values."""
    return _environment().get_template(f"{name}.jinja").render(values)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).with_name("files"))
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
