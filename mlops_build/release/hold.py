"""The hold of an environment: machines do not change what it runs.

It is in `deploy/overlays/ENV/hold.yaml`, beside release/, which older releases of mlops-build clean. Bridges below 0.9 know only `hold` in
service.yaml, so it is written there too, while the service pins such a release and the file can be parsed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build import bounded_yaml
from mlops_build import service as service_file
from mlops_build.adapters.git.objects import Identity, Objects
from mlops_build.errors import Refused, UsageError
from mlops_build.release import record as records
from mlops_build.service import Service, ServiceError, pin
from mlops_build.service.pin import Pin

WHY_LENGTH = 500  # service.yaml's limit
HEADER = "# Machines leave {env} as it is. Remove it with: mlops-build hold {env} --remove\n"
# The first release whose bridge reads hold.yaml.
FIRST = Pin(0, 9)


@dataclass(frozen=True)
class Hold:
    """why, by whom, and at what time (ISO 8601). restores: the digest of the release that a rollback restored with it.

    Raises UsageError for a reason that is empty, too long or not printable.
    """

    why: str
    by: str
    at: str
    restores: str | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.why) <= WHY_LENGTH or not self.why.isprintable():
            raise UsageError(f"the reason of a hold is a line of 1 to {WHY_LENGTH} characters", remedy="write another text")

    def text(self, env: str) -> str:
        """hold.yaml. A text in JSON's quotes is also one in YAML's."""
        values = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in asdict(self).items() if value]
        return "".join([HEADER.format(env=env), "schema: 1\n", *values])


def begin(why: str, by: Identity, restores: str | None = None) -> Hold:
    """A hold by this person or bridge, since the time of the identity."""
    return Hold(" ".join(why.split()), f"{by.name} <{by.email}>", datetime.fromtimestamp(by.seconds, UTC).isoformat(), restores)


def file(env: str) -> str:
    """The path of the hold in a service's repository."""
    return records.folder(env).replace("/release", "/hold.yaml")


def read(text: bytes | None, env: str, service: Service | None) -> str | None:
    """Why `env` is held; None if it is not. A hold.yaml that cannot be read holds, too.

    text: the content of hold.yaml; None if there is no such file. service: None if its service.yaml cannot be read.
    """
    if text is None:
        return service.hold.get(env) if service else None
    why = _parsed(text).get("why")
    return why if why and isinstance(why, str) and why.isprintable() else f"{file(env)} cannot be read: restore or remove it"


def in_folder(root: Path, env: str, service: Service) -> str | None:
    """`read` for a working tree."""
    path = root / file(env)
    return read(path.read_bytes() if path.is_file() else None, env, service)


def restores(root: Path, env: str, release: Mapping[str, bytes]) -> bool:
    """Whether a rollback restored exactly this release, by the hold.yaml of a working tree. release: the files of the release."""
    try:
        return _parsed((root / file(env)).read_bytes()).get("restores") == records.digest(release)
    except OSError:
        return False


def _parsed(text: bytes) -> Mapping[str, object]:
    """The keys of a hold.yaml; empty if it cannot be read."""
    try:
        document = bounded_yaml.load(text.decode())
        return document if document["schema"] == 1 and isinstance(document, dict) else {}
    except (YAMLError, UnicodeDecodeError, TypeError, LookupError):
        return {}


def changes(objects: Objects, head: str, env: str, hold: Hold | None) -> dict[str, bytes | None]:
    """The files, on top of `head`, that hold `env`, or with None end its hold. Empty if it has no hold to end.

    service.yaml is left alone if it cannot be parsed. Raises Refused if a hold in it cannot be removed.
    """
    path = file(env)
    if hold is None:
        files: dict[str, bytes | None] = {path: None} if objects.read(head, path) is not None else {}
    else:
        files = {path: hold.text(env).encode()}
    text = (objects.read(head, service_file.FILE) or b"").decode(errors="replace")
    try:
        held = env in service_file.parse(text, strict=False).hold
        if held if hold is None else _has_older_bridges(objects, head):
            files[service_file.FILE] = in_service(text, env, hold.why if hold else None).encode()
    except ServiceError:
        pass
    except Refused:
        if hold is None:
            raise
    return files


def _has_older_bridges(objects: Objects, commit: str) -> bool:
    """Whether the service pins a release whose bridge knows only service.yaml; also if its pin is not known."""
    pyproject = objects.read(commit, pin.FILE)
    pinned = pin.pin_of(pyproject.decode(errors="replace") if pyproject else None)
    return pinned is None or pinned < FIRST


def in_service(text: str, env: str, why: str | None) -> str:
    """service.yaml's text with `hold: {env: why}`, or without it; comments, quotes and order stay. Raises ServiceError, Refused."""
    was = service_file.parse(text, strict=False)
    wanted = {**{other: reason for other, reason in was.hold.items() if other != env}, **({env: why} if why else {})}
    editor = YAML(typ="rt")
    editor.preserve_quotes = True
    editor.width = 2**16
    # Keep the file's indentation of lists.
    flush = re.search(r"^models:[^\n]*\n(?:[ ]*#[^\n]*\n)*- ", text, re.MULTILINE)
    editor.indent(mapping=2, sequence=2 if flush else 4, offset=0 if flush else 2)
    document = editor.load(text)
    if document.get("hold") is None or not wanted:
        document["hold"] = wanted
    elif why:
        document["hold"][env] = why
    else:
        del document["hold"][env]
    stream = StringIO()
    editor.dump(document, stream)
    if service_file.parse(stream.getvalue(), strict=False) != was.model_copy(update={"hold": wanted}):
        raise Refused(
            f"{service_file.FILE} cannot be edited without changing more than `hold`",
            remedy=f"edit {env} in the file's `hold` yourself",
        )
    return stream.getvalue()
