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
from mlops_build.verify.document import File, listed, parse, read
from mlops_build.verify.report import Collected, Report, finish, start
from mlops_build.verify.rules import check_objects, check_sources
from mlops_build.verify.specs import SpecChecker
from mlops_build.verify.world import Fault, Object, World, mapping, text

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
    named = {source.relative_to(root).as_posix(): source for source in (yaml_files(root) if path.is_dir() else [path.resolve()])}
    for name in sorted(named.keys() - rendered):
        try:
            content = read(named[name])
        except OSError as error:
            if path.is_file():
                remedy = "change the file's permissions so that you can read it"
                raise NothingThere(f"{path} cannot be read: {error.strerror}", remedy=remedy) from None
            report.notes.append(f"{name} was not read: {error.strerror}")
            continue
        if TEMPLATE.search(content):
            report.notes.append(f"{name} was not checked: it is a template, with values such as {{{{ NAME }}}}")
            continue
        file = collected.files[name] = parse(content, name)
        if checker := _checker_of(file, named[name], specs or ()):
            spec_files[checker.folder].append(file)
        elif "patch" not in name:  # a patch is not a complete object
            objects = list(_objects(file))
            collected.add(_duplicate_objects(objects))
            worlds.setdefault(named[name].parent, []).extend(objects)
    for objects in worlds.values():
        report.objects += len(objects)
        collected.add(check_objects(World(objects), version))
    for checker in specs or ():
        collected.add(checker.check(spec_files[checker.folder], None))
    return finish(report, collected, [], {}, None)


def _checker_of(file: File, source: Path, specs: Sequence[SpecChecker]) -> SpecChecker | None:
    """The checker of a file of CI specs; None for manifests."""
    for checker in specs:
        if checker.folder in (source.parent.name, source.name) or any(checker.recognises(document.value) for document in file.documents):
            return checker
    return None


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files below a folder, sorted, without symbolic links out of it; a file itself."""
    if folder.is_file():
        return [folder]
    return [path for path in _files(folder) if path.suffix in SUFFIXES and path.resolve().is_relative_to(folder.resolve())][:MAX_FILES]


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder that may be manifests. Helm charts are skipped: their files are templates."""
    for place, folders, files in os.walk(folder):
        is_chart = "Chart.yaml" in files
        folders[:] = [] if is_chart else sorted(name for name in folders if name not in NOT_MANIFESTS)
        yield from () if is_chart else (Path(place) / name for name in sorted(files))


def _kustomizations(root: Path, version: str | None, report: Report, collected: Collected) -> set[str]:
    """Check each kustomization that no other one includes, as it renders. Returns the files that belong to any kustomization."""
    folders = [path.parent for path in _files(root) if path.name in overlay.NAMES][:MAX_RENDERED]
    sources_of = {folder.resolve(): overlay.read_sources(folder, root, collected.files) for folder in folders}
    included = {folder for sources in sources_of.values() for folder in sources.folders[1:]}
    for folder, sources in sources_of.items():
        if folder in included or sources.component:
            continue
        try:
            objects = overlay.rendered(folder, sources)
        except overlay.NotRendered as error:
            report.notes.append(f"{folder.relative_to(root).as_posix()} was not rendered: {str(error).splitlines()[0][:200]}")
            continue
        report.objects += len(objects)
        collected.add([*check_sources(sources), *check_objects(World(objects), version)])
    return {name for sources in sources_of.values() for name in sources.files}


def _objects(file: File) -> Iterator[Object]:
    """The Kubernetes objects of a file; the items of a List are objects of their own."""
    for node in (node for document in file.documents for node in listed(document)):
        data, api_version = mapping(node.value), text(node.value, "apiVersion")
        is_object = data.get("kind") and (api_version or data.get("metadata")) and "$patch" not in data
        if is_object and not api_version.startswith(("kustomize.config.k8s.io", "builtin")):
            yield Object(data, file.locator(node))


def _duplicate_objects(objects: Sequence[Object]) -> Iterator[Fault]:
    """Objects that one file defines twice. Two files of a folder may be alternatives."""
    first: dict[tuple[str, str, str, str], Object] = {}
    for obj in objects:
        identity = (obj.group, obj.kind, obj.namespace, obj.name)
        if obj.name and identity in first:
            line = first[identity].where(("metadata", "name"))[1]
            yield Fault("duplicate-object", obj, ("metadata", "name"), f"{obj} is already defined on line {line} of this file")
        first.setdefault(identity, obj)
