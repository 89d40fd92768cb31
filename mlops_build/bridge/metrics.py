"""The metrics of the loop, read from it at each scrape."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mlops_build.adapters.git.mirror import Mirror
from mlops_build.bridge.loop import SETTLED, Loop
from mlops_build.bridge.reconcile import State

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "mlops_bridge_"


class LoopCollector(Collector):
    """webhooks: verdict → number of requests, which the endpoint counts."""

    def __init__(self, loop: Loop, webhooks: dict[str, int]) -> None:
        self._loop, self._webhooks = loop, webhooks

    def describe(self) -> Iterable["Metric"]:
        """Nothing, so that registering the collector reads nothing."""
        return ()

    def collect(self) -> Iterable["Metric"]:
        loop, now = self._loop, time.monotonic()
        states = [state for watched in loop.repositories for state in tuple(watched.states.values())]
        changed = [watched for watched in loop.repositories if watched.changed_at is not None]
        waiting = sum(all(state in SETTLED for state in watched.states.values()) for watched in changed)
        oldest = max((now - (watched.changed_at or now) for watched in changed), default=0.0)
        yield _gauge("repositories", "Repositories that the bridge watches", len(loop.repositories))
        yield _gauge("registry_up", "1 if the last request to the registry was answered", bool(loop.registry_answers))
        if loop.fleet_answers is not None:
            yield _gauge("fleet_up", "1 if fleet.yaml can be read; only if it is configured", loop.fleet_answers)
        yield _gauge("pass_age_seconds", "Time since the last pass began", now - loop.beat)
        yield _gauge("pass_duration_seconds", "Duration of the last pass over all repositories", loop.pass_seconds)
        yield CounterMetricFamily(f"{PREFIX}passes", "Passes over all repositories", loop.passes)
        drift = sum(state not in SETTLED for state in states) + waiting
        yield _gauge("drift_environments", "Environments whose wanted release waits for the bridge, or failed", drift)
        yield _gauge("unreleased_age_seconds", "Age of the oldest change that is not released; 0 without one", oldest)
        yield CounterMetricFamily(f"{PREFIX}refusals", "Releases that a check refused", loop.refusals)
        yield CounterMetricFamily(f"{PREFIX}push_retries", "Pushes that were tried again after another one", Mirror.lost_races)
        of_state = GaugeMetricFamily(f"{PREFIX}environments", "Environments by the result of the last reconciliation", labels=["state"])
        for state in get_args(State):
            of_state.add_metric([state], states.count(state))
        failures = CounterMetricFamily(f"{PREFIX}failures", "Failed reconciliations", labels=["repository"])
        failing = GaugeMetricFamily(f"{PREFIX}failing", "1 if the last reconciliation failed", labels=["repository"])
        for watched in loop.repositories:
            failures.add_metric([watched.address], watched.all_failures)
            failing.add_metric([watched.address], bool(watched.failures))
        received = CounterMetricFamily(f"{PREFIX}webhooks", "Requests to /webhook", labels=["verdict"])
        for verdict, count in self._webhooks.items():
            received.add_metric([verdict], count)
        yield from (of_state, failures, failing, received)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", documentation, value)
