"""Whether a promise of memory is granted: the rule of the protocol in search.py."""

from collections.abc import Callable, Sequence
from enum import Enum

from mlops_build.gpu.promise import Promise


class Verdict(Enum):
    """What a process does with its promise after reading all others."""

    GRANTED = "granted"
    WAIT = "wait"
    WITHDRAW = "withdraw"


def verdict(mine: Promise, promises: Sequence[Promise], fits: Callable[[Sequence[Promise]], bool]) -> Verdict:
    """promises: all, from a read that began after `mine` was visible. fits: whether `mine` has room beside these other promises.

    The last two verdicts only decide who withdraws. The safety of the protocol is in the first.
    """
    others = [promise for promise in promises if promise.id != mine.id]
    if len(others) < len(promises) and fits(others):
        return Verdict.GRANTED
    earlier = [promise for promise in others if promise.order < mine.order]
    return Verdict.WAIT if fits(earlier) else Verdict.WITHDRAW
