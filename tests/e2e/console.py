"""Read the console blocks of a Markdown page, run them in one shell, and compare the output with the page's.

A block starts with ```console; a line with "$ " is a command ("> " goes on), what follows is what it prints. In the expected text `…`
stands for anything within a line, and a line of `…` alone for any number of lines. A block ```yaml title="FILE" (any language, any
file) writes a file; ```diff title="FILE" changes one.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "--- end of command {} ---"
SECONDS = 600


@dataclass(frozen=True)
class Command:
    """A command of a page, and the output that the page shows."""

    text: str
    expected: str


@dataclass(frozen=True)
class File:
    """A file that the reader has to write, or to change with a diff."""

    path: str
    content: str
    is_diff: bool


def steps(page: str) -> list[Command | File]:
    """The commands and files of a page, in order."""
    steps: list[Command | File] = []
    for language, title, body in BLOCK.findall(page):
        if title:
            steps.append(File(title, body, language == "diff"))
        elif language == "console":
            for text in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                first, *lines = text.splitlines()
                more = list(takewhile(lambda line: line.startswith("> "), lines))
                command = "\n".join([first, *(line[2:] for line in more)])
                steps.append(Command(command, "\n".join(lines[len(more) :])))
    return steps


# bash prints this after whatever command runs when a background job ends.
JOB_ENDED = re.compile(r"^\[\d+\][+-]? +Done .*\n", re.MULTILINE)


def run(page: str, folder: Path, environment: Mapping[str, str]) -> list[tuple[Command, str]]:
    """Run a page in one bash, started in `folder`; returns each command with its output (stdout and stderr)."""
    script, commands = [], []
    for step in steps(page):
        if isinstance(step, File):
            writer = f"patch --quiet {step.path}" if step.is_diff else f"cat > {step.path}"
            script.append(f"{writer} <<'END_OF_FILE'\n{step.content}END_OF_FILE")
        else:
            script.append(f"{step.text}\necho '{END.format(len(commands))}'")
            commands.append(step)
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    rest, outputs = done.stdout, []
    for number, command in enumerate(commands):
        printed, marker, rest = rest.partition(END.format(number) + "\n")
        assert marker, f"the shell ended in: {command.text}\n{printed}"
        outputs.append((command, JOB_ENDED.sub("", printed)))
    return outputs


def matches(expected: str, printed: str) -> bool:
    """Whether a page's text describes what was printed; blank space at line ends and around the whole does not count."""
    lines = [line.rstrip() for line in expected.strip().splitlines()]
    pattern = ""
    for line in lines:
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in line.split("…")) + r"[ \t]*\n"
    return (
        re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.strip().splitlines()) + ("\n" if printed.strip() else ""))
        is not None
    )


def check(page: str, folder: Path, environment: Mapping[str, str], at_least: int = 1) -> list[tuple[Command, str]]:
    """Like `run`. Fails if there are fewer commands than `at_least`, or if one prints something else than the page shows."""
    done = run(page, folder, environment)
    assert len(done) >= at_least
    wrong = [
        f"$ {command.text}\n--- the page:\n{command.expected}\n--- printed:\n{printed}"
        for command, printed in done
        if not matches(command.expected, printed)
    ]
    assert not wrong, "\n\n".join(wrong)
    return done
