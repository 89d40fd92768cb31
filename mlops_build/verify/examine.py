"""From a path to findings. A service is checked as a whole, each overlay as it renders; anything else as plain files (plain.py)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.service import Service
from mlops_build.verify import contract, overlay, plain, schema
from mlops_build.verify.document import File, parse
from mlops_build.verify.report import Collected, Report, finish, start
from mlops_build.verify.rules import check_objects, check_sources, fixed_location, locator, read_file
from mlops_build.verify.specs import SpecChecker
from mlops_build.verify.world import Fault, Part, World, mapping, mappings, text

OVERLAYS = "deploy/overlays"


def check(
    path: Path, *, kubernetes: str | None = None, environments: Sequence[str] | None = None, specs: Sequence[SpecChecker] | None = None
) -> Report:
    """Check a service's root (every overlay as it renders, and its CI specs), one of its overlays, or a folder or file of YAML.

    kubernetes: the version whose schemas are used, such as "1.31"; default: service.yaml's, else the newest known. environments: check only
    these of a service. specs: also check the specs of these CI systems. Raises NothingThere, UnknownVersion, and ServiceError if
    service.yaml is not valid.
    """
    if not path.exists():
        raise plain.NothingThere(f"{path} does not exist", remedy="name a service's folder, or a folder or file of YAML")
    if _is_service(path):
        return _service(path, kubernetes, environments, specs)
    root = path.resolve().parent.parent.parent
    if overlay.kustomization(path) and path.resolve().parent == root / OVERLAYS and _is_service(root):
        return _service(root, kubernetes, [path.resolve().name], None)
    return plain.check(path, kubernetes, specs)


def _is_service(path: Path) -> bool:
    return (path / service_file.FILE).is_file() and (path / OVERLAYS).is_dir()


def _service(root: Path, kubernetes: str | None, environments: Sequence[str] | None, specs: Sequence[SpecChecker] | None) -> Report:
    service = service_file.load(root, strict=False)
    version = kubernetes or service.verify.kubernetes
    report, collected = start(specs), Collected()
    settings = parse((root / service_file.FILE).read_text(encoding="utf-8", errors="replace"), service_file.FILE)
    collected.files[settings.name] = settings
    part = Part(settings.name, {}, locator(settings, settings.documents[0]))
    collected.faults += [(fault, None) for fault in _environments(root, service, part)]
    folders = sorted(folder for folder in (root / OVERLAYS).iterdir() if overlay.kustomization(folder))
    chosen = [folder for folder in folders if environments is None or folder.name in environments]
    worlds = [world for folder in chosen if (world := _overlay(root, folder, service, version, report, collected))]
    collected.faults += [(fault, None) for fault in _same_host(service, worlds, part)]
    for checker in specs or ():
        files = [read_file(path, root) for path in plain.yaml_files(root / checker.folder)]
        collected.files |= {file.name: file for file in files}
        collected.faults += [(fault, None) for fault in checker.check(files, service)]
    collected.faults += contract.check(root, [(folder.name, _record(root, folder.name)) for folder in chosen], report.notes)
    return finish(report, collected, [folder.name for folder in chosen], service.verify.ignore, settings)


def _environments(root: Path, service: Service, settings: Part) -> Iterator[Fault]:
    for env in service.environments:
        if not overlay.kustomization(root / OVERLAYS / env):
            why = f"the environment {env} has no {OVERLAYS}/{env}/kustomization.yaml"
            yield Fault("overlay-missing", settings, ("environments", env), why)


def _same_host(service: Service, worlds: Sequence[World], settings: Part) -> Iterator[Fault]:
    """Two environments with one host: requests to it reach either of them."""
    first: dict[str, str] = {}
    for env, environment in service.environments.items():
        if first.setdefault(environment.host, env) != env:
            why = f"{env} has the host {environment.host}, which {first[environment.host]} has too"
            yield Fault("same-host", settings, ("environments", env, "host"), why)
    for world in worlds:
        for ingress in world.of("Ingress"):
            for index, rule in enumerate(mappings(ingress.spec.get("rules"))):
                host, env = text(rule.get("host")), world.env or ""
                if host and first.setdefault(host, env) != env and host != service.environments[env].host:
                    why = f"it routes {host}, which {first[host]} has too"
                    yield Fault("same-host", ingress, ("spec", "rules", index, "host"), why)


def _overlay(root: Path, folder: Path, service: Service, version: str | None, report: Report, collected: Collected) -> World | None:
    """Render one overlay and check every rule; returns its objects, None if it cannot be rendered."""
    env = folder.name
    sources = overlay.read_sources(folder, root)
    collected.files |= sources.files
    first = next(iter(sources.files), f"{OVERLAYS}/{env}/kustomization.yaml")
    if sources.remote:
        for file, line, address in sources.remote:
            part = Part(f"overlay {env}", {}, fixed_location(file, line))
            collected.faults.append((Fault("overlay-remote", part, (), f"it loads {schema.display(address)} from the network"), env))
        return None
    if any(problem.rule == "too-large" for file in sources.files.values() for problem in file.problems):
        return None  # reported already; kustomize would expand the aliases until its timeout
    try:
        rendered = overlay.render(folder)
    except overlay.NotRendered as error:
        if not any(file.problems for file in sources.files.values()):  # these are more precise
            file, line = _named_in(str(error), sources.files) or (first, 1)
            part = Part(f"overlay {env}", {}, fixed_location(file, line))
            collected.faults.append((Fault("overlay-render", part, (), str(error).replace(str(root.resolve()) + os.sep, "")), env))
        return None
    if rendered is None:
        report.notes.append(f"overlay {env} was not rendered: kubectl is not installed, so its objects were not checked")
        return None
    collected.faults += [(fault, env) for fault in check_sources(sources)]
    objects = overlay.objects(rendered, sources)
    report.objects += len(objects)
    report.rendered[env] = objects
    world = World(objects, rendered=True, service=service, env=env, released=_released(root, env))
    collected.faults += [(fault, env) for fault in check_objects(world, version)]
    return world


def _named_in(message: str, files: Mapping[str, File]) -> tuple[str, int] | None:
    """The source file that kustomize's message names."""
    for name in files:
        if Path(name).name in message and Path(name).name not in overlay.NAMES:
            return name, 1
    return None


def _record(root: Path, env: str) -> Path:
    return root / OVERLAYS / env / "release" / "record.yaml"


def _released(root: Path, env: str) -> bool:
    """Whether the environment's record names a model. Before the first release nothing runs, and parts of the overlay are missing."""
    try:
        record = parse(_record(root, env).read_text(encoding="utf-8", errors="replace"), "record.yaml")
    except OSError:
        return True
    return any(mapping(document.value).get("models") for document in record.documents)
