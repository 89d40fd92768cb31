"""`mlops-build gpu`: each action as a process on a simulated node, its output, and the program that it runs."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from mlops_build.cli import gpu_text
from mlops_build.gpu import decisions, testing
from mlops_build.gpu.cards import Card
from mlops_build.gpu.choice import Choice, Request
from mlops_build.gpu.neighbours import Neighbour, program_of
from mlops_build.gpu.nvml import Trouble
from mlops_build.gpu.promise import Promise
from tests.cli.test_frame import HEAVY
from tests.conftest import ROOT
from tests.gpu.conftest import MakeNode

GIB = 1 << 30
SERVICE = [sys.executable, "-m", "mlops_build.gpu.testing.service"]


def cli(node: testing.Node, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mlops_build", "gpu", *arguments],
        env={**node.environment, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(node: testing.Node, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mlops_build", "gpu", *arguments],
        env={**node.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leases(node: testing.Node) -> list[str]:
    return sorted(path.name for path in (node.directory / "leases").glob("*.lease"))


def ended(process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    process.communicate(timeout=30)
    return process.returncode


# -- pick --


@pytest.fixture
def two(node: MakeNode) -> testing.Node:
    """Two cards of 24 GiB, with 9 GiB of the first in use."""
    made = node("24GiB", "24GiB")
    made.set_used(0, "9GiB")
    return made


def test_pick_prints_a_mask_and_reserves_nothing(two: testing.Node) -> None:
    uuid = two.cards[1].uuid
    for form, expected in (("env", f"CUDA_VISIBLE_DEVICES={uuid}\n"), ("uuid", f"{uuid}\n")):
        done = cli(two, "pick", "--memory", "4GiB", "--format", form)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
        assert done.stderr == "mlops-build gpu pick: nothing is reserved; `mlops-build gpu run` reserves memory while a program runs\n"
    document = json.loads(cli(two, "pick", "--memory", "4GiB", "--count", "2", "--format", "json").stdout)
    assert document["uuids"] == [two.cards[1].uuid, two.cards[0].uuid]
    assert [card["index"] for card in document["cards"]] == [1, 0]
    assert (document["memory_bytes"], document["cpu"]) == (4 * GIB, False)
    assert document["seconds"] > 0
    assert leases(two) == []


@pytest.mark.parametrize(
    ("options", "card"),
    [
        (["--strategy", "pack"], 0),
        (["--strategy", "BEST_FIT"], 0),
        (["--strategy", "WORST_FIT"], 1),
        (["--strategy", "random", "--uuid", "GPU-5c2e"], 0),
        (["--name", "*l4*"], 1),
        (["--min-compute-capability", "8.9"], 1),
        (["--max-utilisation", "0"], 1),
    ],
)
def test_pick_follows_its_options(two: testing.Node, options: list[str], card: int) -> None:
    done = cli(two, "pick", "--memory", "4GiB", "--format", "uuid", *options)
    assert done.stdout == f"{two.cards[card].uuid}\n", done.stderr


@pytest.mark.parametrize("form", ["env", "uuid"])
def test_no_room_is_exit_code_6_with_a_reason_for_each_card_and_an_empty_stdout(two: testing.Node, form: str) -> None:
    done = cli(two, "pick", "--memory", "20GiB", "--count", "2", "--format", form)
    assert (done.returncode, done.stdout) == (6, "")
    assert "no room for 20.0 GiB on each of 2 cards" in done.stderr
    assert f"0 NVIDIA L4 {two.cards[0].uuid}: 15.0 GiB of 24.0 GiB left" in done.stderr
    assert f"1 NVIDIA L4 {two.cards[1].uuid}: it has room, but 2 cards are requested" in done.stderr
    assert "--wait" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", [["--json"], ["--format", "json"]])
def test_a_json_document_is_printed_without_room_and_without_a_driver(two: testing.Node, form: list[str]) -> None:
    done = cli(two, "pick", "--memory", "20GiB", "--count", "2", *form)
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"], document["uuids"]) == (6, 6, [])
    assert document["error"].startswith("no room for 20.0 GiB")
    assert document["remedy"].startswith("wait for room")
    assert document["refused"].keys() == {card.uuid for card in two.cards}
    assert document["refused"][two.cards[0].uuid].startswith("15.0 GiB of 24.0 GiB left")
    assert "no room for 20.0 GiB" in done.stderr
    two.fail_init(9)
    done = cli(two, "pick", "--memory", "4GiB", *form)
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"], document["uuids"]) == (5, 5, [])
    assert document["error"] == "the NVIDIA driver's kernel module is not loaded"


def test_list_and_explain_print_a_json_document_after_an_error(two: testing.Node, tmp_path: Path) -> None:
    two.fail_init(9)
    for options in ([], ["--watch"]):
        done = cli(two, "list", "--json", *options)
        (line,) = done.stdout.splitlines()
        assert (done.returncode, json.loads(line)["exit_code"]) == (5, 5)
    done = cli(two, "explain", "--json", MLOPS_GPU_LEASE_DIR=str(tmp_path / "absent"))
    document = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode != 0
    assert str(tmp_path / "absent") in document["error"]


def test_no_driver_is_exit_code_5_and_the_cpu_only_on_request(two: testing.Node) -> None:
    two.fail_init(9)
    done = cli(two, "pick", "--memory", "4GiB")
    assert (done.returncode, done.stdout) == (5, "")
    assert "kernel module is not loaded" in done.stderr
    assert cli(two, "list").returncode == 5
    done = cli(two, "pick", "--memory", "4GiB", "--otherwise", "cpu")
    assert (done.returncode, done.stdout) == (0, "CUDA_VISIBLE_DEVICES=\n")
    assert "the mask is empty, which means the CPU" in done.stderr
    assert json.loads(cli(two, "pick", "--memory", "4GiB", "--otherwise", "cpu", "--json").stdout)["cpu"] is True


@pytest.mark.parametrize(
    "options",
    [
        ["--memory", "4GB"],
        ["--memory", "-1GiB"],
        ["--memory", "4GiB", "--count", "0"],
        ["--memory", "4GiB", "--wait", "inf"],
        ["--memory", "4GiB", "--wait", "-1"],
        ["--memory", "4GiB", "--strategy", "least-used"],
        ["--memory", "4GiB", "--min-compute-capability", "eight"],
    ],
)
def test_invalid_options_are_exit_code_2(two: testing.Node, options: list[str]) -> None:
    done = cli(two, "pick", *options)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr


def test_pick_imports_nothing_heavy(two: testing.Node) -> None:
    script = f"""
import sys
from mlops_build.__main__ import main
assert main(["gpu", "pick", "--memory", "1GiB"]) == 0
heavy = {HEAVY | {"logging", "pathlib", "secrets"}!r}
print(sorted(heavy & set(sys.modules)))
"""
    # -S excludes imports from .pth files of this environment.
    environment = {**two.environment, "PYTHONPATH": str(Path(pynvml.__file__).parent)}
    done = subprocess.run([sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# -- run --


def test_run_executes_the_program(two: testing.Node) -> None:
    script = (
        "import json, os; print(json.dumps([os.getppid(), os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER']])); exit(7)"
    )
    running = start(two, "run", "--memory", "4GiB", "--", sys.executable, "-c", script)
    out, err = running.communicate(timeout=30)
    assert json.loads(out) == [running.pid, two.cards[1].uuid, "PCI_BUS_ID"]
    assert running.returncode == 7
    assert err == f"mlops-build gpu run: 4.0 GiB on NVIDIA L4 ({two.cards[1].uuid})\n"


def test_arguments_of_the_program_are_not_parsed(two: testing.Node) -> None:
    words = ["x", "--json", "-n", "--", "--help", "--memory", "a b", ""]
    done = cli(two, "run", "--memory", "1GiB", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
    assert done.stdout == f"{words}\n", done.stderr
    assert cli(two, "run", "--memory", "1GiB", "echo", "--json").stdout == "--json\n"


def test_the_program_has_the_default_signal_handlers(two: testing.Node) -> None:
    done = cli(two, "run", "--memory", "1GiB", "--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(done.stdout.split()[1], 16)
    # 32 and 33 belong to glibc: the parent of the tests may have ignored them, and Python cannot change that.
    assert [number for number in range(1, 65) if ignored >> (number - 1) & 1 and number not in (32, 33)] == []


def test_the_lease_lives_as_long_as_the_program(two: testing.Node) -> None:
    running = start(two, "run", "--memory", "4GiB", "--service", "spam", "--", "sh", "-c", "echo up; exec sleep 60")
    assert running.stdout
    assert running.stdout.readline() == "up\n"
    (card,) = [card for card in json.loads(cli(two, "list", "--json").stdout)["cards"] if card["leases"]]
    assert card["uuid"] == two.cards[1].uuid
    assert [(lease["service"], lease["promised_bytes"]) for lease in card["leases"]] == [("spam", 4 * GIB)]
    assert card["left_bytes"] == 20 * GIB
    assert ended(running) == -signal.SIGTERM
    assert all(not card["leases"] for card in json.loads(cli(two, "list", "--json").stdout)["cards"])


def test_a_program_that_hardcodes_cuda_0_loads_onto_the_leased_card(two: testing.Node) -> None:
    two.set_used(0, "23GiB")
    running = start(two, "run", "--memory", "4GiB", "--", *SERVICE, "--memory", str(3 * GIB))
    assert running.stdout
    events = [json.loads(running.stdout.readline())["event"] for _ in range(2)]
    assert events == ["started", "loaded"]
    assert two.used(1) == 3 * GIB
    assert ended(running) == 0


def test_a_missing_program_is_127_as_in_a_shell(two: testing.Node, tmp_path: Path) -> None:
    done = cli(two, "run", "--memory", "4GiB", "--", "no-such-program")
    assert (done.returncode, done.stdout, done.stderr) == (127, "", "mlops-build gpu run: no-such-program: command not found\n")
    done = cli(two, "run", "--json", "--memory", "4GiB", "--", "no-such-program")
    assert (done.returncode, json.loads(done.stdout)) == (
        127,
        {"error": "no-such-program: command not found", "remedy": None, "exit_code": 127},
    )
    script = tmp_path / "script"
    script.write_text("echo\n")
    done = cli(two, "run", "--memory", "4GiB", "--", str(script))
    assert (done.returncode, done.stdout) == (126, "")
    assert done.stderr.endswith(f"mlops-build gpu run: {script}: Permission denied\n")
    assert cli(two, "run", "--memory", "4GiB").returncode == 2
    assert leases(two) == []


def test_run_without_room_starts_nothing(two: testing.Node, tmp_path: Path) -> None:
    done = cli(two, "run", "--memory", "30GiB", "--", "touch", str(tmp_path / "started"))
    assert (done.returncode, done.stdout) == (6, "")
    assert "it has only 24.0 GiB in total" in done.stderr
    assert not (tmp_path / "started").exists()
    done = cli(two, "run", "--memory", "30GiB", "--otherwise", "cpu", "--", "sh", "-c", 'echo "<$CUDA_VISIBLE_DEVICES>"')
    assert (done.returncode, done.stdout) == (0, "<>\n")
    assert "the CPU" in done.stderr


def test_run_without_room_prints_a_json_document_on_request(two: testing.Node) -> None:
    done = cli(two, "run", "--json", "--memory", "30GiB", "--", "true")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (6, 6)


def test_variables_replace_the_options_of_run_and_errors_name_them(two: testing.Node) -> None:
    done = cli(two, "run", "--", "true", MLOPS_GPU_MEMORY="20GiB")
    assert "gpu run: 20.0 GiB on" in done.stderr
    done = cli(two, "run", "--", "true", MLOPS_GPU_MEMORY="4GB")
    assert (done.returncode, "MLOPS_GPU_MEMORY is '4GB'" in done.stderr) == (2, True)
    done = cli(two, "run", "--memory", "1GiB", "--", "true", MLOPS_GPU_WAIT="soon")
    assert (done.returncode, "MLOPS_GPU_WAIT is 'soon'" in done.stderr) == (2, True)
    two.set_used(1, "9GiB")
    done = cli(two, "run", "--memory", "20GiB", "--", "true", MLOPS_GPU_WAIT="0.1")
    assert (done.returncode, "waiting for 20.0 GiB, at most 0 s more" in done.stderr) == (6, True)


def test_warnings_are_marked(two: testing.Node) -> None:
    assert cli(two, "run", "--", "true").stderr.startswith("mlops-build gpu run: warning: no budget is given")


def test_a_nested_request_that_the_lease_does_not_hold_gets_its_reason(two: testing.Node) -> None:
    nested = [sys.executable, "-m", "mlops_build", "gpu", "run"]
    for options, reason in (
        (["--memory", "3GiB"], "and requests 3.0 GiB\n"),
        (["--memory", "1GiB", "--name", "*H100*"], "and requests 1.0 GiB on a card that the lease does not have\n"),
    ):
        done = cli(two, "run", "--memory", "2GiB", "--", *nested, *options, "--", "true")
        assert (done.returncode, reason in done.stderr) == (4, True), done.stderr


def test_run_waits_for_room_with_a_message(node: MakeNode) -> None:
    single = node("24GiB")
    holding = start(single, "run", "--memory", "20GiB", "--service", "old", "--", "sh", "-c", "echo up; exec sleep 60")
    assert holding.stdout
    assert holding.stdout.readline() == "up\n"
    waiting = start(single, "run", "--memory", "10GiB", "--wait", "60", "--", "echo", "here")
    assert waiting.stderr
    assert waiting.stderr.readline().startswith("mlops-build gpu run: waiting for 10.0 GiB")
    assert "promised to old" in waiting.stderr.readline()
    assert ended(holding) == -signal.SIGTERM
    assert waiting.communicate(timeout=60)[0] == "here\n"
    assert waiting.returncode == 0


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python3", "-m", "spam.service", "--port", "1"], "spam.service"),
        (["/usr/bin/python3.11", "-u", "/srv/train.py"], "train.py"),
        (["python"], "python"),
        (["./serve", "-m", "x"], "serve"),
        (["python3", "-c", "import torch"], "python3"),
        (["python3", "-W", "ignore", "-Xdev", "-X", "utf8", "train.py"], "train.py"),
        (["python3", "-m"], "python3"),
    ],
)
def test_a_lease_has_the_name_of_its_program(command: list[str], name: str) -> None:
    assert program_of(command) == name


# -- list --


def a_card(**fields: object) -> Card:
    known = {
        "uuid": "GPU-5c2e899a-3276-59ec-ae2c-08d1df701518",
        "index": 0,
        "name": "NVIDIA L4",
        "total_bytes": 24 * GIB,
        "used_bytes": 9 * GIB,
    }
    return Card(**{**known, "utilisation": 12, "temperature": 54, "external_bytes": 9 * GIB, "committed_bytes": 13 * GIB, **fields})  # type: ignore[arg-type]


def a_lease(**fields: object) -> Promise:
    known = {
        "id": "0" * 16,
        "uuids": ("GPU-5c2e899a-3276-59ec-ae2c-08d1df701518",),
        "bytes": 4 * GIB,
        "exclusive": False,
        "service": "spam",
    }
    return Promise(**{**known, "pid": 1, "pid_namespace": 2, "uid": 1000, "created": 0.0, **fields})  # type: ignore[arg-type]


def a_neighbour(**fields: object) -> Neighbour:
    known = {"name": "score.py", "uid": 1003, "pid": 4711, "command": "python score.py --x", "cgroup": None, "used_bytes": 2 * GIB}
    return Neighbour(**{**known, "counted_bytes": 2 * GIB, "why": "used", **fields})  # type: ignore[arg-type]


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    uuid = "GPU-5c2e899a-3276-59ec-ae2c-08d1df701518"
    cards = [
        a_card(
            leases=(
                a_lease(),
                a_lease(service="late (waiting)", bytes=GIB, until=1.0),
                a_lease(service="big", bytes=8 * GIB, seen={uuid: 9 * GIB}, loaded=True, exclusive=True),
            ),
            neighbours=(
                a_neighbour(),
                a_neighbour(name="billing", command="java", counted_bytes=6 * GIB, why="declared"),
                a_neighbour(name="old", uid=None, pid=None, command=None, used_bytes=0, counted_bytes=GIB, why="peak"),
            ),
        ),
        a_card(
            index=1,
            name="unknown",
            total_bytes=None,
            used_bytes=None,
            utilisation=None,
            temperature=None,
            trouble=Trouble.LOST,
            why="has fallen off the bus",
        ),
        a_card(index=2, visible=False),
    ]
    assert gpu_text.table(cards, 80).splitlines() == [
        "gpu  card                     uuid           used committed   left  total   util",
        "  0  NVIDIA L4                GPU-5c2e899a    9.0      13.0   11.0   24.0   12 %",
        "     big (00000000): 8.0 GiB promised, 9.0 GiB seen, MORE THAN PROMISED, exclus…",
        "     spam (00000000): 4.0 GiB promised, nothing seen yet",
        "     late (waiting) (00000000): 1.0 GiB requested, waits for room",
        "     no lease: billing (uid 1003, pid 4711): 2.0 GiB used, counted as 6.0 GiB, …",
        "     no lease: score.py (uid 1003, pid 4711): 2.0 GiB used: python score.py --x",
        "     no lease: old: 0 B used, counted as 1.0 GiB, its peak",
        "  1  unknown                  GPU-5c2e899a      –         –      –      –      –",
        "     not chosen: lost: has fallen off the bus",
        "  2  NVIDIA L4                GPU-5c2e899a    9.0      13.0   11.0   24.0   12 %",
        "     not chosen: hidden by CUDA_VISIBLE_DEVICES='0'",
        "",
        "GiB. committed: used or promised, whichever is larger; left: available for a new lease.",
    ]
    wide = gpu_text.table(cards, 100).splitlines()
    assert wide[1] == "  0  NVIDIA L4                     GPU-5c2e899a    9.0      13.0   11.0   24.0   12 %  54 °C"


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_or_has_control_characters(columns: int) -> None:
    card = a_card(
        name="NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        trouble=Trouble.FAULT,
        why="NVML: " + "something went wrong " * 9,
        leases=(a_lease(service="s" * 100),),
        neighbours=(a_neighbour(command="\x1b[31mred\nnext " + "x" * 300),),
    )
    lines = gpu_text.table([card], columns).splitlines()
    assert "\x1b" not in "".join(lines)
    wanted = columns if columns >= 80 else 80  # a narrower terminal wraps the rows of the table, but not the lines below them
    assert max(map(len, lines[:-1])) <= wanted


def test_unknown_is_null_in_json_and_never_0() -> None:
    document = gpu_text.as_json(a_card(total_bytes=None, used_bytes=None, utilisation=None, temperature=None, trouble=Trouble.NO_MEMORY))
    unknown = ("total_bytes", "used_bytes", "committed_bytes", "left_bytes", "external_bytes", "utilisation", "temperature")
    assert [document[key] for key in unknown] == [None] * len(unknown)
    assert document["trouble"] == "memory not supported"


def test_list_reads_the_node(two: testing.Node) -> None:
    two.lose(0)
    done = cli(two, "list", COLUMNS="80")
    assert done.stdout.splitlines()[3:] == [
        "  1  NVIDIA L4                GPU-ede20cac    0.0       0.0   24.0   24.0    0 %",
        "",
        "GiB. committed: used or promised, whichever is larger; left: available for a new lease.",
    ], done.stdout
    assert "not chosen: lost" in done.stdout
    assert json.loads(cli(two, "list", "--json", MLOPS_GPU_LEASE_DIR="/absent").stdout)["lease_directory"] is None
    absent = cli(two, "list", MLOPS_GPU_LEASE_DIR="/absent").stdout.splitlines()[-1]
    assert absent.startswith("no lease directory at /absent: No such file or directory. Leases are not shown, and nothing is reserved.")
    document = json.loads(cli(two, "list", "--json").stdout)
    assert document["lease_directory"] == two.environment["MLOPS_GPU_LEASE_DIR"]
    cards = document["cards"]
    assert [(card["index"], card["trouble"], card["left_bytes"]) for card in cards] == [(0, "lost", None), (1, None, 24 * GIB)]


def keys(document: object) -> set[str]:
    if isinstance(document, dict):
        return {*document, *(key for value in document.values() for key in keys(value))}
    return {key for value in document for key in keys(value)} if isinstance(document, list) else set()


def test_each_key_of_the_documents_is_described() -> None:
    card = a_card(leases=(a_lease(),), neighbours=(a_neighbour(),))
    record = decisions.line("refused", Request(GIB), [card], Choice((), {}), service="spam", lease=None, waited=0.0)
    page = (ROOT / "docs/reference/gpu-json.md").read_text()
    assert [key for key in keys([gpu_text.as_json(card), json.loads(record)]) if f"`{key}`" not in page] == []


def test_watch_does_not_read_the_cards_without_a_pause(two: testing.Node) -> None:
    done = cli(two, "list", "--watch", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'0' is less than 0.1 seconds" in done.stderr


def test_watch_prints_repeatedly_until_ctrl_c(two: testing.Node) -> None:
    watching = start(two, "list", "--watch", "0.1", COLUMNS="80")
    assert watching.stdout
    seen = [watching.stdout.readline() for _ in range(12)]
    assert seen.count("gpu  card                     uuid           used committed   left  total   util\n") >= 2
    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=30)[1] == ""
    assert watching.returncode == 0
    watching = start(two, "list", "--watch", "0.1", "--json")
    assert watching.stdout
    assert [len(json.loads(watching.stdout.readline())["cards"]) for _ in range(2)] == [2, 2]
    assert ended(watching, signal.SIGINT) == 0


def test_watch_redraws_in_place_with_at_most_the_terminals_lines(node: MakeNode) -> None:
    many = node(*["24GiB"] * 8)
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 80, 0, 0))
    watching = subprocess.Popen(
        [sys.executable, "-m", "mlops_build", "gpu", "list", "--watch", "0.1"],
        env={name: value for name, value in many.environment.items() if name not in ("COLUMNS", "LINES")},
        stdout=theirs,
    )
    os.close(theirs)
    printed = b""
    while printed.count(b"\x1b[H") < 3:
        printed += os.read(ours, 4096)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 0
    os.close(ours)
    frame = printed.split(b"\x1b[H")[1].decode()
    assert frame.count("\n") == 7  # the cursor stays on the eighth line: nothing scrolls
    assert "more lines: enlarge the window" in frame


# -- explain --


def test_explain_shows_decisions_with_reasons(two: testing.Node) -> None:
    assert "no decision is recorded" in cli(two, "explain").stderr
    cli(two, "pick", "--memory", "4GiB")
    cli(two, "pick", "--memory", "20GiB", "--count", "2", "--exclusive")
    done = cli(two, "explain")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("gpu pick requested 4.0 GiB on a card, strategy spread: card 1")
    others = "9.0 GiB for processes without a lease"
    assert lines[1:5] == [
        f"    0  NVIDIA L4, GPU-5c2e899a: 9.0 GiB of 24.0 GiB used, 9.0 GiB committed ({others}), 15.0 GiB left",
        "       not chosen: it has room, but a larger share of the chosen card is left",
        "    1  NVIDIA L4, GPU-ede20cac: 0 B of 24.0 GiB used, 0 B committed, 24.0 GiB left",
        "       chosen",
    ]
    assert lines[5].endswith("gpu pick requested 20.0 GiB on each of 2 cards, exclusive, strategy spread: no room")
    (last,) = cli(two, "explain", "-n", "1", "--json").stdout.splitlines()
    assert json.loads(last)["outcome"] == "refused"


def test_explain_leaves_out_the_invalid_record_of_a_user(two: testing.Node) -> None:
    cli(two, "pick", "--memory", "4GiB")
    file = two.directory / "leases" / f"decisions-{os.getuid()}.jsonl"
    record = json.loads(file.read_text())
    for invalid in ({"outcome": "granted", "time": 5}, record | {"cards": 3}, record | {"request": []}, record | {"waited": "long"}):
        file.write_text(json.dumps(invalid) + "\n" + json.dumps(record) + "\n")
        done = cli(two, "explain")
        assert (done.returncode, done.stdout.count("gpu pick requested")) == (0, 1), done.stderr
        assert f"a record of uid {os.getuid()} is not valid" in done.stderr


def test_explain_prints_no_control_characters_of_other_users(two: testing.Node) -> None:
    cli(two, "pick", "--memory", "4GiB")
    file = two.directory / "leases" / f"decisions-{os.getuid()}.jsonl"
    record = json.loads(file.read_text())
    deep = json.loads("[" * 500 + "]" * 500)
    file.write_text(json.dumps(record | {"service": "evil\x1b[2J\n\x9b\u202e", "deep": deep, "seed": deep}) + "\n")
    done = cli(two, "explain")
    assert done.stdout.splitlines()[0].split("  ")[1].startswith("evil?[2J??? requested 4.0 GiB")
    assert json.loads(cli(two, "explain", "--json").stdout)["service"].startswith("evil")
    assert cli(two, "explain", "--json").stdout.rstrip("\n").isprintable()
