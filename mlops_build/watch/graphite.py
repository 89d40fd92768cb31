"""Sends the metrics to Graphite: plaintext protocol (one `PATH VALUE TIME` per line) over TCP.

    PREFIX.HOST.cards_ready
    PREFIX.HOST.card.UUID.memory_used_bytes
    PREFIX.HOST.card.UUID.service.NAME.promised_bytes

https://graphite.readthedocs.io/en/latest/feeding-carbon.html
"""

import os
import platform
import re
from collections.abc import Iterator

from mlops_build.errors import UsageError
from mlops_build.watch.metrics import Sample, samples
from mlops_build.watch.node import Snapshot


def lines(snapshot: Snapshot, prefix: str) -> Iterator[str]:
    """The lines of a snapshot, with line ends. prefix: `mlops.gpu.NODE`."""
    for sample in samples(snapshot):
        value = f"{sample.value:.6f}".rstrip("0").rstrip(".")
        yield f"{prefix}.{_path(sample)} {value} {int(snapshot.at)}\n"


def component(text: str) -> str:
    """Text as one component of a path: dots and spaces, which are separators, are replaced."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:100] or "_"


def node_component(given: str | None) -> str:
    """The node's component: the given name, else NODE_NAME, else the name of the host.

    Raises UsageError if the host has the name of a container or pod: each restart would begin other paths.
    """
    name = given or os.environ.get("NODE_NAME")
    if not name:
        name = platform.node()
        # Docker uses the start of the container's id. Pods of a Deployment or DaemonSet end with five of these letters and digits.
        pod = "KUBERNETES_SERVICE_HOST" in os.environ and re.search(r"-[bcdfghjklmnpqrstvwxz2456789]{5}$", name)
        if pod or re.fullmatch(r"[0-9a-f]{12}", name):
            raise UsageError(
                f"the host's name {name} is that of a {'pod' if pod else 'container'}, which changes with each restart",
                remedy="name the node: --node NAME, or the variable NODE_NAME (in a pod, from spec.nodeName)",
            )
    return component(name)


def _path(sample: Sample) -> str:
    name = re.sub(r"^mlops_gpu_(service_|neighbour_)?|_total$", "", sample.metric.name)
    parts = ["card", component(sample.labels["uuid"])] if "uuid" in sample.labels else []
    for label in sample.metric.labels:
        if label not in ("index", "uuid", "name"):
            parts += [label, component(sample.labels[label])]
    return ".".join([*parts, name])


def address(text: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT. Raises UsageError."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\s]+)):([0-9]{1,5})", text)
    if not match or not 0 < int(match[3]) < 65536:
        raise UsageError(f"{text!r} is not HOST:PORT", remedy="write it like graphite.example.com:2003 ([::1]:2003 for IPv6)")
    return match[1] or match[2], int(match[3])
