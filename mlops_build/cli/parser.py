"""The parsers: one of `mlops-build` itself, which imports no command, and one of each command."""

import argparse
from importlib import import_module

from mlops_build import __version__
from mlops_build.cli.table import COMMANDS, Command

DESCRIPTION = "From data to a deployed model service. Every command: --help with an example, --json for machines."
EXIT_CODES = "exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused (a check failed), 5 a service does not answer, 6 no room"


def top_parser() -> argparse.ArgumentParser:
    """The parser of `mlops-build` itself: it knows names and summaries only."""
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{summary}" for name, (_, summary, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="mlops-build",
        description=DESCRIPTION,
        epilog=f"commands:\n{listing}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="mlops-build COMMAND [ARGUMENTS]",
    )
    parser.add_argument("--version", action="version", version=f"mlops-build {__version__}")
    parser.add_argument(
        "command", metavar="COMMAND", choices=list(COMMANDS), help="one of the commands below; `mlops-build COMMAND --help`"
    )
    return parser


def command_parser(name: str, command: Command) -> argparse.ArgumentParser:
    """The parser of one command; imports its (light) module. Every command gets --json."""
    path, summary, _ = command
    module = import_module(path)
    parser = argparse.ArgumentParser(
        prog=f"mlops-build {name}",
        description=(module.__doc__ or summary).strip(),
        epilog=f"example:\n{module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
    parser.set_defaults(run=module.run)
    return parser
