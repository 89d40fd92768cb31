"""What can be wrong in single fields, as data: JSON schemas in YAML files, with the rule and text of each violation.

verify/fields.yaml is about Kubernetes objects; other files are about CI specs. Two keywords are not of JSON Schema. `unique: KEY` (or a
list of keys): the items of a list differ in their values of the key. `similar: WORDS`: a word is one of these, or resembles none of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mlops_build.verify.document import Path, Tagged, parse
from mlops_build.verify.schema import display, dotted, suggestion
from mlops_build.verify.world import BUILT_IN, Fault, Object, at

FILE = "verify/fields.yaml"
# Groups whose names are path segments, not DNS names.
OTHER_NAMES = {"rbac.authorization.k8s.io", "flowcontrol.apiserver.k8s.io"}


@dataclass(frozen=True)
class Violation:
    """A value that its field does not allow."""

    rule: str
    path: Path
    why: str
    remedy: str | None


def check(obj: Object) -> Iterator[Fault]:
    """Faults in single fields of a Kubernetes object, or of a patch of one."""
    definition = "Any"
    if obj.group in BUILT_IN and obj.api_version and obj.kind and not obj.kind.endswith("List"):
        of_other_kinds = "path-segment-named" if obj.group in OTHER_NAMES else "object"
        definition = obj.kind if obj.kind in definitions(FILE) else of_other_kinds
    yield from faults(obj, definition)


def faults(obj: Object, definition: str, path: Path = ()) -> Iterator[Fault]:
    """Faults in single fields of the part of an object at `path`."""
    for violation in violations(FILE, definition, at(obj.data, path)):
        yield Fault(violation.rule, obj, (*path, *violation.path), violation.why, violation.remedy)


def violations(file: str, definition: str, data: object) -> Iterator[Violation]:
    """Everything in `data` that a definition of a YAML file does not allow. file: its path in mlops_build."""
    reported: set[tuple[str, Path]] = set()  # a value may have to meet two definitions
    for error in _validator(file, definition).iter_errors(data):
        violation = _violation(error)
        if not isinstance(error.instance, Tagged) and (violation.rule, violation.path) not in reported:
            reported.add((violation.rule, violation.path))
            yield violation


def _violation(error: Any) -> Violation:
    path: Path = tuple(error.absolute_path)
    value, schema = error.instance, error.schema
    if error.validator == "unique":
        path, value = (*path, *error.cause.at), error.cause.value
    elif "propertyNames" in error.absolute_schema_path:
        path = (*path, value)
    shown = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else display(value)
    why = schema.get("x-why", "{where} is {value}").format(where=dotted(path), value=shown)
    remedy = schema["x-remedy"].format(text=value) if "x-remedy" in schema else None
    if error.validator in ("enum", "similar") and remedy is None:
        allowed = [str(word) for word in error.validator_value]
        remedy = suggestion(str(value), allowed) or f"one of {', '.join(allowed)}"
    return Violation(schema["x-rule"], (*path, *schema.get("x-at", [])), why, remedy)


class _At(Exception):
    """Where in a list `unique` is violated, and by which value."""

    def __init__(self, at: Path, value: object) -> None:
        super().__init__()
        self.at, self.value = at, value


def _unique(_: Any, keys: str | list[str], items: Any, __: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    names = [keys] if isinstance(keys, str) else keys
    seen: set[tuple[object, ...]] = set()
    for index, item in enumerate(items if isinstance(items, list) else []):
        values = tuple(item.get(name) for name in names) if isinstance(item, Mapping) else (None,)
        if isinstance(values[0], str | int) and values in seen:
            yield ValidationError("", cause=_At((index, names[0]), " ".join(str(value) for value in values if value is not None)))
        if isinstance(values[0], str | int):
            seen.add(values)


def _similar(_: Any, words: list[str], word: Any, __: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(word, str) and word.lower() not in words and suggestion(word, words):
        yield ValidationError("")


@cache
def definitions(file: str) -> Mapping[str, Any]:
    """The definitions of a YAML file in mlops_build."""
    text = files("mlops_build").joinpath(file).read_text(encoding="utf-8")
    result: Mapping[str, Any] = parse(text, file).documents[0].value["$defs"]
    return result


@cache
def _validator(file: str, definition: str) -> Any:
    from jsonschema.validators import Draft202012Validator, extend

    schema = {"$schema": Draft202012Validator.META_SCHEMA["$id"], "$ref": f"#/$defs/{definition}", "$defs": definitions(file)}
    types = Draft202012Validator.TYPE_CHECKER.redefine("string", lambda _, value: isinstance(value, str) and not isinstance(value, Tagged))
    return extend(Draft202012Validator, {"unique": _unique, "similar": _similar}, type_checker=types)(schema)
