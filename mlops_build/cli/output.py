"""The output of a command: its result on stdout, progress and notes on stderr."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def result(args: argparse.Namespace, document: Mapping[str, object] | Sequence[object], text: str) -> None:
    """Print one JSON document with --json, else `text` (nothing if it is empty)."""
    if args.json:
        import json

        _print(json.dumps(document, indent=2, ensure_ascii=False))
    elif text:
        _print(text)


def _print(text: str) -> None:
    """Half of a character, which a registry or a service may send, is printed as an escape, which is valid in JSON, too."""
    print(text.encode(errors="backslashreplace").decode())


def failure(message: str, remedy: str | None, exit_code: int, details: Mapping[str, object] = MappingProxyType({})) -> None:
    """Print the document of an error with --json, in one line, since some commands print a document per line."""
    import json

    _print(json.dumps({"error": message, "remedy": remedy, "exit_code": exit_code, **details}, ensure_ascii=False))


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def written(path: "Path", content: str) -> None:
    """Write the file completely or not at all. Raises Failed."""
    import os

    from mlops_build.errors import Failed

    try:
        path = path.resolve()
        part = path.with_name(f".{path.name}.{os.getpid()}")
        if path.exists() and not path.is_file():
            raise Failed(f"{path} is not a plain file", remedy="give another file")
        try:
            part.write_text(content, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}", remedy="give a file in an existing folder") from None
