"""Requests in every form for one kind of model: usual ones, unusual values in each place, and malformed ones."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from tests.serving.kinds import SENT_PARAMS, Kind

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


@dataclass(frozen=True)
class Request:
    """A request to /invocations, or to another path. name: for messages of tests."""

    name: str
    body: bytes = b""
    kind: str | None = JSON
    encoding: str | None = None
    method: str = "POST"
    path: str = "/invocations"

    @property
    def headers(self) -> dict[str, str]:
        headers = {"content-type": self.kind, "content-encoding": self.encoding}
        return {name: value for name, value in headers.items() if value is not None}


# As text, since json.dumps cannot write some of them.
VALUES = [
    "null", "NaN", "true", "1.5", "7", '"x"', '""', "[1]", "{}", '"1"', "2147483648", '"2024-02-29"', "Infinity", "-Infinity", "false", "0",
    "-0.0", "1.0", "-1", "256", "1e2", "2147483647",
    "-2147483649", "1099511627776", "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775809",
    "18446744073709551616", "1180591620717411303424", "1e19", "1e39", "1e300", "1e400", "1" + "0" * 400, '"1.5"', '" 2 "',
    '"true"', '"null"', '"NaN"', '"é\\ud83d\\ude00"', '"\\ud800"', '"a\\u0000b"', '"2024-02-29"', '"2024-02-29T12:00:00+02:00"',
    '"2024-02-29T12:00:00Z"', '"2024-02-30"', '"9999-12-31"', '"0001-01-01"', '"2262-04-12"', '"YWJj"', '"YWJ"', '"YW=Jj"', "[]",
    "[1.5, null]", "[[1]]", '{"a": 1}', '"' + "x" * 300 + '"',
]  # fmt: skip
PLACE = "\ue000"


def requests(kind: Kind) -> Iterator[Request]:
    """All requests to a model of this kind."""
    usual: Any = None
    if kind.types:
        yield from _tables(kind)
        yield from _tables_in_files(kind)
        yield from _values(kind)
        usual = {"dataframe_split": {"columns": list(kind.types), "data": [list(row.values()) for row in kind.rows]}}
    if kind.tensor is not None:
        yield from tensors(kind.tensor)
        usual = {"inputs": kind.tensor}
    for number, document in enumerate(kind.bodies):
        yield _json(f"further {number}", document)
    yield from _malformed(_text(usual or kind.bodies[0]))


def paths() -> Iterator[Request]:
    """Requests to paths other than /invocations, and methods other than POST."""
    for method, path in (
        ("GET", "/ping"), ("GET", "/health"), ("GET", "/version"), ("HEAD", "/health"), ("POST", "/health"), ("GET", "/invocations"),
        ("PUT", "/invocations"), ("POST", "/invocations/"), ("GET", "/nowhere"), ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"),
        ("OPTIONS", "/invocations"), ("DELETE", "/invocations"), ("POST", "/nowhere"), ("GET", "/invocations?x=1"),
    ):  # fmt: skip
        yield Request(f"{method} {path}", method=method, path=path)


def _json(name: str, document: Any) -> Request:
    return Request(name, _text(document))


def _text(document: Any) -> bytes:
    return json.dumps(document).encode()


def _tables(kind: Kind) -> Iterator[Request]:
    names, rows = list(kind.types), kind.rows
    data = [list(row.values()) for row in rows]
    split = {"columns": names, "data": data}
    backwards = [{name: row[name] for name in reversed(names)} for row in rows]
    by_column = {name: [row[name] for row in rows] for name in names}
    less = names[:-1]
    documents: dict[str, Any] = {
        "split": {"dataframe_split": split},
        "split, one row": {"dataframe_split": {**split, "data": data[:1]}},
        "split, no columns": {"dataframe_split": {"data": data}},
        "split, other order": {"dataframe_split": {"columns": names[::-1], "data": [row[::-1] for row in data]}},
        "split, index": {"dataframe_split": {**split, "index": [7, "x"]}},
        "split, short index": {"dataframe_split": {**split, "index": [7]}},
        "split, extra column": {"dataframe_split": {"columns": [*names, "z"], "data": [[*row, {"q": 1}] for row in data]}},
        "split, extra key": {"dataframe_split": {**split, "more": 1}},
        "split, a column twice": {"dataframe_split": {"columns": [*names, names[0]], "data": [[*row, row[0]] for row in data]}},
        "split, an unknown column twice": {"dataframe_split": {"columns": [*names, "z", "z"], "data": [[*row, 1, 2] for row in data]}},
        "split, missing column": {"dataframe_split": {"columns": less, "data": [row[:-1] for row in data]}},
        "split, first column missing": {"dataframe_split": {"columns": names[1:], "data": [row[1:] for row in data]}},
        "split, long row": {"dataframe_split": {**split, "data": [data[0], [*data[1], 1]]}},
        "split, short row": {"dataframe_split": {**split, "data": [data[0], data[1][:-1]]}},
        "split, long rows": {"dataframe_split": {**split, "data": [[*row, 1] for row in data]}},
        "split, no rows": {"dataframe_split": {**split, "data": []}},
        "split, an empty row": {"dataframe_split": {**split, "data": [[]]}},
        "split, flat": {"dataframe_split": {**split, "data": data[0]}},
        "split, deep": {"dataframe_split": {**split, "data": [data]}},
        "split, rows are objects": {"dataframe_split": {**split, "data": rows}},
        "split, data by column": {"dataframe_split": {"data": by_column}},
        "split, data is null": {"dataframe_split": {**split, "data": None}},
        "split, data is text": {"dataframe_split": {**split, "data": "x"}},
        "split, names are numbers": {"dataframe_split": {"columns": list(range(len(names))), "data": data}},
        "split, names are lists": {"dataframe_split": {"columns": [[name] for name in names], "data": data}},
        "split, names are null": {"dataframe_split": {"columns": None, "data": data}},
        "split, names are text": {"dataframe_split": {"columns": "abc", "data": data}},
        "records": {"dataframe_records": rows},
        "records, other order": {"dataframe_records": [rows[0], backwards[1]]},
        "records, extra column": {"dataframe_records": [{**row, "z": [1]} for row in rows]},
        "records, missing column": {"dataframe_records": [{name: row[name] for name in less} for row in rows]},
        "records, one lacks a column": {"dataframe_records": [rows[0], {name: rows[1][name] for name in less}]},
        "records, one extra": {"dataframe_records": [rows[0], {**rows[1], "z": 1}]},
        "records, none": {"dataframe_records": []},
        "records, empty": {"dataframe_records": [{}]},
        "records, lists": {"dataframe_records": data},
        "records, a null": {"dataframe_records": [rows[0], None]},
        "instances": {"instances": rows},
        "instances, one": {"instances": rows[:1]},
        "instances, other order": {"instances": backwards},
        "instances, extra column": {"instances": [{**row, "z": 1} for row in rows]},
        "instances, one lacks a column": {"instances": [rows[0], {name: rows[1][name] for name in less}]},
        "instances, lists": {"instances": data},
        "instances, by column": {"instances": by_column},
        "instances, empty": {"instances": []},
        "instances, empty objects": {"instances": [{}]},
        "instances, mixed": {"instances": [rows[0], data[1]]},
        "inputs": {"inputs": by_column},
        "inputs, scalars": {"inputs": rows[0]},
        "inputs, scalars and lists": {"inputs": {**rows[0], names[0]: [rows[0][names[0]]]}},
        "inputs, objects": {"inputs": rows},
        "inputs, lists": {"inputs": data},
        "inputs, extra": {"inputs": {**by_column, "z": ["x", "y"]}},
        "inputs, missing": {"inputs": {name: by_column[name] for name in less}},
        "inputs, uneven": {"inputs": {**by_column, names[-1]: by_column[names[-1]][:1]}},
        "inputs, uneven extra": {"inputs": {**by_column, "z": [1]}},
        "inputs, empty columns": {"inputs": {name: [] for name in names}},
        "inputs, empty": {"inputs": {}},
        "inputs, deep": {"inputs": {name: [[value] for value in values] for name, values in by_column.items()}},
        "inputs, extra key": {"inputs": by_column, "more": 1},
        "instances, extra key": {"instances": rows, "more": 1},
        "split, other extra key": {"dataframe_split": split, "more": 1},
        "inputs, signature_name": {"inputs": by_column, "signature_name": "x"},
        **{f"params {number}": {"dataframe_split": split, "params": params} for number, params in enumerate(SENT_PARAMS)},
    }
    for name, document in documents.items():
        yield _json(name, document)


def _tables_in_files(kind: Kind) -> Iterator[Request]:
    frame = pd.DataFrame(kind.rows)
    for name, sent in (("datetime", "datetime64[ns]"), ("float", "float32"), ("integer", "int32")):
        for column in [column for column, type_name in kind.types.items() if type_name == name]:
            frame[column] = frame[column].astype(sent)
    first = frame.columns[0]
    frames = {
        "usual": frame,
        "other order": frame[frame.columns[::-1]],
        "an extra column": frame.assign(z="x"),
        "a missing column": frame.drop(columns=first),
        "no rows": frame.iloc[:0],
        "a null": frame.astype(object).where([[True] * len(frame.columns), [False] * len(frame.columns)], None),
        "text": frame.astype(str),
        "names as index": frame.set_index(first),
    }
    for name, sent in frames.items():
        yield Request(f"csv, {name}", sent.to_csv(index=False).encode(), CSV)
        yield Request(f"parquet, {name}", _parquet(sent), PARQUET)
    yield Request("csv, with an index", frame.to_csv().encode(), CSV)
    text = frame.to_csv(index=False).encode()
    lines = text.splitlines(keepends=True)
    for name, sent in {
        "utf-8 mark": b"\xef\xbb\xbf" + text, "line ends": text.replace(b"\n", b"\r\n"), "no line end": text.rstrip(b"\n"), "empty": b"",
        "blank lines": b"\n".join(lines), "semicolons": text.replace(b",", b";"), "spaces": text.replace(b",", b", "),
        "not utf-8": b"\xff\xfe",
        "a short row": lines[0] + b"1\n", "a long row": lines[0] + lines[1].rstrip(b"\n") + b",1\n",
        "quotes": lines[0] + b'"1\n' + lines[1],
        "a nul": text.replace(b"1", b"\x00"), "only names": lines[0], "a comment": b"# x\n" + text,
        "names twice": lines[0].rstrip(b"\n") + b"," + text,
        "infinity": lines[0] + b",".join([b"inf"] * len(frame.columns)) + b"\n",
        "NA": lines[0] + b",".join([b"NA"] * len(frame.columns)) + b"\n",
        "large": lines[0] + b",".join([b"99999999999999999999"] * len(frame.columns)) + b"\n",
    }.items():  # fmt: skip
        yield Request(f"csv, {name}", sent, CSV)
    yield Request("csv with charset", text, "text/csv; charset=utf-8")
    yield Request("parquet, not", b"PAR1 no", PARQUET)
    yield Request("parquet, cut", _parquet(frame)[:-20], PARQUET)
    yield Request("parquet, empty", b"", PARQUET)


def _parquet(frame: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file, index=None)
    return file.getvalue()


def _values(kind: Kind) -> Iterator[Request]:
    """Each unusual value in each column: in the second row of two, and alone."""
    for column in kind.types:
        rows = [dict(row) for row in kind.rows]
        rows[1][column] = PLACE
        data, by_column = [list(row.values()) for row in rows], {name: [row[name] for row in rows] for name in kind.types}
        documents = {
            "split": {"dataframe_split": {"columns": list(kind.types), "data": data}},
            "records": {"dataframe_records": rows[1:]},
            "instances": {"instances": rows[1:]},
            "inputs": {"inputs": by_column},
            "inputs, scalars": {"inputs": rows[1]},
        }
        for form, document in documents.items():
            text = json.dumps(document)
            for value in VALUES[: kind.values]:
                yield Request(f"{form}, {column}={value[:40]}", text.replace(json.dumps(PLACE), value).encode())


def tensors(tensor: Any) -> Iterator[Request]:
    """Requests to a model that takes such a tensor."""
    for form in ("inputs", "instances"):
        yield _json(form, {form: tensor})
        yield _json(f"{form}, extra key", {form: tensor, "more": 1})
        yield _json(f"{form}, params", {form: tensor, "params": {"x": 1}})
        if isinstance(tensor, dict):
            continue
        for name, sent in {
            "twice": tensor + tensor, "deeper": [tensor], "flatter": tensor[0], "no rows": [], "an empty row": [[]], "scalar": 3,
            "null": None,
            "text": "x", "named": {"x": tensor}, "by name twice": {"x": tensor, "y": tensor}, "objects": [{"x": row} for row in tensor],
            "ragged": [*tensor, tensor[:1]], "ragged deeper": [*tensor, [*tensor[0], tensor[0][0]]] if isinstance(tensor[0],
            list) else [tensor, 1],
            "one narrower": [row[:-1] if isinstance(row, list) else row for row in tensor], "empty object": {}, "empty rows": [[], []],
        }.items():  # fmt: skip
            yield _json(f"{form}, {name}", {form: sent})
        last = json.dumps({form: _with_last(tensor, PLACE)})
        for value in VALUES:
            yield Request(f"{form}, last={value[:40]}", last.replace(json.dumps(PLACE), value).encode())
    if isinstance(tensor, list):
        rows = [row if isinstance(row, list) else [row] for row in tensor]
        names = [f"c{number}" for number in range(len(rows[0]))]
        yield _json("split", {"dataframe_split": {"columns": names, "data": rows}})
        yield _json("split, no columns", {"dataframe_split": {"data": rows}})
        yield _json("split, flat", {"dataframe_split": {"data": tensor}})
        yield _json("records", {"dataframe_records": [dict(zip(names, row, strict=True)) for row in rows]})
        yield _json("split, short row", {"dataframe_split": {"columns": names, "data": [*rows, rows[0][:-1]]}})
        flat = json.dumps({"dataframe_split": {"columns": names, "data": [_with_last(rows[0], PLACE)]}})
        for value in VALUES:
            yield Request(f"split, last={value[:40]}", flat.replace(json.dumps(PLACE), value).encode())
        frame = pd.DataFrame({name: [row[position] for row in rows] for position, name in enumerate(names)})
        yield Request("csv", frame.to_csv(index=False).encode(), CSV)
        yield Request("parquet", _parquet(frame), PARQUET)


def _with_last(tensor: Any, value: Any) -> Any:
    return [*tensor[:-1], _with_last(tensor[-1], value)] if isinstance(tensor, list) and tensor else value


def _malformed(usual: bytes) -> Iterator[Request]:
    """Bodies that are not what their headers say, and documents of no form."""
    form = next(iter(json.loads(usual)))
    for text in (
        b"", b" ", b"null", b"3", b'"abc"', b"[[1, 2]]", b"{}", b'{"data": [[1]]}', b"true", b"nan", b"NaN", b"{", b"}", b'{"inputs": ',
        b"\x00",
        b'{"inputs": [1],}', b"{'inputs': [1]}", b'{"inputs": [01]}', b'{"inputs": [1.]}', b'{"inputs": [+1]}', b'{"inputs": [0x1]}',
        b'{"inputs": [.5]}', b'{"inputs": ["\n"]}', b'{"inputs": ["\\x"]}', b'{"inputs": [1]} x', b'{"inputs": [1]}{}', b'{inputs: [1]}',
        b'// x\n{"inputs": [1]}', b'{"inputs": "\xff\xfe"}', b'{"inputs": "\xed\xa0\x80"}', b'{"dataframe_split": [1, 2]}',
        b'{"dataframe_split": {}}',
        b'{"dataframe_split": null}', b'{"dataframe_split": "x"}', b'{"dataframe_records": {"a": 1}}', b'{"dataframe_records": null}',
        b'{"dataframe_records": "x"}', b'{"dataframe_records": [1, 2]}', b'{"inputs": null}', b'{"inputs": {}}', b'{"inputs": []}',
        b'{"inputs": 1}',
        b'{"inputs": "x"}', b'{"inputs": true}', b'{"instances": null}', b'{"instances": {}}', b'{"instances": "x"}', b'{"inputs": [{}]}',
        b'{"messages": [{"role": "user", "content": "x"}]}', b'{"prompt": "x"}', b'{"input": ["x"]}', b'{"params": {}}',
        b'{"columns": [], "data": []}',
        b'{"inputs": [1], "instances": [1]}', b'{"dataframe_split": {"columns": [], "data": []}}', b'{"dataframe_split": {"data": []}}',
        b'{"dataframe_split": {"columns": ["a"]}}', b'{"dataframe_split": {"columns": {"a": 1}, "data": [[1]]}}', b'{"inputs": [[], []]}',
        b'{"inputs": {"a": {"b": 1}}}', b'{"inputs": [[[[[[1]]]]]]}', b'{"Inputs": [1]}', b'{"inputs ": [1]}',
    ):  # fmt: skip
        yield Request(f"text {text[:50]!r}", text)
    cut, twice = usual[:-1], usual[:-1] + b", " + usual[1:]
    for name, body in {
        "cut": cut, "a mark": b"\xef\xbb\xbf" + usual, "utf-16": usual.decode().encode("utf-16"), "utf-32": usual.decode().encode("utf-32"),
        "spaces": b" \r\n\t" + usual + b"\n ", "a nul at the end": usual + b"\x00", "the form twice": twice,
        "the form twice, first wrong": b'{"%b": 1, ' % form.encode() + usual[1:],
        "the form twice, last wrong": cut + b', "%b": 1}' % form.encode(),
        "escaped name": usual.replace(form.encode(), b"\\u%04x" % ord(form[0]) + form[1:].encode(), 1), "latin-1": usual.replace(b"1",
        b"\xe9"),
        "another form too": cut + b', "dataframe_records": []}', "an extra key": cut + b', "more": [NaN]}',
        "params twice": cut + b', "params": 1, "params": {}}',
    }.items():  # fmt: skip
        yield Request(name, body)
    for depth in (100, 500, 2000, 100_000):
        yield Request(f"{depth} lists", b'{"inputs": ' + b"[" * depth + b"1" + b"]" * depth + b"}")
    for depth in (100, 2000, 100_000):
        yield Request(f"{depth} objects", b'{"inputs": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}")
    plain = Request("plain", usual)
    for kind in (
        None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", "application/json;charset=UTF-8",
        'application/json; charset="utf-8"', "application/json; charset=latin1", "application/json; format=pandas-split",
        "Application/JSON",
        "application/json;", "application/json ; charset=utf-8", " application/json", "application/json, text/csv", "json", "*/*",
        "text/csv",
        "application/vnd.apache.parquet", "application/x-parquet", "application/json; charset", "image/png", "application/octet-stream",
    ):  # fmt: skip
        yield replace(plain, name=f"as {kind}", kind=kind)
    packed = gzip.compress(usual, mtime=0)
    for encoding, body in (
        ("gzip", packed), ("gzip", packed + gzip.compress(b" ", mtime=0)), ("gzip", packed[:-9]), ("gzip", usual), ("deflate",
        zlib.compress(usual)),
        ("identity", usual), ("br", usual), ("gzip, gzip", gzip.compress(packed, mtime=0)), ("GZIP", packed), ("", usual), ("gzip", b""),
        ("gzip", packed + b"rest"),
    ):  # fmt: skip
        yield replace(plain, name=f"encoding {encoding!r} of {len(body)} bytes", body=body, encoding=encoding)
    yield replace(plain, name="gzip without saying so", body=packed)
