"""MultiInstruct's sensitivity, against numbers worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.eval.accuracy import Answer
from mmsft.eval.sensitivity import Wordings, by_wording, sensitivity, told
from mmsft.types import Conversation, Text, Turn

SCORES = st.dictionaries(st.text(max_size=3), st.floats(0.01, 1), min_size=2, max_size=6)


def test_it_is_the_mean_over_tasks_of_deviation_by_mean() -> None:
    # 0.2, 0.4: mean 0.3, deviation 0.1; 0.5, 0.5, 0.8: mean 0.6, squares 0.01 + 0.01 + 0.04, deviation √0.02.
    tasks = {"a": {"x": 0.2, "y": 0.4}, "b": {"x": 0.5, "y": 0.5, "z": 0.8}}
    assert sensitivity(tasks) == pytest.approx((0.1 / 0.3 + math.sqrt(0.02) / 0.6) / 2)
    assert Wordings(tasks["b"]).deviation == pytest.approx(math.sqrt(0.02))


@given(st.floats(0.01, 1), st.integers(2, 6))
def test_equal_scores_are_not_sensitive(score: float, wordings: int) -> None:
    assert sensitivity({"a": {str(number): score for number in range(wordings)}}) == pytest.approx(0, abs=1e-9)


@given(st.dictionaries(st.text(max_size=3), SCORES, min_size=1, max_size=4), st.floats(0.1, 10))
def test_it_does_not_change_with_the_scale_of_a_score(tasks: dict[str, dict[str, float]], factor: float) -> None:
    scaled = {task: {name: factor * score for name, score in scores.items()} for task, scores in tasks.items()}
    assert sensitivity(scaled) == pytest.approx(sensitivity(tasks), rel=1e-6, abs=1e-9)


def test_tasks_that_say_nothing_do_not_count() -> None:
    one = {"x": 0.2, "y": 0.4}
    assert sensitivity({"a": one, "b": {"x": 0.9}, "c": {"x": 0.0, "y": 0.0}}) == sensitivity({"a": one})
    assert sensitivity({"b": {"x": 0.9}, "c": {"x": 0.0, "y": 0.0}}) is None
    assert sensitivity({}) is None


def answered(wording: str | None, correct: bool) -> tuple[Conversation, Answer]:
    tags = {} if wording is None else {"wording": wording}
    return Conversation("r:1", (Turn("user", (Text("?"),)),), tags), Answer("r:1", "?", "a", "b", correct)


def test_scores_are_counted_by_task_and_wording() -> None:
    said = [("x", True), ("x", False), ("y", True), (None, False), ("x", False)]
    rows, answers = zip(*(answered(*each) for each in said), strict=True)
    tasks = ["t", "t", "t", "t", "u"]
    assert by_wording(rows, answers, tasks) == {"t": {"x": 0.5, "y": 1.0}, "u": {"x": 0.0}}
    first, last = told(by_wording(rows, answers, tasks))
    assert first == "  t in 2 wordings: 75.0% on average, 100.0% at most, standard deviation 25.0%"
    assert last.startswith("sensitivity 0.333 ")
    assert list(told({"u": {"x": 0.5}})) == []
