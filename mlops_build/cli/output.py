"""The output of a command: its result on stdout, progress and notes on stderr."""

import argparse
import sys
from collections.abc import Mapping, Sequence


def result(args: argparse.Namespace, document: Mapping[str, object] | Sequence[object], text: str) -> None:
    """Print one JSON document with --json, else `text` (nothing if it is empty)."""
    if args.json:
        import json

        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif text:
        print(text)


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)
