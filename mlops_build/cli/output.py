"""What a command prints: its result on stdout, everything said to people on stderr."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def result(args: argparse.Namespace, document: Mapping[str, Any] | Sequence[Any], text: str) -> None:
    """Print one JSON document with --json, else `text` (nothing when it is empty)."""
    if args.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif text:
        print(text)


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)
