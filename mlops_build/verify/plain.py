"""A folder or file of YAML outside a service: plain manifests, kustomizations and CI specs in any combination.

The files of a folder are checked together, as `kubectl apply -f` would apply them. Files of a kustomization are checked as it renders,
because a base or patch is not complete. A missing object is not a fault: it may be defined elsewhere.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops_build.errors import NotFound
from mlops_build.verify import overlay
from mlops_build.verify.document import File
from mlops_build.verify.report import Collected, Report, finish, start
from mlops_build.verify.rules import check_objects, check_sources, locator, read_file
from mlops_build.verify.specs import SpecChecker
from mlops_build.verify.world import Fault, Object, World, text

SUFFIXES = (".yaml", ".yml")
# Folders without manifests.
NOT_MANIFESTS = {".git", ".venv", ".dvc", ".github", "node_modules", "__pycache__", "vendor"}
# A value or line that begins with {{, which YAML would take for a mapping.
TEMPLATE = re.compile(r"^\s*(?:- )?(?:[\w./-]+:\s*)?\{\{", re.MULTILINE)
MAX_FILES, MAX_RENDERED = 20_000, 300


class NothingThere(NotFound):
    """The file or folder does not exist or cannot be read."""


def check(path: Path, version: str | None, specs: Sequence[SpecChecker] | None) -> Report:
    """Check a file, or a folder and everything below it. specs: as in `verify.check`. Raises NothingThere if the file cannot be read."""
    report, collected = start(specs), Collected()
    root = path.resolve() if path.is_dir() else path.resolve().parent
    worlds: dict[Path, list[Object]] = {}
    spec_files: dict[str, list[File]] = {checker.folder: [] for checker in specs or ()}
    rendered = _kustomizations(root, version, report, collected) if path.is_dir() else set()
    for source in yaml_files(root) if path.is_dir() else [path.resolve()]:
        try:
            file = collected.files.get(source.relative_to(root).as_posix()) or read_file(source, root)
        except OSError as error:
            if path.is_file():
                remedy = "change the file's permissions so that you can read it"
                raise NothingThere(f"{path} cannot be read: {error.strerror}", remedy=remedy) from None
            report.notes.append(f"{source.relative_to(root)} was not read: {error.strerror}")
            continue
        if TEMPLATE.search(source.read_text(encoding="utf-8", errors="replace")):
            report.notes.append(f"{file.name} was not checked: it is a template, with values such as {{{{ NAME }}}}")
            continue
        collected.files[file.name] = file
        if checker := _checker_of(file, source, specs or ()):
            spec_files[checker.folder].append(file)
        elif file.name not in rendered and "patch" not in source.name:  # a patch is not a complete object
            objects = list(_objects(file))
            collected.faults += [(fault, None) for fault in _duplicate_objects(objects)]
            worlds.setdefault(source.parent, []).extend(objects)
    for objects in worlds.values():
        report.objects += len(objects)
        collected.faults += [(fault, None) for fault in check_objects(World(objects), version)]
    for checker in specs or ():
        collected.faults += [(fault, None) for fault in checker.check(spec_files[checker.folder], None)]
    return finish(report, collected, [], {}, None)


def _checker_of(file: File, source: Path, specs: Sequence[SpecChecker]) -> SpecChecker | None:
    """The checker of a file of CI specs; None for manifests."""
    for checker in specs:
        if source.parent.name == checker.folder or any(checker.recognises(document.value) for document in file.documents):
            return checker
    return None


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files below a folder, sorted, without symbolic links out of it. Helm charts are skipped: their files are templates."""
    paths: list[Path] = []
    for place, folders, files in os.walk(folder):
        if "Chart.yaml" in files:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if name not in NOT_MANIFESTS)
        inside = [Path(place) / name for name in sorted(files) if name.endswith(SUFFIXES)]
        paths += [path for path in inside if path.resolve().is_relative_to(folder.resolve())]
        if len(paths) > MAX_FILES:
            break
    return paths[:MAX_FILES]


def _kustomizations(root: Path, version: str | None, report: Report, collected: Collected) -> set[str]:
    """Check each kustomization that no other one includes, as it renders. Returns the files that belong to any kustomization."""
    folders = [Path(place) for place, inner, files in os.walk(root) if not set(files).isdisjoint(overlay.NAMES) and _no_chart(inner, files)]
    read = {folder.resolve(): overlay.read_sources(folder, root) for folder in folders[:MAX_RENDERED]}
    named = {folder for sources in read.values() for folder in sources.folders[1:]}
    files: set[str] = set()
    for folder, sources in read.items():
        collected.files |= sources.files
        files |= set(sources.files)
        where = folder.relative_to(root).as_posix()
        if folder in named or sources.component:
            continue
        if sources.remote:
            report.notes.append(f"{where} was not rendered: it loads {sources.remote[0][2]} from the network")
            continue
        try:
            rendered = overlay.render(folder)
        except overlay.NotRendered as error:
            report.notes.append(f"{where} was not rendered: {str(error).splitlines()[0][:200]}")
            continue
        if rendered is None:
            report.notes.append(f"{where} was not rendered: kubectl is not installed")
            continue
        objects = overlay.objects(rendered, sources)
        report.objects += len(objects)
        collected.faults += [(fault, None) for fault in [*check_sources(sources), *check_objects(World(objects, rendered=True), version)]]
    return files


def _no_chart(inner: list[str], files: list[str]) -> bool:
    """Whether a folder is not a Helm chart. Prunes os.walk like `yaml_files`."""
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
                    yield Object(item, locator(file, document, ("items", index)))
        elif not text(data.get("apiVersion")).startswith(("kustomize.config.k8s.io", "builtin")):
            yield Object(data, locator(file, document))


def _duplicate_objects(objects: Sequence[Object]) -> Iterator[Fault]:
    """Objects that one file defines twice. Two files of a folder may be alternatives."""
    first: dict[tuple[str, str, str, str], Object] = {}
    for obj in objects:
        identity = (obj.group, obj.kind, obj.namespace, obj.name)
        if obj.name and identity in first:
            line = first[identity].where(("metadata", "name"))[1]
            yield Fault("duplicate-object", obj, ("metadata", "name"), f"{obj} is already defined on line {line} of this file")
        first.setdefault(identity, obj)
