"""`mlops-build scaffold --model`: a service around an adopted version, and versions that are refused without a trace."""

import io
import json
import os
import pickle
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build.__main__ import main
from mlops_build.adapters import dvc
from mlops_build.adapters.registry import RegisteredVersion, Registry, UnknownVersion
from mlops_build.adapters.registry.adopted import create_run
from mlops_build.errors import MlopsBuildError, UsageError
from mlops_build.model import files, identity
from mlops_build.model.files import DigestMismatch
from mlops_build.model.version import BadVersion
from mlops_build.release import admit
from mlops_build.scaffold.adopted import around, servable
from mlops_build.scaffold.adopted.servable import NotServable
from mlops_build.scaffold.destination import NotEmpty
from mlops_build.scaffold.render import TemplateUnreachable
from mlops_build.training import origin, recorded_answers, recorded_example
from tests.conftest import MadeOnce, git

RECORDED = {
    "schema": 1,
    "input": {"dataframe_split": {"columns": ["x", "y"], "data": [[1, 0.5], [2, 1.0]]}},
    "predictions": [{"a": 1.0}, {"a": 2.0}],
}
MODEL = """\
import json
import mlflow.pyfunc
import nobody_knows_this
import yaml
from shapes.layers import Net
from .. import top

raise SystemExit("this was run")
"""
CODE = {
    "shapes/__init__.py": "",
    "shapes/layers.py": "import torch\n",
    "shapes/labels.json": "[1]\n",
    "shapes/unused.py": "import sklearn\n",
    "shapes/deep/__init__.py": "",
    "shapes/deep/model.py": MODEL,
    "log_model.py": "",
}
PREDICTOR = "from mlflow.models import set_model\n\nfrom shapes.deep.model import Predictor\n\nset_model(Predictor())\n"


class Versions:
    """A registry, and versions as `adopt register --code` makes them, with changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.registry = Registry(self.uri)

    def add(self, changes: Mapping[str, bytes | str | None] | None = None, tags: Mapping[str, str] | None = None) -> RegisteredVersion:
        """changes: path → content, None for no such file."""
        weights = io.BytesIO()
        import torch

        torch.save(torch.nn.Linear(2, 1).state_dict(), weights)
        content = {
            **{f"code/{name}": text for name, text in CODE.items()},
            "MLmodel": "flavors: {python_function: {artifacts: {weights: {path: artifacts/weights.pt}}, code: code}}\n",
            "predictor.py": PREDICTOR,
            "artifacts/weights.pt": weights.getvalue(),
            "examples/recorded.json": json.dumps(RECORDED),
            **(changes or {}),
        }
        made = self.folder / "made"
        for name, value in content.items():
            if value is not None:
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_bytes(value if isinstance(value, bytes) else value.encode())
        digest = files.digest(made)
        run_id = create_run(self.registry, self.registry.experiment("adopted-models", self.folder / "mlartifacts"), {})
        address = self.registry.upload(run_id, made, "versions/1")
        shutil.rmtree(made)
        adopted = {
            identity.DIGEST_TAG: digest,
            identity.ORIGIN: "s3://old/2021/points.pth",
            identity.FILE_TAG: "ab" * 32,
            identity.DECIDED_BY: "Ada",
        }
        return self.registry.create_version("old-points", address, run_id, {**adopted, **(tags or {})})


@pytest.fixture
def versions(tmp_path: Path, made_once: MadeOnce) -> Versions:
    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    (tmp_path / "registry").mkdir()
    shutil.copy(made_once("mlflow-database", make) / "mlflow.db", tmp_path / "registry")
    return Versions(tmp_path / "registry")


def scaffold(template: Path, destination: Path, versions: Versions, uri: str, **answers: str) -> around.Made:
    return around.scaffold(destination, uri, versions.registry, answers, template=str(template), say=lambda _: None)


def test_the_version_becomes_a_service_and_nothing_of_it_is_run_or_unpickled(template: Path, versions: Versions, tmp_path: Path) -> None:
    adopted = versions.add()
    done: list[str] = []
    watching = True

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if watching and event in ("pickle.find_class", "exec", "import"):
            what = details[0] if event == "import" else getattr(details[0], "co_filename", event)
            if event == "pickle.find_class" or re.search(r"^shapes\b|/version/", what):
                done.append(f"{event} {details}")

    sys.addaudithook(watch)
    made = scaffold(template, tmp_path / "points", versions, adopted.uri, team="vision")
    watching = False
    assert done == []
    root = tmp_path / "points"
    assert made.as_json() == {
        "service": str(root),
        "package": "points",
        "model": "old-points",
        "version": "models:/old-points/1",
        "unknown": ["nobody_knows_this"],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points", "registry"]

    source = root / "src/points"
    copied = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert copied == {"__init__.py", "service_log_model.py", *CODE}
    assert (source / "shapes/deep/model.py").read_text() == MODEL.replace("from shapes.layers", "from points.shapes.layers")
    assert "from points.shapes.deep.model import Predictor" in (source / "service_log_model.py").read_text()
    for path in (source / "service_log_model.py", root / "tests/test_adopted.py"):
        compile(path.read_text(), path, "exec")
    assert {path.name for path in (root / "tests").glob("test_*")} == {"test_adopted.py"}

    stage = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]["model"]
    assert stage["cmd"] == "python -m points.service_log_model"
    assert all((root / path).exists() for path in stage["deps"])
    assert stage["outs"] == ["models/old-points"]
    assert dvc.metric_files(root) == ["metrics.json"]
    assert set(dvc.tracked(root)) == {"data/adopted"}
    assert sorted(path.name for path in (root / "data/adopted").iterdir()) == ["recorded.json", "weights.pt"]
    assert not any(name.startswith("data/adopted/") for name in git(root, "ls-files", "--others", "--exclude-standard").splitlines())
    params = YAML(typ="safe").load((root / "params.yaml").read_text())
    assert params["evaluate"] == {"thresholds": {"recorded_answers": {"min": 1.0}}}
    assert origin.adopted(params) == {
        identity.WEIGHTS_FROM: "models:/old-points/1",
        identity.ORIGIN: "s3://old/2021/points.pth",
        identity.FILE_TAG: "ab" * 32,
        identity.DECIDED_BY: "Ada",
    }
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [line.partition(">")[0] for line in dependencies] == ["pyyaml", "numpy", "pandas", "torch"]
    assert "vision" in (root / "service.yaml").read_text()
    readme = (root / "README.md").read_text()
    assert "`models:/old-points/1`" in readme
    for training in ("synthetic", "raw", "git init", "retrains", "Start from the template", "every number that training uses"):
        assert training not in readme
    for what in ("make data       fetch the adopted weights", "logs the adopted weights again", "`make test train`"):
        assert what in readme
    assert git(root, "status", "--porcelain", "--branch").splitlines()[0] == "## No commits yet on main"


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/executed-by-scaffold",)


REFUSED: list[tuple[Mapping[str, bytes | str | None], Mapping[str, str], type[MlopsBuildError], str]] = [
    ({}, {identity.ARCHIVED: "it was adopted without code"}, BadVersion, "archived"),
    ({}, {identity.DIGEST_TAG: f"sha256:{'0' * 64}"}, DigestMismatch, "models:/old-points/1: the files have digest"),
    ({}, {identity.EXCEPTION_UNTIL: "2020-01-01"}, NotServable, "its exception expired on '2020-01-01'"),
    ({"predictor.py": None}, {}, NotServable, "was not registered by `mlops-build adopt"),
    ({"predictor.py": None}, {identity.COMMIT_TAG: "c" * 40, identity.REPOSITORY: "\x1b[31mred"}, NotServable, r"in '\\x1b\[31mred'"),
    ({"predictor.py": f"{PREDICTOR}from shapes.layers import Net\n"}, {}, NotServable, "was not registered"),
    ({"predictor.py": "from os; import system import x\n"}, {}, NotServable, "was not registered"),
    ({"predictor.py": "from ..shapes import x\n"}, {}, NotServable, "was not registered"),
    ({"code/shapes/deep/model.py": None}, {}, NotServable, "was not registered"),
    ({"code/shapes/layers.py": "print 'python 2'\n"}, {}, NotServable, r"cannot be read: shapes/layers\.py:1"),
    ({"code/a;touch x.py": ""}, {}, NotServable, "the name 'a;touch x.py'"),
    ({"code/${{x}}/a.txt": ""}, {}, NotServable, "the name"),
    ({"code/__init__.py": "import os\n"}, {}, NotServable, "the name '__init__.py'"),
    ({"artifacts/weights.pt": pickle.dumps(Evil())}, {}, NotServable, "not safe to load"),
    ({"artifacts/more.pkl": pickle.dumps(1)}, {}, NotServable, "not safe to load"),
    ({"artifacts/weights.pt": None}, {}, NotServable, "was not registered"),
    ({"artifacts/weights.bin": "two"}, {}, NotServable, "not safe to load"),
    ({"artifacts/weights.npy": "two"}, {}, NotServable, "was not registered"),
    ({"examples/recorded.json": None}, {}, NotServable, "was not registered"),
    ({"examples/recorded.json": '{"input": "text", "predictions": []}'}, {}, NotServable, "was not registered"),
]


@pytest.mark.parametrize(("changes", "tags", "error", "message"), REFUSED)
def test_versions_that_cannot_be_served_are_refused(
    versions: Versions,
    tmp_path: Path,
    changes: Mapping[str, bytes | str | None],
    tags: Mapping[str, str],
    error: type[MlopsBuildError],
    message: str,
) -> None:
    adopted = versions.add(changes, tags)
    with pytest.raises(error, match=message) as refused:
        servable.fetch(versions.registry, adopted, tmp_path / "version")
    assert refused.value.remedy
    assert not Path("/tmp/executed-by-scaffold").exists()


def test_a_refusal_leaves_nothing_and_names_the_command_that_helps(
    template: Path, versions: Versions, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.add(tags={identity.ARCHIVED: "it was adopted without code"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", versions.uri)
    command = ["scaffold", str(tmp_path / "points"), "--model", "models:/old-points/1", "--template", str(template)]
    assert main(command) == BadVersion.exit_code
    assert "mlops-build adopt register adopt.csv --model old-points --code CODE.py --example ROWS.json --yes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["registry"]


def test_arguments_that_do_not_fit(template: Path, versions: Versions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adopted = versions.add()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(NotEmpty):
        scaffold(template, tmp_path / "full", versions, adopted.uri)
    with pytest.raises(UsageError, match="model_name"):
        scaffold(template, tmp_path / "new", versions, adopted.uri, model_name="other")
    for uri in ("models:/old-points/2", "models:/old-points@production", "models:/other/1"):
        with pytest.raises(UnknownVersion):
            scaffold(template, tmp_path / "new", versions, uri)
    with pytest.raises(identity.BadModelUri):
        scaffold(template, tmp_path / "new", versions, "models:/../x/1")
    for arguments, message in (
        (["--model", adopted.uri, "--data", "x"], "--data and --by-reference belong to --from"),
        (["--from", "train.py", "--tracking-uri", versions.uri], "--tracking-uri belongs to --model"),
        (["--model", adopted.uri, "--tracking-uri", f"sqlite:///{tmp_path}/none.db"], "none.db"),
    ):
        assert main(["scaffold", str(tmp_path / "new"), *arguments]) != 0
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["scaffold", str(tmp_path / "new"), "--model", adopted.uri, "--from", "train.py"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "registry"]


def test_tags_of_the_version_are_quoted_or_left_out(template: Path, versions: Versions, tmp_path: Path) -> None:
    odd = "x\"': [#${y}"
    adopted = versions.add(tags={identity.ORIGIN: "x\nevil: 1", identity.DECIDED_BY: odd})
    scaffold(template, tmp_path / "points", versions, adopted.uri)
    params = YAML(typ="safe").load((tmp_path / "points/params.yaml").read_text())
    assert set(params) == {"seed", "adopted", "evaluate"}
    assert set(params["adopted"]) == {"version", "digest", "sha256", "decided_by"}
    assert params["adopted"]["decided_by"] == odd


def test_without_access_to_the_template_both_ways_to_give_another_are_named(
    versions: Versions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["scaffold", str(tmp_path / "points"), "--model", versions.add().uri, "--tracking-uri", versions.uri]
    assert main([*arguments, "--template", "https://127.0.0.1:9/mlops-build"]) == TemplateUnreachable.exit_code
    said = capsys.readouterr().err
    for remedy in ("--template PATH", "MLOPS_BUILD_TEMPLATE", "git ls-remote https://127.0.0.1:9/mlops-build"):
        assert remedy in said
    assert [path.name for path in tmp_path.iterdir()] == ["registry"]


@pytest.mark.parametrize("name", ["digits", "d" * 63, "9", "a--b"])
def test_the_command_for_an_adopted_version_names_a_folder_that_can_be_a_service(
    name: str, versions: Versions, template: Path, tmp_path: Path
) -> None:
    adopted = replace(versions.add(), name=name)
    with pytest.raises(BadVersion) as error:
        admit.released(adopted)
    command = re.search(r"mlops-build (scaffold \S+ --model \S+)", str(error.value.remedy))
    assert command is not None
    destination = command[1].split()[1]
    scaffold(template, tmp_path / destination, versions, "models:/old-points/1")
    assert command[1].endswith(f"--model models:/{name}/1")


@pytest.mark.parametrize("section", [None, 3, {}, {"version": "other"}, ["models:/a/1"]])
def test_another_section_of_that_name_gives_no_tags(section: object) -> None:
    assert origin.adopted({"adopted": section}) == {}


def test_recorded_rows_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps(RECORDED))
    rows = recorded_example(recorded)
    assert [str(kind) for kind in rows.dtypes] == ["int64", "float64"]
    assert rows.to_dict(orient="list") == {"x": [1, 2], "y": [0.5, 1.0]}
    (tmp_path / "examples").mkdir()

    def share(predictions: object) -> float:
        (tmp_path / "examples/recorded.json").write_text(json.dumps({"predictions": predictions}))
        return recorded_answers(recorded, tmp_path)

    assert share([{"a": 1.00001}, {"a": 2.0}]) == 1.0
    assert capsys.readouterr().err == ""
    assert share([{"a": 1.0}, {"a": 2.1}]) == 0.5
    assert "predictions[1].a: recorded 2.0, answered 2.1" in capsys.readouterr().err
    assert share([{"a": 1.0}]) == 0.0
    recorded.write_text(json.dumps({"input": {"inputs": [[1.0, 2.0]]}, "predictions": {"y": [1]}}))
    assert recorded_example(recorded).shape == (1, 2)
    assert share({"y": [1]}) == 1.0
