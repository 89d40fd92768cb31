"""What the specs of a service made from the template must keep to: its commands, environments, approval, and the order of its steps."""

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence

from mlops_build.ci.bamboo.spec import Document, Specs, scripts
from mlops_build.service import Service
from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.specs import Problem
from mlops_build.verify.world import Fault, mapping, text

PROGRAM, PRODUCTION = "mlops-build", "production"
OPERATORS = "();<>|&\n"
# A comment, or a quoted text (group 1), in which # begins none.
COMMENT = re.compile(r"""('[^']*'|"(?:\\.|[^"\\])*"|\\.)|(?<![^\s;&|(])#[^\n]*""", re.DOTALL)
# The variables that may stand before a program.
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def check(specs: Specs, service: Service, problem_of: Problem) -> Iterator[Fault]:
    for document in specs.plans:
        yield from _order(document)
    for document in specs.deployments:
        for name in document.environments or []:
            yield from _environment(document, name, service)
    for document in (*specs.plans, *specs.deployments):
        for name, owner in document.entries.items():
            for path, script in scripts(owner, (name,)):
                for program, words in _commands(script):
                    yield from _command(document, path, program, words, problem_of)


def _command(document: Document, path: Path, program: str, words: Sequence[str], problem_of: Problem) -> Iterator[Fault]:
    if program != PROGRAM:
        yield Fault("bamboo-command", document.part, path, f"{display(program)} is not a program", f"did you mean {PROGRAM!r}?")
    elif not any("$" in word or "`" in word for word in words) and (problem := problem_of(words)):
        why = f"`{PROGRAM} {shlex.join(words)}` is not a valid command: {problem}"
        yield Fault("bamboo-command", document.part, path, why)


def _environment(document: Document, name: str, service: Service) -> Iterator[Fault]:
    owner = document.entries.get(name)
    steps = [(path, words[2:]) for path, words in _steps(owner, name) if words[:2] == ["ci", "deploy"]]
    deploys = {word for _, words in steps for word in words} or {name}
    for path, words in steps:
        env = next((word for word in words if not word.startswith("-")), "$")
        if "$" not in env and not set(words) & set(service.environments):
            why = f"it deploys {display(env)}, which is not an environment of service.yaml and has no overlay"
            hint = f"one of {', '.join(service.environments)}; or add it to service.yaml and deploy/overlays"
            yield Fault("bamboo-overlay", document.part, path, why, hint)
    approval = text(mapping(owner).get("release-approval-prerequisite")).lower()
    if owner is not None and PRODUCTION in deploys and approval in ("", "none", "not-broken"):
        yield Fault("bamboo-approval", document.part, (name,), f"{display(name)} deploys production, but needs no approval")


def _order(document: Document) -> Iterator[Fault]:
    """Images are not built in an earlier stage than the check."""
    stages: dict[str, list[tuple[int, Path, str]]] = {"check": [], "image": []}
    for number, stage in enumerate(document.stages):
        for path, job in stage.jobs:
            for _, words in _steps(document.entries.get(job), job):
                if words[:1] == ["ci"] and words[1:2] and words[1] in stages:
                    stages[words[1]].append((number, path, job))
    for number, path, job in stages["image"]:
        if stages["check"] and all(checked > number for checked, _, _ in stages["check"]):
            why = f"the job {display(job)} builds the image before {display(stages['check'][0][2])} has passed"
            yield Fault("bamboo-order", document.part, path, why)


def _steps(owner: object, name: str) -> Iterator[tuple[Path, list[str]]]:
    """The words after `mlops-build` of each command in the scripts of a job or an environment."""
    for path, script in scripts(owner, (name,)):
        for program, words in _commands(script):
            if program == PROGRAM:
                yield path, words


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
