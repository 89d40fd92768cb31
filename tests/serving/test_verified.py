"""What `mlops-build serve` runs is what was registered: a changed context is refused, and its code does not run."""

import importlib
import json
import shutil
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from mlops_build.errors import Refused
from mlops_build.model import files
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.context import Source, write_context
from mlops_build.packaging.recipe import Recipe
from mlops_build.serving.load import Unsafe, from_folder, from_registry, load
from tests.packaging.world import World
from tests.serving.conftest import serving

WHEEL = "points-0.1.0-py3-none-any.whl"
OWN = f"models/points/environment/wheels/{WHEEL}"


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that exists after the code of `altered` has run."""
    return tmp_path / "ran"


@pytest.fixture
def altered(context: Path, ran: Path, tmp_path: Path) -> Path:
    """The service's wheel with another line of code in it."""
    wheel = tmp_path / "altered.whl"
    with zipfile.ZipFile(context / OWN) as source, zipfile.ZipFile(wheel, "w") as target:
        for name in source.namelist():
            more = f"open({str(ran)!r}, 'w')\n".encode() if name.endswith("__init__.py") else b""
            target.writestr(name, more + source.read(name))
    return wheel


@pytest.fixture
def copy(context: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(context, tmp_path / "context"))


@pytest.fixture
def imports() -> Iterator[None]:
    """Forgets the service's package, which another test of this process may have imported."""
    path, loaded = [*sys.path], {name for name in sys.modules if name.partition(".")[0] == "points_service"}
    for name in loaded:
        del sys.modules[name]
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "points_service"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def replace(path: str) -> Callable[[Path, Path], object]:
    return lambda context, altered: shutil.copyfile(altered, context / path)


def link(path: str) -> Callable[[Path, Path], object]:
    """Replace a file or folder by a link to its changed copy."""

    def change(context: Path, altered: Path) -> None:
        place = context / path
        elsewhere = Path(shutil.move(place, altered.with_name("elsewhere")))
        wheel = next(elsewhere.rglob(WHEEL), elsewhere)
        shutil.copyfile(altered, wheel)
        place.symlink_to(elsewhere)

    return change


@pytest.mark.parametrize(
    "change",
    [
        replace(OWN), replace("models/points/environment/wheels/zzz-1.0-py3-none-any.whl"), link(OWN), link("models/points"),
        lambda context, _: (context / OWN).unlink(),
    ],
    ids=range(5),
)  # fmt: skip
@pytest.mark.usefixtures("imports")
def test_other_code_than_the_registered_is_refused_and_does_not_run(
    copy: Path, altered: Path, ran: Path, change: Callable[[Path, Path], object]
) -> None:
    change(copy, altered)
    with pytest.raises(Refused) as caught:
        load(from_folder(copy, lambda _: None))
    assert str(copy) in caught.value.message
    assert not ran.exists()


@pytest.mark.usefixtures("imports")
def test_the_code_comes_from_the_verified_files(copy: Path, altered: Path, ran: Path) -> None:
    """The other copy, unpacked, is for the image's build alone."""
    with zipfile.ZipFile(altered) as wheel:
        wheel.extractall(copy / "code")
    load(from_folder(copy, lambda _: None))
    assert not ran.exists()
    assert str(copy / OWN) in str(sys.modules["points_service"].__file__)


@pytest.mark.usefixtures("imports")
def test_installed_code_is_used_in_an_image(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image has no code beside the models, but in a folder that Python reads."""
    shutil.rmtree(copy / "code")
    with zipfile.ZipFile(copy / OWN) as wheel:
        wheel.extractall(tmp_path / "code")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    load(from_folder(copy, lambda _: None))
    assert sys.modules["points_service"].__file__ == str(tmp_path / "code/points_service/__init__.py")


@pytest.mark.slow
def test_a_model_of_plain_mlflow_is_served_for_a_reason(tmp_path: Path) -> None:
    """mlflow.pytorch with serialization_format="pickle" stores the whole network as a pickle."""
    network, rows = torch.nn.Linear(2, 1), np.array([[1.0, 2.0]], dtype="float32")
    expected = network(torch.from_numpy(rows)).detach().numpy()
    signature = mlflow.models.infer_signature(rows, expected)
    saving = {"signature": signature, "serialization_format": "pickle", "pip_requirements": ["mlflow"]}
    mlflow.pytorch.save_model(network, str(tmp_path / "net"), **saving)
    with pytest.raises(Unsafe, match="unsafe-import") as caught:
        from_folder(tmp_path / "net", lambda _: None)
    assert "--unsafe-pickle" in str(caught.value.remedy)
    reason = {"MLOPS_SERVE_UNSAFE_PICKLE": "the team made it"}
    with serving(tmp_path / "serve", str(tmp_path / "net"), **reason) as server:
        request = urllib.request.Request(f"{server.url}/invocations", json.dumps({"inputs": rows.tolist()}).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            np.testing.assert_allclose(json.loads(answer.read())["predictions"], expected, rtol=1e-6)
        assert "are accepted (unsafe_pickle): the team made it" in server.log.read_text()


def test_a_reason_accepts_pickles_of_a_version_and_no_other_finding(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    folder = Path(shutil.copytree(world.folder / "one", tmp_path / "version"))
    (folder / "scaler.pkl").write_bytes(b"\x80\x04N.")
    (folder / "broken.pt").write_bytes(b"PK and no zip file")
    world.register(folder, "partly")
    (folder / "broken.pt").unlink()
    world.register(folder, "partly")
    with pytest.raises(Unsafe, match=r"broken\.pt") as caught:
        from_registry("models:/partly/1", tmp_path / "first", "the team made it")
    assert "scaler.pkl" not in caught.value.message
    assert from_registry("models:/partly/2", tmp_path / "second", "the team made it").unsafe_pickle == "the team made it"


def test_a_context_has_the_reason_with_which_it_was_made(world: World, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world.folder / "one", tmp_path / "version"))
    (folder / "scaler.pkl").write_bytes(b"\x80\x04N.")
    source = Source(ModelVersion("points", 1, files.digest(folder)), lambda place: shutil.copytree(folder, place))
    write_context(Recipe("points", "python:3.11-slim", unsafe_pickle="the team made it"), None, [source], tmp_path / "context")
    assert from_folder(tmp_path / "context", lambda _: None).unsafe_pickle == "the team made it"


def test_a_context_of_an_earlier_release_that_loads_other_files_is_refused(copy: Path, altered: Path, ran: Path) -> None:
    """Until 0.6 `package` did not look at the paths in MLmodel."""
    folder = copy / "models/points"
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("    model_code_path:", "    code: ../../../altered\n    model_code_path:"))
    document = json.loads((copy / "context.json").read_text())
    document["models"][0]["digest"] = files.digest(folder)
    (copy / "context.json").write_text(json.dumps(document))
    with pytest.raises(Unsafe, match=r"code is '../../../altered', which is outside"):
        from_folder(copy, lambda _: None)
