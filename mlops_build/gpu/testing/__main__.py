"""Runs a command on a simulated node.

python -m mlops_build.gpu.testing --card 2x24GiB --service 4GiB -- nvitop -1
"""

import argparse
import subprocess
import sys

from mlops_build.errors import MlopsBuildError, UsageError
from mlops_build.gpu.testing.node import Node


def _many(text: str) -> list[str]:
    """ "3x24GiB" is "24GiB" thrice."""
    count, x, size = text.partition("x")
    return [size] * int(count) if x and count.isdigit() else [text]


def main() -> int:
    summary, _, example = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m mlops_build.gpu.testing",
        description=f"{summary} Ends with the command's exit code.",
        epilog=f"example: {example.strip()}",
    )
    parser.add_argument(
        "--card", action="append", default=[], metavar="[Nx]SIZE", help="a card's memory, such as 24GiB or 8x24GiB; may be repeated"
    )
    parser.add_argument(
        "--service", action="append", default=[], metavar="[Nx]SIZE", help="a service that has loaded that much onto cuda:0 before"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    arguments = parser.parse_args()
    try:
        cards = [size for text in arguments.card or ["24GiB"] for size in _many(text)]
        with Node(cards) as node:
            for size in [size for text in arguments.service for size in _many(text)]:
                node.start(size, load_seconds=0).wait_for("loaded")
            try:
                return subprocess.run(arguments.command, env=node.environment, check=False).returncode
            except OSError as error:
                raise UsageError(
                    f"{arguments.command[0]} cannot be run: {error.strerror}", remedy="write a program on PATH after --"
                ) from None
    except MlopsBuildError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
