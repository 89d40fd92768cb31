"""The command line options that a Python file defines with argparse or click, and the command line of the train stage."""

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlops_build.scaffold.existing.script import Script, Values

FLAG = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*")
SECRET = re.compile(r"passw|secret|token|api_?-?key|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Option:
    """A command line option. flag: as on the command line. dest: its name in the code. default: None if it is not known.

    usable: its value can be given with the flag and a value, or with the flag alone.
    """

    flag: str
    dest: str
    default: object
    is_flag: bool = False
    required: bool = False
    line: int = 0
    usable: bool = True

    @property
    def name(self) -> str:
        """Its name without dashes."""
        return self.flag.lstrip("-")

    @property
    def is_positional(self) -> bool:
        return not self.flag.startswith("-")


@dataclass(frozen=True)
class CommandLine:
    """A script's command line. words: of the command in dvc.yaml. numbers: the section `train` of params.yaml. seed: of its option."""

    words: Sequence[str]
    numbers: Mapping[str, object]
    seed: int | None


def options(script: Script) -> list[Option]:
    """The options of argparse (add_argument) and click (@option, @argument), in the file's order, each name once."""
    values = Values(script, {})
    options: dict[str, Option] = {}
    for called, call in script.calls:
        flags = [flag for argument in call.args if isinstance(flag := values.of(argument), str)]
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        constants = {name: values.of(value) for name, value in given.items()}
        flag = next((flag for flag in flags if flag.startswith("--")), flags[0] if flags else "")
        if called.endswith("add_argument") and flags and len(flags) == len(call.args):
            option = _argparse(flag, given, constants, call.lineno)
        elif called in ("click.option", "option", "click.argument", "argument") and flags:
            option = _click(flag, flags, given, constants, call.lineno)
        else:
            continue
        if option is not None:
            options.setdefault(option.name, option)
    return list(options.values())


def _argparse(flag: str, given: Mapping[str, ast.expr], constants: Mapping[str, object], line: int) -> Option | None:
    action = constants.get("action", "store")
    if action in ("help", "version"):
        return None
    if not flag.startswith("-"):
        required = "default" not in given and constants.get("nargs") not in ("?", "*")
        return Option(flag, flag, constants.get("default"), required=required, line=line)
    dest = str(constants.get("dest") or flag.lstrip("-").replace("-", "_"))
    is_flag = action in ("store_true", "store_false")
    usable = bool(FLAG.fullmatch(flag)) and (is_flag or action == "store")
    default = False if is_flag else constants.get("default")
    return Option(flag, dest, default, is_flag, bool(constants.get("required")), line, usable)


def _click(flag: str, flags: Sequence[str], given: Mapping[str, ast.expr], constants: Mapping[str, object], line: int) -> Option:
    default = constants.get("default")
    if not flag.startswith("-"):
        required = "default" not in given and constants.get("required", True) is not False
        return Option(flag, flag, default, required=required, line=line)
    on, _, off = flag.partition("/")
    dest = next((name for name in flags if not name.startswith("-")), on.lstrip("-").replace("-", "_")).lower()
    is_flag = constants.get("is_flag") is True or bool(off)
    # `--x/--no-x` that is on by default can only be switched off by its other name.
    usable = bool(FLAG.fullmatch(on)) and not (off and default is True) and not given.keys() & {"multiple", "count"}
    return Option(on, dest, bool(default) if is_flag else default, is_flag, bool(constants.get("required")), line, usable)


def command_line(options: Sequence[Option], paths: Mapping[str, str]) -> CommandLine:
    """The command line of these options with their defaults. paths: dest → a path, which is written in the command, not in params.yaml.

    DVC replaces `${train}` in the command by every key of the section as a quoted long option; `true` becomes a flag, `false` nothing.
    """
    places: list[str] = []
    words: list[str] = []
    numbers: dict[str, object] = {}
    seed = None
    for option in options:
        default, into = option.default, places if option.is_positional else words
        before = [] if option.is_positional else [option.flag]
        items = list(default) if isinstance(default, list | tuple) else [default]
        if option.dest in paths:
            into += [*before, shlex.quote(paths[option.dest])]
        elif not option.usable or SECRET.search(option.name) or not items or not all(isinstance(item, str | int | float) for item in items):
            continue
        elif option.name == "seed" and type(default) is int:
            seed = default
            words += [option.flag, "${seed}"]
        elif option.flag.startswith("--") and option.is_flag is isinstance(default, bool):
            numbers[option.name] = default
        elif not option.is_flag:
            # DVC would turn a value true into a flag, and needs a long name.
            into += [*before, *(shlex.quote(str(item)) for item in items)]
    return CommandLine([*places, *words, *(["${train}"] if numbers else [])], numbers, seed)
