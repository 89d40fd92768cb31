"""Is an object what Kubernetes' own schema says it is? The schemas are kubernetes-validate's strict ones, the words ours.

Which version of Kubernetes: the newest there is a schema for, unless service.yaml (`verify: {kubernetes: "1.31"}`) or the caller says. The
newest knows which APIs are gone, which is what breaks at a cluster's update; a field that an older cluster does not know yet is found by
naming its version. A custom resource is left alone: its schema lies in some cluster.
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
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
}


class UnknownVersion(UsageError):
    """A version of Kubernetes that there is no schema for."""


def versions() -> list[str]:
    """The versions there are schemas for, such as "1.31", oldest first."""
    from kubernetes_validate.utils import all_versions, major_minor

    return list(dict.fromkeys(major_minor(version.split("-")[0]) for version in all_versions()))


def check(one: Object, version: str | None = None) -> Iterator[Fault]:
    """The object's faults by its schema. Raises UnknownVersion."""
    if not one.api_version or not one.kind:
        missing = "apiVersion" if not one.api_version else "kind"
        yield Fault("missing-field", one, (), f"{missing} is missing, so nobody knows what this is")
        return
    if one.group not in BUILT_IN:
        return
    chosen = _chosen(version)
    validator = _validator(chosen, one.kind, one.api_version)
    if validator is None:
        yield _unknown_kind(one, chosen)
        return
    for error in validator.iter_errors(_without_nulls(_shallow(one))):
        yield from _translated(one, error)


@cache
def _chosen(version: str | None) -> str:
    known = versions()
    if version is None:
        return known[-1]
    if version not in known:
        raise UnknownVersion(f"there is no schema for Kubernetes {version!r}", remedy=f"one of {', '.join(known)}")
    return version


@cache
def _registry(version: str) -> Any:
    from kubernetes_validate.utils import schema_contents
    from referencing import Registry, Resource

    definitions = schema_contents(f"{_folder(version)}/_definitions.json", version)
    # Without the descriptions: most of the text, and nobody's to check.
    return Resource.from_contents(definitions) @ Registry()


@cache
def _validator(version: str, kind: str, api_version: str) -> Any:
    """A validator; None where this version has no such kind."""
    from jsonschema.validators import Draft202012Validator
    from kubernetes_validate.utils import schema_contents

    # A file is named after the group's first part: networking.k8s.io/v1 is networking-v1.
    suffix = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    name = f"{kind.lower()}-{suffix}.json"
    if not re.fullmatch(r"[a-z0-9-]+\.json", name):
        return None
    try:
        schema = schema_contents(f"{_folder(version)}/{name}", version)
    except FileNotFoundError:
        return None
    # Files of parts (a PodSpec) lie beside those of objects, which alone say which kind they are.
    if not any(found.get("kind") == kind for found in schema.get("x-kubernetes-group-version-kind", [])):
        return None
    return Draft202012Validator(schema, registry=_registry(version))


def _folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}.0-local-strict"


def _unknown_kind(one: Object, version: str) -> Fault:
    right = _homes(version).get(one.kind)
    if right:
        why = f"Kubernetes {version} has no {one.kind} in {one.api_version}"
        return Fault("bad-api-version", one, ("apiVersion",), why, f"write apiVersion: {' or '.join(right)}")
    close = difflib.get_close_matches(one.kind, _homes(version), n=1)
    hint = f"did you mean {close[0]}?" if close else "see `kubectl api-resources`"
    return Fault("bad-api-version", one, ("kind",), f"Kubernetes {version} has no kind {one.kind} in {one.api_version}", hint)


@cache
def _homes(version: str) -> dict[str, list[str]]:
    """The apiVersions of each kind that can be applied."""
    from kubernetes_validate.utils import schema_contents

    found: dict[str, list[str]] = {}
    definitions = schema_contents(f"{_folder(version)}/_definitions.json", version)
    for schema in definitions["$defs"].values():
        if "metadata" not in schema.get("properties", {}):
            continue
        for gvk in schema.get("x-kubernetes-group-version-kind", []):
            found.setdefault(gvk["kind"], []).append(f"{gvk['group']}/{gvk['version']}".lstrip("/"))
    return found


def _shallow(one: Object) -> Mapping[str, Any]:
    """The object without the schemas that a CustomResourceDefinition holds: generated, enormous, and checked by nobody's eye or ours."""
    if one.kind != "CustomResourceDefinition":
        return one.data
    versions = [{**version, "schema": {}} if "schema" in version else version for version in mappings(one.spec.get("versions"))]
    return {**one.data, "spec": {**one.spec, "versions": versions}}


def _without_nulls(value: Any) -> Any:
    """To Kubernetes, null is absent."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _translated(one: Object, error: Any) -> Iterator[Fault]:
    """A JSON schema error in words. Its message may hold the whole object, so nothing of it is repeated."""
    path: Path = tuple(error.absolute_path)
    where = dotted(path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        for key in sorted(set(error.instance) - set(known)):
            yield Fault("unknown-field", one, (*path, key), f"{dotted((*path, key))} is no field of {_what(one, path)}", meant(key, known))
    elif error.validator == "required":
        key = error.message.split("'")[1]
        yield Fault("missing-field", one, path, f"{dotted((*path, key))} is missing")
    elif error.validator == "enum":
        allowed = [str(value) for value in error.validator_value if value is not None]
        yield Fault("wrong-value", one, path, f"{where} is {shown(error.instance)}", f"one of {', '.join(allowed)}")
    elif error.validator == "type":
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        words = " or ".join(TYPES.get(str(kind), str(kind)) for kind in wanted if kind != "null")
        quotes = ": put it in quotes" if "string" in wanted and not isinstance(error.instance, dict | list) else ""
        yield Fault("wrong-type", one, path, f"{where} is {shown(error.instance)}, and must be {words}{quotes}")
    elif error.validator in ("oneOf", "anyOf"):
        kinds = {str(kind) for part in error.validator_value for kind in _types(part)} - {"null"}
        words = " or ".join(sorted(TYPES.get(kind, kind) for kind in kinds)) or "something else"
        yield Fault("wrong-type", one, path, f"{where} is {shown(error.instance)}, and must be {words}")
    else:
        yield Fault("wrong-value", one, path, f"{where} is {shown(error.instance)}, which its {error.validator} does not allow")


def _types(part: Mapping[str, Any]) -> list[str]:
    kind = part.get("type", [])
    return kind if isinstance(kind, list) else [kind]


def _what(one: Object, path: Path) -> str:
    parent = next((str(part) for part in reversed(path) if isinstance(part, str)), None)
    return parent or f"a {one.kind}"


def meant(key: str, known: list[str]) -> str | None:
    """Which of `known` was meant, as a remedy."""
    same = [one for one in known if one.lower() == key.lower()]
    close = same or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
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


def shown(value: object) -> str:
    """A value in a message: short, on one line."""
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
