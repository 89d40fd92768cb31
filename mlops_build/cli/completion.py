"""Print a completion script for your shell: commands, and each command's options."""

import argparse

from mlops_build.cli.output import result

EXAMPLE = "  mlops-build completion bash > ~/.local/share/bash-completion/completions/mlops-build"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell that will read it")


def run(args: argparse.Namespace) -> int:
    words = options()
    script = {"bash": bash, "zsh": zsh, "fish": fish}[args.shell](words)
    result(args, {"shell": args.shell, "script": script}, script)
    return 0


def options() -> dict[str, list[str]]:
    """Command → its options and the words it offers, from the parsers themselves."""
    from mlops_build.cli.parser import command_parser
    from mlops_build.cli.table import COMMANDS

    found = {}
    for name, command in COMMANDS.items():
        actions = command_parser(name, command)._actions
        words = [option for action in actions for option in action.option_strings if option.startswith("--")]
        words += [str(choice) for action in actions for choice in (action.choices or ()) if not action.option_strings]
        found[name] = sorted(words)
    return found


def bash(words: dict[str, list[str]]) -> str:
    cases = "\n".join(f"    {name}) words='{' '.join(offered)}' ;;" for name, offered in words.items())
    return f"""_mlops_build() {{
  local words current="${{COMP_WORDS[COMP_CWORD]}}"
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words='{" ".join(words)} --help --version' ;;
  esac
  [ "$COMP_CWORD" -gt 1 ] || words='{" ".join(words)} --help --version'
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [ -n "${{COMPREPLY[*]}}" ] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -F _mlops_build mlops-build"""


def zsh(words: dict[str, list[str]]) -> str:
    cases = "\n".join(f"    {name}) compadd -- {' '.join(offered)}; _files ;;" for name, offered in words.items())
    return f"""#compdef mlops-build
_mlops_build() {{
  if (( CURRENT == 2 )); then compadd -- {" ".join(words)} --help --version; return; fi
  case "${{words[2]}}" in
{cases}
  esac
}}
compdef _mlops_build mlops-build"""


def fish(words: dict[str, list[str]]) -> str:
    from mlops_build.cli.table import COMMANDS

    lines = [f"complete -c mlops-build -n __fish_use_subcommand -f -a {name} -d '{COMMANDS[name][1]}'" for name in words]
    for name, offered in words.items():
        for word in offered:
            what = f"-l {word.removeprefix('--')}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c mlops-build -n '__fish_seen_subcommand_from {name}' {what}")
    return "\n".join(lines)
