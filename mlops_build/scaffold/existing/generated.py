"""The files of a service that is generated from a training script, except its data. What the code does not show becomes a task."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.scaffold import example, templates
from mlops_build.scaffold.existing import copied as copies
from mlops_build.scaffold.existing import requirements
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.imports import Module, reached, third_party
from mlops_build.scaffold.existing.look import look
from mlops_build.scaffold.existing.network import network
from mlops_build.scaffold.existing.options import Option, command_line, options
from mlops_build.scaffold.existing.script import Script, Values
from mlops_build.scaffold.existing.todo import Todo
from mlops_build.scaffold.existing.written import Written, is_inside, within, written

# Names of options that take the data's path, for options without a default.
DATA_OPTION = re.compile(r"data|input|csv|root|image|corpus|source", re.IGNORECASE)
# Libraries that build the command line at run time, so that the file does not show the options.
OTHER_PARSERS = {"typer", "fire", "hydra", "absl", "docopt", "simple_parsing", "jsonargparse", "tap", "tyro", "draccus"}
SEED = 20261124
WEIGHTS = "models/weights.pt"
METRICS = "metrics.json"
FILES = Path(__file__).with_name("files")
COMMAND_LINE = 4  # of dvc.yaml: the command of the stage train


class Generated:
    """The service that is being built: a rendered template at `root`, the modules to copy, and the data to add.

    The files in files/ are rendered with the attributes.
    """

    def __init__(self, root: Path, modules: Sequence[Module], sources: Sequence[Source]) -> None:
        self.root, self.modules, self.sources = root, modules, sources
        self.script = modules[0].script
        self.name = self.script.path.name
        self.model = service_file.load(root).models[0].name
        self.package = example.remove(root)
        self.main = f"{self.package}.{modules[0].name}"
        self.predictor, self.logger = self._free("predictor"), self._free("log_model")
        self.predictor_py, self.logger_py = (f"src/{self.package}/{name}.py" for name in (self.predictor, self.logger))
        self.copied = copies.copy(modules, sources, root, self.package)
        self.todo = Todo(self.copied)
        self.options: dict[str, tuple[Option, Script]] = {}
        for module in modules:
            for option in options(module.script):
                self.options.setdefault(option.name, (option, module.script))
        self.defaults = {option.dest: option.default for option, _ in self.options.values() if option.default is not None}
        self.files = [file for module in modules for file in written(module.script, Values(module.script, self.defaults))]

    def write(self) -> None:
        """Write every file except the data and TODO.md."""
        self.weights, saves = self._weights()
        self.outputs = self._outputs()
        self.line = command_line(self._options(saves), self._paths())
        self.seed = SEED if self.line.seed is None else self.line.seed
        words = ["python -m mlops_build.training.script", shlex.quote(self.weights), "-m", self.main, *self.line.words]
        self.command = " ".join(words)
        self.network = network(saves, self.modules, Values(saves.script if saves else self.script, self.defaults))
        serving = reached(self.network.module, self.modules) if self.network.module else []
        self.numbers: dict[str, int] = {}  # of the tasks that the files mention
        self.artifacts: dict[str, str] = {}  # name → path
        self._predictor(saves)
        self.reports = [path for path in self.outputs if path.endswith(".json") and path not in self.artifacts.values()]
        self.metrics = METRICS if METRICS not in self.outputs else "reports/metrics.json"
        self._logger()
        self.numbers["threshold"] = self.todo.add("threshold", "params.yaml")
        inside = [source.inside for source in self.sources]
        self.train_deps = [*inside, *self._deps(self.modules)]
        ours = sorted({*self._deps(serving), self.predictor_py, self.logger_py})
        self.model_deps = [*inside, self.weights, *self.artifacts.values(), *self.reports, *ours]
        for name, path in (
            ("dvc.yaml", "dvc.yaml"),
            ("params.yaml", "params.yaml"),
            ("predictor.py", self.predictor_py),
            ("log_model.py", self.logger_py),
            ("test_predictor.py", "tests/test_predictor.py"),
        ):
            self._text(path, templates.render(FILES, name, vars(self)))
        look(
            self.modules,
            self.sources,
            {*self.outputs, *(file.path for file in self.files)},
            self.package,
            "seed" in self.options,
            self.todo,
        )
        self._requirements(serving)
        self._other_files()

    def write_todo(self) -> None:
        """Write TODO.md, after everything else."""
        self.todo.find_marks(self.root)
        self._text("TODO.md", templates.render(FILES, "TODO.md", {"name": self.name, "tasks": self.todo.tasks}))

    def _weights(self) -> tuple[str, Written | None]:
        """The file with the weights, and the call that writes it."""
        saves = [file for file in self.files if file.purpose == "weights"]
        known = [save for save in saves if save.path and is_inside(save.path)]
        if not known:
            last = saves[-1] if saves else None
            why = f"the code does not show where the weights are saved: {last.source}" if last else "no torch.save was found"
            line = last.call.lineno if last else 1
            self.todo.add("weights unknown", last.script if last else self.script, line, why=why, weights=WEIGHTS)
            return WEIGHTS, last
        best = next((save for save in known if "best" in str(save.path).lower()), known[-1])
        if others := sorted({f"{save.path} (line {save.call.lineno})" for save in known if save.path != best.path}):
            self.todo.add("several weights", best.script, best.call.lineno, weights=best.path, others=", ".join(others))
        return str(best.path), best

    def _outputs(self) -> list[str]:
        """The paths that the script writes in the service, the weights first. Unknown and outside paths become tasks."""
        outputs = {self.weights: None}
        for file in self.files:
            if file.path is None:
                if file.purpose != "weights":
                    self.todo.add("output unknown", file.script, file.call.lineno, source=file.source)
            elif not is_inside(file.path):
                self.todo.add("output outside", file.script, file.call.lineno, path=file.path)
            elif not any(within(file.path, source.inside) for source in self.sources):
                outputs[file.path] = None
        # DVC refuses an output inside another output.
        return [path for path in outputs if not any(path != other and within(path, other) for other in outputs)]

    def _options(self, saves: Written | None) -> list[Option]:
        """The options, with the flag set on which saving depends: `if args.save_model: torch.save(…)`."""
        deciding = saves.script.conditions(saves.call.lineno) if saves else []
        options = []
        for option, _ in self.options.values():
            if option.is_flag and option.dest in deciding and re.match("--(?!no-)", option.flag):
                self.todo.add("flag that saves", "params.yaml", 1, flag=option.flag)
                option = replace(option, default=True)
            options.append(option)
        return options

    def _paths(self) -> dict[str, str]:
        """dest → path of the options that name data or an output. A required option with an unknown path becomes a task."""
        paths: dict[str, str] = {}
        for option, _ in self.options.values():
            if inside := copies.place(option.default, self.sources, self.script):
                paths[option.dest] = inside
            elif isinstance(option.default, str) and any(within(path, Path(option.default).as_posix()) for path in self.outputs):
                paths[option.dest] = option.default
        unused = [source for source in self.sources if not any(within(path, source.inside) for path in paths.values())]
        required = [(option, script) for option, script in self.options.values() if option.required and option.dest not in paths]
        for source in unused:
            named = [option for option, _ in required if option.dest in re.split(r"[./]", source.inside)]
            named = named or [option for option, _ in required if DATA_OPTION.search(option.name) and len(unused) == 1]
            if len(named) == 1:
                paths[named[0].dest] = source.inside
        for option, script in required:
            if option.dest not in paths:
                copied = self.copied[script.path]
                place = f"{copied.path}:{copied.line(option.line)}"
                word = "VALUE" if option.is_positional else f"{option.flag} VALUE"
                self.todo.add("option", "dvc.yaml", COMMAND_LINE, place=place, flag=option.flag, module=self.main, word=word)
        return paths

    def _predictor(self, saves: Written | None) -> None:
        """Add the tasks of predictor.py, and choose the files that it loads."""
        file, net = self.predictor_py, self.network
        self.numbers["rows"] = self.todo.add("rows", file, table=self._table())
        if net.is_whole and saves:
            self.todo.add("state_dict", saves.script, saves.call.lineno, source=saves.source, weights=self.weights)
        if not net.is_known:
            code = f"self.network = {net.name or 'Net'}({net.arguments})"
            if net.module:
                code = f"from {self.package}.{net.module.name} import {net.name}\n\n{code}"
            call = f", line {net.line}: {net.call}" if net.call else ""
            self.numbers["network"] = self.todo.add("network", file, script=self.name, call=call, code=code)
        elif net.has_options:
            self.numbers["network"] = self.todo.add("defaults of network", file, call=net.call)
        for saved in self.files:
            if not saved.path or saved.path in self.artifacts.values() or not any(within(saved.path, output) for output in self.outputs):
                continue
            if saved.purpose == "artifact":
                name = self._artifact_name(saved.path)
                self.artifacts[name] = saved.path
                self.numbers[f"artifact {name}"] = self.todo.add("artifact", file, script=self.name, path=saved.path, name=name)
            elif saved.purpose in ("pickle", "unsure"):
                numbers = Path(saved.path).with_suffix(".npz")
                place = {"path": saved.path, "source": saved.source, "numbers": numbers, "logger": self.logger}
                self.todo.add(saved.purpose, saved.script, saved.call.lineno, **place)
        self.numbers["answer"] = self.todo.add("answer", file)
        if net.module and not net.module.script.is_guarded():
            self.todo.add("unguarded", net.module.script, 1, name=net.name)

    def _artifact_name(self, path: str) -> str:
        """A valid and free name of an artifact of log_model, derived from the file's name."""
        plain = re.sub(r"[^a-z0-9]+", "_", Path(path).stem.lower()).strip("_")[:50]
        name = plain if re.match(r"[a-z]", plain) else f"file_{plain}"
        while name in {"weights", "network", *self.artifacts}:
            name += "_2"
        return name

    def _logger(self) -> None:
        """Add the task of log_model.py."""
        reports = f"; or use the metrics that {self.name} writes to {', '.join(self.reports)}" if self.reports else ""
        self.numbers["measure"] = self.todo.add("measure", self.logger_py, reports=reports, script=self.name, table=self._table())

    def _table(self) -> str:
        """The first table among the data, for the code examples."""
        return next((source.inside for source in self.sources if source.inside.endswith(".csv")), "data/NAME.csv")

    def _requirements(self, serving: Sequence[Module]) -> None:
        """Add third-party imports to the requirements: those of serving to `dependencies`, the others to `train`."""
        served, imported = third_party(serving), third_party(self.modules)
        unknown = requirements.add(self.root, {name: "dependencies" if name in served else "train" for name in imported})
        for name, (script, line) in sorted(imported.items(), reverse=True):
            if name in OTHER_PARSERS:
                self.todo.add("other parser", "dvc.yaml", COMMAND_LINE, script=script.path.name, parser=name, module=self.main)
            if name in unknown:
                self.todo.add("package", script, line, name=name)

    def _other_files(self) -> None:
        """Replace the texts about the template's example. In another template with other texts nothing is replaced."""
        # DVC ignores outputs at the first run only, which would change a committed file. Not at the end of .gitignore, where the template
        # adds its new lines: that would be a conflict in every update.
        lines = "".join(f"/{output}\n" for output in self.outputs if not within(output, "models"))
        example.replace(self.root / ".gitignore", r"(?m)^/models\n", f"/models\n{lines}")
        example.replace_texts(
            self.root,
            self.package,
            origin=f"It was generated from `{self.name}`; `TODO.md` lists the remaining tasks.",
            rows=f"| `src/{self.package}/{self.modules[0].inside}` | the original training script |\n"
            f"| `{self.predictor_py}` | input and answers |\n| `{self.logger_py}` | how the model is measured |",
            pipeline="train → model",
        )

    def _deps(self, modules: Sequence[Module]) -> list[str]:
        """The modules as dependencies of a stage, without empty __init__.py files, about which DVC warns."""
        return sorted(self.copied[module.script.path].path for module in modules if module.script.text.strip())

    def _free(self, name: str) -> str:
        """A module name that no copied module has."""
        taken = {module.name.partition(".")[0] for module in self.modules}
        return name if name not in taken else self._free(f"service_{name}")

    def _text(self, path: str, text: str) -> None:
        (self.root / path).write_text(text, encoding="utf-8")
