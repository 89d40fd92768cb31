"""A YAML file that people write, such as service.yaml, parsed into its pydantic model; an error has the line and the key."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from mlops_build import bounded_yaml
from mlops_build.errors import Refused
from mlops_build.service import problems

Model = TypeVar("Model", bound=BaseModel)


def json_schema(model: type[BaseModel], file: str) -> dict[str, Any]:
    """The JSON schema of a file, for editors. file: its name."""
    schema = model.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": file, **{k: v for k, v in schema.items() if k != "title"}}


class _Constructor(RoundTripConstructor):
    """Reads a time as the text that is written there: a parsed one would lose its offset."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


def parse(
    text: str, where: str, model: type[Model], *, error: type[Refused], reference: str, strict: bool = True
) -> tuple[Model, dict[str, Any]]:
    """The model of a file's text, and the file's content. where: the file's name in messages. reference: the page with its keys.

    `strict=False` ignores unknown keys. Raises `error`.
    """
    editor = YAML(typ="rt")
    editor.Constructor = _Constructor
    try:
        document = bounded_yaml.load(text, editor)
    except MarkedYAMLError as problem:
        line = f" line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise error(
            f"{where}{line}: not valid YAML: {problem.problem}",
            remedy='fix the line: indentation is two spaces, and text with ": " is in quotes',
        ) from None
    except bounded_yaml.Unreadable as problem:
        raise error(f"{where}: not valid YAML: {problem}", remedy=f"see {reference}") from None
    except YAMLError as problem:  # such as a control character
        why = " ".join(str(problem).split())
        raise error(f"{where}: not valid YAML: {why}", remedy='remove the character; "\\x07" writes it in quotes') from None
    if not isinstance(document, dict):
        raise error(f"{where}: not a mapping", remedy=f"the file starts with `schema: 1`; see {reference}")
    content: dict[str, Any] = problems.plain(document)
    try:
        return model.model_validate(content if strict else problems.known(content, model)), content
    except ValidationError as invalid:
        lines = [problems.text(document, problem, model) for problem in invalid.errors(include_url=False)]
        raise error("\n".join(f"{where} {line}" for line in lines), remedy=f"see {reference}") from None
