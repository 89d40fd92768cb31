"""What a file is, from its content; nothing in it is run."""

import random
from pathlib import Path

import pytest
import torch

from mlops_build.adopt import kind
from tests.adopt import mess


def test_every_file_is_named_and_none_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    kinds = mess.make(tmp_path / "files", marker)
    assert len(kinds) >= 30
    found = {}
    for name in kinds:
        examined = kind.examine(tmp_path / "files" / name, name)
        assert examined.details or examined.kind in (kind.ONNX, kind.OTHER), name
        found[name] = f"{'unsafe ' * examined.unsafe}{examined.kind}"
    assert found == kinds
    assert not marker.exists()


def test_what_a_pickle_would_import_is_named(tmp_path: Path) -> None:
    mess.make(tmp_path / "files", tmp_path / "executed")
    for name in ("command.pth", "pickles/neutral0", "pickles/command5.pth", "old/legacy-command.pth"):
        assert "posix.system" in kind.examine(tmp_path / "files" / name, name).details, name
    assert "tests.adopt.mess.Net" in kind.examine(tmp_path / "files/whole.pth", "whole.pth").details


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_file_that_ends_anywhere_is_named(tmp_path: Path, cut: int) -> None:
    """No error, whatever the bytes are."""
    mess_folder = tmp_path / "files"
    mess_folder.mkdir()
    whole = (b"PK\3\4" + bytes(range(40)) + b"PK\5\6" + bytes(20), b"\x93NUMPY\1\0v\0{'descr'", b"\x80\x02cposix\nsystem\nq\0", mess.bomb())
    for content in whole:
        (mess_folder / "a.pth").write_bytes(content[:cut])
        assert kind.examine(mess_folder / "a.pth", "a.pth").kind in kind.KINDS


@pytest.mark.parametrize("seed", range(3))
def test_altered_files_are_named_and_not_run(tmp_path: Path, seed: int) -> None:
    """`make soak` runs more of them."""
    alter(tmp_path, seed, 300)


@pytest.mark.soak
def test_many_altered_files(tmp_path: Path) -> None:
    alter(tmp_path, 7, 100_000)


def alter(folder: Path, seed: int, cases: int) -> None:
    kinds = mess.make(folder / "files", folder / "executed")
    chance = random.Random(seed)  # noqa: S311
    names = [name for name in kinds if (folder / "files" / name).stat().st_size]
    for _ in range(cases):
        name = chance.choice(names)
        content = bytearray((folder / "files" / name).read_bytes())
        for _ in range(chance.choice([1, 1, 2, 5, 20])):
            content[chance.randrange(len(content))] = chance.choice([0, 1, 0x80, 255, chance.randrange(256)])
        (folder / "file").write_bytes(content[: chance.choice([len(content), chance.randrange(len(content)) + 1])])
        examined = kind.examine(folder / "file", name)
        assert examined.kind in kind.KINDS
    assert not (folder / "executed").exists()


@pytest.mark.slow
def test_a_real_exported_program(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(mess.Net(), (torch.zeros(1, 3),)), tmp_path / "exported.pt2")
    examined = kind.examine(tmp_path / "exported.pt2", "exported.pt2")
    assert (examined.kind, examined.unsafe) == (kind.EXPORTED, False)


@pytest.mark.parametrize("suffix", [".pkl", ".dat", ".pth", ""])
@pytest.mark.parametrize("start", [b"S'", b"V", b"c", b"T\xff\xff\xff\x7f"])
def test_a_pickle_that_begins_with_a_long_text_is_unsafe(
    tmp_path: Path, suffix: str, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "PICKLE_BYTES", 1 << 20)
    file = tmp_path / f"big{suffix}"
    file.write_bytes(start + b"a" * (2 << 20) + b"'\n0cposix\nsystem\n(S'touch /tmp/PICKLED'\ntR.")
    assert kind.examine(file, file.name).unsafe


def test_large_files_of_no_kind_are_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "PICKLE_BYTES", 1 << 20)
    for number, start in enumerate([b"\xff\xd8\xff", b"a,b\n1,2\n", b"\x1f\x8b\x08", b"\x89HDF\r\n\x1a\n", bytes(16)]):
        (tmp_path / f"{number}").write_bytes(start + bytes(2 << 20))
        assert not kind.examine(tmp_path / f"{number}", f"{number}.bin2").unsafe, start
