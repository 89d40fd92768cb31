"""The scan finds files that would run code, and runs none of it."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from mlops_build.errors import NotFound
from mlops_build.model import checkpoint
from mlops_build.model.scan import advice, refused, scan, scan_file


class Command:
    """An object whose pickle runs a shell command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(f"touch {tmp_path / 'executed'}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "artifacts").mkdir(parents=True)
    (model / "MLmodel").write_text("flavors: {}\n")
    return model


def rules(folder: Path) -> dict[str, str]:
    findings = scan(folder)
    assert all(finding.why and finding.remedy for finding in findings)
    return {finding.subject: finding.rule for finding in findings}


def test_plain_weights_are_clean(folder: Path) -> None:
    state = OrderedDict(weights=torch.zeros(3, 4), steps=torch.tensor(7, dtype=torch.int64), half=torch.zeros(2, dtype=torch.bfloat16))
    torch.save(state, folder / "artifacts/weights.pt")
    torch.save({"epoch": 3, "network": state}, folder / "artifacts/checkpoint.ckpt")
    (folder / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / "empty").touch()
    with zipfile.ZipFile(folder / "service-0.1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("service/__init__.py", "")
    assert rules(folder) == {}


class Counting(io.FileIO):
    """Counts the bytes that are read."""

    count = 0

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        Counting.count += count
        return count


@pytest.mark.parametrize("extra", [None, "command"])
def test_little_of_a_large_checkpoint_is_read(tmp_path: Path, command: Command, extra: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "count", 0)
    torch.save({"weights": [torch.zeros(1_300_000) for _ in range(10)], "extra": extra and command}, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").stat().st_size > 50_000_000
    found = scan_file("deep/weights.pt", lambda: io.BufferedReader(Counting(tmp_path / "weights.pt"), 1 << 16))
    assert [(finding.subject, finding.rule) for finding in found] == ([("deep/weights.pt", "unsafe-import")] if extra else [])
    assert 0 < Counting.count < 1_000_000
    assert [(finding.rule, finding.why) for finding in found] == [(finding.rule, finding.why) for finding in scan(tmp_path)]


def test_a_name_decides_without_the_file() -> None:
    def never() -> IO[bytes]:
        raise AssertionError("it was opened")

    assert [finding.rule for finding in scan_file("a/python_model.pkl", never)] == ["pickled-model"]
    assert [finding.rule for finding in scan_file("a/b.JOBLIB", never)] == ["pickle"]


def test_a_store_that_fails_is_no_finding() -> None:
    """A zip file that cannot be read is a finding; a store that does not answer is an error of the store."""

    class Failing(io.BytesIO):
        def seek(self, *_: int) -> int:
            raise NotFound("gone")

    with pytest.raises(NotFound):
        scan_file("weights.pt", lambda: Failing(b"PK\3\4"))


def test_numpy_numbers_beside_weights_are_on_the_allow_list(folder: Path) -> None:
    torch.save({"weights": torch.zeros(2), "accuracy": np.float64(0.9), "labels": np.arange(3)}, folder / "weights.pt")
    assert rules(folder) == {}


def test_a_checkpoint_that_would_run_a_command_is_found_and_not_run(folder: Path, command: Command, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2), "extra": command}, folder / "artifacts/weights.pt")
    (finding,) = scan(folder)
    assert (finding.subject, finding.rule) == ("artifacts/weights.pt", "unsafe-import")
    assert "posix.system" in finding.why
    assert "state_dict" in finding.remedy
    assert not (tmp_path / "executed").exists()
    # The file really runs the command when it is loaded without weights_only.
    load = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"
    subprocess.run([sys.executable, "-c", load, str(folder / "artifacts/weights.pt")], check=True, timeout=60)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["python_model.pkl", "model.pickle", "model.joblib", "deep/model.dill", "data.bin", "README", "weights.pt"]
)
def test_a_pickle_is_found_by_name_or_by_content_and_not_run(folder: Path, command: Command, tmp_path: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(command))
    assert rules(folder) == {name: "pickled-model" if name == "python_model.pkl" else "pickle"}
    assert not (tmp_path / "executed").exists()


def test_the_remedy_for_a_pickled_model_names_log_model(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps({}))
    assert "training.log_model" in scan(folder)[0].remedy


def test_a_pickled_network_is_found(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "weights.pt")
    assert rules(folder) == {"weights.pt": "unsafe-import"}


@pytest.mark.parametrize("protocol", [4, 5])
def test_names_built_on_the_stack_are_refused(folder: Path, command: Command, protocol: int) -> None:
    """Newer pickle protocols build the imported names on the stack; they cannot be listed."""
    torch.save(command, folder / "weights.pt", pickle_protocol=protocol)
    assert rules(folder) == {"weights.pt": "pickle"}


def test_a_checkpoint_under_another_name_is_scanned(folder: Path, command: Command) -> None:
    torch.save(command, folder / "notes.txt")
    assert rules(folder) == {"notes.txt": "unsafe-import"}


def test_old_and_unknown_formats_are_found(folder: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "what.pth").write_bytes(b"\x1f\x8bnot a checkpoint")
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 and then nothing")
    torch.jit.script(torch.nn.ReLU()).save(str(folder / "script.pt"))
    with zipfile.ZipFile(folder / "bundle.zip", "w") as archive:
        archive.writestr("inside/object.dat", pickle.dumps([1]))
        archive.writestr("inside/model.joblib", b"anything")
    assert rules(folder) == {
        "old.pt": "pickle",
        "what.pth": "not-a-checkpoint",
        "broken.pt": "unreadable",
        "script.pt": "unreadable",
        "bundle.zip!inside/object.dat": "pickle",
        "bundle.zip!inside/model.joblib": "pickle",
    }


class Doubled(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torch.export.save, with an example input inside."""
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    torch.export.save(torch.export.export(Doubled(), (torch.zeros(2, 3),)), path)
    return path


def put(source: Path, target: Path, members: dict[str, bytes]) -> None:
    """Copy a zip file; members whose name ends with a key of `members` get other bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, next((content for end, content in members.items() if name.endswith(end)), old.read(name)))


def test_an_exported_program_is_clean(folder: Path, exported: Path) -> None:
    put(exported, folder / "model.pt2", {})
    assert rules(folder) == {}


def test_a_checkpoint_inside_an_exported_program_is_scanned(folder: Path, exported: Path, tmp_path: Path, command: Command) -> None:
    torch.save(command, tmp_path / "evil.pt")
    put(exported, folder / "model.pt2", {"sample_inputs/model.pt": (tmp_path / "evil.pt").read_bytes()})
    (subject,), (rule,) = zip(*rules(folder).items(), strict=True)
    assert (subject.partition("!")[0], rule) == ("model.pt2", "unsafe-import")
    # torch tries weights_only=True, then weights_only=False, which runs the command.
    with pytest.raises((AssertionError, TypeError)):  # after the command has run
        torch.export.load(folder / "model.pt2")
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("member", "content", "rule"),
    [
        ("sample_inputs/model.pt", pickle.dumps({"a": 1}, protocol=0), "not-a-checkpoint"),
        ("sample_inputs/model.pt", pickle.dumps({"a": 1}, protocol=2), "pickle"),
        ("_weights_config.json", b'{"config": {"w": {"path_name": "weight_0", "use\\u005fpickle": true}}}', "pickle"),
        ("_constants_config.json", b"[]", "pickle"),
    ],
)
def test_other_pickles_inside_an_exported_program_are_found(folder: Path, exported: Path, member: str, content: bytes, rule: str) -> None:
    put(exported, folder / "model.pt2", {member: content})
    assert list(rules(folder).values()) == [rule]


def test_one_level_of_nested_zip_files_is_scanned(folder: Path, tmp_path: Path, command: Command) -> None:
    torch.save(command, tmp_path / "evil.pt")
    for depth in range(2):
        with zipfile.ZipFile(folder / f"{depth}.zip", "w") as archive:
            archive.write(tmp_path / "evil.pt" if depth == 0 else folder / "0.zip", "inner")
    assert rules(folder) == {"0.zip!inner": "unsafe-import", "1.zip!inner!inner": "unreadable"}


def test_torch_allows_the_same_names() -> None:
    """When torch allows another name, add it to checkpoint.SAFE."""
    from torch._weights_only_unpickler import _get_allowed_globals

    # torch 2.13 does not allow the first, and torch 2.15 not the second. torch itself refuses what it does not allow.
    of_some_releases = {"torch.bcomplex32", "torch._utils._rebuild_nested_tensor"}
    allowed = set(_get_allowed_globals())
    assert allowed <= checkpoint.SAFE
    assert checkpoint.SAFE - allowed <= of_some_releases


@pytest.mark.real_python
def test_the_scan_needs_no_torch() -> None:
    code = "import sys; from mlops_build.packaging import context; print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def rewritten(path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], **options: int) -> None:
    """Write a checkpoint's zip file again with other members."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **options) as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for name, content in change(members):
            archive.writestr(name, content)


@pytest.mark.parametrize("protocol_2_name", [b"cposix\nsystem\n", b"c__builtin__\neval\n", b"cposi\\x78\nsystem\n", b"ctorch\nload\n"])
def test_an_import_anywhere_in_the_pickle_is_found(folder: Path, protocol_2_name: bytes) -> None:
    path = folder / "weights.pt"
    torch.save({"weights": torch.zeros(2)}, path)
    rewritten(path, lambda members: [(n, b[:-1] + protocol_2_name + b"0." if n.endswith("data.pkl") else b) for n, b in members])
    found = rules(folder)
    assert found in ({"weights.pt": "unsafe-import"}, {"weights.pt": "pickle"}, {"weights.pt": "unreadable"})


def test_a_file_that_others_may_read_in_another_way_is_refused(folder: Path, command: Command) -> None:
    """Each shows a harmless pickle to Python's zipfile, and may show another one to torch's reader."""
    torch.save({"weights": torch.zeros(2)}, folder / "plain.pt")
    torch.save(command, folder.parent / "evil.pt")
    with zipfile.ZipFile(folder.parent / "evil.pt") as archive:
        evil = archive.read("evil/data.pkl")
    for name, members in {
        "twice.pt": lambda members: [("plain/data.pkl", evil), *members],
        "case.pt": lambda members: [("plain/DATA.PKL", evil), *members],
        "folders.pt": lambda members: [("other/data.pkl", evil), *members],
        "script.pt": lambda members: [*members, ("plain/constants.pkl", evil)],
    }.items():
        shutil.copy(folder / "plain.pt", folder / name)
        rewritten(folder / name, members)
    plain = (folder / "plain.pt").read_bytes()
    shutil.copy(folder / "plain.pt", folder / "packed.pt")
    rewritten(folder / "packed.pt", lambda members: members, compression=zipfile.ZIP_DEFLATED)
    (folder / "behind.pt").write_bytes(plain + b"\0")
    (folder / "before.pt").write_bytes(b"PK\x03\x04" + plain)
    names = ["twice", "case", "folders", "script", "packed", "behind", "before"]
    assert rules(folder) == {f"{name}.pt": "unreadable" for name in sorted(names)}


# Pickles that a service accepts.


def mlmodel(folder: Path, **flavor: object) -> None:
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"python_function": {"loader_module": "mlflow.pyfunc.model", **flavor}}}))


def test_a_reason_accepts_pickles_and_nothing_else(folder: Path, command: Command) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(command))
    torch.save(command, folder / "network.pt")
    torch.save(command, folder / "newer.pt", pickle_protocol=4)
    (folder / "scaler.joblib").write_bytes(b"anything")
    assert len(scan(folder)) == 4
    assert len(refused(scan(folder), None)) == 4
    assert "unsafe_pickle" in advice(scan(folder))
    assert refused(scan(folder), "the team made them") == []
    rewritten(folder / "newer.pt", lambda members: [("newer/data.pkl", b""), *members])
    (folder / "what.pth").write_bytes(b"not a checkpoint")
    mlmodel(folder, data="../elsewhere")
    found = refused(scan(folder), "the team made them")
    assert {finding.subject: finding.rule for finding in found} == {
        "MLmodel": "outside",
        "newer.pt": "unreadable",
        "what.pth": "not-a-checkpoint",
    }
    assert "unsafe_pickle" not in advice(found)


@pytest.mark.parametrize("compression", ["gzip", "bz2", "lzma"])
def test_a_compressed_pickled_model_is_found(tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_LOG_MODEL_COMPRESSION", compression)
    mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=lambda model_input: model_input, pip_requirements=["mlflow"])
    assert set(rules(tmp_path / "model").values()) == {"pickled-model"}


@pytest.mark.parametrize(
    "flavor",
    [
        {"code": "../wheels"},
        {"data": "/srv/other"},
        {"model_data": "data/../../other"},
        {"python_model": "../python_model.pkl"},
        {"artifacts": {"weights": {"path": "../../weights.pt", "uri": "weights.pt"}}},
    ],
)
def test_a_model_that_loads_files_outside_of_its_folder_is_found(folder: Path, flavor: dict[str, object]) -> None:
    """MLflow joins these paths to the folder as they are; no digest covers what is outside."""
    mlmodel(folder, **flavor)
    assert rules(folder) == {"MLmodel": "outside"}


@pytest.mark.parametrize("text", ["[", "[]", "flavors: [1]", "flavors: {python_function: 1}"])
def test_an_mlmodel_that_cannot_be_read_is_found(folder: Path, text: str) -> None:
    (folder / "MLmodel").write_text(text)
    assert rules(folder) == {"MLmodel": "unreadable"}


def test_what_mlflow_and_training_write_is_inside(folder: Path) -> None:
    mlmodel(
        folder, model_code_path="/home/me/predictor.py", data="data", code=None, artifacts={"weights": {"path": "artifacts/weights.pt"}}
    )
    assert rules(folder) == {}


def test_a_damaged_zip_file_is_a_finding(folder: Path) -> None:
    with zipfile.ZipFile(folder / "files.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "abc" * 1000)
    content = bytearray((folder / "files.zip").read_bytes())
    content[35] = 0xFF
    (folder / "files.zip").write_bytes(content)
    assert rules(folder) == {"files.zip": "unreadable"}
