"""`mlops-build serve` as a caller and an operator meet it: a real process, real HTTP."""

import json
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow.version
import pytest

from mlops_build.__main__ import main
from mlops_build.gpu import device
from tests.conftest import mlops_build
from tests.packaging.world import World, answered
from tests.serving.conftest import Server, serving

LABELS = ("model", "version", "status", "le")
SPLIT = {"dataframe_split": {"columns": ["x", "y"], "data": [[1.0, 0.5], [-2.0, 0.25]]}}


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a machine without an NVIDIA driver."""

    def none() -> None:
        raise device.NoDriver("no NVIDIA driver answers")

    monkeypatch.setattr(device, "cards", none)


def ask(
    url: str, body: bytes | str | Mapping[str, Any] | None = None, kind: str = "application/json", method: str | None = None
) -> tuple[int, str]:
    """Status and text of a response."""
    data = json.dumps(body).encode() if isinstance(body, Mapping) else body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(url, data=data, headers={"Content-Type": kind}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_log_shows_the_models_and_the_address(server: Server) -> None:
    log = server.log.read_text()
    assert "device: the CPU" in log
    assert f"serving points v1, lines v2 on {server.url}\n" in log
    assert server.url.startswith("http://127.0.0.1:")
    # The server is shared with other tests, whose requests are logged.
    assert len([line for line in log.splitlines() if not line.startswith('{"time"')]) == 2, f"MLflow's messages: {log}"
    document = json.loads(server.out.read_text())
    assert document["url"] == server.url
    assert [(model["name"], model["version"]) for model in document["models"]] == [("points", 1), ("lines", 2)]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", SPLIT),
        ("application/json; charset=utf-8", {"dataframe_records": [{"y": 0.5, "x": 1.0}, {"x": -2, "y": 0.25, "more": 1}]}),
        ("application/json", {"inputs": {"x": [1.0, -2.0], "y": [0.5, 0.25]}}),
        ("text/csv", "x,y\n1.0,0.5\n-2.0,0.25\n"),
    ],
)
def test_invocations_accepts_mlflows_forms(server: Server, world: World, kind: str, body: Any) -> None:
    status, text = ask(f"{server.url}/invocations", body, kind)
    assert status == 200, text
    assert json.loads(text)["predictions"] == answered(world.folder / "one")
    assert json.loads(text)["predictions"][0]["label"] == "plus"


def test_each_model_answers_under_its_name(server: Server, world: World) -> None:
    assert json.loads(ask(f"{server.url}/models/points/invocations", SPLIT)[1])["predictions"] == answered(world.folder / "one")
    lines = json.loads(ask(f"{server.url}/models/lines/invocations", SPLIT)[1])["predictions"]
    assert lines == answered(world.folder / "two") != answered(world.folder / "one")
    assert ask(f"{server.url}/models/lines/ping") == (200, "\n")
    assert ask(f"{server.url}/models/nobody/invocations", SPLIT)[0] == 404


def test_health_and_version(server: Server) -> None:
    assert ask(f"{server.url}/ping") == ask(f"{server.url}/health") == (200, "\n")
    assert ask(f"{server.url}/version") == (200, mlflow.version.VERSION)


def test_metrics_are_prometheus(server: Server) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def samples() -> dict[tuple[str, tuple[str, ...]], float]:
        status, text = ask(f"{server.url}/metrics")
        assert status == 200
        every = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name, tuple(value for name, value in sample.labels.items() if name in LABELS)): sample.value for sample in every}

    before = samples()
    ask(f"{server.url}/invocations", SPLIT)
    ask(f"{server.url}/invocations", "{")
    ask(f"{server.url}/models/lines/invocations", SPLIT)
    ask(f"{server.url}/some/path/{'x' * 50}")
    after = samples()
    grown = {key: after[key] - before.get(key, 0) for key in after if key[0] == "mlops_build_requests_total"}
    assert grown[("mlops_build_requests_total", ("points", "200"))] == 1
    assert grown[("mlops_build_requests_total", ("points", "400"))] == 1
    assert grown[("mlops_build_requests_total", ("lines", "200"))] == 1
    assert sum(grown.values()) == 3
    assert after[("mlops_build_request_seconds_count", ("points",))] - before[("mlops_build_request_seconds_count", ("points",))] == 2
    assert 0 < after[("mlops_build_request_seconds_sum", ("lines",))] < 30
    assert after[("mlops_build_requests_in_progress", ("points",))] == 0
    assert {key[1] for key in after if key[0] == "mlops_build_info"} == {("points", "1"), ("lines", "2")}
    assert 'image="registry.example.com/ml/points:v1-0123456789ab"' in ask(f"{server.url}/metrics")[1]
    assert ("process_resident_memory_bytes", ()) in after


def test_sigterm_ends_it_gracefully_and_it_writes_nothing_into_its_context(context: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in context.rglob("*")}
    with serving(tmp_path, str(context), "--device", "cpu") as server:
        assert ask(f"{server.url}/invocations", SPLIT)[0] == 200
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
        assert "device: the CPU\n" in server.log.read_text()
    assert {path: path.stat().st_mtime_ns for path in context.rglob("*")} == before


@pytest.mark.real_python
def test_sigterm_during_loading_ends_it(context: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(context)) as server:
        server.wait_for("device: ")
        assert server.stop() == 0
        assert "serving" not in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_ctrl_c_shows_no_traceback(context: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(context)) as server:
        _ = server.url
        assert server.stop(signal.SIGINT) == 130
        assert "interrupted" in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_a_version_of_the_registry_is_served(world: World, tmp_path: Path) -> None:
    with serving(tmp_path, "models:/points/1", MLFLOW_TRACKING_URI=world.uri) as server:
        assert json.loads(ask(f"{server.url}/invocations", SPLIT)[1])["predictions"] == answered(world.folder / "one")
        assert "serving points v1 on" in server.log.read_text()


def test_a_model_without_a_digest_is_served_with_a_message(world: World, tmp_path: Path) -> None:
    with serving(tmp_path, str(world.folder / "two")) as server:
        assert json.loads(ask(f"{server.url}/invocations", SPLIT)[1])["predictions"] == answered(world.folder / "two")
        assert "is a model without a recorded digest" in server.log.read_text()
        assert "serving two on" in server.log.read_text()


def fails(where: Path, *arguments: str, expect: int) -> str:
    """The stderr of a process that ends at once."""
    done = mlops_build(where, "serve", *arguments, expect=expect)
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`fails` in this process, for errors before a model is loaded: it saves the seconds of importing MLflow."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # undoes the change that --device cpu makes

    def run(*arguments: str, expect: int) -> str:
        capsys.readouterr()
        try:
            status: Any = main(["serve", *arguments])
        except SystemExit as stopped:  # argparse refuses the arguments
            status = stopped.code
        assert status == expect
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return run


def test_a_port_in_use_is_an_error_before_anything_is_loaded(context: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        stderr = fails(tmp_path, str(context), "--port", str(port), expect=1)
    assert f"port {port} on 127.0.0.1 is in use" in stderr
    assert "--port 0" in stderr
    assert "device" not in stderr


@pytest.mark.parametrize("path", ["models/points/predictor.py", "models/lines/artifacts/weights.pt", "models/points/added.py"])
def test_changed_files_are_not_served(refuses: Callable[..., str], context: Path, tmp_path: Path, path: str) -> None:
    copy = Path(shutil.copytree(context, tmp_path / "context"))
    with (copy / path).open("ab") as file:
        file.write(b"\nraise SystemExit('this ran')\n")
    stderr = refuses(str(copy), "--port", "0", "--device", "cpu", expect=4)
    assert "was registered with" in stderr
    assert "this ran" not in stderr


@pytest.mark.parametrize("arguments", [["--gpu-memory", "4GiB"], ["--device", "gpu"]])
def test_a_requested_gpu_is_not_replaced_by_the_cpu(
    refuses: Callable[..., str], no_card: None, context: Path, arguments: list[str]
) -> None:
    stderr = refuses(str(context), "--port", "0", *arguments, expect=5)
    assert "a GPU is requested" in stderr
    assert "--device cpu" in stderr


def test_the_gpu_of_a_pod_is_replaced_by_the_cpu_only_on_request(
    refuses: Callable[..., str], no_card: None, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"MLOPS_DEVICE": "gpu", "MLOPS_GPU_MEMORY": "4GiB"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert "4GiB" in refuses(str(context), "--port", "0", expect=5)
    with serving(tmp_path, str(context), "--device", "cpu", **environment) as server:
        assert ask(f"{server.url}/ping")[0] == 200


def test_what_cannot_be_served_is_an_error(refuses: Callable[..., str], tmp_path: Path) -> None:
    assert "does not exist" in refuses(str(tmp_path / "nowhere"), "--device", "cpu", expect=3)
    assert "contains neither a context.json nor an MLmodel" in refuses(str(tmp_path), "--port", "0", "--device", "cpu", expect=3)
    assert "is not a valid port" in refuses(str(tmp_path), "--port", "70000", expect=2)
    assert "cannot listen on 203.0.113.7" in refuses(str(tmp_path), "--host", "203.0.113.7", "--port", "0", expect=2)


def test_a_model_that_fails_on_its_own_example_never_becomes_ready(world: World, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(world.folder / "one", tmp_path / "broken"))
    recorded = json.loads((broken / "examples/recorded.json").read_text())
    recorded["input"] = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}
    (broken / "examples/recorded.json").write_text(json.dumps(recorded))
    stderr = fails(tmp_path, str(broken), "--port", "0", expect=1)
    assert "broken fails on its own recorded example" in stderr
    assert "missing" in stderr
    (broken / "examples/recorded.json").write_text("[")
    stderr = fails(tmp_path, str(broken), "--port", "0", expect=1)
    assert "its recorded example cannot be read" in stderr
    assert "Traceback" not in stderr


def test_a_pickle_is_not_loaded_from_the_registry_without_a_reason(
    refuses: Callable[..., str], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Path(shutil.copytree(world.folder / "one", tmp_path / "bad"))
    (bad / "python_model.pkl").write_bytes(b"\x80\x04N.")
    (bad / "predictor.py").unlink()  # so that an accepted one fails, and the process does not stay in this test
    world.register(bad, "pickled")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    stderr = refuses("models:/pickled/1", "--port", "0", "--device", "cpu", expect=4)
    assert "pickled-model" in stderr
    assert 'serving.unsafe_pickle in service.yaml, or --unsafe-pickle="REASON"' in stderr
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading adds the service's wheel
    accepted = refuses("models:/pickled/1", "--port", "0", "--device", "cpu", "--unsafe-pickle", "the team made it", expect=1)
    assert "pickled cannot be loaded" in accepted


@pytest.mark.parametrize(
    ("flag", "variable", "value"),
    [
        ("--device", "MLOPS_DEVICE", "tpu"), ("--gpu-memory", "MLOPS_GPU_MEMORY", "4GB"), ("--gpu-memory", "MLOPS_GPU_MEMORY", "0"),
        ("--wait", "MLOPS_GPU_WAIT", "-1"), ("--wait", "MLOPS_GPU_WAIT", "soon"), ("--body-limit", "MLOPS_SERVE_BODY_LIMIT", "0"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_named_with_its_flag_or_variable(
    refuses: Callable[..., str], monkeypatch: pytest.MonkeyPatch, flag: str, variable: str, value: str
) -> None:
    if flag != "--device":  # argparse names the choices
        assert f"{flag} is '{value}', which is not a valid" in refuses("nothing", "--port", "0", flag, value, expect=2)
    monkeypatch.setenv(variable, value)
    assert f"{variable} is '{value}', which is not a valid" in refuses("nothing", "--port", "0", expect=2)


SERVICE = """schema: 1
name: digits
team: Vision
tracking: {uri: %s}
models: [{name: digits}]
environments: {staging: {namespace: ml, host: digits.example.com}}
serving: {max_batch: 7, nan: literal, unsafe_pickle: the team made it}
"""


def test_serve_reads_service_yaml_for_what_belongs_to_the_service(
    refuses: Callable[..., str], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its registered models and the folders in it have its settings; another service's model has not."""
    own = tmp_path / "digits"
    bad = Path(shutil.copytree(world.folder / "one", own / "work/model"))
    (bad / "python_model.pkl").write_bytes(b"\x80\x04N.")
    (bad / "predictor.py").unlink()  # so that an accepted one fails, and the process does not stay in this test
    world.register(bad, "digits")
    world.register(bad, "other")
    elsewhere = Path(shutil.copytree(bad, tmp_path / "elsewhere"))
    (own / "service.yaml").write_text(SERVICE % world.uri)
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading adds the service's wheel
    monkeypatch.chdir(own / "work")
    for what in ("models:/digits/1", "model", str(bad)):
        assert "cannot be loaded" in refuses(what, "--port", "0", "--device", "cpu", expect=1)
    for what in ("models:/other/1", str(elsewhere)):
        assert "pickled-model" in refuses(what, "--port", "0", "--device", "cpu", expect=4)


def test_serve_names_the_settings_of_service_yaml_that_nothing_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "service.yaml").write_text(SERVICE % "https://mlflow.example.com")
    monkeypatch.setenv("MLOPS_SERVE_MAX_BATCH", "8")
    assert "settings of service.yaml: unsafe_pickle\n" in fails(tmp_path, "missing", "--port", "0", "--nan", "null", expect=3)
