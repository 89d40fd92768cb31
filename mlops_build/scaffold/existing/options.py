"""Read the command line options that a Python file defines with argparse or click, from its syntax tree."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlops_build.scaffold.existing.script import Constants, Script, constants, dotted

FLAG = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
SECRET = re.compile(r"passw|secret|token|api_?-?key|credential", re.IGNORECASE)
# Libraries that build the command line at run time, so that the file does not show the options.
OTHER_PARSERS = {"typer", "fire", "hydra", "absl", "docopt", "simple_parsing", "jsonargparse", "tap", "tyro", "draccus"}


@dataclass(frozen=True)
class Option:
    """A command line option. name: as on the command line, without dashes. default: None if there is none or it is not known.

    kind: value, flag (without a value) or positional. usable: params.yaml can hold it.
    """

    flag: str
    name: str
    dest: str
    default: object
    kind: str
    required: bool
    line: int
    usable: bool = True


def options(script: Script) -> list[Option]:
    """The options of argparse (add_argument) and click (@option, @argument), in the file's order, each name once."""
    known = constants(script)
    options: dict[str, Option] = {}
    for called, call in sorted(script.calls(), key=lambda pair: (pair[1].lineno, pair[1].col_offset)):
        last = called.rpartition(".")[2]
        flags = [flag for argument in call.args if isinstance(flag := known.value(argument), str)]
        if last == "add_argument" and flags and len(flags) == len(call.args):
            option = _argparse(call, flags, known)
        elif called in ("click.option", "option", "click.argument", "argument") and flags:
            option = _click(call, flags, known, positional=last == "argument")
        else:
            continue
        if option is not None:
            options.setdefault(option.name, option)
    return list(options.values())


def parser_of(script: Script) -> str | None:
    """A library that parses the command line and is not supported here, or `subcommands` for those of argparse and click."""
    for statement in script.imports():
        if statement.level == 0 and statement.module.partition(".")[0] in OTHER_PARSERS:
            return statement.module.partition(".")[0]
    if any(called.endswith(".add_subparsers") or called in ("click.group", "group") for called, _ in script.calls()):
        return "subcommands"
    if any(isinstance(node, ast.Attribute) and dotted(node) == "sys.argv" for node in ast.walk(script.tree)):
        return "sys.argv"
    return None


def _argparse(call: ast.Call, flags: list[str], known: Constants) -> Option | None:
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    action = known.value(given["action"]) if "action" in given else None
    unusual = "action" in given and action not in ("store", "store_true", "store_false")
    if action in ("help", "version"):
        return None
    default = _default(given, known)
    if not flags[0].startswith("-"):
        optional = "default" in given or (known.value(given["nargs"]) if "nargs" in given else None) in ("?", "*")
        return Option(flags[0], flags[0], flags[0], default, "positional", not optional, call.lineno, bool(NAME.fullmatch(flags[0])))
    flag = next((flag for flag in flags if flag.startswith("--")), flags[0])
    dest = known.value(given["dest"]) if "dest" in given else flag.lstrip("-").replace("-", "_")
    kind = "flag" if action in ("store_true", "store_false") else "value"
    required = bool(known.value(given["required"])) if "required" in given else False
    usable = bool(FLAG.fullmatch(flag)) and not unusual
    return Option(flag, flag.lstrip("-"), str(dest), False if kind == "flag" else default, kind, required, call.lineno, usable)


def _click(call: ast.Call, flags: list[str], known: Constants, *, positional: bool) -> Option | None:
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    default = _default(given, known)
    if positional:
        required = "default" not in given and (known.value(given["required"]) if "required" in given else True) is not False
        return Option(flags[0], flags[0], flags[0], default, "positional", required, call.lineno, bool(NAME.fullmatch(flags[0])))
    flag = next((flag for flag in flags if flag.startswith("--")), flags[0])
    on, _, off = flag.partition("/")
    dest = next((flag for flag in flags if not flag.startswith("-")), on.lstrip("-").replace("-", "_")).lower()
    is_flag = "is_flag" in given and known.value(given["is_flag"]) is True
    kind = "flag" if is_flag or off else "value"
    # `--x/--no-x` that is on by default can only be switched off by its other name.
    usable = bool(FLAG.fullmatch(on)) and not (off and default is True) and "multiple" not in given and "count" not in given
    required = bool(known.value(given["required"])) if "required" in given else False
    return Option(on, on.lstrip("-"), dest, bool(default) if kind == "flag" else default, kind, required, call.lineno, usable)


def _default(given: Mapping[str, ast.expr], known: Constants) -> object:
    """An option's default as written on a command line; None if there is none or it is computed at run time."""
    if "default" not in given:
        return None
    value = known.value(given["default"])
    return known.path(given["default"]) if value is None and isinstance(given["default"], ast.Call) else value
