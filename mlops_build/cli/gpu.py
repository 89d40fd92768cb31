"""Choose a GPU by used and reserved memory, and reserve memory on it while a program runs.

list: show the cards, their users and the memory left. run: reserve memory on a card, and run a program that sees only that card.
pick: print the card that `run` would choose, without reserving. release: end the process that has a lease. explain: show the last
decisions, with the reason for each card.

Only `run` (and mlops_build.gpu.lease in Python) reserves memory: two services that pick at the same time can pick the same card.
"""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from mlops_build.cli.output import failure, result, say
from mlops_build.errors import Failed, NoRoom, UsageError
from mlops_build.gpu import log
from mlops_build.quantity import show_bytes
from mlops_build.setting import given, memory_amount, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlops_build.gpu.lease import Lease

EXAMPLE = """  mlops-build gpu list --watch
  mlops-build gpu run --memory 4GiB --wait 120 -- python -m spam.service
  mask=$(mlops-build gpu pick --memory 4GiB --format uuid) || exit
  mlops-build gpu release spam
  mlops-build gpu explain -n 3"""
EXAMPLES = {
    "list": """  mlops-build gpu list
  mlops-build gpu list --watch 5

A lease is `loading` until its memory has been constant for 5 seconds, or the service has said that its model is loaded. A card that
CUDA_VISIBLE_DEVICES hides is shown and never chosen.""",
    "run": """  mlops-build gpu run --memory 4GiB --wait 120 -- python train.py
  mlops-build gpu run --memory 4GiB --otherwise cpu --service spam -- ./serve --port 8000

The program sees one card (with --count several), as cuda:0. This process stays as its parent, forwards signals, and ends as the program
ends. The program and the processes that it starts share the lease, and it ends with the last of them, even if this process is killed. (A
process without the lease's descriptor does not keep it: Python's subprocess closes it unless close_fds=False.)
A shell does not pass SIGTERM on: write `sh -c 'exec PROGRAM'`.
Exit code 127: the program does not exist; 126: it cannot be executed; 6: no room; 5: no working driver.""",
    "pick": """  mask=$(mlops-build gpu pick --memory 4GiB --format uuid) || exit
  mlops-build gpu pick --memory 20GiB --count 2 --name '*H100*' --format json

Without room the exit code is 6, without a working driver 5, and no mask is printed (with JSON, a document with `error` and the reason for
each card). Check the exit code before you use the output: an empty CUDA_VISIBLE_DEVICES means no card, and many programs then use the CPU
without a message. `gpu run` avoids this.""",
    "release": """  mlops-build gpu release spam
  mlops-build gpu release 1f0c5b7e --wait 120

The process receives SIGTERM, and the memory is free when it has ended. A lease is never taken from a process that runs. The process must be
visible: on the host (as root, or as its user) all are, in a container only its own. Exit code 3: there is no such lease; 2: several match;
4: another user's, or not visible; 1: it has not ended in time.""",
    "explain": """  mlops-build gpu explain -n 3
  mlops-build gpu explain -n 100 --json""",
}
LEAST_INTERVAL = 0.1  # s: each list reads all cards
STRATEGIES = ("spread", "pack", "random", "WORST_FIT", "BEST_FIT", "RANDOM")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show the cards, their users and the memory left", epilog=f"example:\n{EXAMPLES['list']}")
    listing.add_argument(
        "--watch", nargs="?", type=_interval, const=2.0, metavar="SECONDS", help="repeat every SECONDS (default: 2) until Ctrl-C"
    )
    pick = actions.add_parser("pick", help="print the card that `run` would choose", epilog=f"example:\n{EXAMPLES['pick']}")
    _add_request(pick)
    pick.add_argument(
        "--format",
        choices=["env", "uuid", "json"],
        default="env",
        help="env: CUDA_VISIBLE_DEVICES=UUID; uuid: the UUIDs, separated by commas; json: with details of the cards (default: env)",
    )
    run = actions.add_parser(
        "run",
        help="reserve memory on a card and run a program",
        usage="mlops-build gpu run --memory AMOUNT [OPTION …] -- CMD …",
        epilog=f"example:\n{EXAMPLES['run']}",
    )
    _add_request(run)
    run.add_argument("--service", metavar="NAME", help="the name shown for the lease (default: MLOPS_SERVICE, else the program's name)")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD", help="the program and its arguments")
    release = actions.add_parser("release", help="end the process that has a lease", epilog=f"example:\n{EXAMPLES['release']}")
    release.add_argument("lease", metavar="LEASE", help="an id or the service, as `gpu list` shows them (of the id, four letters or more)")
    release.add_argument("--wait", type=_seconds, default=30.0, metavar="SECONDS", help="wait at most this long for its end (default: 30)")
    explain = actions.add_parser("explain", help="show the last decisions", epilog=f"example:\n{EXAMPLES['explain']}")
    explain.add_argument("-n", "--number", type=_positive, default=10, metavar="N", help="the number of decisions (default: 10)")
    printed = {
        "list": "print a JSON document; with --watch one per line",
        "pick": "the same as --format json",
        "run": "without a card, print a JSON document with the error; otherwise the output is the program's",
        "release": "print a JSON document",
        "explain": "print a JSON document for each decision, one per line",
    }
    for name, action in actions.choices.items():
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=printed[name])


def _add_request(parser: argparse.ArgumentParser) -> None:
    """The options of pick and run that say what is requested."""
    add = parser.add_argument
    add(
        "--memory",
        metavar="AMOUNT",
        help="the memory to use on each card, including the CUDA context (0.3-0.5 GiB), such as 4GiB "
        "(default: MLOPS_GPU_MEMORY, else 4GiB with a warning)",
    )
    add("--count", type=_positive, default=1, metavar="N", help="the number of cards (default: 1)")
    add("--wait", metavar="SECONDS", help="wait at most this long for room (default: MLOPS_GPU_WAIT, else 0)")
    add("--otherwise", choices=["fail", "cpu"], default="fail", help="without room or driver: exit code 6 or 5, or the CPU (default: fail)")
    add("--exclusive", action="store_true", help="only a card without other leases and users")
    add("--strategy", choices=STRATEGIES, default="spread", metavar="NAME", help=f"{', '.join(STRATEGIES)} (default: spread)")
    add("--name", action="append", default=[], metavar="GLOB", help="only cards whose name matches, such as '*L4*' (repeatable)")
    add("--uuid", action="append", default=[], metavar="PREFIX", help="only cards whose UUID starts with PREFIX (repeatable)")
    add("--max-utilisation", type=int, metavar="PERCENT", help="only cards with at most this utilisation")
    add("--min-compute-capability", type=_capability, metavar="X.Y", help="only cards with at least this compute capability, such as 8.0")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:  # excludes nan and inf
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of seconds")
    return seconds


def _interval(text: str) -> float:
    seconds = _seconds(text)
    if seconds < LEAST_INTERVAL:
        raise argparse.ArgumentTypeError(f"{text!r} is less than {LEAST_INTERVAL} seconds")
    return seconds


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not major.isdecimal() or not (minor or "0").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid compute capability, such as 8.0")
    return int(major), int(minor or 0)


def run(args: argparse.Namespace) -> int:
    log.prefix = f"mlops-build gpu {args.action}: warning: "
    if args.action == "pick":
        return _pick(args)
    if args.action == "run":
        return _run(args)
    if args.action == "release":
        return _release(args)
    return _list(args) if args.action == "list" else _explain(args)


def _lease(args: argparse.Namespace, service: str) -> "Lease":
    from mlops_build.gpu.lease import lease

    return lease(
        None if args.memory is None else memory_amount((args.memory, "--memory"), "1MiB", "4GiB"),
        count=args.count,
        wait=number(given("--wait", args.wait, "MLOPS_GPU_WAIT", 0), float, 0),
        otherwise=args.otherwise,
        exclusive=args.exclusive,
        strategy=args.strategy,
        names=args.name,
        uuids=args.uuid,
        max_utilisation=args.max_utilisation,
        min_compute_capability=args.min_compute_capability,
        service=service,
        progress=lambda text: say(f"mlops-build gpu {args.action}: {text}"),
        report=False,
    )


def _pick(args: argparse.Namespace) -> int:
    args.json = args.json or args.format == "json"
    from mlops_build.gpu.decisions import PICK

    started = time.perf_counter()
    try:
        chosen = _lease(args, PICK)
    except NoRoom as error:
        error.details = {"uuids": [], **error.details}
        raise
    seconds = time.perf_counter() - started
    chosen.release()
    if args.json:
        cards = [{"uuid": card.uuid, "index": card.index, "name": card.name} for card in chosen.cards]
        document = {"uuids": chosen.uuids, "cards": cards, "memory_bytes": chosen.memory_bytes, "cpu": chosen.cpu, "seconds": seconds}
        result(args, document, "")
    else:
        mask = ",".join(chosen.uuids)
        print(f"CUDA_VISIBLE_DEVICES={mask}" if args.format == "env" else mask)
    if chosen.cpu:
        say("mlops-build gpu pick: no card: the mask is empty, which means the CPU")
    else:
        say("mlops-build gpu pick: nothing is reserved; `mlops-build gpu run` reserves memory while a program runs")
    return 0


def _run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("no program to run", remedy=f"write it after the options:\n{EXAMPLES['run'].splitlines()[0]}")
    if not _exists(command[0]):  # checked before waiting for a card
        return _cannot_run(args, command[0], FileNotFoundError())
    from mlops_build.gpu.neighbours import program_of
    from mlops_build.gpu.run import run as run_program

    def take() -> "Lease":
        try:
            lease = _lease(args, args.service or os.environ.get("MLOPS_SERVICE") or program_of(command))
        except OSError as error:
            raise Failed(f"no lease could be taken: {error}", remedy="check the limit of open files (ulimit -n)") from None
        say(f"mlops-build gpu run: {lease}")
        return lease

    try:
        return run_program(command, take)
    except OSError as error:
        return _cannot_run(args, command[0], error)


def _exists(program: str) -> bool:
    folders = os.get_exec_path() if "/" not in program else [""]
    return any(os.path.exists(os.path.join(folder, program)) for folder in folders)  # noqa: PTH110, PTH118 -- pathlib's import costs more


def _cannot_run(args: argparse.Namespace, program: str, error: OSError) -> int:
    """The exit codes of a shell: 127 if the program does not exist, 126 if it cannot be executed."""
    missing = isinstance(error, FileNotFoundError)
    why = f"{program}: {'command not found' if missing else error.strerror}"
    say(f"mlops-build gpu run: {why}")
    if args.json:
        failure(why, None, 127 if missing else 126)
    return 127 if missing else 126


def _list(args: argparse.Namespace) -> int:
    from shutil import get_terminal_size

    from mlops_build.cli import gpu_text
    from mlops_build.gpu.cards import cards
    from mlops_build.gpu.directory import NoLedger
    from mlops_build.gpu.ledger import Ledger

    def show() -> str:
        observed, directory, absent = cards(), None, ""
        try:
            with Ledger.open(reading=True) as ledger:
                directory = str(ledger.path)
        except NoLedger as error:
            absent = f"\n{error.message}. Leases are not shown, and nothing is reserved. To fix it: {error.remedy}"
        if args.json:
            from json import dumps

            indent = 2 if args.watch is None else None  # with --watch a document per line
            document = {"cards": [gpu_text.as_json(card) for card in observed], "lease_directory": directory}
            return dumps(document, ensure_ascii=False, indent=indent)
        return gpu_text.table(observed, get_terminal_size((100, 24)).columns) + absent

    if args.watch is None:
        print(show())
        return 0
    return _watch(show, args.watch, in_place=sys.stdout.isatty() and not args.json)


def _watch(show: "Callable[[], str]", seconds: float, *, in_place: bool) -> int:
    """Print repeatedly until Ctrl-C. in_place: redraw the terminal, with at most as many lines as it has."""
    from shutil import get_terminal_size

    try:
        while True:
            text = show()
            if in_place:
                heading = f"{time.strftime('%H:%M:%S')}, every {seconds:g} s; Ctrl-C ends"
                text = _screen([heading, "", *text.splitlines()], get_terminal_size().lines)
            print(text, end="" if in_place else "\n", flush=True)
            time.sleep(seconds)
    except KeyboardInterrupt:
        return 0


def _screen(lines: "Sequence[str]", rows: int) -> str:
    """The lines as text that overwrites the screen. Clearing the screen first would flicker."""
    shown = list(lines)
    if len(shown) >= rows:
        shown[max(0, rows - 2) :] = [f"… {len(lines) - rows + 2} more lines: enlarge the window"]
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J"


def _release(args: argparse.Namespace) -> int:
    from mlops_build.gpu.directory import NoLedger
    from mlops_build.gpu.ledger import Ledger
    from mlops_build.gpu.release import NoSuchLease, find, release

    try:
        opened = Ledger.open(reading=True)
    except NoLedger as error:
        remedy = "end the process itself with `kill PID`: `mlops-build gpu list` shows the processes on the cards"
        raise NoSuchLease(f"{error.message}, so no lease is known here", remedy=remedy) from None
    with opened as ledger:
        promise = find(ledger, args.lease)
        pids = release(ledger, promise, args.wait)
    document = {"lease": promise.id, "service": promise.service, "cards": promise.uuids, "memory_bytes": promise.bytes, "pids": pids}
    received = f"pid{'s' * (len(pids) > 1)} {', '.join(map(str, pids))} received SIGTERM" if pids else "its process ended by itself"
    result(
        args,
        document,
        f"{promise.service} ({promise.id}) has released {show_bytes(promise.bytes)} on {', '.join(promise.uuids)}: {received}",
    )
    return 0


def _explain(args: argparse.Namespace) -> int:
    from json import dumps

    from mlops_build.cli import gpu_text
    from mlops_build.gpu import decisions
    from mlops_build.gpu.ledger import Ledger

    with Ledger.open(reading=True) as ledger:
        records = decisions.read(ledger)[-args.number :]
        if not records:
            say(f"mlops-build gpu explain: no decision is recorded in {ledger.path} yet")
    for record in records:
        try:
            print(dumps(record) if args.json else gpu_text.decision(record))
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:  # any user can write to the directory
            say(f"mlops-build gpu explain: a record of uid {record['uid']} is not valid ({type(error).__name__}), and is left out")
    return 0
