"""Uploads that break are continued."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlops_build.adapters.image_registry import ImageRegistryUnreachable, RefusedByRegistry, Repository
from mlops_build.errors import Failed
from tests.adapters.image_registry.cases import BLOB, DIGEST, MIB, content, refused
from tests.registries import Fault, Registry


def test_an_upload_continues_where_it_broke(registry: Registry, repository: Repository, waits: list[float]) -> None:
    registry.faults = [Fault("PUT", keep=2 * MIB + 5), Fault("PUT", keep=MIB)]
    offsets: list[int] = []

    def source(offset: int) -> Iterator[bytes]:
        offsets.append(offset)
        return content(offset)

    seen: list[int] = []
    repository.upload(DIGEST, len(BLOB), source, seen.append)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    assert offsets == [0, 2 * MIB + 5, 3 * MIB + 5]
    puts = registry.calls("PUT")
    assert sum(call.size for call in puts) == len(BLOB), "only the rest was sent again"
    assert [call.headers.get("Content-Range") for call in puts] == [
        None,
        f"{2 * MIB + 5}-{len(BLOB) - 1}",
        f"{3 * MIB + 5}-{len(BLOB) - 1}",
    ]
    assert [int(call.headers["Content-Length"]) for call in puts] == [len(BLOB) - offset for offset in offsets]
    assert seen[-1] == len(BLOB)
    assert len(registry.calls("POST")) == 1
    assert len(waits) == 2


def test_an_upload_that_the_registry_has_forgotten_begins_again(registry: Registry, repository: Repository) -> None:
    registry.forgets = True
    registry.faults = [Fault("PUT", keep=2 * MIB)]
    repository.upload(DIGEST, len(BLOB), content)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    assert len(registry.calls("POST")) == 2


@pytest.mark.parametrize(
    "ranges", [{"Range": "x"}, {"Range": f"0-{len(BLOB)}"}, {"Range": "5-9"}, {"Range": f"0-{'9' * 30}"}, {"Range": "0-99"}]
)
def test_an_untrue_range_is_not_believed(registry: Registry, repository: Repository, ranges: dict[str, str]) -> None:
    registry.faults = [Fault("PUT", keep=2 * MIB), Fault("GET .*/uploads/", replace=ranges)]
    if ranges == {"Range": "0-99"}:
        assert "DIGEST_INVALID" in refused(lambda: repository.upload(DIGEST, len(BLOB), content), RefusedByRegistry).message
        assert registry.blobs == {}
    else:
        repository.upload(DIGEST, len(BLOB), content)
        assert registry.blobs["ml/points", DIGEST] == BLOB


@pytest.mark.parametrize("request_", ["POST", "PUT"])
def test_transient_failures_are_waited_for(registry: Registry, repository: Repository, waits: list[float], request_: str) -> None:
    registry.faults = [
        Fault(request_, 429, {"Retry-After": "7"}),
        Fault(request_, 503, {"Retry-After": "100000"}),
        Fault(request_, 500, body=b"<html>"),
        Fault(request_, 502, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}),
    ]
    repository.upload(DIGEST, len(BLOB), content)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    assert (waits[0], waits[1], waits[3]) == (7, 60, 60)


def test_the_tries_are_limited(registry: Registry, repository: Repository, waits: list[float]) -> None:
    for match in ("GET", "HEAD", "POST", "PUT"):
        registry.faults = [Fault(match, 500, times=1000)]
        waits.clear()
        call = {"GET": lambda: repository.manifest("v1"), "HEAD": lambda: repository.has_blob(DIGEST)}.get(match)
        refused(call or (lambda: repository.upload(DIGEST, len(BLOB), content)), ImageRegistryUnreachable)
        assert 5 <= len(waits) <= 6, match  # after the first try, an upload can have achieved something
    registry.faults, registry.forgets = [Fault("PUT", keep=MIB, times=1000)], True
    refused(lambda: repository.upload(DIGEST, len(BLOB), content), ImageRegistryUnreachable)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    error = refused(lambda: Repository(f"{host}/ml/points", sleep=waits.append).manifest("v1"), ImageRegistryUnreachable)
    assert "127.0.0.1" in error.message


def test_a_slow_upload_with_many_breaks_succeeds(registry: Registry, repository: Repository, waits: list[float]) -> None:
    registry.faults = [Fault("PUT", keep=MIB // 2, times=10)]
    repository.upload(DIGEST, len(BLOB), content)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    assert max(waits) < 2, "each try achieved something"


@pytest.mark.parametrize("fault", [Fault("PUT", keep=0), Fault("PUT", keep=len(BLOB)), Fault("PUT", short=True)])
def test_a_lost_answer_to_the_last_request(registry: Registry, repository: Repository, fault: Fault) -> None:
    registry.faults = [fault]
    repository.upload(DIGEST, len(BLOB), content)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    assert sum(call.size for call in registry.calls("PUT")) == len(BLOB)


def test_a_blob_that_was_complete_is_not_sent_again(registry: Registry, repository: Repository) -> None:
    registry.faults = [Fault("PUT", 404)]
    registry.blobs["ml/points", DIGEST] = BLOB
    repository.upload(DIGEST, len(BLOB), content)
    assert len(registry.calls("PUT")) == 1


@pytest.mark.parametrize("status", [200, 404, 416])
def test_an_upload_that_the_registry_does_not_know_begins_again(registry: Registry, repository: Repository, status: int) -> None:
    registry.faults = [Fault("PUT", status), Fault("GET .*/uploads/", 404)]
    repository.upload(DIGEST, len(BLOB), content)
    assert registry.blobs["ml/points", DIGEST] == BLOB
    assert len(registry.calls("POST")) == 2


def test_errors_of_the_source_are_passed_on(registry: Registry, repository: Repository, waits: list[float]) -> None:
    def fails(error: Exception) -> Callable[[int], Iterator[bytes]]:
        def source(offset: int) -> Iterator[bytes]:
            yield BLOB[:MIB]
            raise error

        return source

    for error in (OSError("the disk"), ConnectionResetError("the store"), ValueError("x"), Failed("wrong digest")):
        with pytest.raises(type(error)) as caught:
            repository.upload(DIGEST, len(BLOB), fails(error))
        assert caught.value is error
    for size in (len(BLOB) + 1, len(BLOB) - 1):
        with pytest.raises(Failed, match=f"does not have {size} bytes"):
            repository.upload(DIGEST, size, content)
    assert waits == []
    assert (registry.blobs, registry.uploads) == ({}, {}), "the uploads are cancelled"


def test_two_agents_upload_the_same(registry: Registry) -> None:
    with ThreadPoolExecutor(2) as pool:
        agents = [Repository(f"{registry.host}/ml/points") for _ in range(2)]
        list(pool.map(lambda agent: agent.upload(DIGEST, len(BLOB), content), agents))
    assert registry.blobs == {("ml/points", DIGEST): BLOB}
