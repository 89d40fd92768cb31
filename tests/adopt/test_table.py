"""adopt.csv: strict when it is read, harmless when it is opened."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_build.adopt import table
from mlops_build.adopt.table import BadTable, Row
from mlops_build.errors import Failed, NotFound

ROW = Row("/models", "a.pth", 7, "2026-12-01T00:00:00.000Z", "0" * 64, "state_dict", "2 tensors")
NAMES = [
    "=cmd",
    "'quoted",
    "+1",
    "-1",
    "@a",
    "\t=a",
    "a;=cmd",
    "a; +b",
    "new\nline",
    "\x1b[31m",
    "back\\slash\\n",
    "\udce9",
    'a,b"c',
    "模型",
    "＝a",
    " a ",
    "\r",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    row = replace(ROW, path=name, details=name, source=f"/{name}", action="skip")
    table.write(tmp_path / "a.csv", [row])
    assert list(table.read(tmp_path / "a.csv").values()) == [row]
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    for delimiter in ",;":
        for cell in next(csv.reader(lines[1:], delimiter=delimiter)):
            assert not cell.strip().startswith(tuple("=+-@＝\t\r")), cell
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("size", "7.5E+10", "a number of bytes"),
        ("modified", "01.12.2026", "a time"),
        ("sha256", "0x0", "64 hexadecimal digits"),
        ("kind", "safe", "one of state_dict"),
        ("model", "../etc", "lower-case letters"),
        ("service", "A b", "lower-case letters"),
        ("action", "yes", "adopt, skip or empty"),
        ("reason", "x" * 501, "one line"),
        ("reason", "$(A)", "one line"),
        ("until", "31.12.2026", "a date"),
        ("until", "2026-02-30", "a date"),
        ("path", "", "the path of a file"),
        ("source", "", "a path, s3://"),
        ("source", "/a\\x00b", "a path, s3://"),
        ("path", "a\\x00b", "the path of a file"),
        ("decided_by", "a\\x1bb", "a name"),
        ("details", "x" * 9000, "at most 8000"),
    ],
)
def test_a_wrong_cell_is_named_with_line_and_column(tmp_path: Path, column: str, value: str, wanted: str) -> None:
    table.write(tmp_path / "a.csv", [ROW, replace(ROW, path="b.pth")])
    lines = list(csv.reader((tmp_path / "a.csv").open()))
    lines[2][table.COLUMNS.index(column)] = value
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    with pytest.raises(BadTable) as raised:
        table.read(tmp_path / "a.csv")
    assert f"line 3, column {column}: " in raised.value.message
    assert wanted in raised.value.message
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda text: text.replace(",details,", ",what,"), "line 1 does not have the columns"),
        (lambda text: text + "a,b\n", "line 3, 2 columns instead of 14"),
        (lambda text: text + text.splitlines()[1], "line 3, column path: the file has two rows"),
        (lambda text: text.replace(",,,,,,,", ",m,,,adopt,,,"), "column decided_by: it is empty"),
        (lambda text: text.replace(",,,,,,,", ",,,,adopt,me,,"), "column model: it is empty"),
        (lambda text: text + '"a', "line 3: unexpected end of data"),
        (lambda text: text.replace(",", ";"), "line 1 does not have the columns"),
        (lambda text: "\udcff" + text, "not UTF-8"),
        (lambda _: "", "line 1 does not have the columns"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: "object", wanted: str) -> None:
    table.write(tmp_path / "a.csv", [ROW])
    text = change((tmp_path / "a.csv").read_text())  # type: ignore[operator]
    (tmp_path / "a.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadTable, match=wanted):
        table.read(tmp_path / "a.csv")


def test_many_faults_are_reported_together(tmp_path: Path) -> None:
    table.write(tmp_path / "a.csv", [replace(ROW, path=str(number), kind="safe") for number in range(50)])
    with pytest.raises(BadTable) as raised:
        table.read(tmp_path / "a.csv")
    assert raised.value.message.count("column kind") == table.MOST_FAULTS


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read"):
        table.read(tmp_path / "a.csv")


def test_a_byte_order_mark_and_other_line_ends_are_accepted(tmp_path: Path) -> None:
    table.write(tmp_path / "a.csv", [ROW])
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert list(table.read(tmp_path / "a.csv").values()) == [ROW]


@pytest.mark.parametrize("text", ['"source"x,path', '"source', "x" * 200_000, "\0", '"' + "\n" * 200_000])
def test_a_broken_header_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadTable):
        table.read(tmp_path / "a.csv")


def test_what_is_no_plain_file_is_not_waited_for_and_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path, tmp_path / ("x" * 5000)):
        with pytest.raises(NotFound):
            table.read(path, may_be_missing=True)
    for path in (Path("/proc/x.csv"), tmp_path / "missing/a.csv", tmp_path, tmp_path / ("x" * 5000)):
        with pytest.raises(Failed, match="cannot be written"):
            table.write(path, [ROW])
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]
