"""Networks inside models: compiled, in bf16, and with gradients if a model needs them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import ModelSignature

from mlops_build.serving import network
from mlops_build.serving.input.decode import JSON, Decoder
from mlops_build.serving.load import CannotLoad, from_folder, load, warm_up
from mlops_build.serving.predictor import Predictor
from tests.serving.models import columns, record, save, tensor

WIDTH = 4
NAMES = [f"f{place}" for place in range(WIDTH)]
FRAMED = columns(*((name, "float") for name in NAMES))
TENSOR = tensor("float32", (-1, WIDTH))
ROWS = [[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, 1.0, 1.0], [-3.0, 0.0, 0.125, 8.0]]

HOLDING = """
    def load_context(self, context):
        import torch
        torch.manual_seed(3)
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        self.seen = []

    def predict(self, context, data, params=None):
        import torch
        self.seen.append(torch.is_inference_mode_enabled())
        return self.network(torch.tensor(data.to_numpy("float32"))).tolist()
"""


def small() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()


def flavor(folder: Path, signature: ModelSignature, model: torch.nn.Module) -> Any:
    """A model of MLflow's PyTorch flavor; it is pickled, and only these tests load it."""
    mlflow.pytorch.save_model(model, str(folder), signature=signature, pip_requirements=["torch"], serialization_format="pickle")
    return mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)


def named(rows: list[list[float]]) -> bytes:
    return json.dumps({"dataframe_split": {"columns": NAMES, "data": rows}}).encode()


@pytest.mark.parametrize("signature", [FRAMED, TENSOR], ids=["columns", "tensor"])
def test_the_pytorch_flavor_predicts_as_mlflow_does(tmp_path: Path, signature: ModelSignature) -> None:
    model = flavor(tmp_path / "model", signature, small())
    body = named(ROWS) if signature is FRAMED else json.dumps({"inputs": ROWS}).encode()
    rows = Decoder(model).decode(body, JSON)
    (answer,) = Predictor(model).predict([rows])
    if signature is FRAMED:
        expected = model.predict(pd.DataFrame(ROWS, columns=NAMES, dtype="float32"))
        assert [list(row) for row in answer] == [["0", "1"]] * len(ROWS)
        # A DataFrame stores its columns one after the other, so sums are computed in another order.
        np.testing.assert_allclose([list(row.values()) for row in answer], expected.to_numpy(), rtol=1e-5)
    else:
        assert answer == model.predict(np.array(ROWS, "float32")).tolist()


class Pair(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> Any:
        return rows, rows


def test_an_output_of_two_tensors_is_refused_as_by_mlflow(tmp_path: Path) -> None:
    model = flavor(tmp_path / "model", TENSOR, Pair())
    (answer,) = Predictor(model).predict([Decoder(model).decode(json.dumps({"inputs": ROWS}).encode(), JSON)])
    assert isinstance(answer.__cause__, TypeError)
    with pytest.raises(Exception, match=r"single output tensor|has no attribute"):
        model.predict(np.array(ROWS, "float32"))


def test_a_predictor_runs_in_inference_mode(tmp_path: Path) -> None:
    model = save(tmp_path / "made", FRAMED, HOLDING)
    predictor = Predictor(model)
    rows = Decoder(model).decode(named(ROWS), JSON)
    predictor.predict([rows])
    predictor.needs_gradients()
    predictor.predict([rows])
    assert model.unwrap_python_model().seen == [True, False]


def test_bf16_gives_close_and_compile_gives_equal_results(tmp_path: Path) -> None:
    plain, half = (save(tmp_path / name, FRAMED, HOLDING) for name in ("plain", "half"))
    assert [name for name, _ in network.networks(plain)] == ["network"]
    rows = Decoder(plain).decode(named(ROWS), JSON)
    (expected,) = Predictor(plain).predict([rows])
    assert network.prepare(half, compile=False, precision="bf16") == ["network"]
    (near,) = Predictor(half).predict([rows])
    assert near != expected
    np.testing.assert_allclose(near, expected, rtol=0.05, atol=0.05)


NOTHING = """
    def predict(self, context, data, params=None):
        return [0.0] * len(data)
"""
LISTED = """
    def load_context(self, context):
        import torch
        inner = torch.nn.Linear(1, 1)
        self.parts = [inner, {"no": 1}]
        self.by_name = {"one": torch.nn.Sequential(torch.nn.Linear(1, 1))}
        self.whole = torch.nn.Sequential(inner)

"""


def test_each_network_is_found_once_with_its_name(tmp_path: Path) -> None:
    model = save(tmp_path / "made", columns(("a", "float")), f"{LISTED}{NOTHING}")
    assert [name for name, _ in network.networks(model)] == ["by_name['one']", "whole"]


GRADIENTS = """
    def load_context(self, context):
        import torch
        self.network = torch.nn.Linear(1, 1)

    def predict(self, context, data, params=None):
        import torch
        rows = torch.tensor(data.to_numpy("float32"), requires_grad=True)
        self.network(rows).sum().backward()
        return rows.grad[:, 0].tolist()
"""


def test_a_model_that_needs_gradients_gets_them_and_a_message(tmp_path: Path) -> None:
    save(tmp_path / "made", columns(("a", "float")), GRADIENTS)
    (loaded,) = load(from_folder(record(tmp_path / "made/model", [[1.0]], "a"), str)).models
    messages: list[str] = []
    warm_up(loaded, messages.append)
    assert any("fails with torch.inference_mode" in line for line in messages)
    (answer,) = loaded.predictor.predict([Decoder(loaded.model).decode(b'{"dataframe_records": [{"a": 2.0}]}', JSON)])
    assert isinstance(answer, list)


def test_a_model_without_a_network_to_compile_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "made", columns(("a", "float")), NOTHING)
    checked = from_folder(tmp_path / "made/model", lambda _: None)
    for given, other, options in (("precision", "compile", {"precision": "bf16"}), ("compile", "precision", {"compile": True})):
        with pytest.raises(CannotLoad, match="contains no torch network") as refused:
            load(checked, **options)
        assert f"remove --{given} (serving.{given} in service.yaml)" in str(refused.value.remedy)
        assert other not in f"{refused.value} {refused.value.remedy}"


def test_a_model_that_imports_a_missing_module_says_where_to_name_it(tmp_path: Path) -> None:
    save(tmp_path / "made", columns(("a", "float")), NOTHING)
    with (tmp_path / "made/model/code.py").open("a") as code:
        code.write("import oldnet\n")
    with pytest.raises(CannotLoad, match="No module named 'oldnet'") as refused:
        load(from_folder(tmp_path / "made/model", lambda _: None))
    assert "`dependencies` in pyproject.toml (an own module: to `packages`), and train again" in str(refused.value.remedy)


COMPILED = """
import json, sys
from pathlib import Path
from mlops_build.serving.input.decode import JSON, Decoder
from mlops_build.serving.load import CannotLoad, from_folder, load, warm_up
(loaded,) = load(from_folder(Path(sys.argv[1]), lambda _: None), compile=True).models
try:
    warm_up(loaded, lambda _: None)
except CannotLoad as error:
    print(error, error.remedy)
    raise SystemExit(3)
rows = Decoder(loaded.model).decode(sys.stdin.buffer.read(), JSON)
print(json.dumps(loaded.predictor.predict([rows])[0]))
"""


def test_a_model_that_cannot_be_compiled_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_without_compiler(*_: object, **__: object) -> Callable[..., None]:
        def forward(*_: object) -> None:
            raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')")  # as torch does

        return forward

    monkeypatch.setattr("torch.compile", compile_without_compiler)
    save(tmp_path / "made", FRAMED, HOLDING)
    (loaded,) = load(from_folder(record(tmp_path / "made/model", [ROWS[0]], NAMES), str), compile=True).models
    with pytest.raises(CannotLoad, match="fails on its own recorded example") as raised:
        warm_up(loaded, str)
    assert "add g++ to image.apt" in raised.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [pytest.param(True, id="with a compiler", marks=pytest.mark.soak), pytest.param(False, id="without")])
def test_torch_compile_for_any_number_of_rows(tmp_path: Path, compiler: bool, record_property: Callable[[str, object], None]) -> None:
    model = save(tmp_path / "made", FRAMED, HOLDING)
    record(tmp_path / "made/model", ROWS[:2], NAMES)
    environment = {
        "PATH": "/usr/bin:/bin" if compiler else "/nowhere",
        "HOME": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    if not compiler:
        environment["CXX"] = "/nowhere/g++"
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path / "made/model")],
        input=named(ROWS), capture_output=True, env={**environment, "PYTHONPATH": ":".join(sys.path)}, timeout=300, check=False,
    )  # fmt: skip
    if not compiler:
        assert done.returncode == 3, done.stderr[-2000:]
        assert b"add g++ to image.apt" in done.stdout
        return
    assert done.returncode == 0, done.stderr[-2000:]
    (expected,) = Predictor(model).predict([Decoder(model).decode(named(ROWS), JSON)])
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-4, atol=1e-6)


WARNING = """
    def load_context(self, context):
        import warnings
        warnings.warn("the weights are old", stacklevel=1)
"""


def test_warnings_of_the_model_are_shown_and_those_of_mlflow_are_not(tmp_path: Path) -> None:
    save(tmp_path / "made", columns(("a", "float")), f"{WARNING}{NOTHING}")
    load_it = "load(from_folder(Path(sys.argv[1]), str))"
    code = f"import sys; from pathlib import Path; from mlops_build.serving.load import from_folder, load; {load_it}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "made/model")], capture_output=True, text=True, timeout=120, check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert "the weights are old" in done.stderr
    assert "type hints" not in done.stderr
