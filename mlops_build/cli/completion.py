"""Print a completion script for your shell: commands, subcommands, and the options of each."""

import argparse

from mlops_build.cli.output import result

EXAMPLE = "  mlops-build completion bash > ~/.local/share/bash-completion/completions/mlops-build"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")


def run(args: argparse.Namespace) -> int:
    words = options()
    script = {"bash": bash, "zsh": zsh, "fish": fish}[args.shell](words)
    result(args, {"shell": args.shell, "script": script}, script)
    return 0


def options() -> dict[str, list[str]]:
    """Command, or command and subcommand → its options and choices, from the parsers."""
    from mlops_build.cli.parser import command_parser, subparsers
    from mlops_build.cli.table import COMMANDS

    options_of = {}
    for name, command in COMMANDS.items():
        parser = command_parser(name, command)
        options_of[name] = _offered(parser)
        options_of |= {f"{name} {below}": _offered(subparser) for below, subparser in subparsers(parser).items()}
    return options_of


def _offered(parser: argparse.ArgumentParser) -> list[str]:
    words = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    words += [str(choice) for action in parser._actions for choice in (action.choices or ()) if not action.option_strings]
    return sorted(words)


def _commands(words: dict[str, list[str]]) -> str:
    return " ".join(name for name in words if " " not in name)


def bash(words: dict[str, list[str]]) -> str:
    deepest_first = sorted(words.items(), key=lambda item: -item[0].count(" "))
    cases = "\n".join(f"    '{name} '*) words='{' '.join(offered)}' ;;" for name, offered in deepest_first)
    commands = f"{_commands(words)} --help --version"
    # Match complete words, each followed by a space: `gpu ` is not `gpu pick `.
    return f"""_mlops_build() {{
  local words current="${{COMP_WORDS[COMP_CWORD]}}"
  case "${{COMP_WORDS[*]:1:COMP_CWORD-1}} " in
{cases}
    *) words='{commands}' ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [ -n "${{COMPREPLY[*]}}" ] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -F _mlops_build mlops-build"""


def zsh(words: dict[str, list[str]]) -> str:
    deepest_first = sorted(words.items(), key=lambda item: -item[0].count(" "))
    cases = "\n".join(f"    '{name} '*) compadd -- {' '.join(offered)}; _files ;;" for name, offered in deepest_first)
    return f"""#compdef mlops-build
_mlops_build() {{
  if (( CURRENT == 2 )); then compadd -- {_commands(words)} --help --version; return; fi
  case "${{words[2,CURRENT-1]}} " in
{cases}
  esac
}}
compdef _mlops_build mlops-build"""


def fish(words: dict[str, list[str]]) -> str:
    from mlops_build.cli.table import COMMANDS

    lines = [f"complete -c mlops-build -n __fish_use_subcommand -f -a {name} -d '{summary}'" for name, (_, summary, _) in COMMANDS.items()]
    for name, offered in words.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        below = [name.partition(" ")[2] for name in words if name.startswith(f"{name} ")]
        unless = f"; and not __fish_seen_subcommand_from {' '.join(below)}" if below else ""
        for word in offered:
            what = f"-l {word.removeprefix('--')}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c mlops-build -n '{seen}{unless}' {what}")
    return "\n".join(lines)
