"""How one version replaces another, and with how much: replicas, strategy, memory, CPU and GPU of a Deployment.

Where the arithmetic comes from: a rolling update needs spare memory. Kubernetes' default (a surge of 25 %) starts a new pod beside the
old one. On a node whose cards are full that pod never becomes ready, or it takes memory from a neighbour and kills it (LLMKube#192,
airunway#400, kserve#4618). Main memory is the scheduler's: a pod that does not fit waits, and nobody is hurt. Hence:

| GPU              | replicas  | strategy                        | while updating                                            |
| ---------------- | --------- | ------------------------------- | --------------------------------------------------------- |
| none             | any       | maxSurge 1, maxUnavailable 0    | one pod more; never fewer than asked for                  |
| shared/exclusive | 2 or more | maxSurge 0, maxUnavailable 1    | one pod fewer; never a card more than asked for           |
| shared/exclusive | 0 or 1    | Recreate                        | the old pod ends, then the new one loads: downtime        |

Memory is requested and limited alike, since it cannot be taken back; CPU is requested only, since a limit slows a pod down on an idle node.
"""

import math
from dataclasses import dataclass
from typing import Literal

from mlops_build.service import Service

# How often the start-up probe asks.
PROBE_SECONDS = 3
# What a pod needs besides loading its model: its image is pulled, and the pod before it may take this long to end.
PULL_SECONDS = 300


@dataclass(frozen=True)
class Rollout:
    """The numbers of one Deployment. Memory in bytes, CPU as Kubernetes writes it, `cards` whole GPUs from the device plugin,
    `gpu_memory_bytes` the budget on a shared card.

    surge and unavailable: pods more and fewer than `replicas` during an update; both None means Recreate.
    """

    replicas: int
    surge: int | None
    unavailable: int | None
    memory_bytes: int
    cpu: str
    gpu: Literal["none", "shared", "exclusive"]
    cards: int
    gpu_memory_bytes: int
    port: int
    startup_seconds: int

    @property
    def recreate(self) -> bool:
        return self.surge is None

    @property
    def startup_failures(self) -> int:
        """How often the start-up probe may fail before the pod counts as broken."""
        return math.ceil(self.startup_seconds / PROBE_SECONDS)

    @property
    def deadline_seconds(self) -> int:
        """progressDeadlineSeconds: longer than the longest start, or every slow start is a failed rollout."""
        return self.startup_seconds + PULL_SECONDS


def rollout(service: Service, env: str) -> Rollout:
    """What service.yaml asks for in one environment. Raises NotFound for an unknown one."""
    place = service.environment(env)
    surge, unavailable = steps(service.gpu.mode, place.replicas)
    return Rollout(
        replicas=place.replicas,
        surge=surge,
        unavailable=unavailable,
        memory_bytes=place.memory_bytes,
        cpu=place.cpu,
        gpu=service.gpu.mode,
        cards=1 if service.gpu.mode == "exclusive" else 0,
        gpu_memory_bytes=service.gpu.memory_bytes if service.gpu.mode == "shared" else 0,
        port=service.serving.port,
        startup_seconds=service.serving.startup_seconds,
    )


def steps(gpu: Literal["none", "shared", "exclusive"], replicas: int) -> tuple[int | None, int | None]:
    """(maxSurge, maxUnavailable), or (None, None) for Recreate: the table above."""
    if gpu == "none":
        return 1, 0
    return (0, 1) if replicas > 1 else (None, None)


def kubernetes_memory(amount: int) -> str:
    """Bytes as Kubernetes writes them, in the largest binary unit that divides them."""
    for unit, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if amount % size == 0:
            return f"{amount // size}{unit}"
    return str(amount)
