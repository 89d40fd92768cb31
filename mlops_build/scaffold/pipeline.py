"""dvc.yaml and params.yaml around a script: its arguments, what it reads and what it writes."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_build.scaffold.script import SECRET, Option

# What stands in YAML without quotes and means itself.
WORD = re.compile(r"[A-Za-z0-9_./:=,+-]+")
PLAIN = re.compile(r"[A-Za-z0-9_./-][A-Za-z0-9_./ =${}-]*")


@dataclass(frozen=True)
class Arguments:
    """A script's command line. words: what stands in dvc.yaml's command. numbers: what stands under `train` in params.yaml."""

    words: tuple[str, ...]
    numbers: dict[str, object]
    seed: int | None


def arguments(options: Sequence[Option], paths: dict[str, str]) -> Arguments:
    """The command line of these options with their defaults. paths: dest → a path, which stands in the command and not in params.yaml.

    `${train}` in the command is DVC's: every key of the section as an option, `true` as a flag, `false` not at all.
    """
    words: list[str] = []
    short: list[str] = []
    places: list[str] = []
    numbers: dict[str, object] = {}
    seed = None
    for option in options:
        if option.dest in paths:
            place = shlex.quote(paths[option.dest])
            if option.kind == "positional":
                places.append(place)
            else:
                words += [option.flag, place]
        elif not option.usable or option.default is None or SECRET.search(option.name) or not _is_plain(option.default):
            continue
        elif option.name == "seed" and type(option.default) is int and option.kind == "value":
            seed = option.default
            words += [option.flag, "${seed}"]
        elif isinstance(option.default, str) and not WORD.fullmatch(option.default) and not option.flag.startswith("--"):
            # DVC quotes what it unpacks, and nothing else.
            (places if option.kind == "positional" else words).append(
                " ".join([*([option.flag] if option.flag.startswith("-") else []), shlex.quote(option.default)])
            )
        elif option.kind == "positional":
            numbers[option.name] = option.default
            places.append(f"${{train.{option.name}}}")
        elif not option.flag.startswith("--"):
            if option.kind == "value":
                numbers[option.name] = option.default
                short += [option.flag, f"${{train.{option.name}}}"]
        else:
            numbers[option.name] = option.default
    # What is named one by one must not come again out of the whole section.
    apart = {word[len("${train.") : -1] for word in [*short, *places] if word.startswith("${train.")}
    if apart:
        for option in [option for option in options if option.name in numbers and option.name not in apart]:
            if option.kind == "value" and (not isinstance(option.default, str) or WORD.fullmatch(option.default)):
                short += [option.flag, f"${{train.{option.name}}}"]
            elif option.kind == "value":
                del numbers[option.name]
                words += [option.flag, shlex.quote(str(option.default))]
            else:
                del numbers[option.name]  # a flag that is off; DVC can only unpack it with the section
    elif numbers:
        short.append("${train}")
    return Arguments((*places, *words, *short), numbers, seed)


def command(package: str, module: str, weights: str, said: Arguments) -> str:
    """What the train stage runs."""
    return " ".join(["python -m mlops_build.training.script", shlex.quote(weights), "-m", f"{package}.{module}", *said.words])


def dvc_yaml(
    package: str,
    script: str,
    command: str,
    *,
    numbers: bool,
    reads: Sequence[str],
    writes: Sequence[str],
    model: str,
    served: Sequence[str],
    metrics: str,
    logger: str,
) -> str:
    """The stages `train` and `model`. numbers: params.yaml has some of the script's. reads, writes: of the script.

    served: the files that the stage `model` depends on.
    """
    lines = [
        "# The pipeline; `mlops-build train` runs it, `dvc repro` too.",
        "stages:",
        f"  train: # {script} as it ran before, in an MLflow run of the service",
        f"    cmd: {quoted(command)}",
        "    deps:",
        *(f"      - {quoted(path)}" for path in reads),
        "    params:",
        "      - seed",
        *(["      - train"] if numbers else []),
        "    outs:",
        *(f"      - {quoted(path)}" for path in writes),
        "  model: # logs and measures what it left, so that it can be served",
        f"    cmd: python -m {package}.{logger}",
        "    deps:",
        *(f"      - {quoted(path)}" for path in served),
        "    outs:",
        f"      - models/{model}",
        "    metrics:",
        f"      - {metrics}: {{cache: false}}",
    ]
    return "\n".join(lines) + "\n"


def params_yaml(script: str, said: Arguments, seed: int, number: int) -> str:
    """params.yaml. number: of the TODO at the thresholds."""
    lines = [
        "# Every number that training uses. MLflow logs them, and a change makes DVC run again what depends on it.",
        f"seed: {seed}",
    ]
    if said.numbers:
        lines += [
            f"train: # the options of {script}, by their names",
            *(f"  {key}: {_value(value)}" for key, value in said.numbers.items()),
        ]
    lines += [
        "evaluate:",
        f"  thresholds: # a version is registered only if all of them are met; TODO {number}",
        "    accuracy: {min: 0.9}",
    ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A text as a YAML scalar."""
    return text if PLAIN.fullmatch(text) and not text.endswith(" ") else json.dumps(text, ensure_ascii=False)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(one, str | int | float) for one in value)
    return isinstance(value, str | int | float)


def _value(value: object) -> str:
    """JSON, which is YAML; but YAML 1.1 takes 1e-05 for a text."""
    if isinstance(value, float):
        text = json.dumps(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
