"""The arithmetic of replicas, memory and GPU, and that an update never needs more of the card than was asked for."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build import service as service_file
from mlops_build.errors import NotFound
from mlops_build.quantity import parse_bytes
from mlops_build.release.rollout import GATE_SECONDS, GRACE_SECONDS, kubernetes_memory, rollout, room, steps
from tests.release.world import SERVICE

Mode = Literal["none", "shared", "exclusive"]


@pytest.mark.parametrize(
    ("gpu", "replicas", "expected"),
    [
        ("none", 0, (1, 0)),
        ("none", 1, (1, 0)),
        ("none", 5, (1, 0)),
        ("shared", 1, (None, None)),
        ("exclusive", 1, (None, None)),
        ("shared", 0, (None, None)),
        ("shared", 2, (0, 1)),
        ("exclusive", 3, (0, 1)),
    ],
)
def test_steps_without_room(gpu: Mode, replicas: int, expected: tuple[int | None, int | None]) -> None:
    assert steps(gpu, replicas) == expected


@pytest.mark.parametrize("replicas", [0, 1, 5])
@pytest.mark.parametrize("gpu", ["none", "shared", "exclusive"])
@pytest.mark.parametrize("scaled", [True, False])
def test_steps_with_room_for_one_more(gpu: Mode, replicas: int, scaled: bool) -> None:
    assert steps(gpu, replicas, room=True, scaled=scaled) == (1, 0)


def test_steps_of_a_scaled_service_count_on_its_lowest_number() -> None:
    # Recreate would end all the pods there are, however many.
    assert steps("shared", 1, scaled=True) == (0, 1)
    assert steps("none", 1, scaled=True) == (1, 0)


@given(gpu=st.sampled_from(["none", "shared", "exclusive"]), replicas=st.integers(0, 1000), room=st.booleans(), scaled=st.booleans())
def test_an_update_takes_no_card_that_was_not_asked_for_and_always_moves_on(gpu: Any, replicas: int, room: bool, scaled: bool) -> None:
    surge, unavailable = steps(gpu, replicas, room=room, scaled=scaled)
    if gpu != "none" and not room:
        assert not surge
    if surge is not None and unavailable is not None:
        assert surge + unavailable > 0, "Kubernetes refuses both 0"
        assert unavailable < max(replicas, 1) or scaled, "one pod always answers"


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("mode: none", True),
        ("mode: shared, memory: 6GiB", False),
        ("mode: shared, memory: 6GiB, spare_memory: 6143MiB", False),
        ("mode: shared, memory: 6GiB, spare_memory: 6144MiB", True),
        ("mode: exclusive", False),
        ("mode: exclusive, spare_cards: 1", True),
    ],
)
def test_room_is_what_service_yaml_promises(gpu: str, expected: bool) -> None:
    service = service_file.parse(SERVICE.replace("mode: none", gpu))
    assert room(service.gpu) is expected
    one = rollout(service, "staging")
    assert one.recreate is not expected
    assert one.downtime is not expected


def test_a_scaled_service() -> None:
    text = SERVICE.replace("replicas: 2", "replicas: 1\n    autoscale: {max_replicas: 5, target: 3}")
    scaled = rollout(service_file.parse(text.replace("mode: none", "mode: shared")), "production")
    assert (scaled.replicas, scaled.most, scaled.surge, scaled.unavailable, scaled.downtime) == (1, 5, 0, 1, True)
    assert scaled.update_seconds > 5 * scaled.startup_seconds
    assert scaled.calm_seconds >= scaled.startup_seconds
    # No pods: nothing scales, whatever is written.
    stopped = rollout(service_file.parse(text.replace("replicas: 1", "replicas: 0")), "production")
    assert (stopped.autoscale, stopped.most) == (None, 0)


def test_service_yaml_becomes_numbers() -> None:
    service = service_file.parse(SERVICE.replace("{mode: none}", "{mode: shared, memory: 6GiB}"))
    production = rollout(service, "production")
    assert (production.replicas, production.memory_bytes, production.surge, production.unavailable) == (2, 1536 * 2**20, 0, 1)
    assert (production.gpu_memory_bytes, production.cards) == (6 * 2**30, 0)
    assert rollout(service, "staging").recreate
    assert production.deadline_seconds > production.startup_seconds
    # The pod before it may take the whole grace period to end, and only then is there room.
    assert production.wait_seconds >= GRACE_SECONDS
    assert production.startup_failures * 3 >= production.wait_seconds + GATE_SECONDS + production.startup_seconds
    exclusive = rollout(service_file.parse(SERVICE.replace("{mode: none}", "{mode: exclusive}")), "production")
    assert (exclusive.gpu_memory_bytes, exclusive.cards, exclusive.wait_seconds) == (0, 1, 0)
    with pytest.raises(NotFound):
        rollout(service, "nowhere")


@given(st.integers(1, 2**50))
def test_kubernetes_memory_is_exact(amount: int) -> None:
    text = kubernetes_memory(amount)
    assert (parse_bytes(text) if text[-1] == "i" and len(text) < 10 else amount) == amount


def test_kubernetes_memory() -> None:
    assert [kubernetes_memory(amount) for amount in (2**30, 1536 * 2**20, 3 * 2**10)] == ["1Gi", "1536Mi", "3Ki"]
