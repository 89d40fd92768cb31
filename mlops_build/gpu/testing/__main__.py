"""Run a command on a simulated node.

python -m mlops_build.gpu.testing --card 2x24GiB --service 4GiB -- nvitop -1
"""

import argparse
import subprocess
import sys

from mlops_build.errors import MlopsBuildError, UsageError
from mlops_build.gpu.testing.node import Node


def _many(text: str) -> list[str]:
    """Expand "3x24GiB" to a list of three "24GiB"."""
    count, x, size = text.partition("x")
    if text[-1:].isdecimal():
        raise UsageError(f"{text!r} has no unit", remedy="write KiB, MiB, GiB or TiB after the number, such as 24GiB")
    return [size] * int(count) if x and count.isdigit() else [text]


def main() -> int:
    summary, _, example = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m mlops_build.gpu.testing",
        description=f"{summary} The exit code is the command's.",
        epilog=f"example: {example.strip()}",
    )
    parser.add_argument(
        "--card", action="append", default=[], metavar="[Nx]SIZE", help="a card's memory, such as 24GiB or 8x24GiB; may be repeated"
    )
    parser.add_argument(
        "--service", action="append", default=[], metavar="[Nx]SIZE", help="start a service first that uses this memory on cuda:0"
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
                    f"{arguments.command[0]} cannot be run: {error.strerror}", remedy="write the name or path of a program after --"
                ) from None
    except MlopsBuildError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
