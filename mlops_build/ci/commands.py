"""The calls of mlops-build in the scripts of CI specs, and what is wrong with them, for every CI system."""

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from mlops_build.service import Service
from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.security import ARGUMENT, secret_in
from mlops_build.verify.specs import Problem
from mlops_build.verify.world import Fault, Part

# The scripts of a job, with their paths.
Scripts = Iterable[tuple[Path, str]]
# The words after `mlops-build` of each command, with the path of its script.
Commands = Sequence[tuple[Path, list[str]]]

PROGRAM, PRODUCTION = "mlops-build", "production"
MAX_CHARACTERS = 100_000
OPERATORS = "();<>|&\n"
# A comment, or a quoted text (group 1), in which # begins none.
COMMENT = re.compile(r"""('[^']*'|"(?:\\.|[^"\\])*"|\\.)|(?<![^\s;&|(])#[^\n]*""", re.DOTALL)
# The variables that may stand before a program.
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def check(scripts: Scripts, part: Part, rule: str, problem_of: Problem) -> Iterator[Fault]:
    """Commands that mlops-build does not have, and misspellings of its name."""
    for path, script in scripts:
        for program, words in _commands(script):
            if program != PROGRAM:
                yield Fault(rule, part, path, f"{display(program)} is not a program", f"did you mean {PROGRAM!r}?")
            elif not any("$" in word or "`" in word for word in words) and (problem := problem_of(words)):
                yield Fault(rule, part, path, f"`{PROGRAM} {shlex.join(words)}` is not a valid command: {problem}")


def calls(scripts: Scripts, *step: str) -> Commands:
    """The calls of one step, such as `ci deploy`, without its words."""
    commands = [(path, words) for path, script in scripts for program, words in _commands(script) if program == PROGRAM]
    return [(path, words[len(step) :]) for path, words in commands if words[: len(step)] == list(step)]


def overlays(deployments: Commands, part: Part, rule: str, service: Service) -> Iterator[Fault]:
    """Deployments to environments that the service does not have. deployments: the calls of `ci deploy`."""
    for path, words in deployments:
        env = next((word for word in words if not word.startswith("-")), "$")
        if "$" not in env and not set(words) & set(service.environments):
            why = f"it deploys {display(env)}, which is not an environment of service.yaml and has no overlay"
            hint = f"one of {', '.join(service.environments)}; or add it to service.yaml and deploy/overlays"
            yield Fault(rule, part, path, why, hint)


def secrets(scripts: Scripts, part: Part, rule: str) -> Iterator[Fault]:
    """Scripts with a secret in plain text."""
    for path, script in scripts:
        if len(script) <= MAX_CHARACTERS and any(_has_secret(line) for line in script.splitlines()):
            yield Fault(rule, part, path, "the script contains a secret in plain text")


def _has_secret(line: str) -> bool:
    """Quoted values and variables are not secrets: `--password "$PASSWORD"` is correct."""
    arguments = [(match["name"], match["value"]) for match in ARGUMENT.finditer(line)]
    literal = [(name, value) for name, value in arguments if value[:1] not in "\"'" and "$" not in value]
    return bool(secret_in("", line) or any(secret_in(name, value) for name, value in literal))


def _commands(script: str) -> Iterator[tuple[str, list[str]]]:
    """The programs in a shell script that are mlops-build or a misspelling of it, with the words after them."""
    for words in _split(script):
        while words and ASSIGNMENT.match(words[0]):
            words = words[1:]
        if words[1:3] == ["-m", "mlops_build"]:
            yield PROGRAM, words[3:]
        elif words and _resembles_program(program := words[0].rpartition("/")[2]):
            yield program, words[1:]


def _split(script: str) -> list[list[str]]:
    """The words of each command, without redirections. None of a script with a here-document, or that is not valid shell."""
    plain = COMMENT.sub(lambda match: match[1] or "", script.replace("\\\n", " "))
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=OPERATORS)
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r", "", True
    try:
        tokens = list(lexer)
    except ValueError:
        return []
    commands: list[list[str]] = [[]]
    redirected = False
    for token in tokens:
        is_operator = token != "" and set(token) <= set(OPERATORS)
        if is_operator and "<<" in token:
            return []
        if is_operator and not {"<", ">"}.isdisjoint(token):
            redirected = True
            if commands[-1] and commands[-1][-1].isdigit():  # the 2 of `2>&1`
                commands[-1].pop()
        elif is_operator:
            commands.append([])
            redirected = False
        elif redirected:
            redirected = False
        else:
            commands[-1].append(token)
    return commands


def _resembles_program(word: str) -> bool:
    """Whether a word is mlops-build or a misspelling of it, but not another name such as mlops-build.sh."""
    return abs(len(word) - len(PROGRAM)) <= 1 and bool(difflib.get_close_matches(word, [PROGRAM], cutoff=0.8))
