"""The environment of a model version: a lock with hashes, and the wheels stored beside it.

torch is never in the lock: its CPU build, its CUDA build and a wheel on disk have different hashes, so a line with a hash would match
only one of them. Its version is recorded, and the image installs that version in a separate step (docs/explanation/installing.md).
"""

import base64
import hashlib
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlops_build.adapters import installer
from mlops_build.errors import Failed, NotFound, Refused, Unreachable

# The modification time of each file in a wheel: a fixed value, the earliest that a zip file can express.
EPOCH = (1980, 1, 1, 0, 0, 0)


class LockFailed(Failed):
    """The resolver found no set of versions, or the service's requirements are not valid."""


class IndexUnreachable(Unreachable):
    """The package index does not answer."""


def torch_version() -> str:
    """The installed torch's release, without the local part that names the build: "2.13.0"."""
    return metadata.version("torch").partition("+")[0]


def python_version() -> str:
    """The running interpreter's "MAJOR.MINOR"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def lock(wheels: Sequence[Path], folder: Path) -> str:
    """Resolve the dependencies for *serving* these wheels to exact versions with hashes, without torch and without the wheels themselves.

    The versions are those of the running environment, which trained the model. folder: scratch space. Raises LockFailed, and
    IndexUnreachable if the package index does not answer.
    """
    lines = [f"{_requirement(wheel)} @ {wheel.resolve().as_uri()}" for wheel in wheels]
    requirements, constraints = folder / "requirements.in", folder / "constraints.txt"
    requirements.write_text("\n".join(lines) + "\n")
    left_out = ["torch", *(_requirement(wheel).partition("[")[0] for wheel in wheels)]
    constraints.write_text("\n".join(_installed(without=left_out[1:])) + "\n")
    # The requirements of torch's CPU build. With those of the index's build, the CUDA packages would enter the lock.
    metadata_of_torch = f"[[tool.uv.dependency-metadata]]\nname = 'torch'\nrequires-dist = {_torch_requires()!r}\n"
    (folder / "pyproject.toml").write_text(f"[project]\nname = 'lock'\nversion = '0'\n\n{metadata_of_torch}")
    options = ["--generate-hashes", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    options += ["--python-platform", "linux", "--python-version", python_version()]
    options += [f"--no-emit-package={name}" for name in left_out]
    done = installer.resolve([str(requirements), "--constraint", str(constraints), *options], folder=folder)
    if done.code:
        output = done.message
        if re.search(r"error sending request|Failed to fetch|dns error|Connection|timed out", output):
            raise IndexUnreachable(
                f"the package index does not answer, so the model's environment cannot be locked:\n{output[-800:]}",
                remedy="set PIP_INDEX_URL (or UV_DEFAULT_INDEX) to your index, then run this again: it continues where it stopped",
            )
        raise LockFailed(
            f"the model's environment cannot be locked:\n{output[-1500:]}",
            remedy="fix [project].dependencies in pyproject.toml, then run this again",
        )
    return resolved_lines(done.text)


def resolved_lines(text: str) -> str:
    """A lock without comments and blank lines, with one final newline: the same resolution gives the same bytes."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def project_wheel(source: Path, destination: Path) -> Path:
    """Build the wheel of the hatchling project at `source` into `destination`. The same files give the same bytes. Raises Failed."""
    destination.mkdir(parents=True, exist_ok=True)
    before = set(destination.glob("*.whl"))
    done = installer.build_wheel(source, destination)
    built = sorted(set(destination.glob("*.whl")) - before)
    if done.code or len(built) != 1:
        output = done.message or done.text.strip()
        raise Failed(
            f"the wheel of {source} could not be built:\n{output[-1500:]}",
            remedy="fix pyproject.toml; test it with `python -m hatchling build -t wheel`",
        )
    return built[0]


def image_files(tree: Path, names: Sequence[str], destination: Path) -> None:
    """Copy the named files and folders of a tree into `destination`, which the image will contain. Does nothing without names.

    Raises NotFound for a name that does not exist, and Refused for a symbolic link or a special file: its target is not in the tree.
    """
    for name in sorted(set(names)):
        source, where = tree / name, f"image.files in service.yaml names {name}"
        if not source.exists():
            raise NotFound(f"{where}, which is not in the commit", remedy="commit it (git add), or remove it from image.files")
        parents = [parent for parent in source.relative_to(tree).parents if parent != Path()]
        inside = [source, *(tree / parent for parent in parents), *(source.rglob("*") if source.is_dir() else ())]
        special = next((path for path in inside if path.is_symlink() or not (path.is_file() or path.is_dir())), None)
        if special is not None:
            raise Refused(f"{where}, and {special.relative_to(tree)} is not a plain file", remedy="replace it with a copy of its target")
        for path in (path for path in inside if path.is_file()):
            copy = destination / path.relative_to(tree)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def mlops_build_wheel(destination: Path) -> Path:
    """Write the wheel of the running mlops-build into `destination`. Uses no network.

    An editable installation is built from its source; any other wheel is assembled from the installed files.
    """
    installed = metadata.distribution("mlops-build")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return project_wheel(Path(unquote(urlparse(origin["url"]).path)), destination)
    return _repacked(installed, destination)


def _repacked(installed: metadata.Distribution, destination: Path) -> Path:
    destination.mkdir(parents=True, exist_ok=True)
    wheel = destination / f"mlops_build-{installed.version}-py3-none-any.whl"
    # Files that the installer wrote and that are not part of the wheel. Installers create scripts from entry_points.txt.
    added = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json", "uv_build.json"}
    files = [
        file
        for file in sorted(installed.files or [], key=str)
        if ".." not in file.parts and file.suffix != ".pyc" and not (file.parts[0].endswith(".dist-info") and file.name in added)
    ]
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            content = Path(str(file.locate())).read_bytes()
            hashed = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{file},sha256={hashed},{len(content)}")
            archive.writestr(zipfile.ZipInfo(str(file), EPOCH), content)
        name = f"mlops_build-{installed.version}.dist-info/RECORD"
        archive.writestr(zipfile.ZipInfo(name, EPOCH), "\n".join([*record, f"{name},,"]) + "\n")
    return wheel


def _requirement(wheel: Path) -> str:
    """The requirement for a wheel; mlops-build's has the extra `serve`."""
    name = wheel.name.partition("-")[0].replace("_", "-").lower()
    return "mlops-build[serve]" if name == "mlops-build" else name


def _installed(without: Sequence[str]) -> list[str]:
    """Every installed distribution with its exact version; torch without its local part, since no index has a local build.

    without: names whose version is that of a wheel. An editable installation keeps its version when pyproject.toml gets a new one.
    """
    distributions = [dist.metadata for dist in metadata.distributions()]  # parsed at each access
    versions = {dist["Name"].lower(): dist["Version"].partition("+")[0] for dist in distributions if dist["Name"]}
    return sorted(f"{name}=={version}" for name, version in versions.items() if name.replace("_", "-") not in without)


def _torch_requires() -> list[str]:
    requires = metadata.distribution("torch").requires or []
    return [line for line in requires if "extra ==" not in line and not re.match(r"(nvidia|cuda|triton)", line)]
