"""Render the template with copier. Copier's errors become errors of this package, and user settings do not affect the answers.

Imports copier (a second of start-up) only when something is rendered, and otherwise only modules that need the standard library:
cookiecutter's hook uses this module in an environment without more packages. Copier changes the working directory while it works: use
processes, not threads.
"""

import difflib
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlops_build.adapters.git import command
from mlops_build.errors import Failed, MlopsBuildError, NotFound, Refused, Unreachable, UsageError
from mlops_build.scaffold.source import address

TEMPLATE = "https://github.com/mlops-build/mlops-build"
ANSWERS = ".copier-answers.yml"
# Addresses that copier itself treats as a Git repository; others need the prefix `git+` (copier, "Generating a project").
GIT_PREFIX = ("git@", "git://", "git+", "gh:", "gl:", "https://github.com/", "https://gitlab.com/")
URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s]+|(?:[\w.-]+@)?[\w.-]+:(?!//)[^\s]+")
# copier's messages about an answer.
REFUSED = re.compile(r"(?:Validation error for question|Invalid choice for) '(?P<name>\w+)': (?P<why>.*)", re.DOTALL)
NETWORK = re.compile(
    r"resolve host|[Cc]onnection|timed out|unable to access|Network is|Authentication failed|could not read Username|Permission denied"
)


class ScaffoldError(Refused):
    """An answer is not valid, or the template cannot be rendered. The message for an answer is the validator's."""


class BadTemplate(NotFound):
    """The template, or the version of it, does not exist."""


class TemplateUnreachable(Unreachable):
    """The template's Git host does not answer, or refuses access."""


class NoCopier(Failed):
    """copier is not installed."""


def copy(source: str, destination: Path, answers: Mapping[str, object], *, version: str | None = None) -> None:
    """Render the template at `source` into `destination`, with defaults for missing answers. It asks and runs nothing.

    source: an address of a Git repository or a folder. It is recorded in the service for later updates.
    destination: created if it is missing. Existing files of the team or of a machine stay (copier.yml), files of the template are
        overwritten. The answers start from its .copier-answers.yml, as copier does, without those that the template does not ask any
        more. After a failure a destination that was missing or had no other files is as before, and other destinations are unchanged.
    answers: by question. Each must be a question that is asked.
    version: a tag, branch or commit; None: the newest tag, or HEAD where there are no tags.

    Raises ScaffoldError, BadTemplate, TemplateUnreachable, NoCopier, and Failed for an error of the disk.
    """
    source = recordable(source)
    destination = destination.absolute()
    if destination.exists() and not destination.is_dir():
        raise ScaffoldError(f"{destination} is not a folder", remedy="give another destination")
    held = {path.name for path in destination.iterdir()} if destination.is_dir() else set()
    if version and version.startswith("-"):
        raise _no_version(source, version)  # copier passes it to git, which would read it as an option
    with _nothing_left(destination, held), nobodys_settings():
        try:
            destination.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(source, destination, version, error) from None
        if held - {ANSWERS}:
            _run(source, destination, answers, version, pretend=True)
        _run(source, destination, answers, version)


def recordable(source: str) -> str:
    """The address as a service records it, valid from any folder: a folder's absolute path, or a repository's URL.

    Raises BadTemplate for a missing folder, UsageError for an address with a password.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return str(folder if folder.is_absolute() else folder.resolve())
    if not URL.fullmatch(source):
        if folder.is_file():  # a Git bundle
            return str(folder if folder.is_absolute() else folder.resolve())
        raise BadTemplate(f"{source!r}: there is no such template", remedy=f"give a folder or an address, for example {TEMPLATE}")
    if re.match(r"(?:git\+)?(?:https?://[^/@]*@|[a-z+]+://[^/@]*:[^/@]*@)", source):
        raise UsageError(
            f"{re.sub(r'://[^/@]*@', '://', source)}: the address contains a user or a password, which the service would record in Git",
            remedy="remove it; Git's credential helpers provide it",
        )
    return source if source.startswith(GIT_PREFIX) or source.endswith(".git") else f"git+{source}"


@contextmanager
def nobodys_settings() -> Iterator[None]:
    """Run copier without the user's settings: their defaults would change the answers, their trust would run tasks."""
    before = os.environ.get("COPIER_SETTINGS_PATH")
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "settings.yml")
        settings.write_text("{}\n", encoding="utf-8")
        os.environ["COPIER_SETTINGS_PATH"] = str(settings)
        try:
            yield
        finally:
            if before is None:
                del os.environ["COPIER_SETTINGS_PATH"]
            else:
                os.environ["COPIER_SETTINGS_PATH"] = before


@contextmanager
def _nothing_left(destination: Path, held: set[str]) -> Iterator[None]:
    """Remove what was created if this fails or is interrupted."""
    made = next((path for path in reversed([destination, *destination.parents]) if not path.exists()), None)
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(made, ignore_errors=True)
        elif held <= {ANSWERS}:
            for path in destination.iterdir():
                if path.name not in held:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def _run(source: str, destination: Path, answers: Mapping[str, object], version: str | None, *, pretend: bool = False) -> None:
    try:
        from copier import run_copy
        from copier.errors import ConfigFileError, CopierError
        from jinja2 import TemplateError
    except ImportError:
        raise NoCopier("copier is not installed", remedy="pip install 'mlops-build[template]'") from None
    _check_copier()
    try:
        worker = run_copy(
            source,
            destination,
            data=dict(answers),
            vcs_ref=version,
            defaults=True,
            overwrite=True,
            quiet=True,
            unsafe=False,
            pretend=pretend,
        )
    except ConfigFileError:
        raise BadTemplate(f"{source}: its copier.yml cannot be read", remedy="fix it, or give another version") from None
    except (CopierError, ValueError) as error:
        raise _refusal(source, version, " ".join(str(error).split())) from None
    except TemplateError as error:
        # Jinja's frames have the template's file, in copier's clone.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".jinja")]
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
        raise ScaffoldError(f"{source}: {place}{error}", remedy="this is an error in the template; give another version") from None
    except OSError as error:  # includes git's failures
        raise _failure(source, destination, version, error) from None
    _check(source, worker, answers)


def _check_copier() -> None:
    """Raises Failed for the release of copier that passes an option which older releases of git do not know."""
    if importlib.metadata.version("copier") == "9.19.0" and (git := command.version()) < (2, 43):
        raise Failed(
            "copier 9.19.0 does not work with git {}.{}".format(*git),
            remedy=f"install git ≥ 2.43, or: {sys.executable} -m pip install 'copier!=9.19.0'",
        )


def _check(source: str, worker: Any, answers: Mapping[str, object]) -> None:
    """Check what copier accepts without a check: that the source is a template, and that each answer is for a question that is asked."""
    questions = worker.template.questions_data
    if not questions:
        raise BadTemplate(f"{source} is not a template: it has no copier.yml with questions", remedy=f"for example {TEMPLATE}")
    for name in answers:
        if name not in questions:
            close = difflib.get_close_matches(name, [asked for asked in questions if questions[asked].get("when") is not False], 1)
            remedy = f"did you mean {close[0]}?" if close else f"its questions: {', '.join(questions)}"
            raise ScaffoldError(f"{name}: the template has no such question", remedy=remedy)
        if questions[name].get("when") is False:
            raise ScaffoldError(f"{name} is computed from other answers", remedy="remove this answer")
        if name in worker.answers.hidden:
            raise ScaffoldError(f"{name} is not asked with these answers", remedy=f"it is asked when {questions[name]['when']}")


def _refusal(source: str, version: str | None, message: str) -> MlopsBuildError:
    """The error for a message of copier."""
    if "Unknown revision" in message:
        return _no_version(source, version)
    if "must be a directory" in message:
        return BadTemplate(f"{source}: there is no such template", remedy=f"give a folder or an address, for example {TEMPLATE}")
    if "--trust" in message:
        remedy = "mlops-build does not run code of a template; give another one"
        return ScaffoldError(f"{source}: {message.partition(' If you trust')[0]}", remedy=remedy)
    if match := REFUSED.match(message):
        # Until 0.1.0 the validators' messages began with the name.
        return ScaffoldError(f"{match['name']}: {match['why'].removeprefix(match['name'] + ': ')}")
    return ScaffoldError(f"{source}: {message}")


def _failure(source: str, destination: Path, version: str | None, error: OSError) -> MlopsBuildError:
    """The error for a failure of git or of the disk. Copier runs git with plumbum, whose error is an OSError with git's output."""
    output = str(getattr(error, "stderr", "") or "")
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(("Cloning", "Preparing", "warning:"))]
    if not lines:
        return Failed(f"{destination}: {error.strerror or error}", remedy="check that you have permission to write there")
    reason = re.sub(r"://[^/@\s]*@", "://", lines[0])  # ssh's message comes before git's summary
    if re.search(r"invalid reference|unknown revision|pathspec|not a commit|not a valid object", reason):
        return _no_version(source, version)
    if NETWORK.search(output):
        remedy = f"check the address, the network, and your permission to read it: git ls-remote {address(source)}"
        return TemplateUnreachable(f"{source}: {reason}", remedy=remedy)
    return BadTemplate(f"{source}: {reason}", remedy=f"check the address: git ls-remote {address(source)}")


def _no_version(source: str, version: str | None) -> BadTemplate:
    remedy = f"give an existing tag, branch or commit: git ls-remote {address(source)}"
    return BadTemplate(f"{source} has no version {version}" if version else f"{source}: it has no commit to render", remedy=remedy)
