"""Validate a JSON value with the part of JSON Schema 2020-12 that generated contracts use. Needs only the standard library."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlops_build.errors import Refused

# Keywords that are annotations, without effect on validation.
ANNOTATIONS = {"format", "contentEncoding", "contentMediaType", "title", "description", "default", "example", "examples", "deprecated"}
ASSERTIONS = {"type", "const", "minimum", "maximum", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems"}
ASSERTIONS |= {"maxItems", "contains", "anyOf", "allOf", "$ref"}
MAX_DEPTH = 100
SHOWN = 60


class UnknownSchema(Refused):
    """A schema with an unknown keyword. Ignoring it would accept values that the service refuses."""


@dataclass(frozen=True)
class Problem:
    """Why a value is not valid. kind: `missing` (a required key), `size` (too few or too many items), otherwise `value`."""

    path: str
    why: str
    kind: str = "value"

    def __str__(self) -> str:
        return f"{self.path or 'the body'}: {self.why}"


def check_schema(schema: object, document: Mapping[str, Any], depth: int = 0) -> None:
    """Raise UnknownSchema if the schema contains unknown keywords. document: the document that `$ref` refers to."""
    if schema is True or schema is False:
        return
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        raise UnknownSchema(f"not a valid schema: {str(schema)[:SHOWN]}", remedy="use an openapi.json that mlops-build wrote")
    if unknown := sorted(str(key) for key in schema if key not in ANNOTATIONS | ASSERTIONS and not str(key).startswith("x-")):
        raise UnknownSchema(f"unknown keywords in a schema: {', '.join(unknown)[:SHOWN]}", remedy="update mlops-build")
    for inner in _inner(schema, document):
        check_schema(inner, document, depth + 1)


def _inner(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[Any]:
    if "$ref" in schema:
        yield resolve(schema["$ref"], document)
    for key in ("items", "contains", "additionalProperties"):
        if key in schema:
            yield schema[key]
    for key in ("anyOf", "allOf", "prefixItems"):
        yield from schema.get(key, [])
    yield from schema.get("properties", {}).values()


def resolve(reference: object, document: Mapping[str, Any]) -> Any:
    """The part of the document that a `$ref` refers to. Raises UnknownSchema."""
    target: Any = document
    head, *parts = str(reference).split("/")
    for part in parts:
        target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
    if head != "#" or target is None:
        raise UnknownSchema(f"{str(reference)[:SHOWN]} does not exist in this document")
    return target


def problem(value: Any, schema: Any, document: Mapping[str, Any], path: str = "") -> Problem | None:
    """The first problem of a value; None if it is valid. The schema must have passed `check_schema`."""
    if schema is True:
        return None
    if schema is False:
        return Problem(path, "no value is allowed here")
    return next(_problems(value, schema, document, path), None)


def _problems(value: Any, schema: Mapping[str, Any], document: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """The problems by keyword. Every keyword is checked, whatever the others report."""

    def check(part: Any, inner: Any, where: str) -> Iterator[Problem]:
        if (first_problem := problem(part, inner, document, where)) is not None:
            yield first_problem

    if "$ref" in schema:
        yield from check(value, resolve(schema["$ref"], document), path)
    if "type" in schema:
        wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, kind) for kind in wanted):
            yield Problem(path, f"expected {' or '.join(wanted)}, got {_shown(value)}")
    if "const" in schema and not _equal(value, schema["const"]):
        yield Problem(path, f"expected {_shown(schema['const'])}, got {_shown(value)}")
    if _is(value, "number"):
        if "minimum" in schema and value < schema["minimum"]:
            yield Problem(path, f"{_shown(value)} is less than {schema['minimum']}")
        if "maximum" in schema and value > schema["maximum"]:
            yield Problem(path, f"{_shown(value)} is more than {schema['maximum']}")
    if isinstance(value, dict):
        for name in schema.get("required", []):
            if name not in value:
                yield Problem(path, f"{name} is missing", "missing")
        properties = schema.get("properties", {})
        for name, inner in value.items():
            if name in properties:
                yield from check(inner, properties[name], f"{path}.{name}".lstrip("."))
            elif "additionalProperties" in schema:
                yield from check(inner, schema["additionalProperties"], f"{path}.{name}".lstrip("."))
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield Problem(path, f"{len(value)} items, at least {schema['minItems']} are needed", "size")
        if "maxItems" in schema and len(value) > schema["maxItems"]:
            yield Problem(path, f"{len(value)} items, at most {schema['maxItems']} are allowed", "size")
        prefix = schema.get("prefixItems", [])
        for position, inner in enumerate(value):
            if position < len(prefix):
                yield from check(inner, prefix[position], f"{path}[{position}]")
            elif "items" in schema:
                yield from check(inner, schema["items"], f"{path}[{position}]")
        if "contains" in schema and all(problem(inner, schema["contains"], document) for inner in value):
            yield Problem(path, f"{_shown(_const(schema['contains']))} is missing", "missing")
    for inner in schema.get("allOf", []):
        yield from check(value, inner, path)
    if "anyOf" in schema:
        problems = [problem(value, inner, document, path) for inner in schema["anyOf"]]
        if all(problems):
            yield _nearest(value, schema["anyOf"], problems, path)


def _nearest(value: Any, branches: list[Any], problems: list[Problem | None], path: str) -> Problem:
    """The problem of the branch that the caller probably meant: the one whose required keys the value has."""
    for inner, branch_problem in zip(branches, problems, strict=True):
        required = inner.get("required") if isinstance(inner, Mapping) else None
        if branch_problem is not None and required and isinstance(value, dict) and all(name in value for name in required):
            return branch_problem
    return next((branch_problem for branch_problem in problems if branch_problem is not None), Problem(path, "no value is allowed here"))


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return isinstance(value, int | float) and not isinstance(value, bool) and (kind == "number" or value % 1 == 0)
    kinds: dict[str, type | None] = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    wanted = kinds.get(kind)
    return wanted is not None and isinstance(value, wanted)


def _equal(left: Any, right: Any) -> bool:
    """Equality in JSON: 1 equals 1.0, but not true."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _const(schema: Any) -> Any:
    return schema.get("const", "an item") if isinstance(schema, Mapping) else "an item"


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else repr(value)
    return str(text)[:SHOWN]
