"""`mlops-build adopt` as people use it: list, edit, register; with a sqlite MLflow."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mlops_build.model import identity
from tests.adapters.storage.stores import Store
from tests.adopt import mess
from tests.adopt.world import World
from tests.conftest import git, mlops_build

PREDICTOR = """
import mlflow.pyfunc
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, rows):
        return self.linear(rows)


class Predictor(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.net = Net()
        self.net.load_state_dict(torch.load(context.artifacts["weights"], weights_only=True))

    def predict(self, context, model_input, params=None):
        with torch.no_grad():
            return self.net(torch.tensor(model_input.to_numpy(), dtype=torch.float32)).numpy()
"""


def test_list_names_every_file_and_changes_none(world: World) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.source.rglob("*") if path.is_file()}
    document = world.adopt("list", str(world.source))
    rows = world.rows()
    assert len(rows) == len(world.kinds) == document["files"]
    assert sorted(row["kind"] for row in rows) == sorted(kind.removeprefix("unsafe ") for kind in world.kinds.values())
    assert document["unsafe"] == sum(kind.startswith("unsafe") for kind in world.kinds.values())
    assert document["duplicates"] >= 1
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.source.rglob("*") if path.is_file()} == before
    assert not world.marker.exists()
    assert {row["model"] for row in rows if row["path"] in ("digits-best.pth", "copy/of/digits.pth")} == {"digits"}
    assert not any("link.pth" in row["path"] or "pipe" in row["path"] for row in rows)
    assert "link.pth: list what they name" in world.stderr


def test_list_again_keeps_what_people_wrote_and_reads_only_what_changed(world: World) -> None:
    world.adopt("list", str(world.source), "--match", "*.pth")
    world.edit(lambda row: {"action": "adopt", "decided_by": "Ada", "model": "chosen"} if row["kind"] == "state_dict" else None)
    # A hash that is only in the CSV file shows that the file is not read again.
    world.edit(lambda row: {"sha256": "f" * 64} if row["path"] == "digits-best.pth" else None)
    (world.source / "copy/of/digits.pth").write_bytes((world.source / "names/back\\slash.pth").read_bytes())
    (world.source / "names/größe–模型.pth").unlink()
    world.adopt("list", str(world.source), "--match", "*.pth")
    rows = {row["path"]: row for row in world.rows()}
    assert rows["digits-best.pth"]["sha256"] == "f" * 64
    assert rows["digits-best.pth"]["action"] == "adopt"
    assert (rows["copy/of/digits.pth"]["action"], rows["copy/of/digits.pth"]["model"]) == ("", "chosen")
    assert rows["names/größe–模型.pth"]["kind"] == "missing"
    # Another place is added to the same file.
    (world.folder / "other").mkdir()
    shutil.copyfile(world.source / "digits-best.pth", world.folder / "other/a.pth")
    world.adopt("list", str(world.folder / "other/a.pth"))
    assert len(world.rows()) == len(rows) + 1


def test_register_is_a_dry_run_then_registers_each_content_once(world: World) -> None:
    world.adopt("list", str(world.source))
    world.adopt_all()
    planned = world.register(expect=4)
    assert world.registry.models() == []
    assert "nothing was registered" in world.stderr
    made = world.register("--yes", expect=4)
    assert not world.marker.exists()
    for name, outcome in planned.items():
        assert (outcome["outcome"], made[name]["outcome"]) in (
            ("would be registered", "registered"),
            ("registered before", "registered before"),
            ("refused", "refused"),
        ), name
    refused = {name for name, outcome in made.items() if outcome["outcome"] == "refused"}
    never = ("truncated", "zip-bomb", "unsafe")
    assert {name for name, kind in world.kinds.items() if kind.startswith(never) and name.isascii() and name.isprintable()} == refused
    assert all(made[name]["why"] for name in refused)
    # The same content is in two files, once in the registry.
    assert made["digits-best.pth"]["version"] == made["copy/of/digits.pth"]["version"] == "models:/digits/1"
    versions = list(world.registry.every_version())
    again = world.register("--yes", expect=4)
    assert {outcome["outcome"] for outcome in again.values()} == {"registered before", "refused"}
    assert len(list(world.registry.every_version())) == len(versions)
    tags = world.registry.version("digits", 1).tags
    row = next(row for row in world.rows() if row["path"] == "copy/of/digits.pth")
    assert tags[identity.ORIGIN] == f"{world.source}/copy/of/digits.pth"
    assert (tags[identity.FILE_TAG], tags[identity.DECIDED_BY], tags[identity.KIND]) == (row["sha256"], "Ada", "state_dict")
    stored = world.registry.read(world.registry.version("digits", 1), "weights.pth")
    assert stored == (world.source / "digits-best.pth").read_bytes()


def test_no_environment_can_release_an_archived_version(world: World) -> None:
    world.adopt("list", str(world.source), "--match", "digits*")
    world.adopt_all()
    world.register("--yes")
    world.registry.set_alias("digits", "staging", 1)  # by hand
    for command in (["promote", "digits", "1", "--to", "staging"], ["package", "models:/digits@staging", "-o", "context"]):
        done = mlops_build(world.folder, *command, expect=4, environment=world.environment)
        assert "is archived" in done.stderr
        assert "mlops-build adopt register adopt.csv --model digits --code CODE.py --example ROWS.json --yes" in done.stderr
    done = mlops_build(world.folder, "serve", "models:/digits/1", expect=4, environment=world.environment)
    assert "is archived" in done.stderr


def test_a_pickle_needs_an_exception_with_name_reason_and_date(world: World) -> None:
    world.adopt("list", str(world.source), "--match", "*whole.pth")
    world.edit(lambda _: {"action": "adopt", "decided_by": "Ada"})
    assert "fill in decided_by, reason and until" in world.register(expect=4)["whole.pth"]["why"]
    world.edit(lambda _: {"reason": "the shop needs it", "until": "2020-01-31"})
    for yes in ([], ["--yes"]):
        assert "expired on 2020-01-31" in world.register(*yes, expect=4)["whole.pth"]["why"]
    world.edit(lambda _: {"until": "2999-01-31"})
    assert world.register("--yes")["whole.pth"]["outcome"] == "registered"
    tags = world.registry.version("whole", 1).tags
    assert [tags[tag] for tag in (identity.EXCEPTION_BY, identity.EXCEPTION_REASON, identity.EXCEPTION_UNTIL)] == [
        "Ada",
        "the shop needs it",
        "2999-01-31",
    ]
    world.registry.set_tag("whole", 1, identity.EXCEPTION_UNTIL, "2020-01-31")
    world.register("--yes")
    assert "the exception of 'Ada' expired on '2020-01-31'" in world.stderr


@pytest.mark.parametrize("kind", ["", "state_dict"])
def test_what_the_csv_says_is_not_believed(world: World, kind: str) -> None:
    """The kind and the scan of an edited row do not count, and neither does another hash."""
    world.adopt("list", str(world.source), "--match", "command*")
    world.edit(lambda _: {"action": "adopt", "decided_by": "Ada", "kind": "state_dict", "details": "2 tensors"})
    if not kind:
        world.edit(lambda _: {"sha256": "0" * 64})
    outcomes = world.register("--yes", expect=4)
    assert {outcome["outcome"] for outcome in outcomes.values()} == {"refused"}
    assert all(("its content changed" if not kind else "unsafe") in outcome["why"] for outcome in outcomes.values())
    assert not world.marker.exists()


def test_files_that_changed_or_vanished_after_listing_are_refused(world: World) -> None:
    world.adopt("list", str(world.source), "--match", "names/*")
    world.adopt_all()
    paths = sorted(path for path in (world.source / "names").iterdir() if path.name.isascii())
    paths[0].unlink()
    paths[1].write_bytes(b"other")
    status = paths[2].stat()
    content = bytearray(paths[2].read_bytes())
    content[-200] ^= 1
    paths[2].write_bytes(content)
    os.utime(paths[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    paths[3].unlink()
    paths[3].symlink_to("/etc/passwd")
    whys = [outcome["why"] for outcome in world.register("--yes", expect=4).values() if outcome["outcome"] == "refused"]
    assert len(whys) == 4
    assert sum("no longer in the source" in why for why in whys) == 2
    assert sum("changed after it was listed" in why for why in whys) == 2


def test_suggestions_come_from_hashes_references_and_names(world: World) -> None:
    world.adopt("list", str(world.source), "--match", "digits-best.pth")
    world.edit(lambda _: {"action": "adopt", "decided_by": "Ada", "model": "numbers", "service": "shop"})
    world.register("--yes")
    repository = world.folder / "reader"
    repository.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=main")
    (repository / "app.py").write_text('net.load("models/tensor.pt")  # not pretensor.pt2\n')
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=Load")
    world.csv.unlink()
    world.adopt("list", str(world.source), "--repo", str(repository), "--repo", "/nowhere")
    rows = {row["path"]: row for row in world.rows()}
    assert (rows["copy/of/digits.pth"]["model"], rows["copy/of/digits.pth"]["service"]) == ("numbers", "shop")
    assert rows["copy/of/digits.pth"]["suggested_by"] == "hash: the same file as in models:/numbers/1"
    assert (rows["tensor.pt"]["model"], rows["tensor.pt"]["service"]) == ("tensor", "reader")
    assert rows["tensor.pt"]["suggested_by"] == f"reference: {repository} (app.py)"
    assert rows["run1/checkpoint.ckpt"]["suggested_by"] == "name"
    assert rows["README.txt"]["model"] == ""
    assert "/nowhere is not searched" in world.stderr


def test_a_version_with_the_same_file_is_found(world: World) -> None:
    """A version that was not adopted, whose files contain the file."""
    from mlflow import MlflowClient

    client = MlflowClient(world.environment["MLFLOW_TRACKING_URI"])
    (world.folder / "version").mkdir()
    shutil.copyfile(world.source / "tensor.pt", world.folder / "version/weights.pt")
    client.create_registered_model("trained")
    client.create_model_version("trained", str(world.folder / "version"))
    client.create_registered_model("lost")
    client.create_model_version("lost", str(world.folder / "lost"))
    world.adopt("list", str(world.source), "--match", "*.pt")
    row = next(row for row in world.rows() if row["path"] == "tensor.pt")
    assert (row["model"], row["suggested_by"]) == ("trained", "hash: the same file as in models:/trained/1")
    assert "'lost' version 1 is not compared" in world.stderr


def test_register_creates_a_database_that_does_not_exist_and_a_dry_run_does_not(world: World) -> None:
    world.adopt("list", str(world.source), "--match", "digits-best.pth")
    world.adopt_all()
    file = world.folder / "mlflow.db"
    file.unlink()
    assert world.register()["digits-best.pth"]["outcome"] == "would be registered"
    assert "does not exist: --yes creates it" in world.stderr
    assert not file.exists()
    world.register("--yes")
    assert world.registry.version("digits", 1).tags[identity.DECIDED_BY] == "Ada"


def test_two_versions_that_two_processes_made_at_once_become_one(world: World) -> None:
    world.adopt("list", str(world.source), "--match", "*digits*")
    world.adopt_all()
    world.register("--yes")
    first = world.registry.version("digits", 1)
    from mlflow import MlflowClient

    for number in (2, 3):  # as another process that looked before the first version was there
        world.registry.create_version("digits", first.source, first.run_id, first.tags)
        if number == 3:
            world.registry.set_alias("digits", "kept", 3)
    world.registry.create_version("digits", first.source, first.run_id, {**first.tags, identity.COMMIT_TAG: "0" * 40})  # of a service
    assert len(world.registry.versions("digits")) == 4
    MlflowClient(world.environment["MLFLOW_TRACKING_URI"]).copy_model_version("models:/digits/1", "copy")
    world.register()
    assert len(world.registry.versions("digits")) == 4  # a dry run
    world.register("--yes")
    assert [version.version for version in world.registry.versions("digits")] == [4, 3, 1]
    assert len(world.registry.versions("copy")) == 1  # somebody made it
    assert "'digits' version 2 was deleted" in world.stderr
    assert world.registry.read(first, "weights.pth") == (world.source / "digits-best.pth").read_bytes()


def test_code_and_an_example_make_a_version_servable(world: World) -> None:
    (world.folder / "net.py").write_text(PREDICTOR)
    (world.folder / "rows.csv").write_text("a,b,c\n1,2,3\n4,5,6.5\n")
    world.adopt("list", str(world.source), "--match", "old/legacy.pth")
    world.edit(lambda _: {"action": "adopt", "decided_by": "Ada", "model": "net"})
    world.register("--yes")
    code = ["--model", "net", "--code", "net.py", "--example", "rows.csv"]
    made = world.register(*code, "--yes")["old/legacy.pth"]
    assert (made["outcome"], made["version"]) == ("registered", "models:/net/2")
    assert "this runs net.py" in world.stderr
    assert "[1/1] " in world.stderr
    assert world.register(*code, "--yes")["old/legacy.pth"]["outcome"] == "registered before"
    version = world.registry.version("net", 2)
    assert identity.ARCHIVED not in version.tags
    recorded = json.loads(world.registry.read(version, "examples/recorded.json"))
    expected = mess.state(8)
    first = [float(1 * w[0] + 2 * w[1] + 3 * w[2] + b) for w, b in zip(expected["linear.weight"], expected["linear.bias"], strict=True)]
    assert recorded["predictions"][0] == pytest.approx(first, rel=1e-5)
    assert {file.path for file in world.registry.files(version)} >= {
        "MLmodel",
        "artifacts/weights.pt",
        "code/net.py",
        "lineage.json",
        "openapi.json",
        "predictor.py",
    }
    assert "no remote repository" in mlops_build(world.folder, "lineage", version.uri, environment=world.environment).stdout
    promoted = mlops_build(world.folder, "promote", "net", "2", "--to", "staging", expect=4, environment=world.environment)
    assert "has no locked environment yet" in promoted.stderr
    assert "mlops-build scaffold net-service --model models:/net/2 ;" in promoted.stderr


def test_files_beside_the_code_of_a_package_belong_to_the_version(world: World) -> None:
    package = world.folder / "scaled"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import json\nfrom pathlib import Path\n"
        + PREDICTOR.replace(".numpy()\n", '.numpy() * json.loads(Path(__file__).with_name("scaler.json").read_text())\n', 1)
    )
    (package / "scaler.json").write_text("0")
    (world.folder / "rows.csv").write_text("a,b,c\n1,2,3\n")
    world.adopt("list", str(world.source), "--match", "digits-best.pth")
    world.adopt_all()
    world.register("--model", "digits", "--code", "scaled", "--example", "rows.csv", "--yes")
    version = world.registry.version("digits", 1)
    assert json.loads(world.registry.read(version, "examples/recorded.json"))["predictions"] == [[0.0, 0.0]]
    assert world.registry.read(version, "code/scaled/scaler.json") == b"0"


def test_a_file_that_lies_beside_the_code_is_named(world: World) -> None:
    code = world.folder / "nets"
    code.mkdir()
    (code / "helper_of_net.py").write_text("")
    (code / "net.py").write_text(f"import helper_of_net\n{PREDICTOR}")
    (world.folder / "rows.csv").write_text("a,b,c\n1,2,3\n")
    world.adopt("list", str(world.source), "--match", "digits-best.pth")
    world.adopt_all()
    made = world.register("--model", "digits", "--code", "nets/net.py", "--example", "rows.csv", "--yes", expect=4)
    assert "helper_of_net.py is used, and lies beside net.py" in made["digits-best.pth"]["why"]
    (code / "__init__.py").write_text("")
    (code / "net.py").write_text(f"from . import helper_of_net\n{PREDICTOR}")
    world.register("--model", "digits", "--code", "nets/net.py", "--example", "rows.csv", "--yes")


def test_a_dry_run_prints_its_whole_command_and_an_unknown_model_is_an_error(world: World) -> None:
    (world.folder / "my net.py").write_text("raise RuntimeError")
    (world.folder / "rows.csv").write_text("a,b,c\n1,2,3\n")
    world.adopt("list", str(world.source), "--match", "digits-best.pth")
    world.adopt_all()
    options = ["--model", "digits", "--code", "my net.py", "--example", "rows.csv", "--timeout", "9"]
    world.register(*options)
    assert "my net.py was not run" in world.stderr
    assert f"adopt register {world.csv} --model digits --code 'my net.py' --example rows.csv --timeout 9 --yes" in world.stderr
    failed = mlops_build(world.folder, "adopt", "register", "adopt.csv", "--model", "digit", expect=3, environment=world.environment)
    assert "adopt.csv has no row of the model 'digit'; models: digits" in failed.stderr


@pytest.mark.parametrize(
    ("code", "example", "why"),
    [
        (PREDICTOR.replace("Linear(3, 2)", "Linear(3, 4)"), "[[1, 2, 3]]", "size mismatch"),
        ("def f():\n  raise RuntimeError('broken\\nhere')\nf()", "[[1, 2, 3]]", "RuntimeError: broken here (net.py, line 2)"),
        (
            "import timm9",
            "[[1, 2, 3]]",
            "No module named 'timm9' (net.py, line 1); install the package of timm9 here, such as: pip install",
        ),
        ("x = 1", "[[1, 2, 3]]", "one subclass of mlflow.pyfunc.PythonModel, it has none"),
        (PREDICTOR, "{}", "not a list of rows"),
        (PREDICTOR, "[", "cannot be read"),
        ("import time\ntime.sleep(60)", "[[1, 2, 3]]", "no prediction within 2 s"),
        ("import os\nraise RuntimeError(os.environ.get('AWS_SECRET_ACCESS_KEY', 'no secret'))", "[[1, 2, 3]]", "no secret"),
    ],
)
def test_code_that_does_not_answer_registers_nothing(
    world: World, code: str, example: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    (world.folder / "net.py").write_text(code)
    (world.folder / "rows.json").write_text(example)
    world.adopt("list", str(world.source), "--match", "digits-best.pth")
    world.adopt_all()
    time = ["--timeout", "2"] if "sleep" in code else []
    made = world.register("--model", "digits", "--code", "net.py", "--example", "rows.json", "--yes", *time, expect=4)
    assert made["digits-best.pth"]["outcome"] == "refused"
    assert why in made["digits-best.pth"]["why"]
    assert list(world.registry.every_version()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list"], 2, "required: SOURCE"),
        (["list", "ftp://host/a"], 2, "not a place for files"),
        (["list", "s3:/bucket/old"], 2, "not a place for files"),
        (["list", "nowhere"], 5, "nowhere"),
        (["register", "nowhere.csv"], 3, "cannot be read"),
        (["register", "adopt.csv", "--code", "net.py"], 2, "belong together"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    done = mlops_build(tmp_path, "adopt", *arguments, expect=code, environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_store_does_not_send_is_named_and_a_store_that_is_down_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store({f"models/{name}.pth": (world.source / "digits-best.pth").read_bytes() for name in "abcdef"})
    with store.serve() as address:
        for name, value in {"ST_AUTH": f"{address}/auth", "ST_USER": "old:reader", "ST_KEY": "secret"}.items():
            monkeypatch.setenv(name, value)
        store.statuses["models/b.pth"] = [403] * 20
        world.adopt("list", "swift://models")
        rows = {row["path"]: row for row in world.rows()}
        assert (rows["b.pth"]["kind"], rows["b.pth"]["sha256"]) == ("unreadable", "")
        assert "403" in rows["b.pth"]["details"]
        world.edit(lambda _: {"action": "adopt", "decided_by": "Ada", "model": "old"})
        made = world.register("--yes", expect=4)
        assert made["swift://models/a.pth"]["outcome"] == "registered"
        assert made["swift://models/b.pth"]["outcome"] == "refused"
        store.statuses |= {f"models/{name}.pth": [403] * 20 for name in "cdef"}
        world.csv.unlink()
        failed = mlops_build(world.folder, "adopt", "list", "swift://models", expect=5, environment=world.environment)
        assert "swift://models/d.pth" in failed.stderr
        # What was read before is kept, and the next list continues.
        assert {row["path"]: bool(row["sha256"]) for row in world.rows()}["a.pth"]
        store.statuses.clear()
        world.adopt("list", "swift://models")
        assert all(row["sha256"] for row in world.rows())
