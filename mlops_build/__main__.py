"""`mlops-build`: find the command in the table and run it."""

import atexit
import gc
import os
import sys
from collections.abc import Sequence

from mlops_build.cli.output import failure
from mlops_build.cli.parser import command_parser, top_parser
from mlops_build.cli.table import COMMANDS
from mlops_build.errors import Failed, MlopsBuildError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code; expected errors are shown with a remedy and without a traceback."""
    # Imports create many objects but no garbage, so collecting it would be a tenth of a heavy command's start.
    gc.set_threshold(100_000)
    # Skip the collection at exit, which takes half a second with MLflow and torch.
    atexit.register(gc.freeze)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.platform == "win32":
        print(
            "mlops-build: Windows is not supported (file locks, signals and containers work differently there); use WSL 2", file=sys.stderr
        )
        return 1
    if not arguments:
        top_parser().print_help(sys.stderr)
        return 2
    name = top_parser().parse_args(arguments[:1]).command
    command = COMMANDS[name]
    extra = command[2]
    args = None
    try:
        args = command_parser(name, command).parse_args(arguments[1:])
        _name_the_build()
        return int(args.run(args))
    except MlopsBuildError as error:
        if args is not None and args.json:
            failure(error.message, error.remedy, error.exit_code, error.details)
        return show_error(name, error)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mlops_build"):
            raise
        # A part of a command without an extra may need one: doctor --checklist.
        remedy = f"pip install 'mlops-build[{extra or 'operate'}]'"
        missing = Failed(f"needs the Python package {error.name!r}, which is not installed", remedy=remedy)
        if args is not None and args.json:
            failure(missing.message, remedy, missing.exit_code)
        return show_error(name, missing)
    except KeyboardInterrupt:
        print(f"mlops-build {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output (such as head) has ended.
        sys.stderr.close()
        return 1


def _name_the_build() -> None:
    """Set our variables of a CI build, also for the programs that a command starts. Imported here: no help text needs it."""
    from mlops_build.ci import systems

    os.environ |= systems.variables(os.environ)


def show_error(name: str, error: MlopsBuildError) -> int:
    """Print the error and its remedy on stderr; returns the exit code."""
    print(f"mlops-build {name}: {error.message}", file=sys.stderr)
    if error.remedy:
        print(f"    {error.remedy}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
