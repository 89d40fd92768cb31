"""A folder or file of YAML that is nobody's service: plain manifests, kustomizations, Bamboo specs, side by side.

Files of one folder are judged together, as `kubectl apply -f` would apply them. What a kustomization names is judged as it renders, since
bases and patches are pieces that mean little alone. Whatever is missing may be somewhere else.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops_build.errors import NotFound
from mlops_build.verify import bamboo, overlay
from mlops_build.verify.document import File
from mlops_build.verify.judge import inside, judge, parsed, repeated
from mlops_build.verify.report import Gathered, Report, finish
from mlops_build.verify.world import Fault, Object, World, text

SPECS = "bamboo-specs"
SUFFIXES = (".yaml", ".yml")
# Folders that hold no manifests.
NOT_MANIFESTS = {".git", ".venv", ".dvc", ".github", "node_modules", "__pycache__", "vendor"}
MAX_FILES, MAX_RENDERED = 20_000, 300


class NothingThere(NotFound):
    """No such file or folder, or none that may be read."""


def look(path: Path, version: str | None) -> Report:
    """Look at a file, or a folder and everything below it. Raises NothingThere for a file that cannot be read."""
    report, gathered = Report(), Gathered()
    root = path.resolve() if path.is_dir() else path.resolve().parent
    worlds: dict[Path, list[Object]] = {}
    specs: list[File] = []
    rendered = _kustomizations(root, version, report, gathered) if path.is_dir() else set()
    for found in yaml_files(root) if path.is_dir() else [path.resolve()]:
        try:
            file = gathered.files.get(found.relative_to(root).as_posix()) or parsed(found, root)
        except OSError as error:
            if path.is_file():
                raise NothingThere(f"{path} cannot be read: {error.strerror}", remedy="give yourself the right to read it") from None
            report.notes.append(f"{found.relative_to(root)} was not read: {error.strerror}")
            continue
        gathered.files[file.name] = file
        if found.parent.name == SPECS or any(bamboo.looks_like(document.value) for document in file.documents):
            specs.append(file)
        elif file.name not in rendered and "patch" not in found.name:  # a patch is a piece of an object
            objects = list(_objects(file))
            gathered.faults += [(fault, None) for fault in _twice(objects)]
            worlds.setdefault(found.parent, []).extend(objects)
    for objects in worlds.values():
        report.objects += len(objects)
        gathered.faults += [(fault, None) for fault in judge(World(objects), version)]
    gathered.faults += [(fault, None) for fault in bamboo.check(bamboo.read(specs, closed=False))]
    return finish(report, gathered, [], {}, None)


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files below a folder, in order, none outside it. A Helm chart's are templates: left out, with everything below it."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        if "Chart.yaml" in files:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if name not in NOT_MANIFESTS)
        paths = [Path(place) / name for name in sorted(files) if name.endswith(SUFFIXES)]
        found += [path for path in paths if path.resolve().is_relative_to(folder.resolve())]
        if len(found) > MAX_FILES:
            break
    return found[:MAX_FILES]


def _kustomizations(root: Path, version: str | None, report: Report, gathered: Gathered) -> set[str]:
    """Judge each kustomization that no other one names, as it renders. Returns the files that all of them name."""
    folders = [Path(place) for place, inner, files in os.walk(root) if not set(files).isdisjoint(overlay.NAMES) and _no_chart(inner, files)]
    read = {folder.resolve(): overlay.sources(folder, root) for folder in folders[:MAX_RENDERED]}
    named = {folder for found in read.values() for folder in found.folders[1:]}
    files: set[str] = set()
    for folder, found in read.items():
        gathered.files |= found.files
        files |= set(found.files)
        where = folder.relative_to(root).as_posix()
        if folder in named or found.component:
            continue
        if found.remote:
            report.notes.append(f"{where} was not rendered: it takes {found.remote[0][2]} from the network")
            continue
        try:
            text_ = overlay.render(folder)
        except overlay.NotRendered as error:
            report.notes.append(f"{where} was not rendered: {str(error).splitlines()[0][:200]}")
            continue
        if text_ is None:
            report.notes.append(f"{where} was not rendered: kubectl is not installed here")
            continue
        objects = overlay.objects(text_, found)
        report.objects += len(objects)
        gathered.faults += [(fault, None) for fault in [*repeated(found), *judge(World(objects, closed=True), version)]]
    return files


def _no_chart(inner: list[str], files: list[str]) -> bool:
    """Prunes what os.walk goes through, as `yaml_files` does."""
    inner[:] = [] if "Chart.yaml" in files else sorted(name for name in inner if name not in NOT_MANIFESTS)
    return "Chart.yaml" not in files


def _objects(file: File) -> Iterator[Object]:
    """The Kubernetes objects of a file; the items of a List are objects of their own."""
    for document in file.documents:
        data = document.value
        if not isinstance(data, dict) or "$patch" in data or not (data.get("kind") and (data.get("apiVersion") or data.get("metadata"))):
            continue
        items = data.get("items")
        if text(data.get("kind")).endswith("List") and isinstance(items, list) and data.get("apiVersion") == "v1":
            for index, item in enumerate(items):
                if isinstance(item, dict):
                    yield Object(item, inside(file, document, ("items", index)))
        elif not text(data.get("apiVersion")).startswith(("kustomize.config.k8s.io", "builtin")):
            yield Object(data, inside(file, document))


def _twice(objects: Sequence[Object]) -> Iterator[Fault]:
    """An object that one file describes twice. Two files of a folder may be alternatives."""
    seen: dict[tuple[str, str, str, str], Object] = {}
    for one in objects:
        known = (one.group, one.kind, one.namespace, one.name)
        if one.name and known in seen:
            line = seen[known].where(("metadata", "name"))[1]
            yield Fault("duplicate-object", one, ("metadata", "name"), f"{one} is on line {line} of this file already")
        seen.setdefault(known, one)
