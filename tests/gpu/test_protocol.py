"""The protocol of search.py as a model, explored exhaustively: three processes, two cards, and a crash possible at each step.

The model has no lock, since safety must not depend on it. Reading the lease directory is not atomic: each other promise is read in a step
of its own. A process that crashes loses its promise in the same step, as the kernel unlocks its file. The decision is the real `verdict`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest

from mlops_build.gpu.promise import Promise
from mlops_build.gpu.verdict import Verdict, verdict

CARDS = 2
CAPACITY = 3
Decide = Callable[[Promise, Sequence[Promise], Callable[[Sequence[Promise]], bool]], Verdict]


@dataclass(frozen=True)
class Process:
    """at: the step that it takes next. card: the chosen card. key: when it made its promise. unread: the processes whose promises it has
    still to read. seen: what it has read, as (number, card, key)."""

    size: int
    at: str = "choose"
    card: int = -1
    key: int = 0
    tries: int = 0
    unread: tuple[int, ...] = ()
    seen: tuple[tuple[int, int, int], ...] = ()

    @property
    def visible(self) -> bool:
        """Whether its promise is in the directory."""
        return self.at in ("read", "decide", "withdraw", "granted")


State = tuple[Process, ...]


def promise(number: int, size: int, card: int, key: int) -> Promise:
    return Promise(str(number), (str(card),), size, False, "", 0, 0, 0, 0.0, boot=float(key))


@cache
def decided(decide: Decide, sizes: tuple[int, ...], number: int, card: int, key: int, seen: tuple[tuple[int, int, int], ...]) -> Verdict:
    mine = promise(number, sizes[number], card, key)

    def fits(others: Sequence[Promise]) -> bool:
        return sum(other.bytes for other in others if other.uuids == mine.uuids) + mine.bytes <= CAPACITY

    return decide(mine, [mine, *(promise(other, sizes[other], *rest) for other, *rest in seen)], fits)


def steps(processes: State, tries: int, decide: Decide) -> Iterator[State]:
    """Every state that follows. tries: how often a process chooses."""

    def after(number: int, **changes: object) -> State:
        changed = replace(processes[number], **changes)  # type: ignore[arg-type]
        return with_ranks((*processes[:number], changed, *processes[number + 1 :]))

    for number, process in enumerate(processes):
        others = tuple(other for other in range(len(processes)) if other != number)
        if process.at not in ("dead", "refused"):
            yield after(number, at="dead", card=-1, key=0, seen=(), unread=())
        if process.at == "choose":
            # It may have read the directory long ago, so every card is possible. Its key is later than all that exist.
            yield from (after(number, at="write", card=card, key=1000) for card in range(CARDS))
        elif process.at == "write":
            yield after(number, at="read", unread=others, seen=())
        elif process.at == "read":
            for other in process.unread:
                unread = tuple(left for left in process.unread if left != other)
                there = processes[other]
                seen = tuple(sorted((*process.seen, (other, there.card, there.key)))) if there.visible else process.seen
                yield after(number, at="read" if unread else "decide", unread=unread, seen=seen)
        elif process.at == "decide":
            verdict_now = decided(decide, tuple(each.size for each in processes), number, process.card, process.key, process.seen)
            if verdict_now is Verdict.GRANTED:
                yield after(number, at="granted", seen=())
            else:
                yield after(number, at="withdraw", seen=())  # after WAIT: at its deadline
            if verdict_now is Verdict.WAIT:
                yield after(number, at="read", unread=others, seen=())
        elif process.at == "withdraw":
            done = process.tries + 1
            yield after(number, at="choose" if done < tries else "refused", card=-1, key=0, tries=done)


def with_ranks(state: State) -> State:
    """The same state with keys 1, 2, …: only their order matters."""
    keys = {process.key for process in state} | {key for process in state for _, _, key in process.seen}
    ranks = {0: 0} | {key: rank for rank, key in enumerate(sorted(keys - {0}), 1)}
    if all(key == rank for key, rank in ranks.items()):
        return state
    return tuple(
        replace(process, key=ranks[process.key], seen=tuple((other, card, ranks[key]) for other, card, key in process.seen))
        for process in state
    )


def explore(sizes: tuple[int, ...], tries: int, decide: Decide) -> tuple[int, State | None, bool]:
    """The number of reachable states, one that grants a card beyond its capacity, and whether all processes can be granted memory."""
    first: State = tuple(Process(size) for size in sizes)
    reached, left = {first}, [first]
    all_granted = False
    while left:
        state = left.pop()
        held = [process for process in state if process.at == "granted"]
        if any(sum(process.size for process in held if process.card == card) > CAPACITY for card in range(CARDS)):
            return len(reached), state, all_granted
        all_granted = all_granted or len(held) == len(sizes)
        for following in steps(state, tries, decide):
            if following not in reached:
                reached.add(following)
                left.append(following)
    return len(reached), None, all_granted


def the_later_withdraws(mine: Promise, promises: Sequence[Promise], fits: Callable[[Sequence[Promise]], bool]) -> Verdict:
    """A rule that seems to be enough. A slow process with an earlier key sees only later promises, and both are granted."""
    earlier = [other for other in promises if other.order < mine.order]
    return Verdict.GRANTED if fits(earlier) else Verdict.WITHDRAW


def test_two_processes() -> None:
    states, violation, all_granted = explore((2, 2), 3, verdict)
    assert violation is None
    assert all_granted, "on two cards"
    assert states > 1_000


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 3, 3), (2, 1, 2)])
def test_three_processes(sizes: tuple[int, ...]) -> None:
    states, violation, all_granted = explore(sizes, 1, verdict)
    assert violation is None
    assert all_granted is (sum(sizes) <= CARDS * CAPACITY)
    assert states > 50_000


def test_the_model_finds_the_fault_of_a_rule_that_is_not_enough() -> None:
    assert explore((2, 2), 1, the_later_withdraws)[1] is not None
