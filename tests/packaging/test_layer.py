"""A layer is a tar stream that depends only on its files, and can be read from any position."""

import hashlib
import io
import os
import tarfile
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.packaging.layer import ChangedFile, File, Hashing, Layer


def opener(content: bytes) -> "partial[AbstractContextManager[BinaryIO]]":
    return partial(io.BytesIO, content)


def layer(contents: dict[str, bytes]) -> Layer:
    return Layer([File(path, len(content), opener(content)) for path, content in contents.items()])


NAMES = st.text("abz-._", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=2, max_size=4).map(lambda names: "/".join(["app", *(f"d{name}" for name in names[:-1]), f"f{names[-1]}"]))


@given(st.dictionaries(PATHS, st.binary(max_size=1500), min_size=1, max_size=6), st.data())
def test_the_stream_is_the_same_from_every_position_and_in_every_order(contents: dict[str, bytes], data: st.DataObject) -> None:
    made = layer(contents)
    stream = b"".join(made.content())
    assert len(stream) == made.size
    hashed = made.hashed()
    assert hashed.digest == f"sha256:{hashlib.sha256(stream).hexdigest()}"
    assert hashed.files == {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    offset = data.draw(st.integers(0, made.size))
    assert b"".join(made.content(offset)) == stream[offset:]
    hashing, reached = Hashing(made), 0
    for _ in range(3):  # an upload begins again after a failure, where the registry says
        position = data.draw(st.integers(0, reached))
        for chunk in hashing.content(position):
            position += len(chunk)
            reached = max(reached, position)
            if data.draw(st.booleans()):
                break
    for _ in hashing.content(0):
        pass
    assert hashing.result == hashed
    shuffled = data.draw(st.permutations(list(contents.items())))
    assert layer(dict(shuffled)).hashed().digest == hashed.digest
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        members = archive.getmembers()
        read = {member.name: archive.extractfile(member).read() for member in members if member.isfile()}  # type: ignore[union-attr]
    assert read == contents
    assert {(member.mtime, member.uid, member.gid) for member in members} == {(315532800, 0, 0)}
    seen: set[str] = set()
    for member in members:
        parent = member.name.rpartition("/")[0]
        assert not parent or parent in seen, "a folder precedes what it contains"
        seen.add(member.name)


def test_the_umask_the_time_and_the_users_names_are_not_in_a_layer(tmp_path: Path) -> None:
    digests = set()
    for number, umask in enumerate((0o022, 0o077)):
        before = os.umask(umask)
        try:
            path = tmp_path / str(number)
            path.write_bytes(b"weights")
            os.utime(path, (number, number))
        finally:
            os.umask(before)
        digests.add(Layer([File("app/weights", 7, partial(path.open, "rb"))]).hashed().digest)
    assert len(digests) == 1


def test_modes_and_links() -> None:
    made = Layer(
        [File("opt/code/bin/run", 1, opener(b"x"), executable=True), File("opt/code/a", 1, opener(b"y"))], {"app/files": "models/a"}
    )
    with tarfile.open(fileobj=io.BytesIO(b"".join(made.content()))) as archive:
        modes = {member.name: oct(member.mode) for member in archive}
        assert archive.getmember("app/files").linkname == "models/a"
    assert modes == {
        "app": "0o755",
        "app/files": "0o777",
        "opt": "0o755",
        "opt/code": "0o755",
        "opt/code/a": "0o644",
        "opt/code/bin": "0o755",
        "opt/code/bin/run": "0o755",
    }


@pytest.mark.parametrize(("size", "said"), [(4, "1 bytes shorter"), (2, "longer")])
def test_a_file_that_changes_is_an_error(size: int, said: str) -> None:
    made = Layer([File("app/weights", size, opener(b"abc"))])
    with pytest.raises(ChangedFile, match=said):
        made.hashed()
    with pytest.raises(ChangedFile, match=said):
        b"".join(made.content())


def test_long_names_and_large_files_have_a_header() -> None:
    name = f"app/{'d' * 120}/{'f' * 150}-ü"
    made = Layer([File(name, 9 << 30, opener(b""))])
    head = next(made.content())
    with tarfile.open(fileobj=io.BytesIO(head)) as archive:
        members = [archive.next() for _ in range(3)]  # a fourth would be behind the content
    assert [(member.name, member.size) for member in members if member] == [("app", 0), (f"app/{'d' * 120}", 0), (name, 9 << 30)]
    assert made.size > 9 << 30
