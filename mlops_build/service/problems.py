"""What is wrong in a YAML document of pydantic's types: line, key, and what is allowed there.

The document is as ruamel.yaml reads it with typ="rt", which has the lines.
"""

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel

# Characters of a value in a message.
SHOWN = 200


def plain(node: Any) -> Any:
    """ruamel's commented nodes as plain Python, so that pydantic's strict mode sees str, int, list and dict."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (str, int, float):
        if isinstance(node, kind):
            return kind(node)
    return str(node)


def known(node: Any, model: type[BaseModel]) -> Any:
    """The keys that this version knows, section by section."""
    if not isinstance(node, dict):
        return node
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key not in node:
            continue
        value = node[key]
        section = _section_of(field.annotation)
        if section and isinstance(value, dict) and name == "environments":
            value = {env: known(settings, section) for env, settings in value.items()}
        elif section and isinstance(value, list):
            value = [known(item, section) for item in value]
        elif section:
            value = known(value, section)
        values[key] = value
    return values


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if section := _section_of(argument):
            return section
    return None


def text(document: Any, problem: Any, root: type[BaseModel]) -> str:
    """An error of pydantic for a document of the type `root`, as `line N: key: what is wrong (what is allowed)`."""
    path = [part for part in problem["loc"] if part != "[key]"]
    # pydantic reports a missing key at the key itself, which has no line; its parent has one.
    line = _line(document, path)
    key = _shown(".".join(map(str, path)))[1:-1] or "(the file)"
    kind, value = problem["type"], _shown(problem.get("input"))
    if kind == "extra_forbidden":
        model = _model_at(path[:-1], root)
        names = [field.alias or name for name, field in model.model_fields.items()] if model else []
        close = difflib.get_close_matches(str(path[-1]), names, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
        return f"line {line}: unknown key '{key}'; {advice}"
    if kind == "missing":
        return f"line {line}: {key} is missing"
    if kind == "string_pattern_mismatch":
        return f"line {line}: {key}: {value} is not {_wanted(path, root)}"
    if kind == "string_type":
        return f"line {line}: {key}: {value} is not text: write it in quotes ({_wanted(path, root)})"
    if kind == "value_error":
        return f"line {line}: {key}: {_without_password(problem['msg'].removeprefix('Value error, '))}"
    return f"line {line}: {key}: {problem['msg']} (found {value})"


def _shown(value: Any) -> str:
    text = _without_password(repr(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…{text[-1]}"


def _without_password(text: str) -> str:
    return re.sub(r"(://[^/@\s:]*):[^/@\s]*@", r"\1:***@", text)


def _line(document: Any, path: list[Any]) -> int:
    """The line (from 1) of the deepest part of `path` in the document."""
    node: Any = document
    line = 1
    for part in path:
        try:
            position = node.lc.item(part) if isinstance(part, int) else node.lc.key(part)
            line, node = position[0] + 1, node[part]
        except (KeyError, IndexError, AttributeError, TypeError):
            break
    return line


def _model_at(path: list[Any], root: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for part in path:
        if model is None:
            return None
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part in fields:
            model = _section_of(fields[part].annotation)
    return model


def _wanted(path: list[Any], root: type[BaseModel]) -> str:
    """The description of the allowed values at `path`."""
    while path:
        model = _model_at(path[:-1], root)
        fields = {field.alias or name: field for name, field in model.model_fields.items()} if model else {}
        if field := fields.get(path[-1]):
            return field.description or _inner_description(field.annotation) or "allowed here"
        path = path[:-1]  # an item of a list or mapping: its type has the description
    return "allowed here"


def _inner_description(annotation: Any) -> str | None:
    """The first description inside an annotation such as list[Annotated[str, Field(description=…)]]."""
    for metadata in getattr(annotation, "__metadata__", ()):
        if description := getattr(metadata, "description", None):
            return str(description)
    return next((inner for part in get_args(annotation) if (inner := _inner_description(part))), None)
