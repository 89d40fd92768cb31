"""A service of any release and this bridge: the service's own `ci image` accepts the image's name in the record."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.name import BY_REQUEST, image_name, is_valid
from mlops_build.release import record as records
from mlops_build.release.record import Record
from mlops_build.scaffold.source import releases
from mlops_build.service import pin as pins
from mlops_build.service.pin import Pin
from tests.conftest import ROOT

RELEASES = {Pin(*map(int, version.split(".")[:2])): commit for version, commit in releases((ROOT / "CHANGELOG.md").read_text()).items()}
MODELS = (ModelVersion("digits", 3, f"sha256:{'1' * 64}", "1" * 32), ModelVersion("letters", 1, f"sha256:{'2' * 64}", "2" * 32))
# The check of names with which `ci image` starts, by the code of that release.
CHECK = """
import json, sys
from pathlib import Path
from mlops_build import __file__, service
from mlops_build.ci.image import _named
from mlops_build.errors import Refused
assert Path(__file__).is_relative_to(sys.argv[1]), __file__
try:
    print(json.dumps([image.image for image in _named(Path("."), service.load(Path(".")))]))
except Refused as error:
    print(json.dumps(type(error).__name__))
"""


@pytest.mark.parametrize(
    "release",
    # The first and the last release with each formula; the others in `make soak`.
    [
        pytest.param(pin, id=str(pin), marks=pytest.mark.slow if pin in (Pin(0, 3), Pin(0, 8)) else pytest.mark.soak)
        for pin in RELEASES
        if pin < BY_REQUEST
    ],
)
@pytest.mark.usefixtures("template")  # copier reads nobody's settings
def test_the_services_own_ci_accepts_the_name_of_this_bridge(release: Pin, tmp_path: Path) -> None:
    from copier import run_copy

    done = subprocess.run(["git", "-C", str(ROOT), "archive", RELEASES[release]], capture_output=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"the commit of release {release} is not in this clone's history: git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    root = tmp_path / "digits"
    run_copy(str(tmp_path / "old"), root, data={"project_name": "Digits", "monitoring": "none"}, defaults=True, quiet=True)
    assert pins.at(root) == release
    path = root / service_file.FILE
    rendered = path.read_text()
    changed = rendered.replace("apt: []", "apt: [libgomp1, curl, curl]").replace("port: 8080", "port: 9000")
    changed = changed.replace("mode: none", "mode: shared").replace("-slim\n", f"-slim@sha256:{'d' * 64}\n")
    texts = [rendered, changed]
    if release >= Pin(0, 4):
        texts.append(changed.replace("  apt:", "  cuda: base\n  secrets: [netrc, index-url]\n  apt:"))
    assert len(set(texts)) == len(texts)
    for text in texts:
        path.write_text(text)
        service = service_file.load(root, strict=False)
        for models in (MODELS[:1], MODELS):
            name = image_name(service, models, pin=release)
            assert names_by(tmp_path / "old", root, models, name) == [name]
            assert is_valid(name, service, models, release)
            assert is_valid(name, service, models)
            # A service that requires a newer release has another name, which this one would refuse.
            newer = image_name(service, models)
            assert names_by(tmp_path / "old", root, models, newer) == "OtherName"
            assert not is_valid(newer, service, models, release)


def names_by(package: Path, root: Path, models: tuple[ModelVersion, ...], name: str) -> object:
    """What the check of a release says about this bridge's record with `name` in the service `root`."""
    record = Record("staging", models, "3" * 40, name)
    for file, content in records.paths("staging", records.render(record, service_file.load(root, strict=False))).items():
        (root / file).write_bytes(content)
    command = [sys.executable, "-c", CHECK, str(package)]
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(package)}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
