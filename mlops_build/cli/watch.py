"""Export metrics of a node's GPUs to Prometheus, Graphite and Zabbix.

exporter: metrics for Prometheus, read at each scrape, on each GPU node. graphite HOST:PORT: send the same to Graphite's plaintext port,
each INTERVAL. zabbix: the values for Zabbix's agent, and its template. files DIR: write the DaemonSet, the exporter's Dockerfile,
Prometheus' rules, a Grafana dashboard, Zabbix' template and the agent's parameters. Only `exporter` needs prometheus-client.
The guide is docs/how-to/watch-your-cards.md.
"""

import argparse
from typing import TYPE_CHECKING

from mlops_build.cli.output import result, say
from mlops_build.cli.parser import interval, port

if TYPE_CHECKING:
    from mlops_build.watch.node import Snapshot

EXAMPLE = (
    "  mlops-build watch exporter --port 9400\n  mlops-build watch graphite graphite.example.com:2003 --interval 30\n"
    "  mlops-build watch zabbix get 'memory.used[GPU-6fb55d9c-…]'\n  mlops-build watch files monitoring/"
)
# Zabbix's agent gives a command 3 s by default (Timeout), this process' start included.
ZABBIX_SECONDS = 2.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    exporter = what.add_parser("exporter", help="answer Prometheus' scrapes until SIGTERM")
    exporter.add_argument("--port", type=port, default=9400, metavar="N", help="(default: 9400; 0: any)")
    exporter.add_argument("--host", default="0.0.0.0", metavar="ADDRESS", help="the address to listen on (default: all)")  # noqa: S104
    graphite = what.add_parser("graphite", help="send the same to Graphite until SIGTERM")
    graphite.add_argument("address", metavar="HOST:PORT", help="carbon's plaintext port, usually 2003")
    graphite.add_argument("--interval", type=interval, default=60.0, metavar="SECONDS", help="(default: 60)")
    graphite.add_argument(
        "--prefix", default="mlops.gpu", metavar="PATH", help="the start of each path, before the host (default: mlops.gpu)"
    )
    graphite.add_argument("--node", metavar="NAME", help="this node's name in the paths (default: NODE_NAME, else the host's)")
    graphite.add_argument("--once", action="store_true", help="send the metrics once and end")
    zabbix = what.add_parser("zabbix", help="values for Zabbix's agent")
    actions = zabbix.add_subparsers(dest="action", metavar="WHAT", required=True)
    actions.add_parser("discovery", help="the GPUs by UUID, as low-level discovery")
    get = actions.add_parser("get", help="one value")
    get.add_argument("key", metavar="KEY", help="NAME of the node, or NAME[UUID] of a GPU; `node` is everything, as JSON")
    actions.add_parser("template", help="print the template for Zabbix 6.0 or newer")
    actions.add_parser("userparameters", help="print the agent's UserParameter file")
    files = what.add_parser("files", help="write the files that come with the package; without DIR, list them")
    files.add_argument("folder", nargs="?", metavar="DIR", help="the folder to write")
    files.add_argument("--force", action="store_true", help="replace files with other content")
    for step in (*what.choices.values(), *actions.choices.values()):
        step.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    import logging
    import sys

    # Errors are logged once on stderr, not at every reading.
    logging.basicConfig(stream=sys.stderr, format="mlops-build watch: %(message)s", level=logging.WARNING)
    doing = {"exporter": _exporter, "graphite": _graphite, "zabbix": _zabbix, "files": _files}
    return doing[args.what](args)


def _exporter(args: argparse.Namespace) -> int:
    from mlops_build.watch import prometheus

    prometheus.serve(args.host, args.port)
    return 0


def _graphite(args: argparse.Namespace) -> int:
    import signal
    import threading

    from mlops_build.adapters.graphite import Sender
    from mlops_build.errors import Unreachable, UsageError
    from mlops_build.watch import graphite
    from mlops_build.watch.node import Watcher

    if not all(part and part == graphite.component(part) for part in args.prefix.split(".")):
        raise UsageError(
            f"{args.prefix!r} is not a valid path of Graphite", remedy="use words of letters, digits, _ and -, separated by dots"
        )
    sender = Sender(*graphite.address(args.address))
    prefix = f"{args.prefix}.{graphite.node_component(args.node)}"
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    watcher = Watcher(fresh=0)
    sent, problem = 0, ""
    while not over.is_set():
        lines = list(graphite.lines(watcher.snapshot(), prefix))
        try:
            sender.send("".join(lines).encode())
            sent += len(lines)
            if problem:
                say("mlops-build watch: Graphite answers again")
            problem = ""
        except Unreachable as error:
            if args.once:
                raise
            if error.message != problem:
                say(f"mlops-build watch: {error.message}; next attempt in {args.interval:g} s")
            problem = error.message
        if args.once:
            break
        over.wait(args.interval)
    sender.close()
    watcher.close()
    result(args, {"sent": sent}, "")
    return 0


def _zabbix(args: argparse.Namespace) -> int:
    import json

    if args.action in ("template", "userparameters"):
        from mlops_build.watch import shipped

        name = {"template": "zabbix-template.yaml", "userparameters": "zabbix-userparameters.conf"}[args.action]
        print(shipped.read(name), end="")
        return 0
    from mlops_build.errors import NotFound
    from mlops_build.watch import zabbix

    if args.action == "get":
        zabbix.parse_key(args.key)
    try:
        if args.action == "discovery":
            print(json.dumps(zabbix.discovery(_snapshot()), ensure_ascii=False))
        else:
            value = zabbix.get(_snapshot(), args.key)
            result(args, {"key": args.key, "value": value}, value or "\n")
    except NotFound:
        if not args.json:
            print("ZBX_NOTSUPPORTED")  # tells the Zabbix server that there is no value
        raise
    return 0


def _snapshot() -> "Snapshot":
    from mlops_build.watch.node import Watcher

    return Watcher(patience=ZABBIX_SECONDS, nvml_seconds=ZABBIX_SECONDS / 4).snapshot()


def _files(args: argparse.Namespace) -> int:
    from pathlib import Path

    from mlops_build.watch import shipped

    if args.folder is None:
        width = max(map(len, shipped.FILES))
        result(args, shipped.FILES, "\n".join(f"{name:<{width}}  {what}" for name, what in shipped.FILES.items()))
        return 0
    written = shipped.write(Path(args.folder), force=args.force)
    result(args, {"written": [str(path) for path in written]}, "\n".join(str(path) for path in written))
    return 0
