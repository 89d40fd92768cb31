"""The parser of `mlops-build` itself, which imports no command, and the parsers of the commands."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import takewhile
from typing import NoReturn

from mlops_build import __version__
from mlops_build.cli.output import failure
from mlops_build.cli.table import COMMANDS, Command
from mlops_build.errors import UsageError

DESCRIPTION = "From data to a deployed model service. Every command: --help with an example, --json for machines."
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused (a check failed), 5 a service or driver does not answer, 6 no GPU memory"
)


class Parser(argparse.ArgumentParser):
    """A parser that keeps the layout of its help texts, as do the parsers of its subcommands."""

    def __init__(
        self, prog: str | None = None, usage: str | None = None, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(prog, usage, description, epilog, formatter_class=Formatter)

    def error(self, message: str) -> NoReturn:
        """As in argparse, which prints usage and message, and ends with exit code 2. With --json also the document of an error."""
        if "--json" in takewhile(lambda word: word != "--", sys.argv):  # what follows belongs to the program of `gpu run`
            failure(message, f"{self.prog} --help", 2)
        super().error(message)


class _Refusing(Parser):
    """A parser that raises UsageError with the message instead of printing it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def problem_of(words: Sequence[str]) -> str | None:
    """Why `mlops-build WORDS` would be refused as wrong usage; None if it would not."""
    name, *arguments = words or [""]
    if name.startswith("-") or not {"-h", "--help"}.isdisjoint(arguments):
        return None
    if name not in COMMANDS:
        return f"{name!r} is not a command; there is {', '.join(COMMANDS)}"
    try:
        command_parser(name, COMMANDS[name], _Refusing).parse_args(arguments)
    except UsageError as error:
        return error.message
    return None


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal. argparse's default imports shutil, which takes longer than building all parsers."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """The same as shutil.get_terminal_size().columns."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80 if sys.__stdout__ else 80
    except (ValueError, OSError):  # closed, or not a terminal
        return 80


def top_parser() -> argparse.ArgumentParser:
    """The parser of `mlops-build` itself, with the names and summaries of the commands only."""
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{summary}" for name, (_, summary, _) in COMMANDS.items())
    parser = Parser(
        prog="mlops-build",
        description=DESCRIPTION,
        epilog=f"commands:\n{listing}\n\n{EXIT_CODES}",
        usage="mlops-build COMMAND [ARGUMENTS]",
    )
    parser.add_argument("--version", action="version", version=f"mlops-build {__version__}")
    parser.add_argument(
        "command", metavar="COMMAND", choices=list(COMMANDS), help="one of the commands below; `mlops-build COMMAND --help`"
    )
    return parser


def command_parser(name: str, command: Command, kind: type[Parser] = Parser) -> argparse.ArgumentParser:
    """The parser of a command; imports its (light) module. Every command has --json."""
    path, summary, _ = command
    module = import_module(path)
    parser = kind(
        prog=f"mlops-build {name}",
        description=(module.__doc__ or summary).strip(),
        epilog=f"example:\n{module.EXAMPLE}",
    )
    module.add_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on stdout and nothing else there; after an error, with its message"
    )
    parser.set_defaults(run=module.run)
    return parser


def port(text: str) -> int:
    """The type of --port."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid port: use 1024 to 65535, or 0 for a free one")
    return int(text)


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that is a whole number between these two."""

    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not between {least} and {most}")
        return int(text)

    return number


def interval(text: str) -> float:
    """The type of --interval, in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 86400")
    return seconds


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a command, such as `gpu pick`: name → parser."""
    return {
        name: subparser
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, subparser in action.choices.items()
    }
