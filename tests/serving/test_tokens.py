"""Tokens of callers: which requests need one, valid and invalid token files, and changes of the file while a service runs."""

import hashlib
import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlops_build.__main__ import main
from mlops_build.serving.http.tokens import CHECK_SECONDS, BadTokens, Tokens
from tests.serving.conftest import serving, wait_for_log

SHOP, OLD = "shop-token-0123456789abcdef", "old-token-0123456789abcdef"
SPLIT = {"dataframe_split": {"columns": ["x", "y"], "data": [[1.0, 0.5]]}}


def line(name: str, token: str) -> str:
    return f"{name} sha256:{hashlib.sha256(token.encode()).hexdigest()}\n"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("# callers\n\n" + line("shop", SHOP) + "  " + line("shop", OLD))
    return path


def test_a_token_is_recognized_by_its_hash(file: Path) -> None:
    tokens = Tokens(file)
    assert tokens.caller(bearer(SHOP)) == tokens.caller(bearer(OLD)) == "shop"
    assert tokens.caller([(b"authorization", b"bEARER  " + SHOP.encode())]) == "shop"
    assert tokens.caller([(b"accept", b"x"), *bearer(SHOP)]) == "shop"


@pytest.mark.parametrize(
    "headers",
    [
        [], bearer(""), bearer(SHOP[:-1]), bearer(f"{SHOP} x"), bearer(hashlib.sha256(SHOP.encode()).hexdigest()), bearer(SHOP) * 2,
        [(b"authorization", SHOP.encode())], [(b"authorization", b"Basic " + SHOP.encode())], bearer("\xff" * 20), bearer("x" * 5000),
    ],
)  # fmt: skip
def test_any_other_header_has_no_caller(file: Path, headers: list[tuple[bytes, bytes]]) -> None:
    assert Tokens(file).caller(headers) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no hash"),
        ("# nobody yet\n", "contains no hash"),
        (SHOP, "line 1: expected"),
        (line("shop", SHOP) + f"shop {SHOP}", "line 2: expected"),
        (line("shop", SHOP).upper(), "line 1: expected"),
        (line("shop", SHOP).replace("sha256", "md5"), "line 1: expected"),
        (line("two words", SHOP), "line 1: expected"),
        (line('"}{', SHOP), "line 1: expected"),
        (line("shop", SHOP) + line("other", SHOP), "line 2: the hash occurs twice"),
        ("#" * (2 << 20), "larger than"),
        ("\x00\ufffd", "line 1: expected"),
    ],
)
def test_an_invalid_file_is_refused_and_not_shown(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(BadTokens, match=message) as refused:
        Tokens(tmp_path / "tokens")
    assert SHOP not in str(refused.value)


def test_a_changed_file_is_read_and_an_invalid_one_is_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    tokens = Tokens(file, clock)

    def later() -> None:
        clock.now += CHECK_SECONDS
        caplog.clear()

    replacement = file.with_name("next")
    replacement.write_text(line("app", "new-token"))
    replacement.replace(file)
    assert tokens.caller(bearer("new-token")) is None  # the file is not checked for each request
    with caplog.at_level(logging.WARNING, "mlops_build.serving"):
        later()
        assert (tokens.caller(bearer("new-token")), tokens.caller(bearer(SHOP))) == ("app", None)
        assert "valid tokens: 1" in caplog.text
        for break_it in (lambda: file.write_text("shop not-a-hash\n"), file.unlink):
            break_it()
            later()
            assert tokens.caller(bearer("new-token")) == "app"
            assert "stay valid (tokens: 1)" in caplog.text
            later()
            assert tokens.caller(bearer("new-token")) == "app"
            assert caplog.text == ""  # logged once
        file.write_text(line("shop", SHOP))
        later()
        assert (tokens.caller(bearer("new-token")), tokens.caller(bearer(SHOP))) == (None, "shop")


def test_the_documented_command_creates_a_valid_hash(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/protect-a-model-with-tokens.md").read_text()
    script = page.split("```sh\n", 1)[1].split("```", 1)[0]
    done = subprocess.run(["sh", "-euc", f'{script}\nprintf %s "$token"'], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout) == 64
    assert Tokens(tmp_path / "tokens").caller(bearer(done.stdout)) == "shop"


@pytest.fixture(scope="module")
def guarded(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path, Path]]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text(line("shop", SHOP))
    arguments = [str(context), "--port", "0", "--device", "cpu"]
    with serving(folder, *arguments, MLOPS_SERVE_TOKENS=str(folder / "tokens")) as server, httpx.Client(base_url=server.url) as client:
        yield client, server.log, folder / "tokens"


def test_without_a_token_only_health_metrics_and_docs_answer(guarded: tuple[httpx.Client, Path, Path]) -> None:
    client, _, _ = guarded
    for path in ("/ping", "/models/lines/health", "/metrics", "/v2/health/live", "/v2/health/ready", "/docs"):
        assert client.get(path).status_code == 200, path
    for path in ("/openapi.json", "/version", "/v2", "/v2/models/lines", "/v2/models/lines/ready", "/nowhere", "/invocations", "//metrics"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert list(answer.json()) == (["error"] if path.startswith("/v2") else ["error_code", "message"])
        assert client.get(path, headers={"Authorization": f"Bearer {SHOP}"}).status_code != 401, path
    assert client.head("/version").status_code == 401
    page = client.get("/docs").text
    assert "/v2/models/lines/infer" in page
    assert "dataframe_split" not in page  # neither columns nor examples


def test_a_caller_with_a_token_is_answered_and_logged_by_name(guarded: tuple[httpx.Client, Path, Path]) -> None:
    client, log, _ = guarded

    def ask(token: str | None, path: str, request_id: str) -> Any:
        headers = {"X-Request-Id": request_id, **({} if token is None else {"Authorization": f"Bearer {token}"})}
        return client.post(path, json=SPLIT, headers=headers)

    assert ask(SHOP, "/invocations", "with").status_code == 200
    for token, challenge in ((None, "Bearer"), (OLD, 'Bearer error="invalid_token"')):
        answer = ask(token, "/models/lines/invocations", f"without-{token is None}")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, challenge)
        assert answer.json()["error_code"] == "UNAUTHENTICATED"
    assert list(ask(None, "/v2/models/lines/infer", "v2").json()) == ["error"]
    lines = {name: json.loads(wait_for_log(log, rf'\{{.*"{name}".*\}}')[0]) for name in ("with", "without-True")}
    assert lines["with"]["caller"] == "shop"
    assert (lines["without-True"]["status"], lines["without-True"].get("caller")) == (401, None)
    assert SHOP not in log.read_text()
    assert OLD not in log.read_text()
    assert 'mlops_build_refused_total{model="lines",why="no valid token"}' in client.get("/metrics").text
    contract = client.get("/openapi.json", headers={"Authorization": f"Bearer {SHOP}"}).json()
    assert contract["security"] == [{"token": []}]


def test_a_body_is_not_read_without_a_token(guarded: tuple[httpx.Client, Path, Path]) -> None:
    client, _, _ = guarded
    assert client.post("/invocations", content=b"x" * (20 << 20)).status_code == 401  # and not 413


def test_a_missing_file_is_an_error_before_anything_is_loaded(context: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(context), "--port", "0", "--tokens", str(tmp_path / "nowhere")]) == 2
    output = capsys.readouterr().err
    assert f"the token file {tmp_path / 'nowhere'} cannot be read" in output
    assert "device" not in output
