"""Hostile archives, with the filter of the standard library (3.11.4 and later) and without it."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build.adapters.git.archive import unpack
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.errors import Refused

Change = Callable[[tarfile.TarInfo], None]


@pytest.fixture(params=["with the filter", "without the filter"], autouse=True)
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on both branches; Python 3.11.0 to 3.11.3 has the second only."""
    if request.param == "without the filter":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
        extract_all = tarfile.TarFile.extractall

        def of_python_3_11_2(archive: tarfile.TarFile, path: Path, members: list[tarfile.TarInfo]) -> None:
            extract_all(archive, path, members, **({"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}))  # type: ignore[arg-type]

        monkeypatch.setattr(tarfile.TarFile, "extractall", of_python_3_11_2)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no tarfile.data_filter")


def tar(*members: tuple[str, bytes, str]) -> bytes:
    """An archive of (name, type, content of a file or target of a link)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid = kind, 0o664, 54321, 54321
            if kind == tarfile.REGTYPE:
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
            else:
                member.linkname = text
                archive.addfile(member)
    return content.getvalue()


HOSTILE = {
    "absolute path": [("/TMP/outside/x", tarfile.REGTYPE, "x")],
    "parent folder": [("../outside/x", tarfile.REGTYPE, "x")],
    "parent folder inside a path": [("a/../../outside/x", tarfile.REGTYPE, "x")],
    "symbolic link to an absolute path": [("a", tarfile.SYMTYPE, "/TMP/outside")],
    "symbolic link to a parent folder": [("a/b", tarfile.SYMTYPE, "../../outside")],
    "symbolic link that leaves and returns": [("a", tarfile.SYMTYPE, "b/../../outside")],
    "file below a symbolic link": [("a", tarfile.SYMTYPE, "b"), ("a/x", tarfile.REGTYPE, "x")],
    "link through a link": [
        ("d/e/a", tarfile.SYMTYPE, "../.."),
        ("d/e/b", tarfile.SYMTYPE, "a/../outside"),
        ("d/e/b/x", tarfile.REGTYPE, "x"),
    ],
    "link through a later link": [("d/e/b", tarfile.SYMTYPE, "a/../outside"), ("d/e/a", tarfile.SYMTYPE, "../..")],
    "hard link to an absolute path": [("a", tarfile.LNKTYPE, "/TMP/outside/kept")],
    "hard link to a parent folder": [("a", tarfile.LNKTYPE, "../outside/kept")],
    "hard link through a symbolic link": [("a", tarfile.SYMTYPE, "b"), ("c", tarfile.LNKTYPE, "a")],
    "character device": [("null", tarfile.CHRTYPE, "")],
    "block device": [("disk", tarfile.BLKTYPE, "")],
    "pipe": [("pipe", tarfile.FIFOTYPE, "")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    members = [(path.replace("/TMP", str(tmp_path)), kind, text.replace("/TMP", str(tmp_path))) for path, kind, text in HOSTILE[name]]
    with pytest.raises(Refused) as refused:
        unpack(tar(("first", tarfile.REGTYPE, "first"), *members), tmp_path / "folder")
    assert refused.value.remedy
    assert not list((tmp_path / "folder").iterdir()), "nothing is unpacked of an archive that is refused"
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_files_folders_and_links_inside_are_unpacked(tmp_path: Path) -> None:
    content = tar(
        ("deploy", tarfile.DIRTYPE, ""),
        ("deploy/base/service.yaml", tarfile.REGTYPE, "kind: Service\n"),
        ("deploy/overlays/base.yaml", tarfile.SYMTYPE, "../base/service.yaml"),
        ("current", tarfile.SYMTYPE, "./deploy/base"),
        ("a..b", tarfile.REGTYPE, "two dots in a name are a name\n"),
    )
    unpack(content, tmp_path / "folder")
    folder = tmp_path / "folder"
    assert (folder / "deploy/overlays/base.yaml").read_text() == "kind: Service\n"
    assert (folder / "current/service.yaml").read_text() == "kind: Service\n"
    assert (folder / "a..b").is_file()
    status = (folder / "deploy/base/service.yaml").stat()
    assert status.st_mode & 0o777 == 0o644
    assert status.st_uid == folder.stat().st_uid, "the archive does not say who owns a file"


def test_a_commit_with_a_link_out_of_the_repository_is_refused_by_name(person: Path, tmp_path: Path) -> None:
    checkout = Checkout(person)
    checkout.export(str(checkout.head()), tmp_path / "good")
    assert (tmp_path / "good/run.sh").stat().st_mode & 0o777 == 0o755
    (person / "secrets").symlink_to("/etc")
    made = checkout.commit_paths(["secrets"], "Link\n")
    with pytest.raises(Refused, match=r"secrets.*/etc"):
        checkout.export(str(made), tmp_path / "bad")
