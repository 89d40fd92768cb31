"""Folders, S3 and Swift: the same files are listed and read, and what goes wrong is an error with the file's address."""

import hashlib
import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_build.adapters.storage import s3, swift
from mlops_build.adapters.storage.address import place
from mlops_build.adapters.storage.place import NoPlace, Place
from mlops_build.errors import Failed, UsageError
from tests.adapters.image_registry.cases import make_certificate
from tests.adapters.storage.stores import Store

FILES = {
    "a.pth": b"a",
    "below/b.pth": b"bb",
    "below/deep/c d+%&?#.pth": b"ccc",
    "below2/größe–模型.pth": b"dddd",
    "e'\"\n.pth": b"eeeee",
    "z-parts.bin": b"",
}
MOST = 1000


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    objects = {f"models/old/{name}": content for name, content in FILES.items()}
    store = Store({**objects, "models/old/": b"", "models/old/empty/": b"", "models/older/x.pth": b"x", "other/old/y.pth": b"y"})
    with store.serve() as address:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "default",
            "AWS_ENDPOINT_URL": address,
            "AWS_MAX_ATTEMPTS": "2",
            "ST_AUTH": f"{address}/auth",
            "ST_USER": "old:reader",
            "ST_KEY": "secret",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        yield store


@pytest.fixture(params=["folder", "file", "s3", "swift"])
def found(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Place:
    if request.param in ("s3", "swift"):
        return place(f"{request.param}://models/old/")
    root = tmp_path / "ol d"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        os.utime(root / name, ns=(0, 1_796_034_030_456_000_000))
    return place(str(root) if request.param == "folder" else root.as_uri())


def test_every_file_is_listed_once_with_size_and_time(found: Place) -> None:
    listed = list(found.objects())
    assert sorted(entry.path for entry in listed) == sorted(FILES)
    assert {entry.path: entry.size for entry in listed} == {name: len(content) for name, content in FILES.items()}
    assert {entry.modified_ms for entry in listed} == {1_796_034_030_456}
    for entry in listed:
        assert entry.md5 in (None, hashlib.md5(FILES[entry.path], usedforsecurity=False).hexdigest())
    assert sorted(entry.path for entry in found.objects("below")) == ["below/b.pth", "below/deep/c d+%&?#.pth"]
    assert list(found.objects("nothing")) == []


def test_every_file_can_be_read_saved_and_opened(found: Place, tmp_path: Path) -> None:
    for name, content in FILES.items():
        assert found.read(name, MOST) == content
        found.save(name, tmp_path / "saved")
        assert (tmp_path / "saved").read_bytes() == content
        with found.opened(name) as file:
            assert file.read_bytes() == content
    with pytest.raises(Failed, match="more than 4 bytes"):
        found.read("e'\"\n.pth", 4)


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "below/../../a", "", "a\0b"])
def test_a_path_outside_of_the_place_is_refused(found: Place, path: str, tmp_path: Path) -> None:
    for call in (lambda: found.read(path, MOST), lambda: found.save(path, tmp_path / "saved"), lambda: found.opened(path).__enter__()):
        with pytest.raises(Failed, match="is not a path below a folder"):
            call()


def test_a_file_that_does_not_exist_is_named(found: Place, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    for call in (lambda: found.read("no.pth", MOST), lambda: found.save("no.pth", saved), lambda: found.opened("no.pth").__enter__()):
        with pytest.raises(NoPlace, match=r"old?/no\.pth|ol d/no\.pth") as raised:
            call()
        assert raised.value.remedy


def test_keys_with_two_slashes_are_not_another_file(store: Store) -> None:
    store.objects["models/old//a.pth"] = b"other"
    for scheme in ("s3", "swift"):
        listed = [entry.path for entry in place(f"{scheme}://models/old").objects()]
        assert "/a.pth" in listed
        with pytest.raises(Failed, match="is not a path below a folder"):
            place(f"{scheme}://models/old").read("/a.pth", MOST)
        assert place(f"{scheme}://models").read("old//a.pth", MOST) == b"other"


def test_a_list_is_read_in_pages(store: Store) -> None:
    for scheme, page in (("s3", "list-type=2"), ("swift", "format=json")):
        store.requests.clear()
        listed = place(f"{scheme}://models/old").objects()
        next(listed)
        assert sum(page in request for request in store.requests) == 1
        assert len(list(listed)) == len(FILES) - 1
        assert sum(page in request for request in store.requests) >= 3


@pytest.mark.parametrize("scheme", ["s3", "swift"])
def test_a_container_that_does_not_exist_and_wrong_keys(store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoPlace, match=f"{scheme}://nowhere/old"):
        list(place(f"{scheme}://nowhere/old").objects())
    store.statuses["models/old/a.pth"] = [403] * 3
    with pytest.raises(NoPlace, match="403") as raised:
        place(f"{scheme}://models/old").read("a.pth", MOST)
    assert "KEY" in str(raised.value.remedy)
    assert "secret" not in raised.value.message
    if scheme == "swift":
        monkeypatch.setenv("ST_KEY", "wrong")
        with pytest.raises(NoPlace, match="swift://models/old"):
            list(place("swift://models/old").objects())


@pytest.mark.parametrize("scheme", ["s3", "swift"])
def test_a_response_that_ends_early_is_an_error(store: Store, scheme: str, tmp_path: Path) -> None:
    store.cut = 1
    found = place(f"{scheme}://models/old")
    for call in (lambda: found.read("below/b.pth", MOST), lambda: found.save("below/b.pth", tmp_path / "saved")):
        with pytest.raises(NoPlace, match=r"models/old/below/b\.pth: "):
            call()


def test_a_token_that_expires_is_replaced(store: Store) -> None:
    found = place("swift://models/old")
    assert found.read("a.pth", MOST) == b"a"
    store.expired = 1
    assert found.read("a.pth", MOST) == b"a"
    assert store.requests.count("/auth") == 2


@pytest.mark.parametrize("name", ["ST_AUTH"])
def test_swift_without_credentials_says_which(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    monkeypatch.delenv("OS_AUTH_URL", raising=False)
    with pytest.raises(UsageError, match="no credentials for Swift"):
        list(place("swift://models/old").objects())


def test_swift_is_only_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    for call in (lambda: place("swift://models").put("a", tmp_path / "a"), lambda: place("swift://models").delete("a")):
        with pytest.raises(UsageError, match="only read"):
            call()


def test_a_companys_certificates_are_honoured(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path, "IP:127.0.0.1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with Store(store.objects).serve(tls) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("ST_AUTH", f"{address}/auth")
        monkeypatch.setattr(swift, "RETRIES", 0)
        monkeypatch.setattr(s3, "ATTEMPTS", 1)
        for scheme, variable in (("s3", "AWS_CA_BUNDLE"), ("swift", "OS_CACERT")):
            with pytest.raises(NoPlace, match=f"{scheme}://models/old"):
                place(f"{scheme}://models/old").read("a.pth", MOST)
            monkeypatch.setenv(variable, str(certificate))
            assert place(f"{scheme}://models/old").read("a.pth", MOST) == b"a"


def test_links_and_special_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    found = place(str(tmp_path))
    assert [entry.path for entry in found.objects()] == ["a"]
    for name in ("link", "pipe", "folder"):
        for call in (lambda name=name: found.read(name, MOST), lambda name=name: found.save(name, tmp_path / "b")):
            with pytest.raises(NoPlace, match="not a plain file"):
                call()
    assert not (tmp_path / "b").exists()


def test_a_single_file_and_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    found = place(str(tmp_path / "a"))
    assert [entry.path for entry in found.objects()] == ["a"]
    assert not found.lists_all
    assert place(str(tmp_path)).lists_all
    with pytest.raises(NoPlace, match="nowhere"):
        list(place(str(tmp_path / "nowhere")).objects())


def test_what_is_deleted_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    for name in ("a/1", "b/2", "b/c/3", "d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listed = place(str(tmp_path)).objects()
    assert next(listed).path == "a/1"
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "d").unlink()
    assert list(listed) == []


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    found = place(str(tmp_path / "store"))
    found.put("deep/a", tmp_path / "new")
    assert found.read("deep/a", MOST) == b"new"
    with pytest.raises(NoPlace):
        found.put("deep/a", tmp_path / "missing")
    assert [entry.path for entry in found.objects()] == ["deep/a"]
    found.delete("deep/a")
    found.delete("deep/a")
    assert list(found.objects()) == []


@pytest.mark.parametrize("uri", ["ftp://host/a", "s3://", "swift:///a", "://", "", "a\0b", "file:///a%00b"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="is not a place for files"):
        place(uri)


@pytest.mark.parametrize("uri", ["/" + "a" * 5000, "a:/" + "a" * 5000])
def test_a_path_that_cannot_exist(uri: str) -> None:
    with pytest.raises((NoPlace, UsageError)):
        place(uri)
