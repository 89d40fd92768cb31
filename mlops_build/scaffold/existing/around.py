"""A service around a training script that exists: `mlops-build scaffold --from train.py`.

Nothing of its author's is changed, moved or run. The script and the modules beside it are copied into the service's package; the train
stage runs it with its own arguments; the data comes under DVC; and what a program cannot know is a list. All of it is made in a folder
beside the destination, which appears whole or not at all.
"""

import importlib.metadata
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlops_build import service as service_file
from mlops_build.errors import Failed, NotFound, Refused, UsageError
from mlops_build.git import command as git
from mlops_build.scaffold import render
from mlops_build.scaffold.existing import artifacts as artifact_files
from mlops_build.scaffold.existing import copied as copies
from mlops_build.scaffold.existing import data as sources
from mlops_build.scaffold.existing import modules as modules_of
from mlops_build.scaffold.existing import pipeline, served
from mlops_build.scaffold.existing import script as scripts
from mlops_build.scaffold.existing.artifacts import Artifact, Saved
from mlops_build.scaffold.existing.copied import Copied
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.look import look
from mlops_build.scaffold.existing.modules import Module
from mlops_build.scaffold.existing.script import Option, Script, Written
from mlops_build.scaffold.existing.todo import Left, Todo, listing, page

# A path that may stand in dvc.yaml and in Python as it is.
PATH = re.compile(r"[\w ./@+=,()-]+")
# What the template's example is made of.
EXAMPLE = ("data.py", "model.py", "train.py", "evaluate.py")
# An option that names the data, where no default says so.
DATA_OPTION = re.compile(r"data|input|csv|root|image|corpus|source", re.IGNORECASE)
# Imports that come with mlops-build[train].
BROUGHT = {"mlflow", "dvc", "mlops_build"}
SEED = 20261124
NAME_LENGTH = 40  # of project_name, as copier.yml allows it
WEIGHTS = "models/weights.pt"
METRICS = "metrics.json"
STAGE_LINE = 4  # of dvc.yaml: the command of the stage train


class NotEmpty(Refused):
    """The destination holds something."""


class BadName(Refused):
    """The folder's name, which would be the service's, is not a valid one, and no answer gives another."""


@dataclass(frozen=True)
class Made:
    """What was made, and what is left."""

    destination: Path
    script: str
    package: str
    model: str
    command: str
    copied: tuple[Copied, ...]
    data: tuple[Source, ...]
    left: tuple[Left, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "service": str(self.destination),
            "package": self.package,
            "model": self.model,
            "command": self.command,
            "files": [{"from": one.original, "path": one.path, "diff": one.diff} for one in self.copied],
            "data": [one.as_json() for one in self.data],
            "left": [one.as_json() for one in self.left],
        }

    def as_text(self) -> str:
        lines = [f"{self.destination}: a service around {self.script}", ""]
        for one in self.copied:
            count = one.changed_lines
            lines.append(f"  {one.path}: {one.original}, " + (f"{count} line{'s' * (count > 1)} changed" if one.diff else "as it is"))
        lines += [f"  {one.inside}: {'a reference to' if one.by_reference else 'a copy of'} {one.place}" for one in self.data]
        lines += ["", *(one.diff for one in self.copied if one.diff), "The train stage runs:", f"  {self.command}", ""]
        lines += ["Left to do (TODO.md has it with examples):", listing(self.left), ""]
        lines += ["Then (Git is initialized, nothing is committed yet):", f"  cd {shlex.quote(str(self.destination))}"]
        lines += ['  git add --all && git commit --message "Put a service around the script"', "  mlops-build train"]
        return "\n".join(lines)


def scaffold(
    destination: Path,
    script: Path,
    data: Sequence[str],
    answers: Mapping[str, object],
    *,
    template: str = render.TEMPLATE,
    version: str | None = None,
    by_reference: bool = False,
    say: Callable[[str], None],
) -> Made:
    """Make the service. Raises NotEmpty, BadName, BadScript, NotFound, UsageError, ScaffoldError, and what Git, DVC and the disk raise."""
    destination = destination.absolute()
    _check_destination(destination)
    if "example" in answers:
        raise UsageError("--answer example=…: your script is the example here", remedy="leave it out")
    modules, outside = modules_of.collect(scripts.read(script.absolute()))
    planned = sources.plan(data, script, by_reference=by_reference)
    given = {"example": "none", "project_name": destination.name, **answers}
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        root = folder / destination.name
        try:
            render.copy(template, root, given, version=version)
        except render.ScaffoldError as error:
            raise error if "project_name" in answers else _named_by_folder(destination.name, error) from None
        git.run(root, "init", "--quiet", "--initial-branch=main")
        around = _Around(root, modules, planned)
        around.write(outside)
        for source in planned:
            say(source.said())
            sources.put(source, root, sources.endpoint_of(given))
        shutil.rmtree(root / ".dvc/tmp", ignore_errors=True)  # it names the folder that this was made in
        made = around.made(destination)
        _place(root, destination)
    except OSError as error:
        raise Failed(
            f"{destination} cannot be written: {error.strerror or error}", remedy="is there room, and may you write there?"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _named_by_folder(name: str, error: render.ScaffoldError) -> render.ScaffoldError | BadName:
    """What the template says of `project_name`, for somebody who was not asked for one; any other error as it is."""
    _, refused, why = error.message.partition("project_name: ")
    if not refused:
        return error
    words = re.findall(r"[a-z0-9]+", name.lower())
    valid = re.sub(r"^[0-9-]+", "", "-".join(words)) or "fraud-score"
    # One word may be the name of a Python package.
    valid = (valid if "-" in valid else f"{valid}-service")[:NAME_LENGTH].rstrip("-")
    return BadName(
        f"the service would be named after its folder, but {name!r} is not a valid name: {why}",
        remedy=f"give it a name: add --answer project_name={valid} to the command, or choose another folder",
    )


def _place(root: Path, destination: Path) -> None:
    """Move what was made to its place; an empty folder that is there stays the same folder, since somebody may stand in it."""
    if not destination.exists():
        root.rename(destination)
        return
    moved = []
    try:
        for path in sorted(root.iterdir()):
            moved.append(path.rename(destination / path.name))
    except OSError:
        for path in moved:
            path.rename(root / path.name)
        raise


def _check_destination(destination: Path) -> None:
    if destination.is_symlink() or (destination.exists() and (not destination.is_dir() or any(destination.iterdir()))):
        raise NotEmpty(f"{destination} is not empty: it is left alone", remedy="name a folder that does not exist yet")
    if not destination.parent.is_dir():
        raise NotFound(f"{destination.parent} does not exist", remedy=f"mkdir --parents {destination.parent}")


class _Around:
    """The service while it is made: a rendered template at `root`, the modules that come along, the data that will be there."""

    def __init__(self, root: Path, modules: Sequence[Module], planned: Sequence[Source]) -> None:
        self.root, self.modules, self.sources = root, modules, planned
        self.script = modules[0].script
        self.name = self.script.path.name
        self.model = service_file.load(root).models[0].name
        self.package = next(path.parent.name for path in sorted((root / "src").glob("*/__init__.py")))
        options: dict[str, Option] = {}
        for module in modules:
            for option in scripts.options(module.script):
                options.setdefault(option.name, option)
        self.options = list(options.values())
        self.defaults = {one.dest: one.default for one in self.options if one.default is not None}
        # A table among the data, and its columns: what examples of code are written with.
        self.table = next(((one.inside, columns) for one in planned if (columns := one.columns())), None)
        self.todo = Todo()
        self.copied: dict[Path, Copied] = {}
        self.command = ""

    def made(self, destination: Path) -> Made:
        left = self.todo.placed(self.root)
        self._text("TODO.md", page(self.name, left))
        copied = tuple(self.copied[module.script.path] for module in self.modules)
        return Made(destination, self.name, self.package, self.model, self.command, copied, tuple(self.sources), tuple(left))

    def write(self, outside: Sequence[tuple[Script, int, str]]) -> None:
        """Everything but the data and TODO.md."""
        for name in EXAMPLE:
            (self.root / "src" / self.package / name).unlink(missing_ok=True)
        for path in (self.root / "tests").glob("test_*.py"):
            path.unlink()
        self.copied = copies.copy(self.modules, self.sources, self.root, self.package)
        files = [one for module in self.modules for one in scripts.written(module.script, self.defaults)]
        weights, saves = self._weights([one for one in files if one.by == "torch.save"])
        outputs = self._outputs(files, weights)
        said = pipeline.arguments(self._saving(saves), self._path_options(outputs))
        network = served.network(saves, self.modules, self.defaults)
        predictor, logger = self._free("predictor"), self._free("log_model")
        serves = modules_of.reached(network.module, self.modules, self.script.path.parent) if network.module else []
        saved = artifact_files.saved(files, outputs, weights)
        artifacts = [one.path for one in saved.artifacts]
        reports = [path for path in outputs if path.endswith(".json") and path not in artifacts]
        metrics = METRICS if METRICS not in outputs else "reports/metrics.json"
        self.command = pipeline.command(self.package, self.modules[0].name, weights, said)
        stages = pipeline.dvc_yaml(
            self.package,
            self.name,
            self.command,
            sections=said.sections,
            reads=[*(one.inside for one in self.sources), *self._deps(self.modules)],
            writes=outputs,
            model=self.model,
            served=[
                *(one.inside for one in self.sources),
                weights,
                *artifacts,
                *reports,
                *sorted({*self._deps(serves), *(f"src/{self.package}/{name}.py" for name in (predictor, logger))}),
            ],
            metrics=metrics,
            logger=logger,
        )
        self._text("dvc.yaml", stages)
        self._serving(network, saves, weights, saved.artifacts, predictor)
        self._measuring(logger, predictor, metrics, reports, saved.artifacts)
        self._saved(saved, logger)
        gate = self.todo.add("params.yaml", "what must the metrics reach for a version to be registered?", "    accuracy: {min: 0.9}")
        self._text("params.yaml", pipeline.params_yaml(self.name, said, SEED if said.seed is None else said.seed, gate))
        self._other_arguments()
        written = [one.path for one in files if one.path is not None]
        look(self.modules, self.copied, outside, self.sources, [*outputs, *written], self.package, self.todo)
        self._requirements(serves)
        self._ignore(outputs)
        self._readme_and_makefile(predictor, logger)

    def _weights(self, saves: Sequence[Written]) -> tuple[str, Written | None]:
        """The file with the weights, and the call that writes it."""
        known = [one for one in saves if one.path is not None and is_inside(one.path)]
        best = next((one for one in known if "best" in str(one.path).lower()), known[-1] if known else None)
        if best is not None:
            others = sorted({f"{one.path} (line {one.line})" for one in known if one.path != best.path})
            if others:
                what = f"{best.path} is taken for the weights; is it, and not {', '.join(others)}? Else change dvc.yaml and predictor.py"
                self._add(best.script, best.line, what, needed=False)
            return normal(str(best.path)), best
        last = saves[-1] if saves else None
        why = f"where the weights are saved is not known from the code: {last.source}" if last else "no torch.save was found"
        what = f"{why}. Save the weights as {WEIGHTS}, or name their file in dvc.yaml and as WEIGHTS in predictor.py"
        self._add(last.script if last else self.script, last.line if last else 1, what, f'torch.save(model.state_dict(), "{WEIGHTS}")')
        return WEIGHTS, last

    def _saving(self, saves: Written | None) -> list[Option]:
        """The options, with the flag set by which the script saves at all: `if args.save_model: torch.save(…)`."""
        deciding = scripts.conditions(saves.script, saves.line) if saves else []
        found = []
        for option in self.options:
            if option.kind == "flag" and option.flag.startswith("--") and option.dest in deciding and not option.flag.startswith("--no-"):
                what = f"weights are saved with {option.flag} only, so it is true under train"
                self.todo.add("params.yaml", what, line=1, needed=False)
                option = replace(option, default=True)
            found.append(option)
        return found

    def _outputs(self, files: Sequence[Written], weights: str) -> list[str]:
        """What the script writes into the service, the weights first. What it writes elsewhere, or where nobody knows, is left to do."""
        found = [weights]
        for one in files:
            if one.path is None and one.by != "torch.save":
                what = f"writes what is not known from the code: {one.source}. Add its path to the outs of the stage train in dvc.yaml"
                if artifact_files.is_needed(one):
                    what += "; if serving reads it, give it to log_model, too: artifacts={NAME: PATH}"
                self._add(one.script, one.line, what, needed=False)
            elif one.path is not None and not is_inside(one.path):
                what = (
                    f"writes outside of the service: {one.path}. Write into it, and add the path to the outs of the stage train in dvc.yaml"
                )
                self._add(one.script, one.line, what, needed=False)
            elif one.path is not None and not any(within(normal(one.path), source.inside) for source in self.sources):
                found.append(normal(one.path))
        found = list(dict.fromkeys(found))
        # DVC takes no output inside another.
        return [path for path in found if not any(path != other and within(path, other) for other in found)]

    def _path_options(self, outputs: Sequence[str]) -> dict[str, str]:
        """dest → path of the options that name data or an output; one that is required and not known is left to do."""
        found: dict[str, str] = {}
        start = copies.bases(self.script)
        for option in self.options:
            if not isinstance(option.default, str):
                continue
            if (inside := copies.place(option.default, self.sources, start)) is not None:
                found[option.dest] = inside
            elif is_inside(option.default) and any(within(path, normal(option.default)) for path in outputs):
                found[option.dest] = option.default
        unused = [one for one in self.sources if not any(within(path, one.inside) for path in found.values())]
        required = [one for one in self.options if one.required and one.dest not in found]
        for source in unused:
            named = [one for one in required if one.dest in re.split(r"[./]", source.inside)]
            named = named or ([one for one in required if DATA_OPTION.search(one.name)] if len(unused) == 1 else [])
            if len(named) == 1:
                found[named[0].dest] = source.inside
        for option in required:
            if option.dest not in found:
                where = next(one.script for one in self.modules if option in scripts.options(one.script))
                one = self.copied[where.path]
                what = f"{one.path}:{one.line(option.line)} requires {option.flag}: write it into the command of the stage train"
                value = f"{option.flag} VALUE" if option.flag.startswith("-") else "VALUE"
                self.todo.add("dvc.yaml", what, f"    cmd: … -m {self.package}.{self.modules[0].name} {value}", line=STAGE_LINE)
        return found

    def _serving(self, network: served.Network, saves: Written | None, weights: str, artifacts: Sequence[Artifact], predictor: str) -> None:
        """predictor.py, its test, and what is left to do there."""
        file = f"src/{self.package}/{predictor}.py"
        what, code = "what does a caller send? Give a few rows of it", 'return pd.DataFrame({"x": [0.5, 1.5]})'
        columns = '["x"]'
        if self.table:
            columns = columns_text(self.table[1])
            what += f". {self.table[0]} has these columns: leave out what is asked for"
            code = f'return pd.read_csv("{self.table[0]}", nrows=3)[{columns}]'
        numbers = {"rows": self.todo.add(file, what, code)}
        if network.whole and saves:
            what = (
                f"saves what is no state_dict, as far as one sees: {saves.source}. Anything else runs code when it is read, and is refused"
            )
            self._add(saves.script, saves.line, what, f'torch.save(model.state_dict(), "{weights}")')
        if not network.is_known or network.module is None:
            what = f"make the network as {self.name} makes it" + (f", line {network.line}: {network.call}" if network.call else "")
            code = f"self.network = {network.name or 'Net'}({network.arguments})"
            if network.module:
                code = f"from {self.package}.{network.module.name} import {network.name}\n\n{code}"
            numbers["network"] = self.todo.add(file, what, code)
        elif network.follows:
            what = f"the network is made with today's defaults ({network.call}); does it still fit when params.yaml changes?"
            numbers["network"] = self.todo.add(file, what, needed=False)
        read = []
        for artifact in artifacts:
            what = f"{self.name} saves {artifact.path}, which serving receives: read it here (or remove it, here and from ARTIFACTS)"
            read.append((artifact, self.todo.add(file, what, f"self.{artifact.name} = {artifact.reading()}", needed=False)))
        numbers["answer"] = self.todo.add(
            file,
            "which tensor goes in, and what is answered?",
            f'numbers = torch.tensor(model_input[{columns}].to_numpy("float32")).to(device())\n'
            "with torch.inference_mode():\n    scores = self.network(numbers)\n"
            'return pd.DataFrame({"label": scores.argmax(dim=1).tolist()})',
        )
        self._text(file, served.predictor(self.package, self.name, weights, self.model, network, read, numbers))
        self._text("tests/test_predictor.py", served.TEST.format(package=self.package, predictor=predictor))
        if network.module and not network.module.script.is_guarded():
            what = f"serving imports it for {network.name}, and importing it runs it: move {network.name} to a module of its own"
            self._add(network.module.script, 1, f'{what}, or put the rest under `if __name__ == "__main__":`')

    def _saved(self, saved: Saved, logger: str) -> None:
        """What the script saves beside its weights and does not come along by itself."""
        for one in saved.pickled:
            what = f"saves a pickle, {one.path}, which log_model refuses, since reading it runs code: {one.source}. Save its numbers"
            self._add(one.script, one.line, what, 'json.dump({"mean": scaler.mean_.tolist()}, open("scaler.json", "w"))', needed=False)
        for one in saved.unsure:
            what = f"saves {one.path}: does serving read it? Then give it to log_model in {logger}.py"
            self._add(one.script, one.line, what, f'artifacts={{"NAME": Path("{one.path}")}}', needed=False)

    def _measuring(self, logger: str, predictor: str, metrics: str, reports: Sequence[str], artifacts: Sequence[Artifact]) -> None:
        """log_model.py, and what is left to do there."""
        what = "measure the model on data that it was not trained with"
        code = f"# with `import pandas as pd` above; the rows that {self.name} holds out\n"
        code += f'rows = pd.read_csv("{self.table[0] if self.table else "data/NAME.csv"}").tail(100).reset_index(drop=True)\n'
        code += 'answers = model.predict(rows)\nreturn {"accuracy": float((answers["label"] == rows["label"]).mean())}'
        if reports:
            what += f"; or take what {self.name} measured itself, in {', '.join(reports)}"
            code += f'\n# or:\nreturn json.loads(Path("{reports[0]}").read_text())'
        file = f"src/{self.package}/{logger}.py"
        number = self.todo.add(file, what, code)
        self._text(file, served.logger(self.package, self.name, logger, predictor, metrics, artifacts, number))

    def _other_arguments(self) -> None:
        other = scripts.parser_of(self.script)
        if other and (other != "sys.argv" or not self.options):
            what = f"{self.name} takes its arguments by {other}, which is not read: write them into the command of the stage train"
            example = f"    cmd: … -m {self.package}.{self.modules[0].name} --epochs 20"
            self.todo.add("dvc.yaml", what, example, line=STAGE_LINE, needed=False)

    def _requirements(self, serves: Sequence[Module]) -> None:
        """Third-party imports as requirements: what serving imports into `dependencies`, the rest into `train`."""
        folder = self.script.path.parent
        path = self.root / "pyproject.toml"
        text = path.read_text(encoding="utf-8")
        there = {section: set(re.findall(r'^    "([A-Za-z0-9-]+)', part, re.MULTILINE)) for section, part in sections(text).items()}
        installed = importlib.metadata.packages_distributions()
        serving = modules_of.third_party(serves, folder)
        for name, (script, line) in sorted(modules_of.third_party(self.modules, folder).items(), reverse=True):
            known = modules_of.distribution(name, installed)
            if name in BROUGHT or (known and known[0] in there["dependencies"]):
                continue
            if known is None:
                what = f"imports {name}; which package brings it is not known here: add that to pyproject.toml, then `make lock`"
                self._add(script, line, what, f'    "{name}", # if that is its name')
                continue
            section = "dependencies" if name in serving else "train"
            if known[0] not in there[section]:
                requirement = known[0] + (f">={known[1]}" if known[1] else "")
                text = re.sub(rf"(?m)^({section} = \[\n)", rf'\g<1>    "{requirement}",\n', text, count=1)
        path.write_text(text, encoding="utf-8")

    def _ignore(self, outputs: Sequence[str]) -> None:
        """Outputs belong to DVC. It would write this itself at the first run, and so make the tree dirty."""
        lines = "".join(f"/{output}\n" for output in outputs if not within(output, "models"))
        text = (self.root / ".gitignore").read_text(encoding="utf-8")
        # Among their like, not at the end, where the template adds what is new: both would be a conflict at every update.
        there = re.search(r"(?m)^/models\n", text)
        place = there.end() if there else len(text)
        self._text(".gitignore", text[:place] + lines + text[place:])

    def _readme_and_makefile(self, predictor: str, logger: str) -> None:
        """Where the template's own speak of its example. Another template may word it otherwise: then they stay."""
        source = f"src/{self.package}"
        text = (self.root / "README.md").read_text(encoding="utf-8")
        begins = f"It was put around `{self.name}`; `TODO.md` says what is left to do.\n"
        text = re.sub(r"(?ms)^It starts with a tiny synthetic problem.*?\n(?=\n## )", lambda _: begins, text)
        rows = (
            f"| `{source}/{self.modules[0].inside}` | training, as it was |\n| `{source}/{predictor}.py` | what a caller sends and gets |\n"
        )
        rows += f"| `{source}/{logger}.py` | how the model is measured |\n"
        text = re.sub(rf"(?ms)^\| `{source}/data\.py`.*?(?=^\| `params\.yaml`)", lambda _: rows, text)
        text = text.replace("the pipeline: prepare → train → evaluate", "the pipeline: train → model")
        self._text("README.md", text)
        text = (self.root / "Makefile").read_text(encoding="utf-8")
        recipe = "data: $(INSTALLED) ## fetch the data that DVC has\n\t$(BIN)/python -m dvc pull\n"
        self._text("Makefile", re.sub(r"(?m)^data: .*\n(?:\t.*\n)+", lambda _: recipe, text))

    def _deps(self, modules: Sequence[Module]) -> list[str]:
        """The modules as dependencies of a stage. An empty __init__.py changes nothing, and DVC warns of it."""
        return sorted(self.copied[one.script.path].path for one in modules if one.script.text.strip())

    def _add(self, script: Script, line: int, what: str, example: str = "", *, needed: bool = True) -> None:
        one = self.copied[script.path]
        self.todo.add(one.path, what, example, line=one.line(line), needed=needed)

    def _free(self, name: str) -> str:
        """A module's name that is not taken by one of theirs."""
        taken = {module.name.partition(".")[0] for module in self.modules}
        while name in taken:
            name = f"service_{name}"
        return name

    def _text(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")


def is_inside(path: str) -> bool:
    """Whether a relative path stays in the service, and can be written down."""
    return bool(PATH.fullmatch(path)) and not Path(path).is_absolute() and ".." not in Path(path).parts and normal(path) != "."


def normal(path: str) -> str:
    return Path(path).as_posix()


def within(path: str, folder: str) -> bool:
    """Whether a path is `folder` or in it."""
    return path == folder or path.startswith(f"{folder}/")


def sections(pyproject: str) -> dict[str, str]:
    """The lines of the two lists of requirements."""
    found = {name: re.search(rf"(?ms)^{name} = \[\n(.*?)^\]", pyproject) for name in ("dependencies", "train")}
    return {name: match[1] if match else "" for name, match in found.items()}


def columns_text(columns: Sequence[str]) -> str:
    """Columns as a list in Python, the first eight of them."""
    shown = ['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in columns[:8]]
    return f"[{', '.join([*shown, *(['…'] if len(columns) > 8 else [])])}]"
