"""What a file is, from its content; nothing in it is run."""

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


@pytest.mark.slow
def test_a_real_exported_program(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(mess.Net(), (torch.zeros(1, 3),)), tmp_path / "exported.pt2")
    examined = kind.examine(tmp_path / "exported.pt2", "exported.pt2")
    assert (examined.kind, examined.unsafe) == (kind.EXPORTED, False)
