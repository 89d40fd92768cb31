"""From a path to findings: which files are read, what is rendered, which rules are asked, what somebody chose to ignore."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.errors import NotFound
from mlops_build.finding import Finding
from mlops_build.service import Service
from mlops_build.verify import bamboo, disruption, enumerations, names, overlay, references, repeats, resources, schema, security, workloads
from mlops_build.verify.catalogue import RULES
from mlops_build.verify.document import File, Node, parse
from mlops_build.verify.document import Path as DataPath
from mlops_build.verify.world import Fault, Locate, Object, Part, World, mapping, text

# A family of rules: what each file is about stands in its docstring.
FAMILIES: tuple[Callable[[World], Iterator[Fault]], ...] = (
    names.check,
    enumerations.check,
    repeats.check,
    references.check,
    workloads.check,
    disruption.check,
    resources.check,
    security.check,
)
OVERLAYS, SPECS = "deploy/overlays", "bamboo-specs"
SUFFIXES = (".yaml", ".yml")
# Folders that hold no manifests, or templates that are YAML only once something has rendered them.
NOT_MANIFESTS = {".git", ".venv", ".dvc", "node_modules", "__pycache__", "vendor"}
MAX_FILES = 20_000


class NothingThere(NotFound):
    """No such file or folder."""


@dataclass
class Report:
    """What was looked at and what is wrong. findings are in order of file and line.

    ignored: findings that a comment or service.yaml takes as they are, each with the reason. notes: what could not be looked at, and why.
    """

    findings: list[Finding] = field(default_factory=list)
    ignored: list[tuple[Finding, str]] = field(default_factory=list)
    files: int = 0
    objects: int = 0
    notes: list[str] = field(default_factory=list)


def examine(path: Path, *, kubernetes: str | None = None) -> list[Finding]:
    """What is wrong with the manifests and Bamboo specs at `path`. Raises what `look` raises."""
    return look(path, kubernetes=kubernetes).findings


def look(path: Path, *, kubernetes: str | None = None, environments: Sequence[str] | None = None) -> Report:
    """Look at a service's root (every overlay as it renders, and bamboo-specs/), or at a folder or file of plain YAML as it is.

    kubernetes: the version whose schemas count, such as "1.31"; by default service.yaml's, else the newest there is. environments: only
    these of a service. Raises NothingThere, ServiceError for a service.yaml that is none, and UnknownVersion.
    """
    if not path.exists():
        raise NothingThere(f"{path} does not exist", remedy="name a service's folder, or a folder or file of YAML")
    if path.is_dir() and (path / service_file.FILE).is_file() and (path / OVERLAYS).is_dir():
        return _service(path, kubernetes, environments)
    return _plain(path, kubernetes)


# A service


def _service(root: Path, kubernetes: str | None, environments: Sequence[str] | None) -> Report:
    service = service_file.load(root, strict=False)
    version = kubernetes or service.verify.kubernetes
    report, gathered = Report(), _Gathered()
    settings = parse((root / service_file.FILE).read_text(encoding="utf-8", errors="replace"), service_file.FILE)
    gathered.files[settings.name] = settings
    gathered.faults += _environments(root, service, settings)
    folders = sorted(folder for folder in (root / OVERLAYS).iterdir() if overlay.kustomization(folder))
    chosen = [folder for folder in folders if environments is None or folder.name in environments]
    for folder in chosen:
        _overlay(root, folder, service, version, report, gathered)
    specs = [_parsed(found, root) for found in _yaml_files(root / SPECS)]
    gathered.files |= {file.name: file for file in specs}
    gathered.faults += [(fault, None) for fault in bamboo.check(bamboo.read(specs, closed=True))]
    return _finish(report, gathered, [folder.name for folder in chosen], service.verify.ignore, settings)


def _environments(root: Path, service: Service, settings: File) -> list[tuple[Fault, str | None]]:
    part = Part(settings.name, {}, _inside(settings, settings.documents[0]))
    return [
        (Fault("overlay-missing", part, ("environments", env), f"the environment {env} has no {OVERLAYS}/{env}/kustomization.yaml"), None)
        for env in service.environments
        if not overlay.kustomization(root / OVERLAYS / env)
    ]


def _overlay(root: Path, folder: Path, service: Service, version: str | None, report: Report, gathered: "_Gathered") -> None:
    """Render one overlay and ask every rule about it."""
    env = folder.name
    found = overlay.sources(folder, root)
    gathered.files |= found.files
    first = next(iter(found.files), f"{OVERLAYS}/{env}/kustomization.yaml")
    if found.remote:
        for file, line, address in found.remote:
            part = Part(f"overlay {env}", {}, _at(file, line))
            gathered.faults.append((Fault("overlay-remote", part, (), f"it takes {schema.shown(address)} from the network"), env))
        return
    try:
        rendered = overlay.render(folder)
    except overlay.NotRendered as error:
        if not any(file.troubles for file in found.files.values()):  # which say it better
            place = _named_in(str(error), found.files) or (first, 1)
            part = Part(f"overlay {env}", {}, _at(*place))
            gathered.faults.append((Fault("overlay-render", part, (), str(error).replace(str(root.resolve()) + os.sep, "")), env))
        return
    if rendered is None:
        report.notes.append(f"overlay {env} was not rendered: kubectl is not installed here, so its objects were not checked")
        return
    # Of two items with one name, kustomize's merge leaves one: what is listed twice can be seen in the sources only.
    gathered.faults += [(fault, env) for fault in repeats.check(World(overlay.written(found)))]
    objects = overlay.objects(rendered, found)
    report.objects += len(objects)
    world = World(objects, closed=True, service=service, env=env, released=_released(root, env))
    gathered.faults += [(fault, env) for fault in judge(world, version)]


def _at(file: str, line: int) -> Locate:
    """Always the same place."""
    return lambda _: (file, line)


def _inside(file: File, document: Node, start: DataPath = ()) -> Locate:
    """Places in a document of a file, for paths that begin at `start`."""
    return lambda path: (file.name, document.line_of((*start, *path))[0])


def _named_in(message: str, files: Mapping[str, File]) -> tuple[str, int] | None:
    """The source file that kustomize's message speaks of."""
    for name in files:
        if Path(name).name in message and Path(name).name not in overlay.NAMES:
            return name, 1
    return None


def _released(root: Path, env: str) -> bool:
    """Whether the environment's record names a model. Before the first release nothing runs, and much is not written yet."""
    try:
        record = parse((root / OVERLAYS / env / "release" / "record.yaml").read_text(encoding="utf-8", errors="replace"), "record.yaml")
    except OSError:
        return True
    return any(mapping(document.value).get("models") for document in record.documents)


def judge(world: World, version: str | None = None) -> Iterator[Fault]:
    """Every rule about Kubernetes objects, asked of one world."""
    for one in world.objects:
        yield from schema.check(one, version)
    for family in FAMILIES:
        yield from family(world)


# Plain files


def _plain(path: Path, kubernetes: str | None) -> Report:
    report, gathered = Report(), _Gathered()
    root = path if path.is_dir() else path.parent
    paths = _yaml_files(path) if path.is_dir() else [path]
    partial = _partial(paths)
    worlds: dict[Path, list[Object]] = {}
    specs: list[File] = []
    for found in paths:
        file = _parsed(found, root)
        gathered.files[file.name] = file
        if found.parent.name == SPECS or any(bamboo.looks_like(document.value) for document in file.documents):
            specs.append(file)
        elif found.resolve() not in partial:
            objects = list(_objects(file))
            gathered.faults += [(fault, None) for fault in _twice(objects)]
            worlds.setdefault(found.parent, []).extend(objects)
    for objects in worlds.values():
        report.objects += len(objects)
        gathered.faults += [(fault, None) for fault in judge(World(objects), kubernetes)]
    gathered.faults += [(fault, None) for fault in bamboo.check(bamboo.read(specs, closed=False))]
    return _finish(report, gathered, [], {}, None)


def _yaml_files(folder: Path) -> list[Path]:
    """The YAML files below a folder, in order. A Helm chart's are templates: left out, with everything below it."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        if "Chart.yaml" in files:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if name not in NOT_MANIFESTS)
        found += [Path(place) / name for name in sorted(files) if name.endswith(SUFFIXES)]
        if len(found) > MAX_FILES:
            break
    return found[:MAX_FILES]


def _partial(paths: Iterable[Path]) -> set[Path]:
    """Patches that a kustomization names: pieces of objects, not objects. Read from the kustomizations among the files."""
    found: set[Path] = set()
    for path in paths:
        if path.name in overlay.NAMES:
            document = next(iter(parse(path.read_text(encoding="utf-8", errors="replace"), path.name).documents), None)
            settings = mapping(document.value) if document else {}
            for key in ("patches", "patchesStrategicMerge", "patchesJson6902", "configurations", "transformers", "replacements"):
                listed = settings.get(key)
                for entry in listed if isinstance(listed, list) else []:
                    name = text(mapping(entry).get("path")) or text(entry)
                    if name and "\n" not in name and len(name) < 500:
                        found.add((path.parent / name).resolve())
    return found


def _objects(file: File) -> Iterator[Object]:
    """The Kubernetes objects of a file; the items of a List are objects of their own."""
    for document in file.documents:
        data = document.value
        if not isinstance(data, dict) or not (data.get("kind") and (data.get("apiVersion") or data.get("metadata"))):
            continue
        items = data.get("items")
        if text(data.get("kind")).endswith("List") and isinstance(items, list) and data.get("apiVersion") == "v1":
            for index, item in enumerate(items):
                if isinstance(item, dict):
                    yield Object(item, _inside(file, document, ("items", index)))
        elif not text(data.get("apiVersion")).startswith(("kustomize.config.k8s.io", "kustomize.toolkit")):
            yield Object(data, _inside(file, document))


def _twice(objects: Sequence[Object]) -> Iterator[Fault]:
    """An object that one file describes twice. Two files of a folder may be alternatives."""
    seen: dict[tuple[str, str, str, str], Object] = {}
    for one in objects:
        known = (one.group, one.kind, one.namespace, one.name)
        if one.name and known in seen:
            line = seen[known].where(("metadata", "name"))[1]
            yield Fault("duplicate-object", one, ("metadata", "name"), f"{one} is on line {line} of this file already")
        seen.setdefault(known, one)


def _parsed(path: Path, root: Path) -> File:
    name = path.relative_to(root).as_posix()
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= 4 * 16 * 2**20 else b"\n" * (16 * 2**20 + 1)
    except OSError as error:
        raise NothingThere(f"{path} cannot be read: {error.strerror}", remedy="give yourself the right to read it") from None
    return parse(content.decode("utf-8", errors="replace"), name)


# Faults become findings


@dataclass
class _Gathered:
    """Files and faults of one look, each fault with the environment whose overlay showed it."""

    files: dict[str, File] = field(default_factory=dict)
    faults: list[tuple[Fault, str | None]] = field(default_factory=list)


def _finish(report: Report, gathered: _Gathered, envs: Sequence[str], ignore: Mapping[str, str], settings: File | None) -> Report:
    """Findings in order: each once, however many overlays show it; without those that somebody ignores."""
    report.files = len(gathered.files)
    shown_in: dict[tuple[str, str, int, str, str, str], list[str]] = {}
    for fault, env in gathered.faults:
        file, line = fault.about.where(fault.path)
        key = (file, fault.rule, line, fault.why, fault.remedy or RULES[fault.rule].remedy, str(fault.about))
        shown_in.setdefault(key, []).append(env or "")
    findings = []
    for (file, rule, line, why, remedy, subject), seen in shown_in.items():
        # Said only where the others differ.
        only = ", ".join(dict.fromkeys(filter(None, seen)))
        where = f"{subject} in {only}" if only and 0 < len(set(seen)) < len(envs) else subject
        findings.append(Finding(where, rule, why, remedy, file, line))
    for file_ in gathered.files.values():
        findings += [
            Finding(file_.name, trouble.rule, trouble.why, RULES[trouble.rule].remedy, file_.name, trouble.line)
            for trouble in file_.troubles
        ]
    findings += _bad_ignores(gathered.files.values(), ignore, settings)
    comments = {(file.name, one.line, one.rule): one.why for file in gathered.files.values() for one in file.ignored if one.why}
    for finding in sorted(findings, key=lambda one: (one.file or "", one.line or 0, one.rule, one.why)):
        reason = comments.get((finding.file or "", finding.line or 0, finding.rule)) or ignore.get(finding.rule)
        if reason and finding.rule != "bad-ignore":
            report.ignored.append((finding, reason))
        else:
            report.findings.append(finding)
    return report


def _bad_ignores(files: Iterable[File], ignore: Mapping[str, str], settings: File | None) -> list[Finding]:
    found = []
    for file in files:
        for one in file.ignored:
            problem = (
                f"there is no rule {one.rule!r}"
                if one.rule not in RULES
                else None
                if one.why
                else f"{one.rule} is ignored, and no reason is given"
            )
            if problem:
                hint = (
                    schema.meant(one.rule, list(RULES)) or RULES["bad-ignore"].remedy
                    if one.rule not in RULES
                    else RULES["bad-ignore"].remedy
                )
                found.append(Finding(file.name, "bad-ignore", problem, hint, file.name, one.comment_line))
    for rule in ignore:
        if rule not in RULES and settings and settings.documents:
            line = settings.documents[0].line_of(("verify", "ignore", rule))[0]
            hint = schema.meant(rule, list(RULES)) or RULES["bad-ignore"].remedy
            found.append(Finding(settings.name, "bad-ignore", f"there is no rule {rule!r}", hint, settings.name, line))
    return found
