"""What `mlops-build serve` runs is what was registered: a changed context is refused, and its code does not run."""

import importlib
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_build.errors import Refused
from mlops_build.serving.load import from_folder, load

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
    with zipfile.ZipFile(context / "wheels" / WHEEL) as source, zipfile.ZipFile(wheel, "w") as target:
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


def replace(context: Path, altered: Path) -> None:
    shutil.copyfile(altered, context / "wheels" / WHEEL)


def add(context: Path, altered: Path) -> None:
    shutil.copyfile(altered, context / "wheels/zzz-1.0-py3-none-any.whl")


def link_the_wheel(context: Path, altered: Path) -> None:
    (context / "wheels" / WHEEL).unlink()
    (context / "wheels" / WHEEL).symlink_to(altered)


def link_the_folder(context: Path, altered: Path) -> None:
    shutil.rmtree(context / "wheels")
    folder = altered.with_name("elsewhere")
    folder.mkdir()
    shutil.copyfile(altered, folder / WHEEL)
    (context / "wheels").symlink_to(folder)


def replace_the_registered_wheel(context: Path, altered: Path) -> None:
    shutil.copyfile(altered, context / OWN)


def link_the_registered_wheel(context: Path, altered: Path) -> None:
    (context / OWN).unlink()
    (context / OWN).symlink_to(altered)


def link_the_model(context: Path, altered: Path) -> None:
    folder = Path(shutil.move(context / "models/points", altered.with_name("elsewhere")))
    shutil.copyfile(altered, folder / "environment/wheels" / WHEEL)
    (context / "models/points").symlink_to(folder)


def remove_the_registered_wheel(context: Path, altered: Path) -> None:
    (context / OWN).unlink()


@pytest.mark.parametrize(
    "change",
    [
        replace,
        add,
        link_the_wheel,
        link_the_folder,
        replace_the_registered_wheel,
        link_the_registered_wheel,
        link_the_model,
        remove_the_registered_wheel,
    ],
)
@pytest.mark.usefixtures("imports")
def test_other_code_than_the_registered_is_refused_and_does_not_run(
    copy: Path, altered: Path, ran: Path, change: Callable[[Path, Path], None]
) -> None:
    change(copy, altered)
    with pytest.raises(Refused) as caught:
        load(from_folder(copy, lambda _: None))
    assert str(copy) in caught.value.message
    assert not ran.exists()


@pytest.mark.usefixtures("imports")
def test_the_code_comes_from_the_verified_files(copy: Path, altered: Path, ran: Path) -> None:
    """Also if the other copy, which only the image's build needs, changes after the check."""
    checked = from_folder(copy, lambda _: None)
    replace(copy, altered)
    load(checked)
    assert not ran.exists()
    assert str(copy / OWN) in str(sys.modules["points_service"].__file__)


@pytest.mark.usefixtures("imports")
def test_installed_code_is_used_in_an_image(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image has no wheels beside the models: its code is unpacked, so that it can read files beside itself."""
    shutil.rmtree(copy / "wheels")
    with zipfile.ZipFile(copy / OWN) as wheel:
        wheel.extractall(tmp_path / "code")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    load(from_folder(copy, lambda _: None))
    assert sys.modules["points_service"].__file__ == str(tmp_path / "code/points_service/__init__.py")
