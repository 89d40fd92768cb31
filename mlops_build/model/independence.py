"""Whether a model's answer to a row depends on the other rows that are predicted with it.

The same check runs when a version is registered, when it is loaded, and while it is served. It needs no torch and no MLflow.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np

# Rows that are compared, and the seconds for it. A slow model is checked with fewer rows, at least two.
ROWS = 8
SECONDS = 10.0
# The cost of the check for each row, in predictions of a single row, if a batch takes as long as its rows one by one.
COST = 9

T = TypeVar("T")


@dataclass(frozen=True)
class Tolerance:
    """The allowed difference between the answers to a row alone and in a batch: kernels add numbers in another order.

    relative: of a number. absolute: of the largest number at the same position of the answers to other rows.
    """

    relative: float
    absolute: float


TOLERANCES = {"float32": Tolerance(1e-3, 1e-5), "bf16": Tolerance(5e-2, 2e-2)}
FLOAT32 = TOLERANCES["float32"]
# The largest finite number at each position of an answer; one for all if answers have different lengths.
Magnitude: TypeAlias = "np.ndarray[Any, Any]"
# Two predictions of the same row alone run the same kernels, so they may differ by a hundredth of the tolerance only.
REPEATED = 0.01


class Inconclusive(Exception):
    """A prediction failed for a reason that says nothing about the rows, such as a lack of memory."""


@dataclass(frozen=True)
class Verdict:
    """independent: whether rows do not influence each other; None if it is not known. why: the reason if it is not True.

    magnitude: of the compared answers, see `scale`.
    """

    independent: bool | None
    why: str = ""
    magnitude: "Magnitude | None" = field(default=None, compare=False)


UNKNOWN = Verdict(None, "fewer than two different rows are known")


def check(
    rows: Sequence[T],
    join: Callable[[Sequence[T]], T],
    predict: Callable[[T], Any],
    tolerance: Tolerance = FLOAT32,
    *,
    seconds: float = SECONDS,
    expected: float = 0.0,
) -> Verdict:
    """Check rows that differ from each other; not known if it takes longer than `seconds`. Arguments: see `steps`."""
    if len(rows) < 2:
        return UNKNOWN
    running, end = steps(rows, join, predict, tolerance, expected), time.perf_counter() + seconds
    try:
        while next(running) + time.perf_counter() <= end:  # first `next`, which makes the previous prediction
            pass
    except StopIteration as stop:
        verdict: Verdict = stop.value
        return verdict
    return Verdict(None, f"the check takes longer than {seconds:g} s")


def steps(
    rows: Sequence[T], join: Callable[[Sequence[T]], T], predict: Callable[[T], Any], tolerance: Tolerance = FLOAT32, expected: float = 0.0
) -> Generator[float, None, Verdict]:
    """Predict each row alone, twice; then the rows together, in other orders, twice each, and in pairs. Compare the answers.

    rows: at least two, each different from the others. join: several rows as one input. predict: the output for an input, with one element
    per row; may raise Inconclusive. expected: the seconds of the first prediction, if known.
    Yields before each prediction: the seconds that it is expected to take.
    """
    alone: list[Any] = []
    number, cost = len(rows), expected
    exact = Tolerance(tolerance.relative * REPEATED, tolerance.absolute * REPEATED)
    while len(alone) < number:
        answers: list[Any] = []
        for _ in range(2):
            yield cost
            began = time.perf_counter()
            answer = _answers(lambda row: predict(join([row])), rows[len(alone)], 1)  # a copy, since a model may change its input
            cost = time.perf_counter() - began
            if isinstance(answer, Verdict):
                return answer
            answers += answer
        if not close(answers[:1], answers[1:], exact, scale(answers)):
            return Verdict(False, "the model's output for the same row changes from one prediction to the next")
        alone.append(answers[0])
        number = max(2, min(number, int(SECONDS / (COST * cost + 1e-9))))
    magnitude = scale(alone)
    for indices in _batches(number):
        yield cost * len(indices)
        began = time.perf_counter()
        together = _answers(lambda parts: predict(join(parts)), [rows[index] for index in indices], len(indices))
        cost = min(cost, (time.perf_counter() - began) / len(indices))
        if isinstance(together, Verdict):
            return together
        if not close([alone[index] for index in indices], together, tolerance, magnitude):
            return Verdict(False, "the model's output for a row changes with the other rows of a batch")
    if number < ROWS and all(close(alone[:1], [answer], tolerance, magnitude) for answer in alone):
        return Verdict(None, "the answers to the rows are equal, so an influence could not be seen")
    return Verdict(True, magnitude=magnitude)


def close(left: Sequence[Any], right: Sequence[Any], tolerance: Tolerance, magnitude: Magnitude) -> bool:
    """Whether the answers to rows differ by rounding only. Everything but floats must be equal. magnitude: see `scale`."""
    return len(left) == len(right) and all(_close(*pair, tolerance, magnitude) for pair in zip(left, right, strict=True))


def scale(answers: Sequence[Any], before: "Magnitude | None" = None) -> Magnitude:
    """The magnitude of the answers to rows, and of those that `before` was computed from.

    A sum's rounding error follows its largest terms, not its result, which may be 0. Each position of an answer has its own magnitude: a
    time stamp beside a score says nothing about the score.
    """
    sizes = [np.nan_to_num(np.abs(_flat(answer)[0]), nan=0.0, posinf=0.0) for answer in answers]
    sizes += [] if before is None else [before]
    if len({numbers.size for numbers in sizes}) == 1:
        return np.array(np.max(sizes, axis=0))
    return np.array([max((float(numbers.max(initial=0.0)) for numbers in sizes), default=0.0)])


def _close(left: Any, right: Any, tolerance: Tolerance, magnitude: Magnitude) -> bool:
    (numbers, others), (other_numbers, other_others) = _flat(left), _flat(right)
    if len(numbers) != len(other_numbers) or repr(others) != repr(other_others):
        return False
    magnitude = magnitude if magnitude.size == numbers.size else magnitude.max(initial=0.0)
    return bool(np.allclose(numbers, other_numbers, rtol=tolerance.relative, atol=tolerance.absolute * magnitude, equal_nan=True))


def _answers(predict: Callable[[Any], Any], rows: Any, count: int) -> "list[Any] | Verdict":
    try:
        output = predict(rows)
    except Inconclusive as error:
        return Verdict(None, str(error))
    except Exception as error:
        name = type(error.__cause__ or error).__name__
        return Verdict(False, f"the model fails on {'a single row' if count == 1 else 'several rows together'} ({name})")
    if isinstance(output, list | np.ndarray) and len(output) == count:
        return list(output)
    return Verdict(False, "the model's output does not have one element per row")


def _batches(number: int) -> dict[tuple[int, ...], None]:
    """The batches to predict, as indices of rows."""
    whole = tuple(range(number))
    pairs = [(index, (index + 1) % number) for index in whole]
    return dict.fromkeys([whole, whole[::-1], whole[1:] + whole[:1], whole + whole[::-1], *pairs])


def _flat(value: Any) -> tuple["np.ndarray[Any, Any]", list[Any]]:
    """The floats of an answer, and everything else in it: other values, keys and lengths."""
    arrays: list[np.ndarray[Any, Any]] = []
    others: list[Any] = []
    _collect(value, arrays, others)
    return np.concatenate([np.empty(0), *arrays]), others


def _collect(value: Any, arrays: "list[np.ndarray[Any, Any]]", others: list[Any]) -> None:
    array = _array(value)
    if array is not None:
        others.append(array.shape)
        if array.dtype.kind == "f":
            arrays.append(array.ravel())
        else:
            others.append((array if array.dtype.kind == "b" else array.astype("int64")).tobytes())
        return
    if hasattr(value, "tolist"):  # of numpy, pandas or torch
        value = value.tolist()
    if isinstance(value, dict):
        others.append(list(value))
        for element in value.values():
            _collect(element, arrays, others)
    elif isinstance(value, list | tuple):
        others.append(len(value))
        for element in value:
            _collect(element, arrays, others)
    elif isinstance(value, float):
        others.append(float)
        arrays.append(np.array([value]))
    else:
        others.append(value)


def _array(value: Any) -> "np.ndarray[Any, Any] | None":
    """An array, or a list of nothing but numbers, as an array: an answer may have millions of numbers."""
    if isinstance(value, list | tuple) and value and isinstance(value[0], float | int | list | np.ndarray | np.generic):
        if {int, float} <= set(map(type, value)):  # integers must be equal
            return None
        try:
            value = np.array(value)
        except (ValueError, OverflowError):  # rows of different lengths
            return None
    return value if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "fiub" else None
