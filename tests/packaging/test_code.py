"""Wheels become /opt/code: the same bytes everywhere, and nothing of a hostile wheel outside the folder."""

import base64
import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_build.model.version import BadVersion
from mlops_build.packaging import code
from mlops_build.packaging.code import unpack
from tests.packaging.world import World

NAME = "points-0.1.0-py3-none-any.whl"
INFO = "points-0.1.0.dist-info"
GOOD: dict[str, bytes] = {
    "points_service/__init__.py": b"",
    f"{INFO}/METADATA": b"Metadata-Version: 2.4\nName: points\nVersion: 0.1.0\n",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
ENTRIES = f"{INFO}/entry_points.txt"


def entry(name: str, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    made.external_attr, made.compress_type = mode << 16, method
    return made


def record(members: Mapping[str, bytes], info: str = INFO) -> bytes:
    hashes = {name: base64.urlsafe_b64encode(hashlib.sha256(text).digest()).decode().rstrip("=") for name, text in members.items()}
    lines = [f'"{name}",sha256={hashes[name]},{len(text)}' for name, text in members.items() if not name.endswith("/")]
    return "\n".join([*lines, f"{info}/RECORD,,"]).encode()


def wheel(folder: Path, more: Mapping[str, bytes] | None = None, *, name: str = NAME, **special: object) -> Path:
    """A wheel with `more` in it. entries: name → ZipInfo. record: other content of RECORD. info, package: names of folders."""
    info, package = str(special.get("info", INFO)), str(special.get("package", "points_service"))
    members = {path.replace(INFO, info).replace("points_service", package): text for path, text in {**GOOD, **(more or {})}.items()}
    entries: Mapping[str, zipfile.ZipInfo] = special.get("entries", {})  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, text in members.items():
            archive.writestr(entries.get(path, entry(path)), text)
        archive.writestr(entry(f"{info}/RECORD"), special.get("record", record(members, info)))  # type: ignore[arg-type]
    return folder / name


def tree(folder: Path) -> dict[str, tuple[bool, bytes]]:
    """Each file: whether its owner may execute it, and its content."""
    return {
        path.relative_to(folder).as_posix(): (bool(path.stat().st_mode & stat.S_IXUSR), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(wheels: list[Path], folder: Path) -> str:
    """The message with which these are refused. Nothing may lie beside the folder of the code afterwards, nor may a link lie in it."""
    target = folder / "inside/code"
    before = {path for path in folder.rglob("*") if target not in path.parents}
    with pytest.raises(BadVersion) as caught:
        unpack(wheels, target)
    assert {path for path in folder.rglob("*") if target not in path.parents} - before <= {target.parent, target}
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert caught.value.remedy
    assert str(folder) not in caught.value.message
    return caught.value.message


def test_the_real_wheels_are_laid_out_as_an_installer_does_it(world: World, tmp_path: Path) -> None:
    wheels = sorted(world.wheels.iterdir())
    unpack(wheels, tmp_path / "code")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(tmp_path / "uv")]
    subprocess.run([*command, *map(str, wheels)], check=True, capture_output=True, timeout=120)
    ours, theirs = tree(tmp_path / "code"), tree(tmp_path / "uv")
    of_uv = {".lock", "REQUESTED", "direct_url.json", "uv_cache.json"}
    assert set(ours) == {name for name in theirs if name.rpartition("/")[2] not in of_uv}
    other = {name for name in ours if ours[name] != theirs[name]}
    assert {name.rpartition("/")[2] for name in other} == {"INSTALLER", "RECORD", "mlops-build"}
    assert ours["bin/mlops-build"][0]
    assert ours["bin/mlops-build"][1].startswith(b"#!/opt/venv/bin/python\n")
    assert {name for name, (executable, _) in ours.items() if executable} == {"bin/mlops-build"}
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in ours)


def test_the_unpacked_code_runs_and_is_known_to_importlib(world: World, tmp_path: Path) -> None:
    unpack(list(world.wheels.iterdir()), tmp_path / "code")
    text = "import points_service; from importlib.metadata import files; print(all(file.locate().is_file() for file in files('points')))"
    run = {"env": {"PYTHONPATH": str(tmp_path / "code")}, "check": True, "capture_output": True, "text": True, "timeout": 120}
    assert subprocess.run([sys.executable, "-B", "-c", text], **run).stdout == "True\n"  # type: ignore[call-overload]
    script = [sys.executable, "-B", str(tmp_path / "code/bin/mlops-build"), "--version"]
    assert subprocess.run(script, **run).stdout.startswith("mlops-build ")  # type: ignore[call-overload]


def test_the_record_has_the_hash_of_every_file(world: World, tmp_path: Path) -> None:
    unpack(list(world.wheels.iterdir()), tmp_path / "code")
    written = tree(tmp_path / "code")
    listed = {}
    for path in (tmp_path / "code").glob("*.dist-info/RECORD"):
        for line in path.read_text().splitlines():
            name, digest, size = line.rsplit(",", 2)
            listed[name] = (digest, size)
    assert set(listed) == set(written)
    for name, (_, text) in written.items():
        if not name.endswith("/RECORD"):
            hashed = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).decode().rstrip("=")
            assert listed[name] == (f"sha256={hashed}", str(len(text)))


def test_the_same_wheels_are_the_same_bytes(tmp_path: Path) -> None:
    more = {
        ENTRIES: b"[console_scripts]\npoints = points_service.cli:main.run\n[gui_scripts]\nwindow = points:show [extra]\n[z]\na = b\n",
        "points_service/run.sh": b"#!/bin/sh\n",
        "points_service/__pycache__/a.cpython-311.pyc": b"old",
        "points-0.1.0.data/scripts/tool": b"#!python -E\nprint()\n",
        "points-0.1.0.data/scripts/plain": b"#!/bin/sh\n",
        "points-0.1.0.data/platlib/points_service/native.so": b"\x7fELF",
        "points_service/données/": b"",
        "points_service/données/a b.txt": b"x",
    }
    made = wheel(tmp_path, more, entries={"points_service/run.sh": entry("points_service/run.sh", stat.S_IFREG | 0o775)})
    unpack([made], tmp_path / "first")
    before = os.umask(0o077)
    try:
        unpack([made], tmp_path / "second")
    finally:
        os.umask(before)
    found = tree(tmp_path / "first")
    assert found == tree(tmp_path / "second")
    assert {name for name, (executable, _) in found.items() if executable} == {
        "points_service/run.sh",
        *(f"bin/{n}" for n in ("points", "window", "tool", "plain")),
    }
    assert found["bin/points"][1] == (
        b"#!/opt/venv/bin/python\n# -*- coding: utf-8 -*-\nimport re\nimport sys\nfrom points_service.cli import main\n"
        b'if __name__ == "__main__":\n    sys.argv[0] = re.sub(r"(-script\\.pyw|\\.exe)?$", "", sys.argv[0])\n    sys.exit(main.run())\n'
    )
    assert found["bin/tool"][1] == b"#!/opt/venv/bin/python\nprint()\n"
    assert found["bin/plain"][1] == b"#!/bin/sh\n"
    assert "points_service/native.so" in found
    assert "points_service/données/a b.txt" in found
    assert not any("__pycache__" in name for name in found)


DATA = "points-0.1.0.data"
HOSTILE: list[tuple[Callable[[Path], Path], str]] = [
    (lambda folder: wheel(folder, {"../evil.py": b"x"}), "'../evil.py' is not a plain relative path"),
    (lambda folder: wheel(folder, {"points_service/../../../evil.py": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"/tmp/evil.py": b"x"}), "'/tmp/evil.py' is not a plain relative path"),
    (lambda folder: wheel(folder, {"a\\..\\evil.py": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"C:\\evil.py": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"a//evil.py": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"./evil.py": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"../evil/": b""}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"a\nb.py": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"a" * 300: b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {"a/" * 600 + "b": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {f"{DATA}/scripts/../../../evil": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {f"{DATA}/purelib//tmp/evil": b"x"}), "is not a plain relative path"),
    (lambda folder: wheel(folder, {f"{DATA}/data/etc/evil": b"x"}), "'etc/evil' belongs into data"),
    (lambda folder: wheel(folder, {f"{DATA}/headers/evil.h": b"x"}), "'evil.h' belongs into headers"),
    (lambda folder: wheel(folder, {f"{DATA}/other/evil": b"x"}), "is not contained in a valid .data subdirectory"),
    (lambda folder: wheel(folder, {f"{DATA}/evil": b"x"}), "cannot be unpacked"),
    (lambda folder: wheel(folder, {"link": b"/etc"}, entries={"link": entry("link", stat.S_IFLNK | 0o777)}), "'link' is a link"),
    (lambda folder: wheel(folder, {"pipe": b""}, entries={"pipe": entry("pipe", stat.S_IFIFO | 0o644)}), "'pipe' is a link or a special"),
    (lambda folder: wheel(folder, {"x.py": b""}, entries={"x.py": entry("x.py", method=zipfile.ZIP_LZMA)}), "is not compressed with"),
    (lambda folder: wheel(folder, {"x": b"1", "x/y": b"2"}), "'x/y' is in the wheels twice"),
    (lambda folder: wheel(folder, {"x/y": b"1", "x": b"2"}), "'x' is in the wheels twice"),
    (lambda folder: wheel(folder, {"bin/points": b"1", ENTRIES: b"[console_scripts]\npoints = a:b\n"}), "'bin/points' is in the wheels"),
    (lambda folder: wheel(folder, {f"{DATA}/purelib/{INFO}/RECORD": b""}), f"'{INFO}/RECORD' is in the wheels twice"),
    (lambda folder: wheel(folder, {f"{INFO}/INSTALLER": b"pip"}), f"'{INFO}/INSTALLER' is in the wheels twice"),
    (lambda folder: wheel(folder, {ENTRIES: b"[console_scripts]\n../evil = a:b\n"}), "'../evil' is not a plain relative path"),
    (lambda folder: wheel(folder, {ENTRIES: b"[console_scripts]\nevil = a:b);import os\n"}), "cannot be unpacked"),
    (lambda folder: wheel(folder, {ENTRIES: b"[console_scripts]\nevil = a\n"}), "cannot be unpacked"),
    (lambda folder: wheel(folder, {ENTRIES: b"[console_scripts]\na = %(b)s\n"}), "cannot be unpacked"),
    (lambda folder: wheel(folder, {ENTRIES: b"[console_scripts]\na = b:c\na = b:c\n"}), "cannot be unpacked"),
    (lambda folder: wheel(folder, {ENTRIES: b"\xff"}), "cannot be unpacked"),
    (lambda folder: wheel(folder, record=record({**GOOD, "points_service/__init__.py": b"other"})), "/__init__.py didn't match RECORD"),
    (lambda folder: wheel(folder, {"more.py": b"x"}, record=record(GOOD)), "more.py is not mentioned in RECORD"),
    (lambda folder: wheel(folder, record=record(GOOD).replace(b"sha256=", b"shake_128=")), "cannot be unpacked"),
    (lambda folder: wheel(folder, record=b"one,two\n"), "RECORD"),
    (lambda folder: wheel(folder, record=b"\xff"), "RECORD"),
    (lambda folder: wheel(folder, info="other-0.1.0.dist-info"), ".dist-info directory doesn't match wheel filename"),
    (lambda folder: wheel(folder, {"b-1.dist-info/METADATA": b""}), "exactly one .dist-info directory"),
    (lambda folder: wheel(folder, {f"{INFO}/WHEEL": b"Wheel-Version: 2.0\n"}), "Incompatible Wheel-Version 2.0"),
    (lambda folder: wheel(folder, {f"{INFO}/WHEEL": b""}), "Incompatible Wheel-Version"),
    (lambda folder: written(folder, b"PK and no zip file"), "File is not a zip file"),
    (lambda folder: written(folder, b""), "File is not a zip file"),
    (lambda folder: written(folder, wheel(folder).read_bytes()[:-30]), "cannot be unpacked"),
    (lambda folder: written(folder, wheel(folder).read_bytes()[40:]), "cannot be unpacked"),
    (lambda folder: written(folder, encrypted(wheel(folder))), "cannot be unpacked"),
]  # fmt: skip


def written(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(content)
    return folder / NAME


def encrypted(made: Path) -> bytes:
    """The same with the flag of an encrypted member in each entry of the directory."""
    content = bytearray(made.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 8] |= 1
        at = content.find(b"PK\x01\x02", at + 4)
    return bytes(content)


@pytest.mark.parametrize(("make", "says"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_wheel_is_refused(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    message = refused([make(tmp_path / "wheels")], tmp_path)
    assert message.startswith(f"{NAME} cannot be unpacked: ")
    assert says in message


def test_two_wheels_with_the_same_file_are_refused(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path / "wheels", name=f"points-0.1.{n}-py3-none-any.whl", info=f"points-0.1.{n}.dist-info") for n in (0, 1)]
    message = refused(wheels, tmp_path)
    assert message.startswith("points-0.1.1-py3-none-any.whl cannot be unpacked: 'points_service/__init__.py' is in the wheels twice")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path / "wheels")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(made, "a") as archive:
        archive.writestr(entry("points_service/__init__.py"), b"")
    assert NAME in refused([made], tmp_path)


def test_the_unpacked_size_has_a_limit_for_all_wheels_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = []
    for name in ("p1", "p2"):
        more = {f"zeros-{name}": bytes(400_000)}
        wheels.append(wheel(tmp_path / "wheels", more, package=name, name=f"{name}-1-py3-none-any.whl", info=f"{name}-1.dist-info"))
    unpack(wheels, tmp_path / "both")
    monkeypatch.setattr(code, "MOST_BYTES", 500_000)
    unpack(wheels[1:], tmp_path / "one")
    assert "'zeros-p2' the wheels have over 0 MiB" in refused(wheels, tmp_path)


def test_a_member_that_says_a_smaller_size_is_refused(tmp_path: Path) -> None:
    """The size in the directory of the zip file is what was checked, so no more is unpacked."""
    made = wheel(tmp_path / "wheels", {"zeros": bytes(1 << 20)})
    content = made.read_bytes()
    made.write_bytes(content.replace((1 << 20).to_bytes(4, "little"), (1 << 10).to_bytes(4, "little")))
    assert "cannot be unpacked" in refused([made], tmp_path)


def test_the_number_of_files_and_the_size_of_a_document_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wheel(tmp_path / "wheels", {f"many/{n}": b"" for n in range(30)})
    monkeypatch.setattr(code, "MOST_FILES", 20)
    assert "or 20 files" in refused([made], tmp_path / "first")
    monkeypatch.setattr(code, "MOST_FILES", 100)
    monkeypatch.setattr(code, "MOST_DOCUMENT", 100)
    assert "has over 0 MiB" in refused([made], tmp_path / "second")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_wheel_is_unpacked_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes changed in a wheel: our error, or the files that RECORD says."""
    folder = tmp_path_factory.mktemp("damaged")
    made = wheel(folder / "wheels", {ENTRIES: b"[console_scripts]\npoints = points_service:main\n", f"{DATA}/scripts/tool": b"#!python\n"})
    content = bytearray(made.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    made.write_bytes(content)
    target = folder / "inside/code"
    with suppress(BadVersion):
        unpack([made], target)
    assert {path.name for path in folder.iterdir()} <= {"wheels", "inside"}
    assert [path.name for path in (folder / "inside").iterdir()] == ["code"]
