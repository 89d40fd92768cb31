"""Support for cookiecutter: `cookiecutter REPOSITORY` asks the questions, and copier renders the same files as `copier copy`.

hooks/post_gen_project.py of the template's clone calls `main` in cookiecutter's environment. Only copier is installed there besides, so
this module imports only what needs nothing but the standard library, and `render`, which imports copier.
"""

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mlops_build.adapters.git.command import text
from mlops_build.errors import Failed, MlopsBuildError, Refused
from mlops_build.scaffold import render

NOT_RENDERED = "NOT-RENDERED.md"  # the only file of the stub, for users who disable hooks
# Addresses that both copier and cookiecutter accept; other short forms are settings of cookiecutter.
ADDRESS = re.compile(r"gh:|gl:|(?:git\+)?[a-z]+://|[\w.+-]+@[\w.-]+:")


def main(given: Mapping[str, str], repository: Path) -> int:
    """Render the service into the working directory, which cookiecutter created. Returns the exit code: 0, or 1 with the reason on stderr.

    given: cookiecutter's context: each answer by the question's name, each computed one by `__NAME`, and variables such as `_template`.
    repository: the clone or folder from which cookiecutter read the questions.
    """
    folder = Path.cwd()
    (folder / NOT_RENDERED).unlink(missing_ok=True)
    try:
        version = checked_out(repository)
        # Checked before anything is written: the service may be inside the template's folder.
        changed = text(repository, "status", "--porcelain") if version else ""
        render.copy(recorded(given, repository), folder, answers(given), version=version)
        lines = [given["__message"].rstrip(), *notes(given, repository, folder, changed)]
    except render.NoCopier:
        remedy = f"pipx inject cookiecutter copier, or: {sys.executable} -m pip install copier"
        return refuse(Failed("copier, which renders the service, is not installed in cookiecutter's environment", remedy=remedy))
    except MlopsBuildError as error:
        return refuse(error)
    except KeyboardInterrupt:
        with suppress(OSError):  # cookiecutter removes the folder after a failed hook, but not after an interrupted one
            folder.rmdir()
        return 130
    print(*lines, sep="\n", file=sys.stderr)
    return 0


def refuse(error: MlopsBuildError) -> int:
    """Print the error and its remedy; cookiecutter then removes the folder that it created."""
    print(f"mlops-build: {error.message}", *([f"    {error.remedy}"] if error.remedy else []), sep="\n", file=sys.stderr)
    return 1


def answers(given: Mapping[str, str]) -> dict[str, object]:
    """The answers to the questions that copier would ask: cookiecutter asks all, and cookiecutter.json computes the conditions."""
    return {name: value for name, value in given.items() if not name.startswith("_") and given.get(f"__asked_{name}", "True") == "True"}


def recorded(given: Mapping[str, str], repository: Path) -> str:
    """The template's address to record: a folder's absolute path or the typed address, never cookiecutter's own clone."""
    typed = given["_template"]
    if given["_repo_dir"] == typed:
        return typed if Path(typed).is_absolute() else str(repository)
    if typed.lower().endswith(".zip"):
        raise Refused(
            f"{typed}: a service cannot be updated from a zip file", remedy=f"give the repository's address, for example {render.TEMPLATE}"
        )
    return typed if ADDRESS.match(typed) else text(repository, "config", "--get", "remote.origin.url")


def checked_out(repository: Path) -> str | None:
    """The commit from which cookiecutter read the questions; None for a folder that is not a Git repository."""
    return text(repository, "rev-parse", "HEAD") if (repository / ".git").exists() else None


def notes(given: Mapping[str, str], repository: Path, folder: Path, changed: str) -> list[str]:
    """Notes about the rendered version. changed: the output of `git status` in the template before rendering."""
    match = re.search(r"^_commit: (.+)$", (folder / render.ANSWERS).read_text(encoding="utf-8"), re.MULTILINE)
    if not match:
        return [f"note: {repository} is not a Git repository, so the service cannot be updated from it"]
    lines = []
    if match[1] not in text(repository, "tag", "--points-at", "HEAD").split():
        how = "it is checked out there" if given["_repo_dir"] == given["_template"] else "use cookiecutter --checkout TAG for a release"
        lines.append(f"note: rendered from {match[1]}, which is not a release; {how}")
    if changed:
        lines.append(f"note: uncommitted changes in {repository} were not rendered")
    return lines
