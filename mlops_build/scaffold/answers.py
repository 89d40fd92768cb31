"""Read a service's answers as copier recorded them, and compare them with the service's files.

Answers are changed by an update. If somebody edits the record by hand, or changes a value in service.yaml from which template files
are rendered, record and files differ, and an update would silently keep the difference.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build.adapters.git import command
from mlops_build.adapters.git.objects import Objects
from mlops_build.errors import NotFound, Refused

FILE = ".copier-answers.yml"
PIN = "requirements-mlops-build.txt"
# The commit of the template in a rendered pin (template/requirements-mlops-build.txt.jinja).
PINNED = re.compile(r"^git\+\S+@([0-9a-f]{40}(?:[0-9a-f]{24})?)#egg=mlops-build$", re.MULTILINE)
# Answer → key path in service.yaml. Computed answers are covered by the answers that they are computed from.
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
    """The record. source: the template's address. version: the version as copier recorded it. values: by question."""

    source: str
    version: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """The commit that wrote the record. commit: the template's full commit in the service's pin. values: the answers at that commit."""

    commit: str | None
    values: Mapping[str, Any]


def parse(text: str, where: str) -> Answers:
    """Parse a record. Raises Refused if it is not valid."""
    # Copier uses this library, too: for others a commit like 12e4567 is a number.
    import yaml

    try:
        record = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refused(
            f"{where} is not valid YAML: {' '.join(str(error).split())[:200]}", remedy="restore it from Git; only copier writes it"
        ) from None
    if not isinstance(record, dict) or not isinstance(record.get("_src_path"), str):
        raise Refused(f"{where} does not name the template (_src_path)", remedy="restore it from Git; only copier writes it")
    if "_commit" not in record:
        raise Refused(
            f"{where} does not name a version of the template (_commit): it was rendered from a folder without Git",
            remedy="run copier recopy --vcs-ref VERSION once, and check the differences",
        )
    values = {str(name): value for name, value in record.items() if not str(name).startswith("_")}
    return Answers(record["_src_path"], str(record["_commit"]), values)


def read(repository: Path, treeish: str, where: Path) -> Answers:
    """The record in a service's tree. Raises NotFound, Refused."""
    content = Objects(repository).read(treeish, FILE)
    if content is None:
        raise _not_generated(f"{where} has no {FILE} in Git")
    return parse(content.decode(errors="replace"), str(where / FILE))


def in_folder(service: Path) -> Answers:
    """The record in a service's folder, committed or not. Raises NotFound, Refused."""
    if not (service / FILE).is_file():
        raise _not_generated(f"{service} has no {FILE}")
    return parse((service / FILE).read_text(encoding="utf-8", errors="replace"), str(service / FILE))


def _not_generated(why: str) -> NotFound:
    return NotFound(f"{why}: it was not generated from a template", remedy="run this in a service, or give the service's folder")


def origin(repository: Path, head: str, prefix: str) -> Origin:
    """Find the commit that wrote the version in the record at `head`."""
    path, store = f"{prefix}{FILE}", Objects(repository)
    wrote, version = head, None
    values: Mapping[str, Any] = {}
    log = command.text(repository, "log", "--format=%H", "--max-count=200", head, "--", path).split()
    for commit in [head, *log]:
        try:
            record = parse((store.read(commit, path) or b"").decode(errors="replace"), FILE)
        except Refused:
            break
        if version not in (None, (record.source, record.version)):
            break
        wrote, values, version = commit, record.values, (record.source, record.version)
    pinned = PINNED.search((store.read(wrote, f"{prefix}{PIN}") or b"").decode(errors="replace"))
    return Origin(pinned[1] if pinned else None, values)


def differing(before: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of `other` that `before` does not have, or has with another value."""
    return {name: value for name, value in other.items() if name not in before or before[name] != value}


def of_service(values: Mapping[str, Any], service_yaml: str | None) -> dict[str, Any]:
    """Question → value in service.yaml, for answers with another value there."""
    try:
        held = YAML(typ="safe", pure=True).load(service_yaml or "")
    except YAMLError:
        return {}
    different: dict[str, Any] = {}
    for name, keys in SEEDED.items():
        value: Any = held
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            continue
        if name in values and isinstance(value, str) and value != values[name]:
            different[name] = value
    try:
        python = re.fullmatch(r"python:(3\.[0-9]+)-slim", str(held["image"]["base"]))
    except (KeyError, TypeError):
        python = None
    if python and "python_version" in values and python[1] != str(values["python_version"]):
        different["python_version"] = python[1]
    return different
