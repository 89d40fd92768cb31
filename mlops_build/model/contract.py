"""What callers of a service rely on, and whether another contract breaks them.

A caller is not broken by what it does not notice: a new optional column, a new column of an answer, a new model, a wider type of what it
sends, a narrower one of what it gets. Everything else is a finding. Teams that mean it raise `contract:` in service.yaml.
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
# Every value of the first is one of the second, exactly: a whole number of 64 bits is not always a double.
WIDER = {"integer": {"long", "double"}, "float": {"double"}}
NESTED = ("array", "object", "map")
# Deeper signatures are compared by their text.
MAX_DEPTH = 20


class BadContract(Refused):
    """A file that should say a model's contract does not."""


class BreaksCallers(Refused):
    """A contract that breaks callers of the one it replaces, while its major is not higher."""

    def __init__(self, what: str, findings: Sequence[Finding], before: "Contract", after: "Contract") -> None:
        shown = "\n".join(f"  {one.why}" for one in findings)
        major = f"stays {after.major}" if after.major == before.major else f"goes from {before.major} to {after.major}"
        meant = f"tell its callers, write `contract: {before.major + 1}` in service.yaml, commit, and register a version with it"
        super().__init__(
            f"{what} breaks who calls it, and the contract's major {major}:\n{shown}", remedy=f"make the model answer as before; or {meant}"
        )
        self.findings = list(findings)


@dataclass(frozen=True)
class Contract:
    """major: service.yaml's `contract` when it was registered. models: name → signature, with `inputs`, `outputs` and `params` as lists;
    the first answers at /invocations."""

    major: int
    models: Mapping[str, Mapping[str, Any]]


def of_document(document: object, where: str = FILE) -> Contract | None:
    """The contract that an openapi.json says; None for one of an mlops-build that did not write signatures into it. Raises BadContract."""
    found = document.get(EXTENSION) if isinstance(document, dict) else None
    if found is None and isinstance(document, dict) and "openapi" in document:
        return None
    try:
        major = found["contract"]  # type: ignore[index]
        models = {str(one["name"]): _signature(one["signature"]) for one in found["models"]}  # type: ignore[index]
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise BadContract(f"{where} says no contract: {error!r:.200}", remedy="register the model again; only machines write it") from None
    if not isinstance(major, int) or isinstance(major, bool) or major < 1:
        raise BadContract(f"{where}: contract is {major!r:.100}, not a whole number from 1 on", remedy="register the model again")
    return Contract(major, models)


def of_text(text: bytes, where: str = FILE) -> Contract | None:
    """The same, of the file's bytes. Raises BadContract."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadContract(f"{where} is not JSON: {str(error)[:200]}", remedy="restore it from Git, or register the model again") from None
    return of_document(document, where)


def of_version(name: str, read: Callable[[str], bytes | None]) -> Contract:
    """The contract of a model version. read: the bytes of one of its files, None where it has no such file.

    A version without a contract of its own has the signature in its MLmodel, and the major 1. Raises BadContract.
    """
    text = read(FILE)
    if text is not None and (found := of_text(text, f"{FILE} of {name}")):
        return found
    try:
        document = read_yaml((read(MLMODEL) or b"").decode(errors="replace"))
        signature = document.get("signature") if isinstance(document, dict) else None
        return Contract(1, {name: _signature(signature or {})})
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BadContract(f"the {MLMODEL} of {name} has no signature that can be read: {error!r:.200}") from None


def of_folder(name: str, folder: Path) -> Contract:
    """The contract of a model by its files. Raises BadContract."""
    return of_version(name, lambda path: (folder / path).read_bytes() if (folder / path).is_file() else None)


def breaks(before: Contract, after: Contract) -> list[Finding]:
    """What a caller of `before` meets at `after`: a finding for each, in one sentence; empty when it can go on as it is."""
    found: list[tuple[str, str]] = []
    for name, signature in before.models.items():
        if name in after.models:
            found += [(name, why) for why in _signatures(signature, after.models[name])]
        else:
            found.append((name, "the model is gone"))
    if before.models and after.models and (was := next(iter(before.models))) != (now := next(iter(after.models))):
        found.append((was, f"/invocations was answered by {was}, and is by {now}"))
    remedy = f"change it back, or write `contract: {before.major + 1}` in service.yaml and register a version with it"
    return [Finding(name, RULE, f"{name}: {why}", remedy) for name, why in found]


def check(what: str, before: Contract, after: Contract) -> list[str]:
    """What breaks callers on purpose, as the major is higher. Raises BreaksCallers where it is not."""
    findings = breaks(before, after)
    if findings and after.major <= before.major:
        raise BreaksCallers(what, findings, before, after)
    return [f"{one.why} (contract {before.major} → {after.major})" for one in findings]


def _signature(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {part: listed(found.get(part)) for part in ("inputs", "outputs", "params")}


def _signatures(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    yield from _side(before["inputs"], after["inputs"], "input", sent=True)
    yield from _side(before["outputs"], after["outputs"], "output", sent=False)
    params = {one.get("name"): one for one in after["params"]}
    for one in before["params"]:
        name = one.get("name")
        if name not in params:
            yield f"param {name} is gone"
        elif (was := _param(one)) != (now := _param(params[name])):
            yield f"param {name} was {was}, and is {now}"


def _param(one: Mapping[str, Any]) -> str:
    return f"{'a list of ' if one.get('shape') else ''}{one.get('type')}"


def _side(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], side: str, *, sent: bool) -> Iterator[str]:
    """One side of a signature. sent: the caller sends it; else it gets it."""
    was, now = _form(before), _form(after)
    if was == now == "nothing said":
        return
    if was == "nothing said":
        if sent:
            yield f"{side}: anything was taken, and now {now}"
    elif was != now:
        yield f"{side}: was {was}, and is {now}"
    elif was == "tensors":
        yield from _tensors(before, after, side, sent)
    else:
        yield from _fields(_named(before), _named(after), f"{side} column ", sent, 0)


def _form(part: Sequence[Mapping[str, Any]]) -> str:
    if not part:
        return "nothing said"
    if part[0].get("type") == "tensor":
        return "tensors"
    return "columns with names" if all(one.get("name") for one in part) else "columns without names"


def _named(part: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Columns by name; those without one by their place, from 0."""
    return {str(one.get("name") or place): one for place, one in enumerate(part)}


def _fields(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], where: str, sent: bool, depth: int
) -> Iterator[str]:
    """Columns, or the properties of an object."""
    new = [name for name in after if name not in before]
    for name, was in before.items():
        if name not in after:
            alike = [one for one in new if _text(after[one]) == _text(was)]
            yield f"{where}{name} ({_text(was)}) is gone{f'; renamed to {alike[0]}?' if len(alike) == 1 else ''}"
            continue
        now = after[name]
        yield from _values(was, now, f"{where}{name}", sent, depth)
        needed = bool(was.get("required", True)), bool(now.get("required", True))
        if sent and needed == (False, True):
            yield f"{where}{name} was optional, and is required"
        if not sent and needed == (True, False):
            yield f"{where}{name} was always there, and may be missing"
    if sent:
        for name in new:
            if after[name].get("required", True):
                yield f"{where}{name} ({_text(after[name])}) is new, and required"


def _values(was: Mapping[str, Any], now: Mapping[str, Any], where: str, sent: bool, depth: int) -> Iterator[str]:
    one, other = str(was.get("type")), str(now.get("type"))
    if one != other or one not in NESTED or depth == MAX_DEPTH:
        small, large = (was, now) if sent else (now, was)
        if not _fits(small, large):
            yield f"{where} was {_text(was)}, and is {_text(now)}"
    elif one == "object":
        yield from _fields(_properties(was), _properties(now), f"{where}.", sent, depth + 1)
    else:
        key, step = ("items", "[]") if one == "array" else ("values", "{}")
        yield from _values(_mapping(was.get(key)), _mapping(now.get(key)), f"{where}{step}", sent, depth + 1)


def _fits(small: Mapping[str, Any], large: Mapping[str, Any]) -> bool:
    """Whether every value of the one is a value of the other."""
    one, other = str(small.get("type")), str(large.get("type"))
    return _text(small) == _text(large) or other == "any" or other in WIDER.get(one, ())


def _text(one: Mapping[str, Any], depth: int = 0) -> str:
    """A type in words."""
    kind = str(one.get("type"))
    if kind not in NESTED or depth > MAX_DEPTH:
        return kind[:40]
    if kind == "object":
        inner = {name: f"{_text(found, depth + 1)}{'' if found.get('required', True) else '?'}" for name, found in _properties(one).items()}
        return f"an object of {', '.join(f'{name}: {text}' for name, text in sorted(inner.items()))}"
    return f"{'a list' if kind == 'array' else 'a map'} of {_text(_mapping(one.get('items' if kind == 'array' else 'values')), depth + 1)}"


def _tensors(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], side: str, sent: bool) -> Iterator[str]:
    there = {str(one.get("name") or ""): one for one in after}
    known = {str(one.get("name") or ""): one for one in before}
    for name, one in known.items():
        where = f"{side} tensor {name}".rstrip()
        if name not in there:
            yield f"{where} is gone"
            continue
        (dtype, shape), (dtype_now, shape_now) = _spec(one), _spec(there[name])
        if dtype != dtype_now:
            yield f"{where} was {dtype}, and is {dtype_now}"
        fixed, free = (shape, shape_now) if sent else (shape_now, shape)
        if len(shape) != len(shape_now) or any(wide not in (-1, size) for size, wide in zip(fixed, free, strict=True)):
            yield f"{where} had the shape {tuple(shape)}, and has {tuple(shape_now)}"
    for name in there:
        if name not in known:
            yield f"{side} tensor {name} is new".replace("  ", " ")


def _spec(one: Mapping[str, Any]) -> tuple[str, list[Any]]:
    spec = _mapping(one.get("tensor-spec"))
    shape = spec.get("shape")
    return str(spec.get("dtype")), list(shape) if isinstance(shape, list | tuple) else []


def _properties(one: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(name): _mapping(found) for name, found in _mapping(one.get("properties")).items()}


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
