"""What stands in somebody's code that goes otherwise in a service: things to do, each with its file and line."""

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
# A path above the folder, or of one machine.
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
    """Add all of it to `todo`. outside: imports that lead out of the script's folder. outputs: what the script writes."""
    first = modules[0].script
    for script, line, text in outside:
        one = copied[script.path]
        todo.add(
            one.path,
            f"imports from above its folder: {text}. Copy that module into src/{package} and import it from {package}",
            line=one.line(line),
        )
    for module in modules:
        _calls(module.script, copied[module.script.path], package, todo)
        _paths(module.script, copied[module.script.path], sources, outputs, package, todo)
    if not sources:
        todo.add(
            copied[first.path].path,
            "no data was given with --data: put what it reads under DVC, and name it among the deps in dvc.yaml",
            "$ dvc add data/NAME",
            line=1,
            needed=False,
        )
    if not any(called.rpartition(".")[2] in SEEDS for module in modules for called, _ in module.script.calls()):
        what = "sets no seed, so two trainings give two models: nobody can make a version again"
        todo.add(copied[first.path].path, what, "torch.manual_seed(args.seed)", line=1, needed=False)
    what = "its style is its own; `mlops-build ci check` wants what ruff wants"
    todo.add(copied[first.path].path, what, "$ ruff check --fix . && ruff format .", line=1, needed=False)


def _calls(script: Script, one: Copied, package: str, todo: Todo) -> None:
    says: dict[str, tuple[Callable[[str], str], bool]] = {
        "mlflow.set_tracking_uri": (
            lambda call: f"{call} leads away from the service's run: remove it, service.yaml says where MLflow is",
            True,
        ),
        "mlflow.set_experiment": (
            lambda call: f"{call} leads away from the service's run: remove it, its experiment is the service's",
            True,
        ),
        "sys.path.append": (lambda call: f"{call} makes modules from elsewhere importable: copy them into src/{package}", True),
        "sys.path.insert": (lambda call: f"{call} makes modules from elsewhere importable: copy them into src/{package}", True),
        "input": (lambda call: f"{call} waits for somebody: leave it out", False),
        "plt.show": (lambda call: f"{call} waits for somebody: use savefig", False),
        "breakpoint": (lambda call: f"{call} waits for somebody: leave it out", False),
    }
    for called, call in script.calls():
        if called in says:
            what, needed = says[called]
            todo.add(one.path, what(script.source(call)), line=one.line(call.lineno), needed=needed)


def _paths(script: Script, one: Copied, sources: Sequence[Source], outputs: Sequence[str], package: str, todo: Todo) -> None:
    start = copies.bases(script)
    for line in scripts.uses_of_file(script):
        what = f"builds a path from __file__, which is in src/{package} now: start at the service's folder instead"
        todo.add(one.path, what, 'Path("data/NAME")', line=one.line(line))
    seen: set[str] = set()
    for node in script.strings():
        value = str(node.value)
        if CARD.fullmatch(value):
            what = f"names a card: {value}. The one that is chosen for it is the only one it sees: write cuda"
            todo.add(
                one.path, what, 'torch.device("cuda" if torch.cuda.is_available() else "cpu")', line=one.line(node.lineno), needed=False
            )
        elif value == "CUDA_VISIBLE_DEVICES":
            todo.add(one.path, "chooses a card, which mlops-build does: leave it out", line=one.line(node.lineno), needed=False)
        elif ELSEWHERE.match(value) and not copies.place(value, sources, start) and value not in seen and value not in outputs:
            seen.add(value)
            what = f"leads out of the service: {value}. Give it as --data if it is read; write into the service"
            todo.add(one.path, what, line=one.line(node.lineno), needed=False)
        if value in seen or not _is_like_a_path(value) or Path(value).as_posix() in outputs or copies.place(value, sources, start):
            continue
        seen.add(value)
        if any((base / value).expanduser().exists() for base in start):
            what = f"reads {value}, which does not come along: give it as --data, or copy it here and add it to deps in dvc.yaml"
            todo.add(one.path, what, line=one.line(node.lineno))


def _is_like_a_path(value: str) -> bool:
    return bool(re.fullmatch(r"[\w ./~-]{3,1000}", value)) and bool(Path(value).suffix or "/" in value) and value.strip("./ ") != ""
