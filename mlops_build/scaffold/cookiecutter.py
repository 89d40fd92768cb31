"""The other front door: `cookiecutter REPOSITORY` asks the questions, and here copier renders what `copier copy` would have.

hooks/post_gen_project.py of the template's clone calls `main` in the environment that cookiecutter is installed in. Nothing but copier
is there besides, so that this imports only the standard library, our errors and `render`, which imports copier.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mlops_build.errors import Failed, MlopsBuildError, Refused
from mlops_build.scaffold import render

NOT_RENDERED = "NOT-RENDERED.md"  # the one file of the stub, for who runs no hooks
# What copier and cookiecutter both take for an address as it stands; other short forms are cookiecutter's own settings.
ADDRESS = re.compile(r"gh:|gl:|(?:git\+)?[a-z]+://|[\w.+-]+@[\w.-]+:")


def main(given: Mapping[str, str], repository: Path) -> int:
    """Render the service into the working directory, which cookiecutter made. Returns the exit code: 0, or 1 with the reason on stderr.

    given: what cookiecutter knows: each answer by the question's name, each computed one by `__NAME`, and its own `_template` and the like.
    repository: the clone, or the folder, that cookiecutter took the questions from.
    """
    folder = Path.cwd()
    (folder / NOT_RENDERED).unlink(missing_ok=True)
    try:
        version = checked_out(repository)
        # Before anything is written: the service may lie in the template's own folder.
        changed = git(repository, "status", "--porcelain") if version else ""
        render.copy(recorded(given, repository), folder, answers(given), version=version)
        said = [given["__message"].rstrip(), *notes(given, repository, folder, changed)]
    except render.NoCopier:
        remedy = f"pipx inject cookiecutter copier, or: {sys.executable} -m pip install copier"
        return refuse(Failed("copier is not installed beside cookiecutter, and it renders the service", remedy=remedy))
    except MlopsBuildError as error:
        return refuse(error)
    except KeyboardInterrupt:
        with suppress(OSError):  # cookiecutter removes the folder of a hook that failed, and leaves that of an interrupted one
            folder.rmdir()
        return 130
    print(*said, sep="\n", file=sys.stderr)
    return 0


def refuse(error: MlopsBuildError) -> int:
    """Say what is wrong and what to do; cookiecutter then removes the folder that it made."""
    print(f"mlops-build: {error.message}", *([f"    {error.remedy}"] if error.remedy else []), sep="\n", file=sys.stderr)
    return 1


def answers(given: Mapping[str, str]) -> dict[str, object]:
    """The answers to what copier would have asked too: cookiecutter has no conditions, and cookiecutter.json says what they are."""
    return {name: value for name, value in given.items() if not name.startswith("_") and given.get(f"__asked_{name}", "True") == "True"}


def recorded(given: Mapping[str, str], repository: Path) -> str:
    """The template's address as the service records it: a folder's absolute path, or what was typed, never cookiecutter's own clone."""
    typed = given["_template"]
    if given["_repo_dir"] == typed:
        return typed if Path(typed).is_absolute() else str(repository)
    if typed.lower().endswith(".zip"):
        raise Refused(
            f"{typed}: no later update can follow a zip file", remedy=f"give the repository's address, for example {render.TEMPLATE}"
        )
    return typed if ADDRESS.match(typed) else git(repository, "config", "--get", "remote.origin.url")


def checked_out(repository: Path) -> str | None:
    """The commit that cookiecutter took the questions from; None for a folder that is no Git repository."""
    return git(repository, "rev-parse", "HEAD") if (repository / ".git").exists() else None


def notes(given: Mapping[str, str], repository: Path, folder: Path, changed: str) -> list[str]:
    """What a user may not expect of the version that was rendered. changed: what `git status` said of the template before."""
    found = re.search(r"^_commit: (.+)$", (folder / render.ANSWERS).read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        return [f"note: {repository} is no Git repository; no later update can find out what changed in it"]
    said = []
    if found[1] not in git(repository, "tag", "--points-at", "HEAD").split():
        how = "it is what is checked out there" if given["_repo_dir"] == given["_template"] else "cookiecutter --checkout TAG takes one"
        said.append(f"note: rendered from {found[1]}, which is no release; {how}")
    if changed:
        said.append(f"note: the uncommitted changes of {repository} are not in it")
    return said


def git(repository: Path, *arguments: str) -> str:
    """What git says about the template's clone."""
    command = ["git", "-C", str(repository), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise Failed("git is not installed", remedy="install git ≥ 2.30") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended with an error"])[0]
        raise Failed(f"git {arguments[0]} in {repository}: {reason}", remedy="run it by hand to see more")
    return done.stdout.strip()
