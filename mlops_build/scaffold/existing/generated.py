"""The files of a service that is generated from a training script, except its data. What the code does not show becomes a task."""

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.scaffold.existing import artifacts as artifact_files
from mlops_build.scaffold.existing import copied as copies
from mlops_build.scaffold.existing import modules as modules_of
from mlops_build.scaffold.existing import pipeline, served
from mlops_build.scaffold.existing import script as scripts
from mlops_build.scaffold.existing.artifacts import Artifact, Saved
from mlops_build.scaffold.existing.copied import Copied
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.examples import examples
from mlops_build.scaffold.existing.look import look
from mlops_build.scaffold.existing.modules import Module
from mlops_build.scaffold.existing.options import Option, options, parser_of
from mlops_build.scaffold.existing.script import Script, Written
from mlops_build.scaffold.existing.todo import Left, Todo, page

# A path that needs no quoting in dvc.yaml and in Python.
PATH = re.compile(r"[\w ./@+=,()-]+")
# The modules of the template's example, which the script replaces.
EXAMPLE = ("data.py", "model.py", "train.py", "evaluate.py")
# Names of options that take the data's path, for options without a default.
DATA_OPTION = re.compile(r"data|input|csv|root|image|corpus|source", re.IGNORECASE)
# Imports that mlops-build[train] provides.
BROUGHT = {"mlflow", "dvc", "mlops_build"}
SEED = 20261124
WEIGHTS = "models/weights.pt"
METRICS = "metrics.json"
STAGE_LINE = 4  # of dvc.yaml: the command of the stage train


class Generated:
    """The service that is being built: a rendered template at `root`, the modules to copy, and the data to add."""

    def __init__(self, root: Path, modules: Sequence[Module], planned: Sequence[Source]) -> None:
        self.root, self.modules, self.sources = root, modules, planned
        self.script = modules[0].script
        self.name = self.script.path.name
        self.model = service_file.load(root).models[0].name
        self.package = next(path.parent.name for path in sorted((root / "src").glob("*/__init__.py")))
        by_name: dict[str, Option] = {}
        for module in modules:
            for option in options(module.script):
                by_name.setdefault(option.name, option)
        self.options = list(by_name.values())
        self.defaults = {option.dest: option.default for option in self.options if option.default is not None}
        # The code examples use the first table among the data.
        table = next(((source.inside, columns) for source in planned if (columns := source.columns())), None)
        self.examples = examples(table, [module.script for module in modules], self.defaults)
        self.todo = Todo()
        self.copied: dict[Path, Copied] = {}
        self.command = ""

    def write(self, outside: Sequence[tuple[Script, int, str]]) -> None:
        """Write every file except the data and TODO.md."""
        for name in EXAMPLE:
            (self.root / "src" / self.package / name).unlink(missing_ok=True)
        for path in (self.root / "tests").glob("test_*.py"):
            path.unlink()
        self.copied = copies.copy(self.modules, self.sources, self.root, self.package)
        files = [written for module in self.modules for written in scripts.written(module.script, self.defaults)]
        weights, saves = self._weights([file for file in files if file.by == "torch.save"])
        outputs = self._outputs(files, weights)
        arguments = pipeline.arguments(self._saving(saves), self._path_options(outputs))
        network = served.network(saves, self.modules, self.defaults)
        predictor, logger = self._free("predictor"), self._free("log_model")
        serves = modules_of.reached(network.module, self.modules, self.script.path.parent) if network.module else []
        saved = artifact_files.saved(files, outputs, weights)
        artifacts = [artifact.path for artifact in saved.artifacts]
        reports = [path for path in outputs if path.endswith(".json") and path not in artifacts]
        metrics = METRICS if METRICS not in outputs else "reports/metrics.json"
        self.command = pipeline.command(self.package, self.modules[0].name, weights, arguments)
        stages = pipeline.dvc_yaml(
            self.package,
            self.name,
            self.command,
            sections=arguments.sections,
            reads=[*(source.inside for source in self.sources), *self._deps(self.modules)],
            writes=outputs,
            model=self.model,
            served=[
                *(source.inside for source in self.sources),
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
        threshold = self.examples.threshold()
        gate = self.todo.add("params.yaml", "set the metrics that a version must reach to be registered", f"    {threshold}")
        seed = SEED if arguments.seed is None else arguments.seed
        self._text("params.yaml", pipeline.params_yaml(self.name, arguments, seed, threshold, gate))
        self._other_arguments()
        written = [file.path for file in files if file.path is not None]
        look(self.modules, self.copied, outside, self.sources, [*outputs, *written], self.package, self.todo)
        self._requirements(serves)
        self._ignore(outputs)
        self._readme_and_makefile(predictor, logger)

    def write_todo(self) -> list[Left]:
        """Write TODO.md, after everything else; returns its tasks."""
        left = self.todo.placed(self.root)
        self._text("TODO.md", page(self.name, left))
        return left

    def _weights(self, saves: Sequence[Written]) -> tuple[str, Written | None]:
        """The file with the weights, and the call that writes it."""
        known = [save for save in saves if save.path is not None and is_inside(save.path)]
        best = next((save for save in known if "best" in str(save.path).lower()), known[-1] if known else None)
        if best is not None:
            others = sorted({f"{save.path} (line {save.line})" for save in known if save.path != best.path})
            if others:
                what = f"{best.path} is used as the weights. If {', '.join(others)} is meant, change dvc.yaml and predictor.py"
                self._add(best.script, best.line, what, needed=False)
            return normal(str(best.path)), best
        last = saves[-1] if saves else None
        why = f"the code does not show where the weights are saved: {last.source}" if last else "no torch.save was found"
        what = f"{why}. Save the weights as {WEIGHTS}, or set their path in dvc.yaml and as WEIGHTS in predictor.py"
        self._add(last.script if last else self.script, last.line if last else 1, what, f'torch.save(model.state_dict(), "{WEIGHTS}")')
        return WEIGHTS, last

    def _saving(self, saves: Written | None) -> list[Option]:
        """The options, with the flag set on which saving depends: `if args.save_model: torch.save(…)`."""
        deciding = scripts.conditions(saves.script, saves.line) if saves else []
        with_saving = []
        for option in self.options:
            if option.kind == "flag" and option.flag.startswith("--") and option.dest in deciding and not option.flag.startswith("--no-"):
                what = f"weights are saved only with {option.flag}, so it is true in the section train"
                self.todo.add("params.yaml", what, line=1, needed=False)
                option = replace(option, default=True)
            with_saving.append(option)
        return with_saving

    def _outputs(self, files: Sequence[Written], weights: str) -> list[str]:
        """The paths that the script writes in the service, the weights first. Unknown and outside paths become tasks."""
        outputs = [weights]
        for file in files:
            if file.path is None and file.by != "torch.save":
                what = f"writes a file with a path that is not known: {file.source}. Add it to the outs of the stage train in dvc.yaml"
                if artifact_files.is_needed(file):
                    what += "; if serving reads it, also pass it to log_model: artifacts={NAME: PATH}"
                self._add(file.script, file.line, what, needed=False)
            elif file.path is not None and not is_inside(file.path):
                what = f"writes outside the service: {file.path}. Write inside it, and add the path to the outs of the stage train"
                self._add(file.script, file.line, what, needed=False)
            elif file.path is not None and not any(within(normal(file.path), source.inside) for source in self.sources):
                outputs.append(normal(file.path))
        outputs = list(dict.fromkeys(outputs))
        # DVC refuses an output inside another output.
        return [path for path in outputs if not any(path != other and within(path, other) for other in outputs)]

    def _path_options(self, outputs: Sequence[str]) -> dict[str, str]:
        """dest → path of the options that name data or an output. A required option with an unknown path becomes a task."""
        paths: dict[str, str] = {}
        start = copies.bases(self.script)
        for option in self.options:
            if not isinstance(option.default, str):
                continue
            if (inside := copies.place(option.default, self.sources, start)) is not None:
                paths[option.dest] = inside
            elif is_inside(option.default) and any(within(path, normal(option.default)) for path in outputs):
                paths[option.dest] = option.default
        unused = [source for source in self.sources if not any(within(path, source.inside) for path in paths.values())]
        required = [option for option in self.options if option.required and option.dest not in paths]
        for source in unused:
            named = [option for option in required if option.dest in re.split(r"[./]", source.inside)]
            named = named or ([option for option in required if DATA_OPTION.search(option.name)] if len(unused) == 1 else [])
            if len(named) == 1:
                paths[named[0].dest] = source.inside
        for option in required:
            if option.dest not in paths:
                where = next(module.script for module in self.modules if option in options(module.script))
                copied = self.copied[where.path]
                what = f"{copied.path}:{copied.line(option.line)} requires {option.flag}: add it to the command of the stage train"
                value = f"{option.flag} VALUE" if option.flag.startswith("-") else "VALUE"
                self.todo.add("dvc.yaml", what, f"    cmd: … -m {self.package}.{self.modules[0].name} {value}", line=STAGE_LINE)
        return paths

    def _serving(self, network: served.Network, saves: Written | None, weights: str, artifacts: Sequence[Artifact], predictor: str) -> None:
        """Write predictor.py and its test, and add their tasks."""
        file = f"src/{self.package}/{predictor}.py"
        what = "define what a caller sends: return a few example rows"
        if self.examples.target:
            what += f". The example uses {self.examples.table} without {', '.join(self.examples.dropped)}"
        elif self.examples.table:
            what += f". Remove the columns to be predicted from those of {self.examples.table}"
        numbers = {"rows": self.todo.add(file, what, self.examples.rows())}
        if network.whole and saves:
            what = f"does not appear to save a state_dict: {saves.source}. Other files can run code when they are loaded, and are refused"
            self._add(saves.script, saves.line, what, f'torch.save(model.state_dict(), "{weights}")')
        if not network.is_known or network.module is None:
            what = f"create the network as {self.name} does" + (f", line {network.line}: {network.call}" if network.call else "")
            code = f"self.network = {network.name or 'Net'}({network.arguments})"
            if network.module:
                code = f"from {self.package}.{network.module.name} import {network.name}\n\n{code}"
            numbers["network"] = self.todo.add(file, what, code)
        elif network.follows:
            what = f"the network is created with the current defaults ({network.call}); check that it still fits when params.yaml changes"
            numbers["network"] = self.todo.add(file, what, needed=False)
        read = []
        for artifact in artifacts:
            what = f"{self.name} saves {artifact.path}, which is part of the model: load it here (or remove it here and from ARTIFACTS)"
            read.append((artifact, self.todo.add(file, what, f"self.{artifact.name} = {artifact.reading()}", needed=False)))
        numbers["answer"] = self.todo.add(file, "define the input tensor and the answer", self.examples.answer())
        self._text(file, served.predictor(self.package, self.name, weights, self.model, network, read, numbers))
        self._text("tests/test_predictor.py", served.TEST.format(package=self.package, predictor=predictor))
        if network.module and not network.module.script.is_guarded():
            what = f"serving imports this module for {network.name}, which runs the training: move {network.name} to its own module"
            self._add(network.module.script, 1, f'{what}, or put the rest under `if __name__ == "__main__":`')

    def _saved(self, saved: Saved, logger: str) -> None:
        """Add tasks for saved files that are not automatically part of the model."""
        for written in saved.pickled:
            what = f"saves a pickle, {written.path}, which log_model refuses (loading it can run code): {written.source}. Save its numbers"
            example = f'np.savez("{Path(str(written.path)).with_suffix(".npz")}", mean=scaler.mean_, scale=scaler.scale_)'
            self._add(written.script, written.line, what, example, needed=False)
        for written in saved.unsure:
            what = f"saves {written.path}: if serving reads it, pass it to log_model in {logger}.py"
            self._add(written.script, written.line, what, f'artifacts={{"NAME": Path("{written.path}")}}', needed=False)

    def _measuring(self, logger: str, predictor: str, metrics: str, reports: Sequence[str], artifacts: Sequence[Artifact]) -> None:
        """Write log_model.py, and add its task."""
        what = "measure the model on data that was not used for training"
        code = self.examples.measure(self.name)
        if reports:
            what += f"; or use the metrics that {self.name} writes to {', '.join(reports)}"
            code += f'\n# or:\nreturn json.loads(Path("{reports[0]}").read_text())'
        file = f"src/{self.package}/{logger}.py"
        number = self.todo.add(file, what, code)
        self._text(file, served.logger(self.package, self.name, logger, predictor, metrics, artifacts, number))

    def _other_arguments(self) -> None:
        other = parser_of(self.script)
        if other and (other != "sys.argv" or not self.options):
            what = f"{self.name} reads its arguments with {other}, which is not supported: add them to the command of the stage train"
            example = f"    cmd: … -m {self.package}.{self.modules[0].name} --epochs 20"
            self.todo.add("dvc.yaml", what, example, line=STAGE_LINE, needed=False)

    def _requirements(self, serves: Sequence[Module]) -> None:
        """Add third-party imports to the requirements: those of serving to `dependencies`, the others to `train`."""
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
                what = f"imports {name}, which no known package provides: add the right package to pyproject.toml, then `make lock`"
                self._add(script, line, what, f'    "{name}", # if this is its name')
                continue
            section = "dependencies" if name in serving else "train"
            if known[0] not in there[section]:
                requirement = known[0] + (f">={known[1]}" if known[1] else "")
                text = re.sub(rf"(?m)^({section} = \[\n)", rf'\g<1>    "{requirement}",\n', text, count=1)
        path.write_text(text, encoding="utf-8")

    def _ignore(self, outputs: Sequence[str]) -> None:
        """Add the outputs to .gitignore. Otherwise DVC does it at the first run, and the working tree has uncommitted changes."""
        lines = "".join(f"/{output}\n" for output in outputs if not within(output, "models"))
        text = (self.root / ".gitignore").read_text(encoding="utf-8")
        # Not at the end, where the template adds its new lines: that would be a conflict in every update.
        there = re.search(r"(?m)^/models\n", text)
        place = there.end() if there else len(text)
        self._text(".gitignore", text[:place] + lines + text[place:])

    def _readme_and_makefile(self, predictor: str, logger: str) -> None:
        """Replace the texts about the template's example. In another template with other texts nothing is replaced."""
        source = f"src/{self.package}"
        text = (self.root / "README.md").read_text(encoding="utf-8")
        begins = f"It was generated from `{self.name}`; `TODO.md` lists the remaining tasks.\n"
        text = re.sub(r"(?ms)^The example is a small synthetic problem.*?\n(?=\n## )", lambda _: begins, text)
        rows = (
            f"| `{source}/{self.modules[0].inside}` | the original training script |\n| `{source}/{predictor}.py` | input and answers |\n"
        )
        rows += f"| `{source}/{logger}.py` | how the model is measured |\n"
        text = re.sub(rf"(?ms)^\| `{source}/data\.py`.*?(?=^\| `params\.yaml`)", lambda _: rows, text)
        text = text.replace("the pipeline: prepare → train → evaluate", "the pipeline: train → model")
        self._text("README.md", text)
        text = (self.root / "Makefile").read_text(encoding="utf-8")
        recipe = "data: $(INSTALLED) ## fetch the data that DVC has\n\t$(BIN)/python -m dvc pull\n"
        self._text("Makefile", re.sub(r"(?m)^data: .*\n(?:\t.*\n)+", lambda _: recipe, text))

    def _deps(self, modules: Sequence[Module]) -> list[str]:
        """The modules as dependencies of a stage, without empty __init__.py files, about which DVC warns."""
        return sorted(self.copied[module.script.path].path for module in modules if module.script.text.strip())

    def _add(self, script: Script, line: int, what: str, example: str = "", *, needed: bool = True) -> None:
        copied = self.copied[script.path]
        self.todo.add(copied.path, what, example, line=copied.line(line), needed=needed)

    def _free(self, name: str) -> str:
        """A module name that no copied module has."""
        taken = {module.name.partition(".")[0] for module in self.modules}
        while name in taken:
            name = f"service_{name}"
        return name

    def _text(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")


def is_inside(path: str) -> bool:
    """Whether a relative path stays in the service and needs no quoting."""
    return bool(PATH.fullmatch(path)) and not Path(path).is_absolute() and ".." not in Path(path).parts and normal(path) != "."


def normal(path: str) -> str:
    return Path(path).as_posix()


def within(path: str, folder: str) -> bool:
    """Whether a path is `folder` or in it."""
    return path == folder or path.startswith(f"{folder}/")


def sections(pyproject: str) -> dict[str, str]:
    """The lines of the lists `dependencies` and `train`."""
    matches = {name: re.search(rf"(?ms)^{name} = \[\n(.*?)^\]", pyproject) for name in ("dependencies", "train")}
    return {name: match[1] if match else "" for name, match in matches.items()}
