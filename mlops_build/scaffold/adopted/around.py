"""Generate a service around an adopted model: `mlops-build scaffold DEST --model models:/old/1`.

The version's code, weights and recorded answers are copied, and none of them is run. The only stage of the pipeline logs the adopted
weights, so the model is registered, released, served and rolled back by the same commands as any other. The stages of a training that
somebody writes later come before that one.
"""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build import service as service_file
from mlops_build.adapters import dvc
from mlops_build.adapters.registry import Registry
from mlops_build.errors import UsageError
from mlops_build.model import identity
from mlops_build.scaffold import example, render, templates
from mlops_build.scaffold.adopted import servable
from mlops_build.scaffold.adopted.servable import INIT, Servable
from mlops_build.scaffold.destination import new_service
from mlops_build.scaffold.existing import copied as copies
from mlops_build.scaffold.existing import requirements
from mlops_build.scaffold.existing.imports import reached, third_party

FILES = Path(__file__).with_name("files")
DATA = "data/adopted"
LOGGER = "log_model"
# Keys of `adopted` in params.yaml → tags of the adopted version. `version` is its URI.
ORIGIN = {"digest": identity.DIGEST_TAG, "origin": identity.ORIGIN, "sha256": identity.FILE_TAG, "decided_by": identity.DECIDED_BY}
# What README.md says about a training → about this service.
README = (
    (r"fetch the raw data and put it under DVC .*", "fetch the adopted weights and the recorded answers, which are under DVC"),
    ("every number that training uses", "where the weights come from"),
    (r"`git init -b main`, `make install`, `make data`, ", "`make install`, "),
    ("Start from the template", "Generate the service around the adopted model"),
    ("retrains the model:", "logs the adopted weights again:"),
)


@dataclass(frozen=True)
class Made:
    """The generated service. unknown: imports whose package is not known."""

    service: Path
    package: str
    model: str
    version: str
    unknown: list[str]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "service": str(self.service)}

    def as_text(self) -> str:
        lines = [f"{self.service}: a service around {self.version}", ""]
        lines += [f"  add the package of `import {name}` to `dependencies` in pyproject.toml" for name in self.unknown]
        lines += ["Then (Git is initialized, nothing is committed yet):", f"  cd {shlex.quote(str(self.service))}"]
        lines += ['  git add --all && git commit --message "Generate the service around the adopted model"', "  mlops-build train"]
        return "\n".join(lines)


def scaffold(
    destination: Path,
    uri: str,
    registry: Registry,
    answers: Mapping[str, object],
    *,
    template: str = render.TEMPLATE,
    version: str | None = None,
    say: Callable[[str], None],
) -> Made:
    """uri: `models:/NAME/VERSION` or `models:/NAME@ALIAS`. version: of the template.

    Raises BadModelUri, UnknownVersion, UsageError, and the errors of servable.fetch and destination.new_service.
    """
    for name in ("example", "model_name"):
        if name in answers:
            raise UsageError(f"--answer {name}=… cannot be used with --model, which decides it", remedy="remove this answer")
    reference = identity.parse_uri(uri)
    registered = registry.version(reference.name, reference.which)
    own = {"example": "none", "model_name": registered.name, "description": "Serves an adopted model"}
    if registry.uri.startswith(("http://", "https://")) and "@" not in registry.uri:
        own["mlflow_tracking_uri"] = registry.uri
    with (
        new_service(destination.absolute(), {**own, **answers}, template, version) as root,
        tempfile.TemporaryDirectory(dir=root.parent) as scratch,
    ):
        say(f"fetch and check {registered.uri}")
        adopted = servable.fetch(registry, registered, Path(scratch) / "version")
        package = example.remove(root)
        _write(root, package, adopted)
        unknown = _requirements(root, adopted)
    return Made(destination.absolute(), package, registered.name, registered.uri, unknown)


def _write(root: Path, package: str, adopted: Servable) -> None:
    """Replace the template's example by the service's own files."""
    source = root / "src" / package
    copies.copy(adopted.modules, [], root, package)
    for other in adopted.others:
        (source / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(adopted.code / other, source / other)
    (root / DATA).mkdir(parents=True)
    for file in (adopted.weights, adopted.examples):
        file.rename(root / DATA / file.name)
    dvc.add(root, DATA)
    tops = sorted(path.name for path in adopted.code.iterdir())
    logger = LOGGER
    while {logger, f"{logger}.py"} & set(tops):
        logger = f"service_{logger}"
    tags = {"version": adopted.version.uri, **{key: adopted.version.tags.get(tag, "") for key, tag in ORIGIN.items()}}
    values = {
        "package": package,
        "model": service_file.load(root).models[0].name,
        "origin": {key: text for key, text in tags.items() if text and text.isprintable()},
        "module": adopted.main.name,
        "predictor": adopted.predictor,
        "logger": logger,
        "data": DATA,
        "weights": adopted.weights.name,
        "code": [f"src/{package}/{name}" for name in tops],
    }
    for name, written in (
        ("dvc.yaml", "dvc.yaml"),
        ("params.yaml", "params.yaml"),
        ("log_model.py", f"src/{package}/{logger}.py"),
        ("test_adopted.py", "tests/test_adopted.py"),
    ):
        (root / written).write_text(templates.render(FILES, name, values), encoding="utf-8")
    example.replace_texts(
        root,
        package,
        origin=f"It was generated around `{adopted.version.uri}`: adopted code, weights and recorded answers; it has no training.",
        rows=f"| `src/{package}/{adopted.main.inside}` | the adopted code: what a caller sends and receives |\n"
        f"| `src/{package}/{logger}.py` | logs the adopted weights, and compares with the recorded answers |",
        pipeline="one stage, which logs the adopted weights",
    )
    for training, here in README:
        example.replace(root / "README.md", training, here)


def _requirements(root: Path, adopted: Servable) -> list[str]:
    """Add the third-party imports of the predictor to `dependencies`; returns those whose package is not known."""
    parents = [f"{parent}/{INIT}" for parent in Path(adopted.main.inside).parents]
    starts = [module for module in adopted.modules if module is adopted.main or module.inside in parents]
    used = [module for start in starts for module in reached(start, adopted.modules)]
    return requirements.add(root, dict.fromkeys(third_party(used), "dependencies"))
