"""`mlops-build`: finds the command in the table and runs it. `--help` of the whole imports no command."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from mlops_build import __version__
from mlops_build.cli.table import COMMANDS, Command
from mlops_build.errors import MlopsBuildError

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; a foreseen error is shown as what is wrong and what to do, never as a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.platform == "win32":
        print("mlops-build: Windows is not supported (file locks, signals and containers work otherwise there); use WSL 2", file=sys.stderr)
        return 1
    if not arguments:
        top_parser().print_help(sys.stderr)
        return 2
    name = top_parser().parse_args(arguments[:1]).command
    command = COMMANDS[name]
    extra = command[2]
    try:
        args = command_parser(name, command).parse_args(arguments[1:])
        return int(args.run(args))
    except MlopsBuildError as error:
        return show_error(name, error)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("mlops_build"):
            raise
        print(f"mlops-build {name}: needs the Python package {error.name!r}, which is not installed", file=sys.stderr)
        print(f"    pip install 'mlops-build[{extra}]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mlops-build {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, say) went away; there is nobody left to tell.
        sys.stderr.close()
        return 1


def show_error(name: str, error: MlopsBuildError) -> int:
    """What is wrong and what to do, on stderr; returns the exit code."""
    print(f"mlops-build {name}: {error.message}", file=sys.stderr)
    if error.remedy:
        print(f"    {error.remedy}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
