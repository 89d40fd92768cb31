"""Validates objects against Kubernetes' schemas, the strict ones of kubernetes-validate.

The version of Kubernetes is the newest with a schema, unless service.yaml (`verify: {kubernetes: "1.31"}`) or the caller sets one. The
newest finds removed APIs, which break at the next cluster update; to find fields that an older cluster does not know, set its version.
Custom resources are not validated: their schemas are in a cluster.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from mlops_build.errors import UsageError
from mlops_build.verify.document import Path
from mlops_build.verify.world import BUILT_IN, Fault, Object, mappings

TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
}


class UnknownVersion(UsageError):
    """There is no schema for this version of Kubernetes."""


def versions() -> list[str]:
    """The versions with a schema, such as "1.31", oldest first."""
    from kubernetes_validate.utils import all_versions, major_minor

    return list(dict.fromkeys(major_minor(version.split("-")[0]) for version in all_versions()))


def check(obj: Object, version: str | None = None) -> Iterator[Fault]:
    """Validate an object against its schema. Raises UnknownVersion."""
    if not obj.api_version or not obj.kind:
        missing = "apiVersion" if not obj.api_version else "kind"
        yield Fault("missing-field", obj, (), f"{missing} is missing, so the type of the object is unknown")
        return
    if obj.group not in BUILT_IN:
        return
    chosen = _chosen(version)
    validator = _validator(chosen, obj.kind, obj.api_version)
    if validator is None:
        yield _unknown_kind(obj, chosen)
        return
    for error in validator.iter_errors(_shallow(obj)):
        yield from _translated(obj, error)


@cache
def _chosen(version: str | None) -> str:
    supported = versions()
    if version is None:
        return supported[-1]
    if version not in supported:
        raise UnknownVersion(f"there is no schema for Kubernetes {version!r}", remedy=f"one of {', '.join(supported)}")
    return version


@cache
def _definitions(version: str) -> Mapping[str, Any]:
    from kubernetes_validate.utils import schema_contents

    contents = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    definitions: Mapping[str, Any] = contents["$defs"]
    return definitions


@cache
def _kinds(version: str) -> dict[str, dict[str, Any]]:
    """The schemas of each kind of object by apiVersion."""
    kinds: dict[str, dict[str, Any]] = {}
    for schema in _definitions(version).values():
        for identity in schema.get("x-kubernetes-group-version-kind", []) if "metadata" in schema.get("properties", {}) else ():
            api_version = f"{identity['group']}/{identity['version']}".lstrip("/")
            kinds.setdefault(identity["kind"], {})[api_version] = schema
    return kinds


@cache
def _validator(version: str, kind: str, api_version: str) -> Any:
    """A validator; None if this version has no such kind."""
    from jsonschema.validators import Draft202012Validator

    schema = _kinds(version).get(kind, {}).get(api_version)
    return Draft202012Validator({**schema, "$defs": _definitions(version)}) if schema else None


def _unknown_kind(obj: Object, version: str) -> Fault:
    if api_versions := _kinds(version).get(obj.kind):
        why = f"Kubernetes {version} has no {obj.kind} in {obj.api_version}"
        return Fault("bad-api-version", obj, ("apiVersion",), why, f"write apiVersion: {' or '.join(api_versions)}")
    close = difflib.get_close_matches(obj.kind, _kinds(version), n=1)
    hint = f"did you mean {close[0]}?" if close else "see `kubectl api-resources`"
    return Fault("bad-api-version", obj, ("kind",), f"Kubernetes {version} has no kind {obj.kind} in {obj.api_version}", hint)


def _shallow(obj: Object) -> Mapping[str, Any]:
    """The object without the schemas in a CustomResourceDefinition, which are generated and very large."""
    if obj.kind != "CustomResourceDefinition":
        return obj.data
    versions = [{**version, "schema": {}} if "schema" in version else version for version in mappings(obj.spec, "versions")]
    return {**obj.data, "spec": {**obj.spec, "versions": versions}}


def without_nulls(value: Any) -> Any:
    """The value without nulls, which Kubernetes treats as absent."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def _translated(obj: Object, error: Any) -> Iterator[Fault]:
    """Faults for a JSON schema error. Its own message may contain the whole object, so it is not used."""
    path: Path = tuple(error.absolute_path)
    allowed = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    shown = f"{dotted(path)} is {display(error.instance)}"
    if error.validator == "additionalProperties":
        fields = list(error.schema.get("properties", {}))
        parent = next((str(part) for part in reversed(path) if isinstance(part, str)), f"a {obj.kind}")
        for key in sorted(set(error.instance) - set(fields)):
            why = f"{dotted((*path, key))} is not a field of {parent}"
            yield Fault("unknown-field", obj, (*path, key), why, suggestion(key, fields))
    elif error.validator == "required":
        key = error.message.split("'")[1]
        yield Fault("missing-field", obj, path, f"{dotted((*path, key))} is missing")
    elif error.validator in ("type", "oneOf", "anyOf"):
        types = {str(kind) for part in allowed for kind in _types(part)} - {"null"}
        words = " or ".join(sorted(TYPES.get(kind, kind) for kind in types)) or "of another type"
        quotes = ": put it in quotes" if types == {"string"} and not isinstance(error.instance, dict | list) else ""
        yield Fault("wrong-type", obj, path, f"{shown}, but must be {words}{quotes}")
    else:
        remedy = f"one of {', '.join(map(str, allowed))}" if error.validator == "enum" else None
        yield Fault("wrong-value", obj, path, shown, remedy)


def _types(part: Any) -> list[str]:
    """The types that a part of a schema allows: a name, or a schema."""
    types = part.get("type", []) if isinstance(part, Mapping) else part
    return types if isinstance(types, list) else [types]


def suggestion(key: str, known: list[str]) -> str | None:
    """A remedy with the most similar of the known names; None if none is similar."""
    exact = [name for name in known if name.lower() == key.lower()]
    close = exact or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else None


def dotted(path: Path) -> str:
    """spec.template.spec.containers[0].image"""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f"[{part!r}]"
    return text.removeprefix(".")


def display(value: object) -> str:
    """A value for a message: short, on one line."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, int | float):
        return f"the number {value}"
    text = ascii(str(value))
    return text if len(text) <= 60 else f"{text[:57]}…'"
