"""Find code that works differently in a service, and add a task with file and line for each place."""

import ast
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from mlops_build.scaffold.existing.copied import place, starts
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.imports import Module
from mlops_build.scaffold.existing.script import Script, Values
from mlops_build.scaffold.existing.todo import Todo

CALLS = {
    "mlflow.set_tracking_uri": "tracking server",
    "mlflow.set_experiment": "experiment",
    "sys.path.append": "sys.path",
    "sys.path.insert": "sys.path",
    "input": "input",
    "plt.show": "plt.show",
}
CARD = re.compile(r"cuda:[0-9]+")
# A path above the script's folder, or specific to one machine.
ELSEWHERE = re.compile(r"\.\./[\w./ -]*$|(?:/(?:home|mnt|media|srv|data|scratch|Users|nfs|tmp)|~)/[\w./ -]+$")
SEEDS = ("manual_seed", "seed_everything", "set_seed", "fix_seed", "seed_all")


def look(
    modules: Sequence[Module], sources: Sequence[Source], outputs: Collection[str | None], package: str, has_seed: bool, todo: Todo
) -> None:
    """Add the tasks to `todo`. outputs: the paths that the script writes. has_seed: whether it has an option for the seed."""
    first = modules[0].script
    for module in modules:
        script = module.script
        for statement in module.imports:
            if statement.above:
                todo.add("import from above", script, statement.node.lineno, text=script.source(statement.node), package=package)
        for called, call in script.calls:
            if called in CALLS:
                todo.add(CALLS[called], script, call.lineno, call=script.source(call), package=package)
        for node in script.nodes(ast.Name):
            if node.id == "__file__":
                todo.add("__file__", script, node.lineno, package=package)
        _look_at_strings(script, sources, outputs, todo)
    if not sources:
        todo.add("no data", first, 1)
    _look_at_seeds(modules, has_seed, todo)
    todo.add("ruff", first, 1)


def _look_at_strings(script: Script, sources: Sequence[Source], outputs: Collection[str | None], todo: Todo) -> None:
    seen: set[str] = set()
    for node in script.strings:
        value = str(node.value)
        if CARD.fullmatch(value):
            todo.add("card", script, node.lineno, value=value)
        elif value == "CUDA_VISIBLE_DEVICES":
            todo.add("CUDA_VISIBLE_DEVICES", script, node.lineno)
        elif value not in seen and Path(value).as_posix() not in outputs and not place(value, sources, script):
            seen.add(value)
            if ELSEWHERE.match(value):
                todo.add("path elsewhere", script, node.lineno, value=value)
            elif _is_like_a_path(value) and any((start / value).exists() for start in starts(script)):
                todo.add("file not copied", script, node.lineno, value=value)


def _look_at_seeds(modules: Sequence[Module], has_seed: bool, todo: Todo) -> None:
    """Add a task if no seed is set, or if a seed is a number in the code and the script has no option for it."""
    calls = [(module.script, call) for module in modules for called, call in module.script.calls if called.endswith(SEEDS)]
    if not calls:
        todo.add("no seed", modules[0].script, 1)
    for script, call in calls:
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        if not has_seed and given and isinstance(Values(script, {}).of(given[0]), int):
            todo.add("fixed seed", script, call.lineno, call=script.source(call), function=ast.unparse(call.func))
            return


def _is_like_a_path(value: str) -> bool:
    return bool(re.fullmatch(r"[\w ./~-]{3,1000}", value)) and bool(Path(value).suffix or "/" in value) and value.strip("./ ") != ""
