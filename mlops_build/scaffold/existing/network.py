"""The network that a script trains and saves."""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_build.scaffold.existing.imports import Module
from mlops_build.scaffold.existing.script import Script, Values, dotted
from mlops_build.scaffold.existing.written import Written

WRAPPERS = ("load", "to", "cuda", "DataParallel", "compile")


@dataclass(frozen=True)
class Network:
    """The saved network. name: of its class or of the function that creates it. module: where that is defined, None if it is not local.

    call: its source; arguments: the same with known values filled in; is_known: the predictor can create it like that.
    has_options: some arguments come from options. key: the index of the weights in the saved object, such as `["model"]`.
    is_whole: the saved object does not look like a state_dict.
    """

    name: str = ""
    module: Module | None = None
    call: str = ""
    line: int = 0
    arguments: str = ""
    is_known: bool = False
    has_options: bool = False
    key: str = ""
    is_whole: bool = False


def network(saves: Written | None, modules: Sequence[Module], values: Values) -> Network:
    """Derive the network from the call that saves the weights. values: those of the script that saves them."""
    if saves is None or saves.saved is None:
        return Network()
    script = saves.script
    saved, key = _state(script, saves.saved)
    made = _made(script, saved or _base(saves.saved))
    if made is None:
        return Network(key=key, is_whole=not saved)
    name = dotted(made.func).rpartition(".")[2]
    home = next((module for module in modules if name in _definitions(module.script)), None)
    texts, is_known, has_options = [], home is not None, False
    given = [("", part) for part in made.args] + [(f"{keyword.arg}=" if keyword.arg else "**", keyword.value) for keyword in made.keywords]
    for label, part in given:
        value = values.of(part)
        if label == "**" or (value is None and not isinstance(part, ast.Constant)):
            is_known = False
            texts.append(label + script.source(part))
        else:
            has_options = has_options or not isinstance(part, ast.Constant)
            texts.append(label + (json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)))
    return Network(name, home, script.source(made), made.lineno, ", ".join(texts), is_known, has_options, key, not saved)


def _state(script: Script, node: ast.expr) -> tuple[str, str]:
    """The name of the object whose `….state_dict()` is saved, and its index in the saved object; "" if there is none."""
    if isinstance(node, ast.Name):
        node = script.value_before(node.id, node.lineno) or node
    items = [("", node)]
    if isinstance(node, ast.Dict):
        items = [
            (f"[{json.dumps(key.value)}]", value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        ]
    for key, value in items:
        if isinstance(value, ast.Call) and dotted(value.func).endswith(".state_dict") and "optim" not in f"{key} {_base(value)}".lower():
            return _base(value), key
    return "", ""


def _base(node: ast.expr) -> str:
    """`model` of `model.module` or `model.cpu()`; "" for an expression that does not begin with a name."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _made(script: Script, name: str) -> ast.Call | None:
    """The first constructor call assigned to a name: `Net(…)` for `model = Net(…).to(device)`."""
    for value in script.assigned.get(name, ()):
        while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Call):
            value = value.func.value
        if isinstance(value, ast.Call) and dotted(value.func).rpartition(".")[2] not in WRAPPERS:
            return value
    return None


def _definitions(script: Script) -> set[str]:
    return {node.name for node in script.tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
