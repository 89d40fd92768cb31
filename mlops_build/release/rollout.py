"""The numbers of a Deployment: replicas, update strategy, memory, CPU and GPU.

Where the arithmetic comes from: a rolling update needs spare memory. Kubernetes' default (a surge of 25 %) starts a new pod beside the
old one. On a node whose cards are full that pod never becomes ready, or it takes memory from a neighbour and kills it (LLMKube#192,
airunway#400, kserve#4618). The scheduler manages main memory: a pod that does not fit waits, and others are not affected. Therefore:

| GPU, room for one more | replicas          | strategy                     | while updating                                      |
| ---------------------- | ----------------- | ---------------------------- | --------------------------------------------------- |
| none                   | any               | maxSurge 1, maxUnavailable 0 | one pod more; never fewer than asked for            |
| a card, room           | any               | maxSurge 1, maxUnavailable 0 | one pod more, in the room that was kept for it      |
| a card, no room        | 2 or more, scaled | maxSurge 0, maxUnavailable 1 | one pod fewer; never a card more than asked for     |
| a card, no room        | 0 or 1            | Recreate                     | the old pod ends, then the new one loads: downtime  |

Room for one more is what service.yaml promises: `gpu.spare_memory` of at least `gpu.memory` (shared), `gpu.spare_cards` of at least 1
(exclusive). Memory is requested and limited alike, since it cannot be taken back; CPU is requested only, since a limit slows a pod down
on an idle node.
"""

import math
from dataclasses import dataclass
from typing import Literal

from mlops_build.service import Autoscale, Gpu, Service

# Images of releases before 0.7 wait this long for other services that load onto the same card.
GATE_SECONDS = 120
# The period of the start-up probe.
PROBE_SECONDS = 3
# What a pod needs besides loading its model: its image is pulled, and the pod before it may take GRACE_SECONDS to end.
PULL_SECONDS = 300
# terminationGracePeriodSeconds of the template's Deployment.
GRACE_SECONDS = 60
# Kubernetes' own least time between two looks before pods are taken away.
CALM_SECONDS = 300

Mode = Literal["none", "shared", "exclusive"]


@dataclass(frozen=True)
class Rollout:
    """The numbers of one Deployment. Memory in bytes, CPU as Kubernetes writes it, `cards` whole GPUs from the device plugin,
    `gpu_memory_bytes` the budget on a shared card.

    surge and unavailable: pods more and fewer than `replicas` during an update; both None means Recreate. autoscale: None where a fixed
    number of pods runs, and where none runs (`replicas: 0` stops a service, whatever it scales on).
    """

    replicas: int
    surge: int | None
    unavailable: int | None
    memory_bytes: int
    cpu: str
    gpu: Mode
    cards: int
    gpu_memory_bytes: int
    port: int
    startup_seconds: int
    autoscale: Autoscale | None = None

    @property
    def recreate(self) -> bool:
        return self.surge is None

    @property
    def downtime(self) -> bool:
        """Whether the service may not answer during an update."""
        return self.recreate or (self.surge == 0 and self.replicas <= 1)

    @property
    def most(self) -> int:
        """The largest number of pods that run outside an update."""
        return self.autoscale.max_replicas if self.autoscale else self.replicas

    @property
    def wait_seconds(self) -> int:
        """How long a pod may wait for room on a shared card: as long as the pod before it may take to end, at least."""
        return max(self.startup_seconds, GRACE_SECONDS) if self.gpu == "shared" else 0

    @property
    def start_seconds(self) -> int:
        """The longest start: waiting for room on a shared card, then for its turn to load there, then loading."""
        turn = GATE_SECONDS if self.gpu == "shared" else 0
        return self.wait_seconds + turn + self.startup_seconds

    @property
    def startup_failures(self) -> int:
        """How often the start-up probe may fail before the pod counts as broken."""
        return math.ceil(self.start_seconds / PROBE_SECONDS)

    @property
    def deadline_seconds(self) -> int:
        """progressDeadlineSeconds: longer than the longest start, so that a slow start is not a failed rollout."""
        return self.start_seconds + PULL_SECONDS

    @property
    def update_seconds(self) -> int:
        """How long an update may take: the image is pulled, then one pod after the other ends, waits and loads."""
        return PULL_SECONDS + max(self.most, 1) * (self.start_seconds + GRACE_SECONDS)

    @property
    def calm_seconds(self) -> int:
        """How long the load must be low before a pod is removed: not shorter than its start."""
        return max(CALM_SECONDS, self.startup_seconds)


def rollout(service: Service, env: str) -> Rollout:
    """The numbers for an environment of service.yaml. Raises NotFound for an unknown one."""
    place = service.environment(env)
    autoscale = place.autoscale if place.replicas else None
    surge, unavailable = steps(service.gpu.mode, place.replicas, room=room(service.gpu), scaled=autoscale is not None)
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
        autoscale=autoscale,
    )


def room(gpu: Gpu) -> bool:
    """Whether service.yaml promises room on a card for one pod more than asked for. Without a GPU there always is: the scheduler's."""
    if gpu.mode == "shared":
        return gpu.spare_bytes >= gpu.memory_bytes
    return gpu.mode == "none" or gpu.spare_cards >= 1


def steps(gpu: Mode, replicas: int, *, room: bool = False, scaled: bool = False) -> tuple[int | None, int | None]:
    """(maxSurge, maxUnavailable), or (None, None) for Recreate: the table above. room: for one pod more, on a card. scaled: the number of
    pods changes, `replicas` is the lowest."""
    if gpu == "none" or room:
        return 1, 0
    return (0, 1) if replicas > 1 or scaled else (None, None)


def kubernetes_memory(amount: int) -> str:
    """Bytes in Kubernetes' notation, in the largest binary unit that divides them."""
    for unit, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if amount % size == 0:
            return f"{amount // size}{unit}"
    return str(amount)
