"""The image step of a release: `mlops-build ci image` for the second version of a model, in three ways.

    DOCKER_HOST=… .venv/bin/python benchmarks/release.py [HOST:PORT]     # --sizes, --ways, --rounds, --folder; MLOPS_TEST_IMAGE_REGISTRY

docker and buildah build and push the image (`image.assemble: false`); *assembled* adds layers in the image registry, which answers http on
this machine. The first version was released the same way, so all that can be cached is. Each way has its own service, repository and copy
of MLflow's database. Models are random bytes in a safetensors file beside small weights. With `--s3` (MLOPS_TEST_S3_ENDPOINT …) only
assembling is measured, with models in a bucket. A row that is measured again replaces that of the result. 4 GB need 50 GB of disk.
"""

import argparse
import json
import os
import random
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from release_usage import Usage, measure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mlops_build import service as service_file  # noqa: E402
from mlops_build.model import environment, identity  # noqa: E402
from mlops_build.model.version import ModelVersion  # noqa: E402
from mlops_build.packaging import assemble  # noqa: E402
from mlops_build.packaging.name import image_name  # noqa: E402
from mlops_build.release import record as records  # noqa: E402
from tests.packaging import world  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
BIN = Path(sys.executable).parent
MLOPS_BUILD = [sys.executable, "-m", "mlops_build"]
BASE = "python:3.11-slim"
SIZES = {"1 MB": 10**6, "500 MB": 500 * 10**6, "4 GB": 4 * 10**9}
WAYS = ("docker", "buildah", "assembled")
UNTAGGED = "assembled from S3, digests of layers unknown"
S3_WAYS = ("assembled from S3", UNTAGGED)
ALL, SMALL = "everything changed", "small weights changed"
BACKBONE = "artifacts/backbone.safetensors"
LIMIT = 1800.0
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class Way:
    """A service whose images are made in one way. known: the blobs of the images that it has in the registry."""

    name: str
    service: Path
    made: world.World
    repository: str
    environment: dict[str, str]
    temporary: Path
    storage: Path | None = None
    known: set[str] = field(default_factory=set)

    def release(self, number: int) -> str:
        """Release a version to staging, as the bridge does, and commit it; the image's tag."""
        settings = service_file.load(self.service)
        registered = self.made.registry.version("points", number)
        models = (ModelVersion("points", number, registered.tags[identity.DIGEST_TAG], registered.run_id),)
        record = records.Record("staging", models, world.COMMIT, image_name(settings, models))
        for name, text in records.render(record, settings).items():
            (self.service / records.folder("staging") / name).write_text(text)
        run("git", "add", "--all", where=self.service, env=self.environment)
        run("git", "commit", "--quiet", f"--message=Release {number}", where=self.service, env=self.environment)
        return str(record.image).rpartition(":")[2]

    def image(self, number: int) -> tuple[Usage, int]:
        """Release a version and make its image: what it took, and the bytes that the registry did not have."""
        tag = self.release(number)
        command, folders = [*MLOPS_BUILD, "ci", "image"], [self.service, self.temporary]
        uses = self.name == "docker"
        usage = measure(command, self.service, self.environment, folders, LIMIT, storage=self.storage, daemon=uses)
        manifest = get(self.repository, tag)
        document = json.loads(manifest)
        blobs = {blob["digest"]: blob["size"] for blob in [document["config"], *document["layers"]]}
        sent = len(manifest) + sum(size for digest, size in blobs.items() if digest not in self.known)
        self.known |= set(blobs)
        return usage, sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registry", nargs="?", default=os.environ.get("MLOPS_TEST_IMAGE_REGISTRY"))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3, help="of models up to 500 MB")
    parser.add_argument("--folder", type=Path, help="for the models, on a disk")
    parser.add_argument("--s3", action="store_true", help="only: assembled, with the models in a bucket")
    options = parser.parse_args()
    if not options.registry:
        parser.error("name the image registry")
    with tempfile.TemporaryDirectory(prefix="release-benchmark-", dir=options.folder) as scratch:
        folder = Path(scratch)
        made = prepared(folder / "world", s3=options.s3)
        for number, size in enumerate(options.sizes):
            versions = Versions(made, SIZES[size], options.rounds if SIZES[size] < 10**9 else 1)
            for name in S3_WAYS if options.s3 else options.ways:
                way = prepare(made, name, options.registry, folder / f"{name}-{number}")
                with cleaned(way):
                    for row in rows(way, versions, size):
                        keep(row)
            versions.delete()


def prepared(folder: Path, *, s3: bool) -> world.World:
    """A world with a lock that can be installed. s3: its artifacts are in a new bucket."""
    folder.mkdir()
    made = world.make(folder)
    (folder / "lock").mkdir()
    made.lock = environment.lock(sorted(made.wheels.iterdir()), folder / "lock")
    if s3:
        import boto3
        import mlflow

        endpoint, access, secret = (os.environ[f"MLOPS_TEST_S3_{name}"] for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
        os.environ |= {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "default"}
        os.environ |= {"MLFLOW_S3_ENDPOINT_URL": endpoint}
        bucket = f"release-benchmark-{secrets.token_hex(4)}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
        mlflow.MlflowClient(made.uri).create_experiment("points", f"s3://{bucket}/mlflow")
    return made


class Versions:
    """Registered versions of a size. first: released before. everything, small: second versions of both cases. changed: their new bytes."""

    def __init__(self, made: world.World, size: int, rounds: int) -> None:
        self._made = made
        self._first: dict[str, bytes] = {}
        self.changed: dict[int, int] = {}
        self.first = self._add(size, 0)
        self.everything = [self._add(size, number) for number in range(1, rounds + 1)]
        self.small = [self._add(size, 0) for _ in range(rounds)]

    def _add(self, size: int, seed: int) -> int:
        """Register a version with other weights than every other. seed: of its large file."""
        name = f"version-{secrets.token_hex(4)}"
        folder = self._made.files(name, weight=random.random())  # noqa: S311 # no secret
        small = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        write_backbone(folder / BACKBONE, size, seed)
        registered = self._made.register(folder)
        layers = assemble.layers_tag("points", folder)
        self._made.registry.set_tag("points", registered.version, identity.LAYERS, layers)
        self.changed[registered.version] = sum(len(content) for path, content in small.items() if content != self._first.get(path))
        self.changed[registered.version] += size if seed else 0
        self._first = self._first or small
        for made in (name, f"{name}-source"):
            shutil.rmtree(self._made.folder / made)
        return registered.version

    def delete(self) -> None:
        shutil.rmtree(self._made.folder / "artifacts", ignore_errors=True)  # there is none with a bucket


def write_backbone(path: Path, size: int, seed: int) -> None:
    """A safetensors file without tensors, and random bytes behind its header."""
    header = (8).to_bytes(8, "little") + b"{}      "
    content = random.Random(seed)  # noqa: S311 # the same in each run
    with path.open("wb") as file:
        file.write(header)
        for start in range(len(header), size, 1 << 20):
            file.write(content.randbytes(min(1 << 20, size - start)))


def prepare(made: world.World, name: str, host: str, folder: Path) -> Way:
    """A service in a new folder, which is a Git repository."""
    settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "MLOPS_BUILD_WHEELHOUSE")}
    settings |= {f"GIT_{role}_{key}": "bench@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    (folder / "temporary").mkdir(parents=True)
    copy = made.copy(folder / "mlflow.db")
    engine = "buildah" if name == "buildah" else "docker"
    settings |= {
        "MLFLOW_TRACKING_URI": copy.uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder / "temporary"),
    }
    settings |= {"MLOPS_BUILD_ENGINE": engine, "MLOPS_BUILD_DOCKER_ARGS": "--network host", "MLOPS_BUILD_BUILDAH_ARGS": "--network host"}
    service, repository = folder / "points", f"{host}/release-benchmark-{secrets.token_hex(4)}"
    answers = ("--data", "project_name=Points", "--data", "model_name=points", "--data", "example=none")
    run(
        str(BIN / "copier"),
        "copy",
        "--defaults",
        "--quiet",
        "--vcs-ref=HEAD",
        *answers,
        str(ROOT),
        str(service),
        where=folder,
        env=settings,
    )
    image = {"registry": repository, "base": BASE, "assemble": name not in ("docker", "buildah")}
    storage: Path | None = None
    if name == "docker":
        answer = run(*docker(), "info", "--format", "{{.DockerRootDir}}", where=folder, env=settings)
        storage = Path(answer.strip())
    if name == "buildah":
        image["base"] = f"{repository}/{BASE}"
        run(*docker(), "tag", BASE, image["base"], where=folder, env=settings)
        run(*docker(), "push", image["base"], where=folder, env=settings)
        run(*docker(), "image", "rm", "--no-prune", image["base"], where=folder, env=settings)
        storage = folder.parent / "buildah"  # also for the next size, so that the environment is built once
        lines = ["[storage]", 'driver = "overlay"', f'graphroot = "{storage}"', f'runroot = "{storage}-run"']
        (folder / "storage.conf").write_text("\n".join(lines) + "\n")
        (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
        settings |= {"CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf", "CONTAINERS_REGISTRIES_CONF": f"{folder}/registries.conf"}
        settings |= {"BUILDAH_ISOLATION": "chroot"}
    path = service / "service.yaml"
    path.write_text(
        yaml.safe_dump({**(document := yaml.safe_load(path.read_text())), "image": {**document["image"], **image}}, sort_keys=False)
    )
    run("git", "init", "--quiet", "--initial-branch=main", where=service, env=settings)
    return Way(name, service, copy, f"{repository}/points", settings, folder / "temporary", storage)


def rows(way: Way, versions: "Versions", size: str) -> Iterator[dict[str, Any]]:
    """Release the first version, then measure the second ones."""
    for number in (versions.first, *versions.everything, *versions.small):
        if way.name == UNTAGGED:
            way.made.registry.delete_tag("points", number, identity.LAYERS)
    way.image(versions.first)
    for case, numbers in ((ALL, versions.everything), (SMALL, versions.small)):
        if case == SMALL and way.name in ("docker", "buildah"):
            return
        load, start = os.getloadavg()[0], interpreter(way)
        usages, sent = zip(*(way.image(number) for number in numbers), strict=True)
        seconds = [round(usage.seconds, 2) for usage in usages]
        printed = [int(figure) for usage in usages for figure in re.findall(r"image: ([0-9]+) bytes sent", usage.output)]
        yield {
            "size": size,
            "way": way.name,
            "case": case,
            "seconds of each round": seconds,
            "seconds": statistics.median(seconds),
            "seconds beyond the start of mlops-build": round(statistics.median(seconds) - start, 2),
            "CPU seconds": round(statistics.median(usage.cpu for usage in usages), 2),
            "bytes sent": max(sent),
            "bytes sent, as printed": max(printed, default=None),
            "bytes of the changed files": max(versions.changed[number] for number in numbers),
            "memory, MiB": round(max(usage.memory for usage in usages) / 2**20),
            "memory of the daemons, MiB": round(max(usage.daemons for usage in usages) / 2**20),
            "disk, MB": round(max(usage.disk for usage in usages) / 10**6, 1),
            "load before and after": [round(load, 1), round(os.getloadavg()[0], 1)],
        }


def interpreter(way: Way) -> float:
    """Median seconds of `mlops-build --version`."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run(*MLOPS_BUILD, "--version", where=way.service, env=way.environment)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def keep(row: dict[str, Any]) -> None:
    """Print a row, and write it to the result with the ratios of all rows there."""
    print(json.dumps(row), flush=True)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    key = ("size", "way", "case")
    kept = [other for other in result["rows"] if any(other[name] != row[name] for name in key)]
    order = {name: number for number, name in enumerate([*SIZES, *WAYS, *S3_WAYS, ALL, SMALL])}
    kept = sorted([*kept, row], key=lambda entry: [order[entry[name]] for name in key])
    seconds = {(entry["size"], entry["way"]): entry["seconds"] for entry in kept if entry["case"] == ALL}
    ratios = {
        f"{size}: {way} / assembled": round(seconds[size, way] / seconds[size, "assembled"], 2)
        for size, way in seconds
        if way in ("docker", "buildah") and (size, "assembled") in seconds
    }
    RESULT.write_text(json.dumps({"rows": kept, "ratios": ratios}, indent=1) + "\n")


@contextmanager
def cleaned(way: Way) -> Iterator[None]:
    """Remove what a way leaves on this machine: its folder, and the images and the layers of models in the engine's cache."""
    before = cached(way)
    try:
        yield
    finally:
        unmount(way.storage if way.name == "buildah" else None)
    images = run(*docker(), "image", "ls", "--quiet", f"{way.repository}", where=way.service, env=way.environment).split()
    if images:
        run(*docker(), "image", "rm", "--force", *set(images), where=way.service, env=way.environment)
    for name in cached(way) - before:
        run(*docker(), "builder", "prune", "--force", "--all", "--filter", f"id={name}", where=way.service, env=way.environment)
    shutil.rmtree(way.service.parent)


def unmount(storage: Path | None) -> None:
    """buildah leaves layers mounted below its storage, which could not be removed."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed(mounts):
        if storage and Path(mount).is_relative_to(storage):
            subprocess.run(["umount", mount], check=True, timeout=60)


def cached(way: Way) -> set[str]:
    """The layers of code and model in BuildKit's cache, and its copies of contexts."""
    text = run(*docker(), "system", "df", "--verbose", "--format", "{{json .BuildCache}}", where=way.service, env=way.environment)
    entries = json.loads(text) or []
    return {entry["ID"].rstrip("*") for entry in entries if re.search(r"layers|local source for context|/model", entry["Description"])}


def get(repository: str, tag: str) -> bytes:
    host, _, name = repository.partition("/")
    request = urllib.request.Request(f"http://{host}/v2/{name}/manifests/{tag}", headers={"Accept": MANIFESTS})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def docker() -> list[str]:
    return [os.environ.get("DOCKER_CLI", "docker")]


def run(*command: str, where: Path, env: dict[str, str]) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


if __name__ == "__main__":
    main()
