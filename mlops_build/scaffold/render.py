"""Render the template: copier behind one door, so that a foreseen failure is one of our errors and nobody's settings enter an answer.

Imports copier (a second of start-up) only when something is rendered, and nothing else but the standard library and our errors: the
cookiecutter door runs this file in an environment that holds no more. Copier changes the working directory while it works: use
processes, not threads.
"""

import difflib
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlops_build.errors import Failed, MlopsBuildError, NotFound, Refused, Unreachable, UsageError

TEMPLATE = "https://github.com/mlops-build/mlops-build"
ANSWERS = ".copier-answers.yml"
# What copier itself takes for a Git repository; any other address needs `git+` in front (copier, "Generating a project").
GIT_PREFIX = ("git@", "git://", "git+", "gh:", "gl:", "https://github.com/", "https://gitlab.com/")
URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s]+|(?:[\w.-]+@)?[\w.-]+:(?!//)[^\s]+")
NETWORK = re.compile(
    r"resolve host|[Cc]onnection|timed out|unable to access|Network is|Authentication failed|could not read Username|Permission denied"
)


class ScaffoldError(Refused):
    """An answer that is not allowed, or a template that cannot be rendered; for an answer the message is the validator's."""


class BadTemplate(NotFound):
    """The template, or that version of it, does not exist."""


class TemplateUnreachable(Unreachable):
    """The template's Git host does not answer, or does not let us in."""


class NoCopier(Failed):
    """copier is not installed."""


def copy(source: str, destination: Path, answers: Mapping[str, object], *, version: str | None = None) -> None:
    """Render the template at `source` into `destination`, with its defaults for what `answers` leaves open; asks nothing, runs nothing.

    source: an address of a Git repository or a folder. It is recorded in the service, where updates look for it.
    destination: made if it is missing. What is there already stays if it is the team's or a machine's (copier.yml), and is overwritten
        if it is the template's. A .copier-answers.yml in it seeds the answers, as copier does; what the template does not ask any more
        is left out then. On failure nothing is left in a destination that was missing or held nothing else, or is changed in another.
    answers: by question. Each must be a question that is asked.
    version: a tag, branch or commit; None: the newest tag, or HEAD where there are no tags.

    Raises ScaffoldError, BadTemplate, TemplateUnreachable, NoCopier, and Failed if the disk refuses.
    """
    source = recordable(source)
    destination = destination.absolute()
    if destination.exists() and not destination.is_dir():
        raise ScaffoldError(f"{destination} is no folder", remedy="name another destination")
    held = {path.name for path in destination.iterdir()} if destination.is_dir() else set()
    if version and version.startswith("-"):
        raise _no_version(source, version)  # copier hands it to git, which would take it for an option
    with _nothing_left(destination, held), nobodys_settings():
        try:
            destination.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(source, destination, version, error) from None
        if held - {ANSWERS}:
            _run(source, destination, answers, version, pretend=True)
        _run(source, destination, answers, version)


def recordable(source: str) -> str:
    """The address as a service may record it, so that later updates find it from anywhere: a folder's absolute path, a repository's URL.

    Raises BadTemplate for a folder that is not there, UsageError for an address with a password in it.
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
            f"{re.sub(r'://[^/@]*@', '://', source)}: the address holds a user or a password, which the service would record for everybody",
            remedy="leave it out; Git's credential helpers know who you are",
        )
    return source if source.startswith(GIT_PREFIX) or source.endswith(".git") else f"git+{source}"


@contextmanager
def nobodys_settings() -> Iterator[None]:
    """Copier without the settings of the person who runs it: their defaults would enter the answers, their trust would run tasks."""
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
    """Take back what was made, if this fails or is interrupted."""
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
        raise BadTemplate(f"{source}: its copier.yml cannot be read", remedy="mend it, or name another version") from None
    except (CopierError, ValueError) as error:
        raise _refusal(source, version, " ".join(str(error).split())) from None
    except TemplateError as error:
        # Jinja's own frames name the file of the template, in copier's clone.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".jinja")]
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
        raise ScaffoldError(f"{source}: {place}{error}", remedy="this is a fault of the template; name another version") from None
    except OSError as error:  # git's failures too
        raise _failure(source, destination, version, error) from None
    _check(source, worker, answers)


def _check(source: str, worker: Any, answers: Mapping[str, object]) -> None:
    """Copier takes any folder for a template, and any name for an answer."""
    questions = worker.template.questions_data
    if not questions:
        raise BadTemplate(f"{source} is no template: it has no copier.yml with questions", remedy=f"for example {TEMPLATE}")
    for name in answers:
        if name not in questions:
            close = difflib.get_close_matches(name, [asked for asked in questions if questions[asked].get("when") is not False], 1)
            remedy = f"did you mean {close[0]}?" if close else f"its questions: {', '.join(questions)}"
            raise ScaffoldError(f"{name}: the template has no such question", remedy=remedy)
        if questions[name].get("when") is False:
            raise ScaffoldError(f"{name} is computed from other answers", remedy="leave it out")
        if name in worker.answers.hidden:
            raise ScaffoldError(f"{name} is not asked with these answers", remedy=f"it is asked when {questions[name]['when']}")


def _refusal(source: str, version: str | None, said: str) -> MlopsBuildError:
    """What copier refuses, in our words."""
    if "Unknown revision" in said:
        return _no_version(source, version)
    if "must be a directory" in said:
        return BadTemplate(f"{source}: there is no such template", remedy=f"give a folder or an address, for example {TEMPLATE}")
    if "--trust" in said:
        remedy = "mlops-build runs nothing of a template; name another one"
        return ScaffoldError(f"{source}: {said.partition(' If you trust')[0]}", remedy=remedy)
    if found := re.match(r"Validation error for question '(?P<name>\w+)': (?P<why>.*)", said):
        # Until 0.1.0 the validators said the name themselves.
        return ScaffoldError(f"{found['name']}: {found['why'].removeprefix(found['name'] + ': ')}")
    if found := re.match(r"Invalid choice for '(?P<name>\w+)': (?P<why>.*)", said):
        return ScaffoldError(f"{found['name']}: {found['why']}")
    return ScaffoldError(f"{source}: {said}")


def _failure(source: str, destination: Path, version: str | None, error: OSError) -> MlopsBuildError:
    """What git or the disk refuses. Copier runs git by plumbum, whose error is an OSError with git's own words."""
    said = str(getattr(error, "stderr", "") or "")
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith(("Cloning", "Preparing", "warning:"))]
    if not lines:
        return Failed(f"{destination}: {error.strerror or error}", remedy="check that you may write there")
    reason = re.sub(r"://[^/@\s]*@", "://", lines[0])  # what ssh says comes before git sums it up
    if re.search(r"invalid reference|unknown revision|pathspec|not a commit|not a valid object", reason):
        return _no_version(source, version)
    if NETWORK.search(said):
        remedy = f"check the address, the network, and that you may read it: git ls-remote {_for_git(source)}"
        return TemplateUnreachable(f"{source}: {reason}", remedy=remedy)
    return BadTemplate(f"{source}: {reason}", remedy=f"check the address: git ls-remote {_for_git(source)}")


def _no_version(source: str, version: str | None) -> BadTemplate:
    remedy = f"name a tag, branch or commit that is there: git ls-remote {_for_git(source)}"
    return BadTemplate(
        f"{source} has no version {version}" if version else f"{source}: it has no commit that could be rendered", remedy=remedy
    )


def _for_git(source: str) -> str:
    """The address without what only copier understands."""
    return re.sub(r"^gl:/?", "https://gitlab.com/", re.sub(r"^gh:/?", "https://github.com/", source.removeprefix("git+")))
