"""Strict grammars for every text that reaches a Dockerfile, a shell line, YAML or a path.

Everybody who can log a model can write any text into MLflow: tags, python_env.yaml, locks, file names. MLflow's own
`generate-dockerfile` writes such text unescaped into `FROM`. Here a text that does not match its grammar is refused, so nothing needs
escaping.
"""

import re

from mlops_build.errors import Refused
from mlops_build.model.identity import COMMIT, NAME, RUN_ID
from mlops_build.service import APT, IMAGE

SHOWN = 80  # characters of a refused value

PYTHON = re.compile(r"3\.[0-9]{1,2}")
NUMBER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}(?:(?:a|b|rc|\.post|\.dev)[0-9]{1,9})?")
WHEEL = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.]{0,100}-[A-Za-z0-9_.+]{1,60}-[A-Za-z0-9_.]{1,60}-[A-Za-z0-9_.]{1,60}-[A-Za-z0-9_.]{1,100}\.whl"
)
PLATFORMS = ("linux/amd64", "linux/arm64")
SECRETS = ("index-url", "netrc", "ca-bundle")
# "0.3.0", a commit's description such as v0.3.0-4-g1a2b3c4, or "unknown".
RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
# An address without credentials.
ADDRESS = re.compile(r"(?:https?|ssh)://(?:git@)?[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]{1,100}){0,10}/?")

# A line of a lock: a pinned name, extras, a marker, hashes. No index, no URL, no path, no option but --hash.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_EXTRAS = rf"(?:\[{_NAME}(?:,{_NAME}){{0,20}}\])?"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,60}"
_VARIABLE = (
    r"(?:python_version|python_full_version|os_name|sys_platform|platform_machine|platform_python_implementation|"
    r"platform_release|platform_system|implementation_name|implementation_version)"
)
_VALUE = r"(?:'[A-Za-z0-9_.+ -]{0,40}'|\"[A-Za-z0-9_.+ -]{0,40}\")"
_COMPARISON = rf"\(?{_VARIABLE} ?(?:===|==|~=|!=|<=|>=|<|>|not in|in) ?{_VALUE}\)?"
_MARKER = rf"{_COMPARISON}(?: (?:and|or) {_COMPARISON}){{0,20}}"
LOCK_LINE = re.compile(
    rf"(?P<name>{_NAME})(?P<extras>{_EXTRAS})==(?P<version>{_VERSION})(?: ?; ?(?P<marker>{_MARKER}))?"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64}){1,400})"
)
# The image installs these separately: torch from its own build, mlops-build from a wheel next to the lock.
NOT_IN_LOCK = {"torch", "mlops-build"}


class BadValue(Refused):
    """A value that does not match its grammar."""


def python_version(value: object, field: str = "python") -> str:
    """ "3.11"."""
    return _checked(value, PYTHON, field, "MAJOR.MINOR, such as 3.11")


def torch_version(value: object, field: str = "torch") -> str:
    """ "2.13.0", without a local part."""
    return _checked(value, NUMBER, field, "a release number, such as 2.13.0")


def base_image(value: object, field: str = "image.base") -> str:
    """ "python:3.11-slim", optionally with a registry and a digest."""
    return _checked(value, re.compile(IMAGE), field, "NAME:TAG, with an optional @sha256 digest")


def apt_package(value: object, field: str = "image.apt") -> str:
    """The name of a Debian package."""
    return _checked(value, re.compile(APT), field, "a Debian package name")


def model_name(value: object, field: str = "model name") -> str:
    """A DNS-1123 label, because it becomes a folder, a URL and a label. Names of services have the same grammar."""
    return _checked(value, NAME, field, "a-z, 0-9 and -, at most 63")


def commit(value: object, field: str = "commit") -> str:
    """A full Git commit id."""
    return _checked(value, COMMIT, field, "40 hex digits")


def run(value: object, field: str = "run") -> str:
    """The id of an MLflow run."""
    return _checked(value, RUN_ID, field, "32 hex digits")


def release(value: object, field: str = "release") -> str:
    """A version of the template, as Git describes it."""
    return _checked(value, RELEASE, field, "letters, digits and ._+-, at most 100")


def platform(value: object, field: str = "platform") -> str:
    """ "linux/amd64" or "linux/arm64"."""
    return _one_of(value, PLATFORMS, field)


def secret(value: object, field: str = "image.secrets") -> str:
    """The id of a build secret that the Dockerfile knows how to use."""
    return _one_of(value, SECRETS, field)


def address(value: object) -> str | None:
    """A repository's address; None for any other text, which is not a reason to refuse a model."""
    return value if isinstance(value, str) and ADDRESS.fullmatch(value) else None


def wheel_name(value: object, field: str = "wheel") -> str:
    """A wheel's file name in the standard's form, without a folder or a build tag."""
    return _checked(value, WHEEL, field, "NAME-VERSION-PYTHON-ABI-PLATFORM.whl")


def lock(text: str, field: str = "requirements.lock") -> str:
    """A hashed lock, checked line by line and written in a normal form: without comments, one hash per line.

    Raises BadValue for anything but `name==version` with hashes: no index, no URL, no path, no `-e`, no git.
    """
    lines = []
    for line in _logical_lines(text):
        match = LOCK_LINE.fullmatch(line)
        if not match:
            raise _bad(line, field, "name==version with --hash=sha256:… and nothing else")
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        if name in NOT_IN_LOCK:
            raise _bad(line, field, f"a lock without {name}, which is installed separately")
        if match["marker"] and match["marker"].count("(") != match["marker"].count(")"):
            raise _bad(line, field, "a marker with balanced parentheses")
        marker = f" ; {match['marker']}" if match["marker"] else ""
        head = f"{name}{match['extras']}=={match['version']}{marker}"
        lines.append(" \\\n    ".join([head, *sorted(match["hashes"].split())]))
    return "".join(f"{line}\n" for line in lines)


def pinned(text: str) -> dict[str, str]:
    """Name → version, for a lock that `lock` returned."""
    matches = (LOCK_LINE.fullmatch(line) for line in _logical_lines(text))
    return {match["name"]: match["version"] for match in matches if match}


def hashes(text: str) -> dict[str, list[str]]:
    """Name → SHA-256 (hex) of every file, for a lock that `lock` returned."""
    matches = (LOCK_LINE.fullmatch(line) for line in _logical_lines(text))
    return {
        match["name"]: sorted(option.removeprefix("--hash=sha256:") for option in match["hashes"].split()) for match in matches if match
    }


def _logical_lines(text: str) -> list[str]:
    """Lines with their continuations joined by one space; comments and blank lines dropped."""
    logical: list[str] = []
    current: list[str] = []
    # Not splitlines, which also splits at characters that uv and pip treat as part of a line.
    for line in text.replace("\r\n", "\n").split("\n"):
        stripped = line.strip(" ")
        if stripped.startswith("#") or not stripped:
            continue
        continued = stripped.endswith("\\")
        current.append(stripped.removesuffix("\\").strip(" "))
        if not continued:
            logical.append(" ".join(current))
            current = []
    return [*logical, " ".join(current)] if current else logical


def _checked(value: object, pattern: "re.Pattern[str]", field: str, wanted: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _bad(value, field, wanted)
    return value


def _one_of(value: object, known: tuple[str, ...], field: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise _bad(value, field, ", ".join(known))
    return value


def _bad(value: object, field: str, wanted: str) -> BadValue:
    shown = repr(value)
    if len(shown) > SHOWN:
        shown = f"{shown[:SHOWN]}…"
    return BadValue(f"{field}: {shown} is not allowed here", remedy=f"allowed: {wanted}")
