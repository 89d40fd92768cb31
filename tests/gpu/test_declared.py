"""The administrator's settings: /etc/mlops-gpu.toml."""

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.gpu.declared import BadConfig, Declared, Settings, parse, settings

GIB = 2**30
ME = pwd.getpwuid(os.getuid()).pw_name


def test_all_keys() -> None:
    text = f"""
loading = 2
reserve = "512MiB"

[[neighbour]]
name = "billing"
uid = 1001
cgroup = "/system.slice/billing*"
command = "*score.py*"
memory = "6GiB"

[[neighbour]]
user = "{ME}"
memory = "1.5GiB"
"""
    assert parse(text.encode()) == Settings(
        (Declared("billing", 6 * GIB, 1001, "/system.slice/billing*", "*score.py*"), Declared(ME, 3 * GIB // 2, os.getuid())), 2, GIB // 2
    )
    assert parse(b"") == Settings((), 1, 0)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ('[[neighbour]]\nuid = 1\nmemroy = "6GiB"', "neighbour 1: unknown key 'memroy'", "did you mean `memory`?"),
        ("[[neighbor]]", "unknown key 'neighbor'", "`neighbour`"),
        ("colour = 1", "unknown key 'colour'", "use one of loading, reserve, neighbour"),
        ('[neighbour]\nuid = 1\nmemory = "1GiB"', "not a list of tables", "[[neighbour]]"),
        ("[[neighbour]]\nuid = 1", "has no `memory`", "6GiB"),
        ("[[neighbour]]\nuid = 1\nmemory = 6", "6 is not an amount", "quotes"),
        ('[[neighbour]]\nuid = 1\nmemory = "6GB"', "'6GB' is not an amount", "GiB"),
        ('[[neighbour]]\nmemory = "6GiB"', "matches every process", "uid, user, cgroup or command"),
        ('[[neighbour]]\nuid = 1\nuser = "root"\nmemory = "6GiB"', "both", "one of them"),
        ('[[neighbour]]\nuid = "root"\nmemory = "6GiB"', "`uid` is 'root'", "`user`"),
        ('[[neighbour]]\nuid = true\nmemory = "6GiB"', "`uid` is True", "numeric"),
        ('[[neighbour]]\nuser = "nobody-by-this-name"\nmemory = "6GiB"', "no user 'nobody-by-this-name'", "`uid`"),
        ('[[neighbour]]\nuid = 1\nmemory = "1GiB"\n[[neighbour]]\ncommand = ""\nmemory = "1GiB"', "neighbour 2: `command`", "string"),
        ("loading = 0", "`loading` is 0", "from 1"),
        ("loading = true", "`loading` is True", "from 1"),
        ('reserve = "lots"', "`reserve`: 'lots'", "GiB"),
        ("x = ", "is not valid TOML", "fix it"),
    ],
)
def test_an_invalid_file_is_refused_with_place_and_remedy(text: str, message: str, remedy: str) -> None:
    with pytest.raises(BadConfig) as refused:
        parse(text.encode(), "/etc/mlops-gpu.toml")
    assert message in refused.value.message
    assert refused.value.message.startswith("/etc/mlops-gpu.toml")
    assert remedy in str(refused.value.remedy)
    assert refused.value.exit_code == 2


def test_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu.toml"
    monkeypatch.setenv("MLOPS_GPU_CONFIG", str(file))
    with pytest.raises(BadConfig, match=r"gpu\.toml cannot be read: No such file") as missing:
        settings()
    assert missing.value.remedy == "create it, or unset MLOPS_GPU_CONFIG"
    monkeypatch.setattr("mlops_build.gpu.declared.FILE", str(file))
    assert settings() == Settings(), "the default file may be missing"
    file.write_text("loading = 3")
    assert settings().loading == 3
    file.unlink()
    file.mkdir()
    with pytest.raises(BadConfig, match="cannot be read"):
        settings()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_no_traceback(content: bytes) -> None:
    try:
        parse(content)
    except BadConfig as error:
        assert error.remedy  # noqa: PT017


VALUES = st.one_of(st.integers(-5, 70), st.booleans(), st.sampled_from(['"1GiB"', '"x"', "[]", "{}", "1.5", "1979-05-27", '""', "[[1]]"]))


@given(st.dictionaries(st.sampled_from(["name", "uid", "user", "cgroup", "command", "memory", "loading"]), VALUES, max_size=5))
def test_an_arbitrary_table_is_read_or_refused(table: dict[str, object]) -> None:
    lines = [f"{key} = {str(value).lower() if isinstance(value, bool) else value}" for key, value in table.items()]
    for text in ("\n".join(["[[neighbour]]", *lines]), "\n".join(lines)):
        try:
            settings = parse(text.encode())
        except BadConfig as error:
            assert error.remedy  # noqa: PT017
        else:
            assert all(neighbour.memory_bytes == GIB for neighbour in settings.neighbours)
            assert 1 <= settings.loading <= 64
