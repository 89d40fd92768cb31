"""dvc.yaml and params.yaml for a script: its arguments, inputs and outputs."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlops_build.scaffold.existing.options import SECRET, Option

# Texts that need no quotes in YAML.
WORD = re.compile(r"[A-Za-z0-9_./:=,+-]+")
PLAIN = re.compile(r"[A-Za-z0-9_./-][A-Za-z0-9_./ =${}-]*")


@dataclass(frozen=True)
class Arguments:
    """A script's command line. words: of the command in dvc.yaml. numbers: the section `train` of params.yaml, by long option names.

    others: the section `arguments`, for values without a long option name.
    """

    words: tuple[str, ...]
    numbers: Mapping[str, object]
    others: Mapping[str, object]
    seed: int | None

    @property
    def sections(self) -> list[str]:
        """The sections of params.yaml that the command takes values from."""
        return ["seed", *(["train"] if self.numbers else []), *(["arguments"] if self.others else [])]


def arguments(options: Sequence[Option], paths: Mapping[str, str]) -> Arguments:
    """The command line of these options with their defaults. paths: dest → a path, which is written in the command, not in params.yaml.

    DVC replaces `${train}` in the command by every key of the section as a quoted long option; `true` becomes a flag, `false` nothing.
    It replaces `${arguments.b}` by the unquoted value, so a value that needs shell quoting is written in the command, quoted.
    """
    places: list[str] = []
    words: list[str] = []
    numbers: dict[str, object] = {}
    others: dict[str, object] = {}
    seed = None
    for option in options:
        before = [] if option.kind == "positional" else [option.flag]
        into = places if option.kind == "positional" else words
        if option.dest in paths:
            into += [*before, shlex.quote(paths[option.dest])]
        elif not option.usable or SECRET.search(option.name) or not _is_plain(option.default):
            continue
        elif option.name == "seed" and type(option.default) is int and option.kind == "value":
            seed = option.default
            words += [option.flag, "${seed}"]
        elif option.kind != "flag" and isinstance(option.default, bool):
            into += [*before, str(option.default)]  # DVC would turn it into a flag
        elif option.default in ([], ()):
            continue
        elif option.flag.startswith("--"):
            numbers[option.name] = option.default
        elif option.kind == "flag":
            continue
        elif isinstance(option.default, list | tuple):
            into += [*before, *(shlex.quote(str(item)) for item in option.default)]
        elif WORD.fullmatch(str(option.default)):
            others[option.name] = option.default
            into += [*before, f"${{arguments.{option.name}}}"]
        else:
            into += [*before, shlex.quote(str(option.default))]
    return Arguments((*places, *words, *(["${train}"] if numbers else [])), numbers, others, seed)


def command(package: str, module: str, weights: str, arguments: Arguments) -> str:
    """The command of the train stage."""
    return " ".join(["python -m mlops_build.training.script", shlex.quote(weights), "-m", f"{package}.{module}", *arguments.words])


def dvc_yaml(
    package: str,
    script: str,
    command: str,
    *,
    sections: Sequence[str],
    reads: Sequence[str],
    writes: Sequence[str],
    model: str,
    served: Sequence[str],
    metrics: str,
    logger: str,
) -> str:
    """The stages `train` and `model`. sections: those of params.yaml that the command uses. reads, writes: paths of the script.

    served: the files that the stage `model` depends on.
    """
    lines = [
        "# The pipeline. `mlops-build train` and `dvc repro` run it.",
        "stages:",
        f"  train: # {script} with its own arguments, in an MLflow run of the service",
        f"    cmd: {quoted(command)}",
        "    deps:",
        *(f"      - {quoted(path)}" for path in reads),
        "    params:",
        *(f"      - {section}" for section in sections),
        "    outs:",
        *(f"      - {quoted(path)}" for path in writes),
        "  model: # logs the trained model for serving, and measures it",
        f"    cmd: python -m {package}.{logger}",
        "    deps:",
        *(f"      - {quoted(path)}" for path in served),
        "    outs:",
        f"      - models/{model}",
        "    metrics:",
        f"      - {metrics}: {{cache: false}}",
    ]
    return "\n".join(lines) + "\n"


def params_yaml(script: str, arguments: Arguments, seed: int, threshold: str, number: int) -> str:
    """params.yaml. threshold: of the first metric. number: of the TODO for the thresholds."""
    lines = [
        "# Every number that training uses. MLflow logs them; after a change DVC reruns the stages that depend on it.",
        f"seed: {seed}",
    ]
    for section, what, values in (
        ("train", f"the options of {script}, by their names", arguments.numbers),
        ("arguments", f"arguments of {script} without a long name", arguments.others),
    ):
        lines += [f"{section}: # {what}", *(f"  {key}: {_value(value)}" for key, value in values.items())] if values else []
    lines += [
        "evaluate:",
        f"  thresholds: # a version is registered only if it meets all of them; TODO {number}",
        f"    {threshold}",
    ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A text as a YAML scalar."""
    return text if PLAIN.fullmatch(text) and not text.endswith(" ") else json.dumps(text, ensure_ascii=False)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, str | int | float) for item in value)
    return isinstance(value, str | int | float)


def _value(value: object) -> str:
    """A value as JSON, which is valid YAML, except that YAML 1.1 reads 1e-05 as a text."""
    if isinstance(value, float):
        text = json.dumps(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
