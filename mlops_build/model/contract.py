"""The contract between a service and its callers, and the changes that break it.

These changes do not break callers: a new optional input column, a new output column, a new model, a wider input type, a narrower output
type. Every other change is a finding. To break callers on purpose, a team raises `contract:` in service.yaml.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.errors import Refused
from mlops_build.finding import Finding
from mlops_build.model.openapi import EXTENSION, FILE, listed, read_yaml

RULE = "contract-breaks"
MLMODEL = "MLmodel"
# Type → types that represent each of its values exactly. Not long → double: a double cannot represent every 64-bit integer.
WIDER = {"integer": {"long", "double"}, "float": {"double"}}
NESTED = ("array", "object", "map")
NO_SIGNATURE = "without a signature"
# Deeper types are compared by their text.
MAX_DEPTH = 20


class BadContract(Refused):
    """A file that should contain a model's contract does not."""


class BreaksCallers(Refused):
    """The new contract breaks callers of the previous one, and its major version is not higher."""

    def __init__(self, what: str, findings: Sequence[Finding], before: "Contract", after: "Contract") -> None:
        shown = "\n".join(f"  {finding.why}" for finding in findings)
        major = f"stays {after.major}" if after.major == before.major else f"goes from {before.major} to {after.major}"
        on_purpose = f"tell its callers, write `contract: {before.major + 1}` in service.yaml, commit, and register a version with it"
        super().__init__(
            f"{what} breaks its callers, and the contract's major version {major}:\n{shown}",
            remedy=f"restore the previous inputs and outputs; or, to break callers on purpose, {on_purpose}",
        )
        self.findings = list(findings)


@dataclass(frozen=True)
class Contract:
    """The signatures of a service's models, under one major version.

    major: `contract` in service.yaml at registration. models: name → signature, with `inputs`, `outputs` and `params` as lists; the first
    model answers at /invocations.
    """

    major: int
    models: Mapping[str, Mapping[str, Any]]


def of_document(document: object, where: str = FILE) -> Contract | None:
    """The contract in an openapi.json. Returns None if an mlops-build without contracts wrote the file. Raises BadContract."""
    extension = document.get(EXTENSION) if isinstance(document, dict) else None
    if extension is None and isinstance(document, dict) and "openapi" in document:
        return None
    try:
        major = extension["contract"]  # type: ignore[index]
        models = {str(model["name"]): _signature(model["signature"]) for model in extension["models"]}  # type: ignore[index]
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise BadContract(
            f"{where} contains no valid contract: {error!r:.200}", remedy="register the model again; do not edit the file by hand"
        ) from None
    if not isinstance(major, int) or isinstance(major, bool) or major < 1:
        raise BadContract(f"{where}: contract is {major!r:.100}, not a whole number of at least 1", remedy="register the model again")
    return Contract(major, models)


def of_text(text: bytes, where: str = FILE) -> Contract | None:
    """`of_document` for the bytes of the file. Raises BadContract."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadContract(f"{where} is not JSON: {str(error)[:200]}", remedy="restore it from Git, or register the model again") from None
    return of_document(document, where)


def of_version(name: str, read: Callable[[str], bytes | None]) -> Contract:
    """The contract of a model version. read: returns the bytes of one of its files, None if there is no such file.

    A version without a contract in its openapi.json has major version 1 and the signature of its MLmodel. Raises BadContract.
    """
    text = read(FILE)
    if text is not None and (contract := of_text(text, f"{FILE} of {name}")):
        return contract
    try:
        document = read_yaml((read(MLMODEL) or b"").decode(errors="replace"))
        signature = document.get("signature") if isinstance(document, dict) else None
        return Contract(1, {name: _signature(signature or {})})
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BadContract(f"the {MLMODEL} of {name} has no readable signature: {error!r:.200}") from None


def of_folder(name: str, folder: Path) -> Contract:
    """The contract of the model whose files are in `folder`. Raises BadContract."""
    return of_version(name, lambda path: (folder / path).read_bytes() if (folder / path).is_file() else None)


def breaks(before: Contract, after: Contract) -> list[Finding]:
    """The changes from `before` to `after` that break callers, one finding each; empty if none does."""
    breakages: list[tuple[str, str]] = []
    for name, signature in before.models.items():
        if name in after.models:
            breakages += [(name, why) for why in _signatures(signature, after.models[name])]
        else:
            breakages.append((name, "the model is gone"))
    if before.models and after.models and (was := next(iter(before.models))) != (now := next(iter(after.models))):
        breakages.append((was, f"/invocations was answered by {was}, and is by {now}"))
    remedy = f"change it back, or write `contract: {before.major + 1}` in service.yaml and register a version with it"
    return [Finding(name, RULE, f"{name}: {why}", remedy) for name, why in breakages]


def check(what: str, before: Contract, after: Contract) -> list[str]:
    """Lines for the changes that break callers, where a higher major version allows them. Raises BreaksCallers where it does not."""
    findings = breaks(before, after)
    if findings and after.major <= before.major:
        raise BreaksCallers(what, findings, before, after)
    return [f"{finding.why} (contract {before.major} → {after.major})" for finding in findings]


def _signature(signature: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {part: listed(signature.get(part)) for part in ("inputs", "outputs", "params")}


def _signatures(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    yield from _side(before["inputs"], after["inputs"], "input", sent=True)
    yield from _side(before["outputs"], after["outputs"], "output", sent=False)
    params = {param.get("name"): param for param in after["params"]}
    for param in before["params"]:
        name = param.get("name")
        if name not in params:
            yield f"param {name} is gone"
        elif (was := _param(param)) != (now := _param(params[name])):
            yield f"param {name} was {was}, and is {now}"


def _param(param: Mapping[str, Any]) -> str:
    return f"{'a list of ' if param.get('shape') else ''}{param.get('type')}"


def _side(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], side: str, *, sent: bool) -> Iterator[str]:
    """Breakages in the inputs or the outputs. sent: True for what the caller sends, False for what it receives."""
    was, now = _form(before), _form(after)
    if was == now == NO_SIGNATURE:
        return
    if was == NO_SIGNATURE:
        if sent:
            yield f"{side}: any input was accepted, and now only {now}"
    elif was != now:
        yield f"{side}: was {was}, and is {now}"
    elif was == "tensors":
        yield from _tensors(before, after, side, sent)
    else:
        yield from _fields(_named(before), _named(after), f"{side} column ", sent, 0)


def _form(part: Sequence[Mapping[str, Any]]) -> str:
    if not part:
        return NO_SIGNATURE
    if part[0].get("type") == "tensor":
        return "tensors"
    return "columns with names" if all(column.get("name") for column in part) else "columns without names"


def _named(part: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Columns by name, or by position from 0 if they have no names."""
    return {str(column.get("name") or position): column for position, column in enumerate(part)}


def _fields(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], where: str, sent: bool, depth: int
) -> Iterator[str]:
    """Breakages in columns, or in the properties of an object."""
    new = [name for name in after if name not in before]
    for name, was in before.items():
        if name not in after:
            similar = [added for added in new if _text(after[added]) == _text(was)]
            yield f"{where}{name} ({_text(was)}) is gone{f'; renamed to {similar[0]}?' if len(similar) == 1 else ''}"
            continue
        now = after[name]
        yield from _values(was, now, f"{where}{name}", sent, depth)
        required = bool(was.get("required", True)), bool(now.get("required", True))
        if sent and required == (False, True):
            yield f"{where}{name} was optional, and is required"
        if not sent and required == (True, False):
            yield f"{where}{name} was always there, and may be missing"
    if sent:
        for name in new:
            if after[name].get("required", True):
                yield f"{where}{name} ({_text(after[name])}) is new, and required"


def _values(was: Mapping[str, Any], now: Mapping[str, Any], where: str, sent: bool, depth: int) -> Iterator[str]:
    type_before, type_after = str(was.get("type")), str(now.get("type"))
    if type_before != type_after or type_before not in NESTED or depth == MAX_DEPTH:
        small, large = (was, now) if sent else (now, was)
        if not _fits(small, large):
            yield f"{where} was {_text(was)}, and is {_text(now)}"
    elif type_before == "object":
        yield from _fields(_properties(was), _properties(now), f"{where}.", sent, depth + 1)
    else:
        key, step = ("items", "[]") if type_before == "array" else ("values", "{}")
        yield from _values(_mapping(was.get(key)), _mapping(now.get(key)), f"{where}{step}", sent, depth + 1)


def _fits(small: Mapping[str, Any], large: Mapping[str, Any]) -> bool:
    """Whether every value of type `small` is a value of type `large`."""
    small_type, large_type = str(small.get("type")), str(large.get("type"))
    return _text(small) == _text(large) or large_type == "any" or large_type in WIDER.get(small_type, ())


def _text(column: Mapping[str, Any], depth: int = 0) -> str:
    """The type of a column in words."""
    kind = str(column.get("type"))
    if kind not in NESTED or depth > MAX_DEPTH:
        return kind[:40]
    if kind == "object":
        inner = {name: f"{_text(part, depth + 1)}{'' if part.get('required', True) else '?'}" for name, part in _properties(column).items()}
        return f"an object of {', '.join(f'{name}: {text}' for name, text in sorted(inner.items()))}"
    element = _mapping(column.get("items" if kind == "array" else "values"))
    return f"{'a list' if kind == 'array' else 'a map'} of {_text(element, depth + 1)}"


def _tensors(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], side: str, sent: bool) -> Iterator[str]:
    now = {str(tensor.get("name") or ""): tensor for tensor in after}
    was = {str(tensor.get("name") or ""): tensor for tensor in before}
    for name, tensor in was.items():
        where = f"{side} tensor {name}".rstrip()
        if name not in now:
            yield f"{where} is gone"
            continue
        (dtype, shape), (dtype_now, shape_now) = _spec(tensor), _spec(now[name])
        if dtype != dtype_now:
            yield f"{where} was {dtype}, and is {dtype_now}"
        fixed, free = (shape, shape_now) if sent else (shape_now, shape)
        if len(shape) != len(shape_now) or any(wide not in (-1, size) for size, wide in zip(fixed, free, strict=True)):
            yield f"{where} had the shape {tuple(shape)}, and has {tuple(shape_now)}"
    for name in now:
        if name not in was:
            yield f"{side} tensor {name} is new".replace("  ", " ")


def _spec(tensor: Mapping[str, Any]) -> tuple[str, list[Any]]:
    spec = _mapping(tensor.get("tensor-spec"))
    shape = spec.get("shape")
    return str(spec.get("dtype")), list(shape) if isinstance(shape, list | tuple) else []


def _properties(column: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(name): _mapping(part) for name, part in _mapping(column.get("properties")).items()}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
