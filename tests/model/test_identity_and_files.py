"""The URI of a model version, and the digest of its files."""

import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.errors import Refused
from mlops_build.model import files
from mlops_build.model.identity import BadModelUri, ModelRef, parse_uri


@pytest.mark.parametrize(
    ("uri", "ref"),
    [
        ("models:/digits/3", ModelRef("digits", version=3)),
        ("models:/a-b/10", ModelRef("a-b", version=10)),
        ("models:/digits@staging", ModelRef("digits", alias="staging")),
    ],
)
def test_a_model_uri_is_parsed_and_written(uri: str, ref: ModelRef) -> None:
    assert parse_uri(uri) == ref
    assert str(ref) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "digits",
        "models:/digits",
        "models:/digits/0",
        "models:/digits/03",
        "models:/../x/1",
        "models:/digits/1\n",
        "models:/D/1",
        "runs:/a/b",
        "models:/digits@a b",
    ],
)
def test_any_other_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadModelUri) as caught:
        parse_uri(uri)
    assert caught.value.exit_code == 2


@given(st.text(max_size=60))
def test_a_parsed_uri_is_written_as_the_same_text(text: str) -> None:
    try:
        ref = parse_uri(f"models:/{text}")
    except BadModelUri:
        return
    assert str(ref) == f"models:/{text}"
    assert "/" not in ref.name
    assert ".." not in ref.name


def tree(root: Path, contents: dict[str, bytes]) -> Path:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_the_digest_depends_on_paths_and_contents_only(tmp_path: Path) -> None:
    first = tree(tmp_path / "one", {"a/b.txt": b"1", "c.txt": b"2"})
    second = tree(tmp_path / "two", {"c.txt": b"2", "a/b.txt": b"1"})
    os.utime(second / "c.txt", (0, 0))
    (second / "a/b.txt").chmod(0o600)
    assert files.digest(first) == files.digest(second)
    files.verify(first, files.digest(second))


@given(st.dictionaries(st.sampled_from(["a", "b", "d/a", "d/b", "d/e/f"]), st.binary(max_size=8), max_size=4), st.data())
def test_any_change_changes_the_digest(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes], data: st.DataObject) -> None:
    contents.setdefault("z", b"last")
    before = files.digest(tree(tmp_path_factory.mktemp("before"), contents))
    path = data.draw(st.sampled_from(sorted(contents)))
    change = data.draw(st.sampled_from(["content", "name", "removed", "added"]))
    changed = dict(contents)
    if change == "content":
        changed[path] += b"x"
    elif change == "name":
        changed[f"{path}2"] = changed.pop(path)
    elif change == "removed":
        changed.pop(path)
    else:
        changed["new"] = b""
    after_root = tmp_path_factory.mktemp("after")
    assert files.digest(tree(after_root, changed)) != before
    with pytest.raises(files.DigestMismatch):
        files.verify(after_root, before)


# "-", "." and "0" are sorted before, at and after "/".
PATHS = st.lists(st.text(alphabet="a-.0é", min_size=1, max_size=3).filter(lambda name: set(name) != {"."}), min_size=1, max_size=3)


@given(st.dictionaries(PATHS.map("/".join), st.binary(max_size=8), max_size=8), st.randoms(use_true_random=False))
def test_the_digest_of_entries_is_that_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes], chance: random.Random
) -> None:
    contents = {path: content for path, content in contents.items() if not any(other.startswith(f"{path}/") for other in contents)}
    entries = [(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in contents.items()]
    chance.shuffle(entries)
    assert files.digest_of(iter(entries)) == files.digest(tree(tmp_path_factory.mktemp("folder"), contents))


def test_the_digest_stays_as_it_was(tmp_path: Path) -> None:
    """It is in the tags of registered versions."""
    contents = {"a/b": b"1", "a-b": b"", "a.txt": b"22", "a0": b"3"}
    text = "".join(
        f"{path}\0{len(contents[path])}\0{hashlib.sha256(contents[path]).hexdigest()}\n" for path in ("a-b", "a.txt", "a/b", "a0")
    )
    assert files.digest(tree(tmp_path, contents)) == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="not a plain file"):
        files.digest(tmp_path)
