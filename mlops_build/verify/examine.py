"""From a path to findings. A service is checked as a whole, each overlay as it renders; anything else as plain files (plain.py)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.service import Service
from mlops_build.verify import contract, overlay, plain
from mlops_build.verify.document import parse, read
from mlops_build.verify.report import Collected, Report, finish, start
from mlops_build.verify.rules import check_objects, check_sources
from mlops_build.verify.specs import SpecChecker
from mlops_build.verify.world import Fault, Part, World, mapping, texts

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
    settings = parse(read(root / service_file.FILE), service_file.FILE)
    collected.files[settings.name] = settings
    part = Part(settings.name, {}, settings.locator(settings.documents[0]))
    collected.add(_environments(root, service, part))
    folders = sorted(folder for folder in (root / OVERLAYS).iterdir() if overlay.kustomization(folder))
    chosen = [folder for folder in folders if environments is None or folder.name in environments]
    worlds = [world for folder in chosen if (world := _overlay(root, folder, service, version, report, collected))]
    collected.add(_same_host(service, worlds, part))
    for checker in specs or ():
        files = [parse(read(path), path.relative_to(root).as_posix()) for path in plain.yaml_files(root / checker.folder)]
        collected.files |= {file.name: file for file in files}
        collected.add(checker.check(files, service))
    collected.faults += contract.check(root, [(folder.name, _record(root, folder.name)) for folder in chosen], report.notes)
    return finish(report, collected, [folder.name for folder in chosen], service.verify.ignore, settings)


def _environments(root: Path, service: Service, settings: Part) -> Iterator[Fault]:
    """Environments without an overlay. A copied overlay has the release of another environment, until the first release to its own."""
    with_overlay = [env for env in service.environments if overlay.kustomization(root / OVERLAYS / env)]
    for env in service.environments:
        if env not in with_overlay:
            why = f"the environment {env} has no {OVERLAYS}/{env}/kustomization.yaml"
            promotions = [f"mlops-build promote {model.name} VERSION --to {env}" for model in service.models]
            commands = ", ".join(f"`{command}`" for command in (*promotions, f"mlops-build release {env}"))
            copy = f"`cp -r {OVERLAYS}/{with_overlay[0]} {OVERLAYS}/{env}`, commit, and run {commands}" if with_overlay else None
            remedy = f"{copy}; or remove the environment" if copy else None
            yield Fault("overlay-missing", settings, ("environments", env), why, remedy)


def _same_host(service: Service, worlds: Sequence[World], settings: Part) -> Iterator[Fault]:
    """Two environments with one host: requests to it reach either of them."""
    first: dict[str, str] = {}
    for env, environment in service.environments.items():
        if first.setdefault(environment.host, env) != env:
            why = f"{env} has the host {environment.host}, which {first[environment.host]} has too"
            yield Fault("same-host", settings, ("environments", env, "host"), why)
    for world in worlds:
        for ingress in world.of("Ingress"):
            for path, host in texts(ingress.data, "spec", "rules", "*", "host"):
                env, own = world.env or "", world.environment
                if first.setdefault(host, env) != env and not (own and own.host == host):
                    yield Fault("same-host", ingress, path, f"it routes {host}, which {first[host]} has too")


def _overlay(root: Path, folder: Path, service: Service, version: str | None, report: Report, collected: Collected) -> World | None:
    """Render one overlay and check every rule; returns its objects, None if it cannot be rendered."""
    env = folder.name
    sources = overlay.read_sources(folder, root, collected.files)
    try:
        objects = overlay.rendered(folder, sources)
    except overlay.NotRendered as error:
        place = error.place
        if error.rule is None:
            report.notes.append(f"overlay {env} was not rendered: {error}, so its objects were not checked")
        elif not any(file.problems for file in sources.files.values()):  # these are more precise
            collected.add([Fault(error.rule, Part(f"overlay {env}", {}, lambda _: place), (), str(error))], env)
        return None
    report.objects += len(objects)
    report.rendered[env] = objects
    world = World(objects, service=service, env=env, released=_released(root, env))
    collected.add([*check_sources(sources), *check_objects(world, version)], env)
    return world


def _record(root: Path, env: str) -> Path:
    return root / OVERLAYS / env / "release" / "record.yaml"


def _released(root: Path, env: str) -> bool:
    """Whether the environment's record names a model. Before the first release nothing runs, and parts of the overlay are missing."""
    try:
        record = parse(read(_record(root, env)), "record.yaml")
    except OSError:
        return True
    return any(mapping(document.value).get("models") for document in record.documents)
