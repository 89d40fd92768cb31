"""Requests are batched only once the rows are shown not to influence each other: models of which each answers in another way."""

import asyncio
import json
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from mlops_build.model.independence import TOLERANCES
from mlops_build.serving import joining, pieces
from mlops_build.serving import predictor as predictor_module
from mlops_build.serving.batcher import Batcher
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.load import from_folder, load, warm_up
from mlops_build.serving.predictor import Predictor
from tests.serving import models
from tests.serving.conftest import serving
from tests.serving.test_http import ask, body, metric, wait_for_metric

# Answers with the function that a test sets, and notes the number of rows of each prediction.
SET = """
    answer, sizes = None, []

    def predict(self, context, data, params=None):
        self.sizes.append(len(data))
        return self.answer(data)
"""
# A row is three columns of a table, or a text.
Answer = Callable[[Any], Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("joining")
    models.save(folder / "numbers", models.FLOATS, SET)
    models.save(folder / "texts", models.columns(("text", "string")), SET)
    models.save(folder / "tensor", models.tensor("float32", (-1, 3)), SET)
    return {name: folder / name / "model" for name in ("numbers", "texts", "tensor")}


class Model:
    """A predictor whose model answers with a function."""

    def __init__(self, folder: Path, answer: Answer, **options: Any) -> None:
        loaded = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
        self.python: Any = loaded.unwrap_python_model()
        self.python.answer, self.python.sizes = answer, []
        self.predictor = Predictor(loaded, **options)
        self.differences = 0
        self.predictor.joining.on_difference = self._count

    def _count(self) -> None:
        self.differences += 1

    @property
    def on(self) -> bool:
        return self.predictor.joining.on

    def answers(self, *requests: Rows) -> list[Any]:
        """Send requests at one time, wait for their answers, and for the idle moments after them."""

        async def main() -> list[Any]:
            batcher = Batcher(self.predictor.predict)
            lock, ended = threading.Lock(), False

            def idle() -> bool:
                with lock:
                    return not ended and self.predictor.joining.step(idle=True)

            batcher.on_idle = idle
            try:
                return await asyncio.gather(*(batcher.put(rows, 30) for rows in requests), return_exceptions=True)
            finally:
                with lock:  # the test uses the predictor now
                    ended = True

        return asyncio.run(main())

    def idle(self) -> None:
        """Let the idle moments pass that the queue's thread would have had."""
        while self.predictor.joining.step(idle=True):
            pass


def numbers(*rows: float, request_id: bytes = b"") -> Rows:
    return Rows("block", np.array([[row, 2.0, 3.0] for row in rows], "float32"), len(rows), None, request_id=request_id)


def texts(*rows: str) -> Rows:
    return Rows("columns", [list(rows)], len(rows))


def scores(data: Any) -> Any:
    return [float(row[0]) / 3 for row in data.to_numpy()]


def minus_mean(data: Any) -> Any:
    return (data["a"] - data["a"].mean()).tolist()


def large(data: Any) -> Any:
    """Only rows of 1000 and more change."""
    return [value if value < 1000 else value + len(data) * 100.0 for value in data["a"].tolist()]


def softmax(data: Any) -> Any:
    exponents = np.exp(data["a"] - data["a"].max())
    return (exponents / exponents.sum()).tolist()


def normalised(data: Any) -> Any:
    values = data.to_numpy("float64")
    return ((values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)).tolist()


def padded(data: Any) -> Any:
    """The mean of the codes, with spaces up to the length of the longest text of the batch."""
    longest = max(len(text) for text in data["text"])
    return [sum(map(ord, text.ljust(longest))) / longest for text in data["text"]]


def without_nan(data: Any) -> Any:
    return (data.dropna()["a"] * 2).tolist()


ALONE: dict[str, tuple[str, Answer]] = {
    "minus the mean": ("numbers", minus_mean),
    "softmax over the batch": ("numbers", softmax),
    "batch norm": ("numbers", normalised),
    "padded": ("texts", padded),
}


def batched(saved: dict[str, Path], answer: Answer) -> Model:
    """A model whose recorded example has shown that it may be batched."""
    model = Model(saved["numbers"], answer)
    assert model.predictor.joining.check(numbers(1.0, 2.0)).independent
    del model.python.sizes[:]
    return model


def example(kind: str, rows: int) -> Rows:
    return numbers(*range(1, rows + 1)) if kind == "numbers" else texts(*("four", "sixsix")[:rows])


@pytest.mark.parametrize("recorded", [0, 1, 2])
@pytest.mark.parametrize("name", ALONE)
def test_concurrent_callers_receive_the_answers_of_single_requests(saved: dict[str, Path], name: str, recorded: int) -> None:
    kind, answer = ALONE[name]
    model = Model(saved[kind], answer)
    if recorded:
        model.predictor.joining.check(example(kind, recorded))
    requests = [numbers(10.0**power) if kind == "numbers" else texts("x" * (power + 1)) for power in range(9)]
    expected = [model.predictor.predict([rows])[0] for rows in requests]
    for _ in range(3):
        assert model.answers(*requests) == expected
    model.idle()
    assert model.predictor.joining.refuted
    del model.python.sizes[:]
    assert model.answers(*requests) == expected
    assert model.python.sizes == [1] * len(requests)


def test_a_model_is_batched_after_evidence_from_live_rows(saved: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    model = Model(saved["numbers"], scores)
    model.answers(*(numbers(float(row)) for row in range(joining.independence.ROWS - 1)))
    model.idle()
    assert not model.on
    model.answers(*(numbers(7.0, 1.0) for _ in range(9)))
    model.idle()
    assert model.on
    assert "the model: its requests are predicted in batches from now on" in caplog.text
    del model.python.sizes[:]
    assert model.answers(*(numbers(float(row)) for row in range(8))) == [[row / 3] for row in map(float, range(8))]
    assert model.python.sizes[0] == 8


def test_a_service_whose_queue_is_never_empty_gets_there_too(saved: dict[str, Path]) -> None:
    model = Model(saved["numbers"], scores)
    for start in range(100):  # `idle` is never called
        model.predictor.predict([numbers(start + 0.0), numbers(start + 0.5)])
    assert model.on


def test_few_different_rows_are_enough_after_many_requests(saved: dict[str, Path]) -> None:
    model = Model(saved["numbers"], scores)
    for _ in range(joining.REQUESTS // 2):
        model.predictor.predict([numbers(1.0), numbers(2.0)])
    model.idle()
    assert model.on
    same = Model(saved["numbers"], scores)
    for _ in range(3 * joining.REQUESTS):
        same.predictor.predict([numbers(1.0)])
    same.idle()
    assert not same.on, "one row shows nothing"


def test_rows_with_equal_answers_are_no_evidence_until_there_are_many(saved: dict[str, Path]) -> None:
    model = Model(saved["numbers"], lambda data: ["spam"] * len(data))
    assert model.predictor.joining.check(numbers(1.0, 2.0)).independent is None
    assert not model.on
    model.answers(*(numbers(float(row)) for row in range(8)))
    model.idle()
    assert model.on


def test_failed_requests_are_no_evidence_and_stay_answered(saved: dict[str, Path]) -> None:
    def failing(data: Any) -> Any:
        if (data["a"] < 0).any():
            raise ValueError("negative")
        return scores(data)

    model = Model(saved["numbers"], failing)
    for sign in (-1.0, 1.0):
        for row in range(8):
            model.predictor.predict([numbers(sign * (row + 1))])
        model.idle()
        assert model.on == (sign > 0)
    answers = model.answers(numbers(3.0), numbers(-3.0), numbers(6.0))
    assert (answers[0], answers[2]) == ([1.0], [2.0])
    assert isinstance(answers[1], Exception)
    assert model.on


def test_a_model_with_random_answers_is_not_batched(saved: dict[str, Path]) -> None:
    dice = np.random.default_rng(0)

    def noisy(data: Any) -> Any:
        return (data["a"] + dice.normal(size=len(data))).tolist()

    for options in ({}, {"declared": "they are"}):
        model = Model(saved["numbers"], noisy, **options)
        verdict = model.predictor.joining.check(numbers(1.0, 2.0))
        assert "for the same row changes" in verdict.why
        assert not model.on
    live = Model(saved["numbers"], noisy)
    live.answers(*(numbers(float(row)) for row in range(9)))
    live.idle()
    assert "for the same row changes" in str(live.predictor.joining.refuted)


def test_a_wrong_shape_does_not_end_batching(saved: dict[str, Path]) -> None:
    model = batched(saved, without_nan)
    for _ in range(3):
        assert model.answers(numbers(1.0), numbers(math.nan), numbers(3.0)) == [[2.0], [], [6.0]]
    assert model.on
    del model.python.sizes[:]
    assert model.answers(numbers(4.0), numbers(5.0)) == [[8.0], [10.0]]
    assert model.python.sizes[0] == 2


def test_a_wrong_shape_is_followed_by_a_check_of_the_evidence(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"broken": False}

    def answer(data: Any) -> Any:
        return scores(data)[:1] if state["broken"] else scores(data)

    model = Model(saved["numbers"], answer)
    monkeypatch.setattr(joining, "SHARE", 1.0)
    assert model.predictor.joining.check(numbers(1.0, 2.0)).independent
    state["broken"] = True
    assert model.answers(numbers(3.0), numbers(6.0)) == [[1.0], [2.0]]
    model.idle()
    assert model.predictor.joining.refuted == "the model's output does not have one element per row"
    assert model.differences == 1


def test_a_difference_in_the_first_batches_is_never_answered(saved: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """The evidence does not show it."""
    for model in (batched(saved, large), Model(saved["numbers"], large, declared="they are")):
        assert model.on
        assert model.answers(numbers(1.0), numbers(1000.0, request_id=b"call-7")) == [[1.0], [1100.0]]
        assert not model.on
        assert model.differences == 1
        assert "changes with the other rows of a batch (request call-7)" in caplog.text
        assert model.answers(numbers(1.0), numbers(1000.0)) == [[1.0], [1100.0]]


def test_a_sample_of_later_batches_is_compared_in_idle_moments(
    saved: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = batched(saved, large)
    for _ in range(joining.FIRST):
        model.predictor.predict([numbers(float(row)) for row in range(8)])
    monkeypatch.setattr(joining, "SHARE", 0.0)
    model.predictor.joining._allowance = 0.0
    batch = [numbers(1.0), numbers(1000.0, request_id=b"call-8"), *(numbers(float(row)) for row in range(6))]
    del model.python.sizes[:]
    model.predictor.predict(batch)
    model.idle()
    assert model.python.sizes == [8], "there was no time for it"
    monkeypatch.setattr(joining, "SHARE", 1.0)
    model.predictor.predict(batch)
    model.predictor.predict([numbers(1.0)])
    assert model.python.sizes == [8, 8, 1], "a request comes first"
    monkeypatch.setattr(joining.random, "sample", lambda rows, number: list(rows)[::2][:number])
    model.predictor.joining._work = None
    model.predictor.predict(batch)
    model.idle()
    assert model.python.sizes[4:] == [1] * joining.SAMPLE
    assert model.on, "the sample has every second row"
    model.predictor.predict([batch[1], *batch[2:]])
    model.idle()
    assert not model.on
    assert model.differences == 1
    assert "(request call-8): its requests are no longer predicted in batches" in caplog.text


def test_every_row_of_a_request_may_be_compared(saved: dict[str, Path]) -> None:
    """Only the second row of each request is wrong."""
    model = batched(saved, large)
    for _ in range(joining.FIRST):
        answers = model.answers(*(numbers(1.0, 1000.0) for _ in range(4)))
        if not model.on:
            break
    assert not model.on
    assert answers == [[1.0, 1200.0]] * 4


def test_a_sample_is_compared_under_constant_load_too(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SHARE", 1.0)
    monkeypatch.setattr(joining, "BUSY_SECONDS", -1.0)
    model = batched(saved, large)
    for _ in range(joining.FIRST):
        model.predictor.predict([numbers(1.0), numbers(2.0)])
    for _ in range(joining.SAMPLE + 2):
        model.predictor.predict([numbers(1000.0), numbers(1001.0)])
    assert not model.on


def test_requests_with_other_params_need_their_own_evidence(saved: dict[str, Path]) -> None:
    model = batched(saved, scores)
    other = [Rows("block", numbers(row).data, 1, {"scale": 2}) for row in range(8)]
    del model.python.sizes[:]
    model.answers(*other)
    assert model.python.sizes[:8] == [1] * 8
    model.idle()
    del model.python.sizes[:]
    model.answers(*other)
    assert model.python.sizes[0] == 8


class Clock:
    """Time that passes only while a model predicts."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def taking(self, per_call: float, per_row: float, answer: Answer) -> Answer:
        def slow(data: Any) -> Any:
            self.now += per_call + per_row * len(data)
            return answer(data)

        return slow


def test_a_large_request_is_predicted_in_parts_if_its_rows_are_independent(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = numbers(*range(1000))
    for model, first in ((batched(saved, scores), 128), (Model(saved["numbers"], scores), 1000)):
        assert model.answers(whole) == [[row / 3 for row in range(1000)]]
        assert model.python.sizes[0] == first
    monkeypatch.setattr(predictor_module, "time", clock := Clock())
    for per_call, per_row, expected in ((1.0, 0.0, [128, 256, 512, 104]), (0.0, 1.0, [128, 256, 256, 256, 104])):
        model = batched(saved, clock.taking(per_call, per_row, scores))
        model.predictor.predict([whole])
        assert model.python.sizes[: len(expected)] == expected, "larger parts only if they make it faster"
    dependent = Model(saved["numbers"], minus_mean, declared="they are")
    (answer,) = dependent.answers(whole)
    assert answer == [row - 499.5 for row in range(1000)]


def test_large_outputs_are_compared_and_joined_too(saved: dict[str, Path]) -> None:
    """They stay arrays, and those of a single row may be lists."""

    def large(data: Any) -> Any:
        return np.repeat(data.to_numpy("float32"), pieces.PIECE // 16, axis=1)

    model = Model(saved["numbers"], large)
    requests = [numbers(float(row)) for row in range(8)]
    expected = [np.asarray(answer).tolist() for answer in model.answers(*requests)]
    model.idle()
    assert model.on
    del model.python.sizes[:]
    for _ in range(2):
        assert [np.asarray(answer).tolist() for answer in model.answers(*requests)] == expected
    assert model.python.sizes[0] == 8
    (whole,) = model.answers(numbers(*map(float, range(300))))
    assert len(whole) == 300
    assert [np.asarray(row).tolist() for row in whole[:8]] == [rows[0] for rows in expected]
    assert model.on


def test_the_tolerance_follows_the_precision(saved: dict[str, Path]) -> None:
    def half(data: Any) -> Any:
        return (data["a"] * (1.0 if len(data) == 1 else 1.004)).tolist()

    for precision, on in (("float32", False), ("bf16", True)):
        model = Model(saved["numbers"], half, tolerance=TOLERANCES[precision])
        model.predictor.joining.check(numbers(1.0, 2.0))
        assert model.on == on


def test_tensors_of_different_shapes_are_neither_joined_nor_compared(tmp_path: Path) -> None:
    models.save(tmp_path / "free", models.tensor("float32", (-1, -1)), SET)
    model = Model(tmp_path / "free/model", lambda data: data.sum(axis=1))
    requests = [Rows("tensor", np.full((1, 1 + number % 3), number, "float32"), 1) for number in range(100)]
    for request in requests:
        (answer,) = model.predictor.predict([request])
        assert answer == [request.data.sum()]
    answers = model.predictor.predict(requests)
    assert [list(answer) for answer in answers] == [[request.data.sum()] for request in requests]


def test_a_signature_with_a_fixed_number_of_rows_is_not_batched(tmp_path: Path) -> None:
    model = models.save(tmp_path / "fixed", models.tensor("float32", (2, 3)))
    predictor = Predictor(model, declared="they are")
    assert predictor.joining.refuted == "the signature has a fixed number of rows"
    assert not predictor.joining.on


# -- whole processes --

MEAN = """
    def predict(self, context, data, params=None):
        return (data["a"] - data["a"].mean()).tolist()
"""
PLAIN = """
    def predict(self, context, data, params=None):
        return (data["a"] * 2).tolist()
"""


def concurrently(server: Any, values: Sequence[float]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda value: ask(server, body(value)), values))
    assert {status for status, _, _ in answers} == {200}
    return [json.loads(text)["predictions"][0] for _, _, text in answers]


def test_the_metrics_and_the_log_show_when_batching_begins(tmp_path: Path) -> None:
    models.save(tmp_path / "plain", models.FLOATS, PLAIN)
    with serving(tmp_path / "served", str(tmp_path / "plain/model")) as server:
        server.wait_for("serving.rows_independent in service.yaml")
        assert "since training.log_model has recorded no example. To batch at once, log the model with" in server.log.read_text()
        assert server.url
        assert metric(server, 'mlops_build_batching{model="model"}') == 0
        assert concurrently(server, range(20)) == [2.0 * number for number in range(20)]
        wait_for_metric(server, 'mlops_build_batching{model="model"}', 1)
        server.wait_for("model: its requests are predicted in batches from now on")
        assert concurrently(server, range(20)) == [2.0 * number for number in range(20)]
        assert metric(server, 'mlops_build_batching_differences_total{model="model"}') == 0


def test_rows_independent_is_declared_and_a_failed_check_overrides_it(tmp_path: Path) -> None:
    messages: list[str] = []
    for name, code, recorded in (("plain", PLAIN, ()), ("mean", MEAN, (1.0, 2.0))):
        models.save(tmp_path / name, models.FLOATS, code)
        folder = tmp_path / name / "model"
        if recorded:
            models.record(folder, [[row, 0.0, 0.0] for row in recorded])
        (loaded,) = load(from_folder(folder, lambda _: None), rows_independent="no layer across rows").models
        warm_up(loaded, messages.append)
        assert loaded.predictor.joining.on == (name == "plain")
    why = "the model's output for a row changes with the other rows of a batch"
    assert messages == [
        "model: requests are predicted in batches, since rows_independent says: no layer across rows",
        f"model: requests are not predicted in batches, since {why}, although rows_independent says: no layer across rows",
    ]


def test_a_batch_that_is_larger_than_any_before_is_compared_before_it_is_answered(saved: dict[str, Path]) -> None:
    def above(data: Any) -> Any:
        values = data["a"]
        return (values - values.mean() * (len(values) > 16)).tolist()

    model = batched(saved, above)
    for _ in range(2 * joining.FIRST):
        assert model.predictor.predict([numbers(1.0), numbers(2.0)]) == [[1.0], [2.0]]
    batch = [numbers(float(row)) for row in range(17)]
    assert model.predictor.predict(batch) == [[float(row)] for row in range(17)]
    assert not model.on


def test_a_model_may_use_the_memory_of_its_answer_again(saved: dict[str, Path]) -> None:
    row: dict[str, Any] = {}
    lists: list[Any] = []

    def last(data: Any) -> Any:
        row["y"] = data["a"].iloc[-1]
        return [row] * len(data)

    model = Model(saved["numbers"], last)
    assert model.predictor.joining.check(numbers(1.0, 2.0)).independent is False

    def refilled(data: Any) -> Any:
        lists[:] = [[value] for value in data["a"].tolist()]
        return lists

    model = Model(saved["numbers"], refilled)
    first = model.predictor.predict([numbers(1.0)])
    assert model.predictor.predict([numbers(2.0)]) == [[[2.0]]]
    assert first == [[[1.0]]]


def test_a_model_may_change_its_input(saved: dict[str, Path]) -> None:
    def in_place(data: Any) -> Any:
        data.loc[:, "a"] = data["a"] / 2
        return data["a"].tolist()

    batched(saved, in_place)


def test_requests_beside_one_whose_error_has_no_text_are_answered(saved: dict[str, Path]) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fails(data: Any) -> Any:
        if 9.0 in data["a"].tolist():
            raise Silent
        return data["a"].tolist()

    model = batched(saved, fails)
    good, bad, other = model.predictor.predict([numbers(1.0), numbers(9.0), numbers(2.0)])
    assert (good, other) == ([1.0], [2.0])
    assert isinstance(bad, Exception)
