"""What a service answered the template, as copier recorded it, and whether that is still what its files say.

Answers are changed by rendering anew. Where somebody edits the record by hand, or changes a value in service.yaml that files of the
template's are rendered from as well, record and files say different things; an update would carry that on without a word.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build.errors import NotFound, Refused
from mlops_build.git import command
from mlops_build.git.command import GitFailed

FILE = ".copier-answers.yml"
PIN = "requirements-mlops-build.txt"
# The commit of the template in a rendered pin (template/requirements-mlops-build.txt.jinja).
PINNED = re.compile(r"^git\+\S+@([0-9a-f]{40})#egg=mlops-build$", re.MULTILINE)
# Where service.yaml holds what an answer seeded. Computed answers are compared by what they are computed from.
SEEDED: Mapping[str, tuple[str | int, ...]] = {
    "team": ("team",),
    "mlflow_tracking_uri": ("tracking", "uri"),
    "s3_endpoint_url": ("tracking", "s3_endpoint_url"),
    "model_name": ("models", 0, "name"),
    "k8s_namespace": ("environments", "production", "namespace"),
    "k8s_host": ("environments", "production", "host"),
    "gpu": ("gpu", "mode"),
    "gpu_memory": ("gpu", "memory"),
    "image_registry": ("image", "registry"),
}


@dataclass(frozen=True)
class Answers:
    """source: the template's address. version: what copier recorded of the version. values: by question."""

    source: str
    version: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """How the record came about. commit: the template's full commit, as the service's pin had it then. values: what was answered then.

    complete: False where the history ends before it (a shallow clone).
    """

    commit: str | None
    values: Mapping[str, Any]
    complete: bool


def parse(text: str, where: str) -> Answers:
    """A record's content. Raises Refused where it is none."""
    # Copier's own reader and writer: for another one a commit like 12e4567 is a number.
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refused(f"{where} is no YAML: {' '.join(str(error).split())[:200]}", remedy="restore it from Git; copier writes it") from None
    if not isinstance(found, dict) or not isinstance(found.get("_src_path"), str):
        raise Refused(f"{where} does not name the template (_src_path)", remedy="restore it from Git; copier writes it")
    if "_commit" not in found:
        raise Refused(
            f"{where} names no version of the template (_commit): it was rendered from a folder without Git",
            remedy="copier recopy --vcs-ref VERSION once, and look through the differences",
        )
    values = {str(name): value for name, value in found.items() if not str(name).startswith("_")}
    return Answers(found["_src_path"], str(found["_commit"]), values)


def read(repository: Path, treeish: str, where: Path) -> Answers:
    """The record in a service's tree. Raises NotFound, Refused."""
    content = _file(repository, treeish, FILE)
    if content is None:
        raise NotFound(f"{where} has no {FILE} in Git: it was not made from a template", remedy="run this in a service, or name its folder")
    return parse(content, str(where / FILE))


def origin(repository: Path, head: str, prefix: str) -> Origin:
    """Go back to the commit that wrote the version which the record at `head` names."""
    path = f"{prefix}{FILE}"
    wanted = parse(_file(repository, head, path) or "", FILE)
    log = command.text(repository, "log", "--format=%H", "--max-count=200", head, "--", path).split()
    wrote, values = head, wanted.values
    for commit in log:
        content = _file(repository, commit, path)
        if content is None:
            break
        try:
            found = parse(content, FILE)
        except Refused:
            break
        if (found.source, found.version) != (wanted.source, wanted.version):
            break
        wrote, values = commit, found.values
    pinned = PINNED.search(_file(repository, wrote, f"{prefix}{PIN}") or "")
    shallow = command.text(repository, "rev-parse", "--is-shallow-repository") == "true"
    return Origin(pinned[1] if pinned else None, values, not (shallow and wrote == (log or [head])[-1]))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of `other` that `one` has not, or has otherwise."""
    return {name: value for name, value in other.items() if name not in one or one[name] != value}


def of_service(values: Mapping[str, Any], service_yaml: str | None) -> dict[str, Any]:
    """The answers that service.yaml says otherwise: by question, what it says."""
    try:
        held = YAML(typ="safe", pure=True).load(service_yaml or "")
    except YAMLError:
        return {}
    found: dict[str, Any] = {}
    for name, keys in SEEDED.items():
        said: Any = held
        try:
            for key in keys:
                said = said[key]
        except (KeyError, IndexError, TypeError):
            continue
        if name in values and isinstance(said, str) and said != values[name]:
            found[name] = said
    try:
        python = re.fullmatch(r"python:(3\.[0-9]+)-slim", str(held["image"]["base"]))
    except (KeyError, TypeError):
        python = None
    if python and "python_version" in values and python[1] != str(values["python_version"]):
        found["python_version"] = python[1]
    return found


def _file(repository: Path, treeish: str, path: str) -> str | None:
    try:
        return command.run(repository, "cat-file", "blob", f"{treeish}:{path}").decode(errors="replace")
    except GitFailed:
        return None
