"""Find code that works differently in a service, and add a task with file and line for each place."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlops_build.scaffold.existing import copied as copies
from mlops_build.scaffold.existing import script as scripts
from mlops_build.scaffold.existing.copied import Copied
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.modules import Module
from mlops_build.scaffold.existing.script import Script
from mlops_build.scaffold.existing.todo import Todo

CARD = re.compile(r"cuda:[0-9]+")
# A path above the script's folder, or specific to one machine.
ELSEWHERE = re.compile(r"\.\./[\w./ -]*$|(?:/(?:home|mnt|media|srv|data|scratch|Users|nfs|tmp)|~)/[\w./ -]+$")
SEEDS = ("manual_seed", "seed_everything", "set_seed", "fix_seed", "seed_all")


def look(
    modules: Sequence[Module],
    copied: Mapping[Path, Copied],
    outside: Sequence[tuple[Script, int, str]],
    sources: Sequence[Source],
    outputs: Sequence[str],
    package: str,
    todo: Todo,
) -> None:
    """Add the tasks to `todo`. outside: imports from above the script's folder. outputs: the paths that the script writes."""
    first = modules[0].script
    for script, line, text in outside:
        file = copied[script.path]
        todo.add(
            file.path,
            f"imports from above its folder: {text}. Copy that module into src/{package} and import it from {package}",
            line=file.line(line),
        )
    for module in modules:
        _calls(module.script, copied[module.script.path], package, todo)
        _paths(module.script, copied[module.script.path], sources, outputs, package, todo)
    if not sources:
        todo.add(
            copied[first.path].path,
            "no data was given with --data: track the data with DVC, and add it to the deps in dvc.yaml",
            "$ dvc add data/NAME",
            line=1,
            needed=False,
        )
    _seeds(modules, copied, todo)
    what = "`mlops-build ci check` requires code that passes ruff"
    commands = "$ ruff check --fix .; ruff format . # fix by hand what ruff check still reports"
    todo.add(copied[first.path].path, what, commands, line=1, needed=False)


def _seeds(modules: Sequence[Module], copied: Mapping[Path, Copied], todo: Todo) -> None:
    """Add a task if no seed is set, or if every seed is a number in the code."""
    calls = [(module.script, call) for module in modules for called, call in module.script.calls() if _is_seed(called)]
    if not calls:
        what = "sets no seed, so each training gives another model and no version can be reproduced"
        todo.add(copied[modules[0].script.path].path, what, "torch.manual_seed(args.seed)", line=1, needed=False)
        return
    # The calls in the script's own set_seed(seed) get their number from its caller.
    inner = {
        id(part)
        for script in {id(script): script for script, _ in calls}.values()
        for node in ast.walk(script.tree)
        if isinstance(node, ast.FunctionDef) and _is_seed(node.name)
        for part in ast.walk(node)
    }
    deciding = [(script, call) for script, call in calls if id(call) not in inner]
    values = [[*call.args, *(keyword.value for keyword in call.keywords)] for _, call in deciding]
    known = [scripts.constants(script).value(given[0]) if given else None for (script, _), given in zip(deciding, values, strict=True)]
    if known and all(isinstance(value, int) for value in known):
        script, call = deciding[0]
        what = f"sets a fixed seed: {script.source(call)}, so the seed in params.yaml has no effect. Read it from an option, and add"
        what += " `--seed ${seed}` to the command of the stage train in dvc.yaml if it is missing"
        example = f'parser.add_argument("--seed", type=int, default=1)\n# and:\n{ast.unparse(call.func)}(args.seed)'
        todo.add(copied[script.path].path, what, example, line=copied[script.path].line(call.lineno), needed=False)


def _is_seed(called: str) -> bool:
    return called.rpartition(".")[2] in SEEDS


def _calls(script: Script, copied: Copied, package: str, todo: Todo) -> None:
    messages: dict[str, tuple[Callable[[str], str], bool]] = {
        "mlflow.set_tracking_uri": (
            lambda call: f"{call} overrides the service's run: remove it, service.yaml sets the MLflow server",
            True,
        ),
        "mlflow.set_experiment": (
            lambda call: f"{call} overrides the service's run: remove it, the service sets the experiment",
            True,
        ),
        "sys.path.append": (lambda call: f"{call} imports modules from another folder: copy them into src/{package}", True),
        "sys.path.insert": (lambda call: f"{call} imports modules from another folder: copy them into src/{package}", True),
        "input": (lambda call: f"{call} waits for a user: remove it", False),
        "plt.show": (lambda call: f"{call} waits for a user: use savefig", False),
        "breakpoint": (lambda call: f"{call} waits for a user: remove it", False),
    }
    for called, call in script.calls():
        if called in messages:
            what, needed = messages[called]
            todo.add(copied.path, what(script.source(call)), line=copied.line(call.lineno), needed=needed)


def _paths(script: Script, copied: Copied, sources: Sequence[Source], outputs: Sequence[str], package: str, todo: Todo) -> None:
    start = copies.bases(script)
    for line in scripts.uses_of_file(script):
        what = f"builds a path from __file__, which is now in src/{package}: use a path relative to the service's folder"
        todo.add(copied.path, what, 'Path("data/NAME")', line=copied.line(line))
    seen: set[str] = set()
    for node in script.strings():
        value = str(node.value)
        if CARD.fullmatch(value):
            what = f"selects a GPU: {value}. mlops-build selects the GPU and makes only that one visible: write cuda"
            todo.add(
                copied.path,
                what,
                'torch.device("cuda" if torch.cuda.is_available() else "cpu")',
                line=copied.line(node.lineno),
                needed=False,
            )
        elif value == "CUDA_VISIBLE_DEVICES":
            todo.add(copied.path, "selects a GPU, which mlops-build does: remove it", line=copied.line(node.lineno), needed=False)
        elif ELSEWHERE.match(value) and not copies.place(value, sources, start) and value not in seen and value not in outputs:
            seen.add(value)
            what = f"is a path outside the service: {value}. If it is read, give it as --data; if it is written, write inside the service"
            todo.add(copied.path, what, line=copied.line(node.lineno), needed=False)
        if value in seen or not _is_like_a_path(value) or Path(value).as_posix() in outputs or copies.place(value, sources, start):
            continue
        seen.add(value)
        if any((base / value).expanduser().exists() for base in start):
            what = f"reads {value}, which was not copied: give it as --data, or copy it here and add it to the deps in dvc.yaml"
            todo.add(copied.path, what, line=copied.line(node.lineno))


def _is_like_a_path(value: str) -> bool:
    return bool(re.fullmatch(r"[\w ./~-]{3,1000}", value)) and bool(Path(value).suffix or "/" in value) and value.strip("./ ") != ""
