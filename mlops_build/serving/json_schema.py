"""Whether a JSON value fits a schema: the part of JSON Schema 2020-12 that our contracts use. Standard library only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlops_build.errors import Refused

# What says something to people and generators, and judges nothing.
SILENT = {"format", "contentEncoding", "contentMediaType", "title", "description", "default", "example", "examples", "deprecated"}
JUDGING = {"type", "const", "minimum", "maximum", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems"}
JUDGING |= {"maxItems", "contains", "anyOf", "allOf", "$ref"}
MAX_DEPTH = 100
SHOWN = 60


class UnknownSchema(Refused):
    """A schema with something that is not judged here; passing over it would take what the service refuses."""


@dataclass(frozen=True)
class Problem:
    """Where a value does not fit. kind: `missing` (a required key), `size` (too few or too many items), else `value`."""

    path: str
    why: str
    kind: str = "value"

    def __str__(self) -> str:
        return f"{self.path or 'the body'}: {self.why}"


def check_schema(schema: object, document: Mapping[str, Any], depth: int = 0) -> None:
    """Raises UnknownSchema unless all of the schema is judged here. document: where `$ref` points into."""
    if schema is True or schema is False:
        return
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        raise UnknownSchema(f"not a schema that can be judged: {str(schema)[:SHOWN]}", remedy="is it an openapi.json of mlops-build?")
    if unknown := sorted(str(key) for key in schema if key not in SILENT | JUDGING and not str(key).startswith("x-")):
        raise UnknownSchema(f"{', '.join(unknown)[:SHOWN]} in a schema is not judged here", remedy="update mlops-build")
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
    """What a `$ref` within the document names. Raises UnknownSchema."""
    found: Any = document
    head, *parts = str(reference).split("/")
    for part in parts:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    if head != "#" or found is None:
        raise UnknownSchema(f"{str(reference)[:SHOWN]} names nothing in this document")
    return found


def problem(value: Any, schema: Any, document: Mapping[str, Any], path: str = "") -> Problem | None:
    """The first thing that does not fit; None where all does. The schema must have passed `check_schema`."""
    if schema is True:
        return None
    if schema is False:
        return Problem(path, "nothing may stand here")
    return next(_problems(value, schema, document, path), None)


def _problems(value: Any, schema: Mapping[str, Any], document: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Each keyword by itself: none ends the judgement early, so that no other is passed over."""

    def judged(part: Any, inner: Any, where: str) -> Iterator[Problem]:
        if (found := problem(part, inner, document, where)) is not None:
            yield found

    if "$ref" in schema:
        yield from judged(value, resolve(schema["$ref"], document), path)
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
                yield from judged(inner, properties[name], f"{path}.{name}".lstrip("."))
            elif "additionalProperties" in schema:
                yield from judged(inner, schema["additionalProperties"], f"{path}.{name}".lstrip("."))
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield Problem(path, f"{len(value)} items, at least {schema['minItems']} are needed", "size")
        if "maxItems" in schema and len(value) > schema["maxItems"]:
            yield Problem(path, f"{len(value)} items, at most {schema['maxItems']} are taken", "size")
        first = schema.get("prefixItems", [])
        for place, inner in enumerate(value):
            if place < len(first):
                yield from judged(inner, first[place], f"{path}[{place}]")
            elif "items" in schema:
                yield from judged(inner, schema["items"], f"{path}[{place}]")
        if "contains" in schema and all(problem(inner, schema["contains"], document) for inner in value):
            yield Problem(path, f"{_shown(_const(schema['contains']))} is missing", "missing")
    for inner in schema.get("allOf", []):
        yield from judged(value, inner, path)
    if "anyOf" in schema:
        found = [problem(value, inner, document, path) for inner in schema["anyOf"]]
        if all(found):
            yield _nearest(value, schema["anyOf"], found, path)


def _nearest(value: Any, branches: list[Any], found: list[Problem | None], path: str) -> Problem:
    """What is wrong in the branch that was meant: the one whose required keys are there."""
    for inner, one in zip(branches, found, strict=True):
        needed = inner.get("required") if isinstance(inner, Mapping) else None
        if one is not None and needed and isinstance(value, dict) and all(name in value for name in needed):
            return one
    return next((one for one in found if one is not None), Problem(path, "nothing may stand here"))


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return isinstance(value, int | float) and not isinstance(value, bool) and (kind == "number" or value % 1 == 0)
    kinds: dict[str, type | None] = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    wanted = kinds.get(kind)
    return wanted is not None and isinstance(value, wanted)


def _equal(one: Any, other: Any) -> bool:
    """1 is 1.0, and true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _const(schema: Any) -> Any:
    return schema.get("const", "an item") if isinstance(schema, Mapping) else "an item"


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else repr(value)
    return str(text)[:SHOWN]
