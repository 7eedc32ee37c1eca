"""Errors that the user is meant to read are of one family, with the exit code of their cause."""

import pickle

import pytest

from mmsft.errors import (
    AlignmentError,
    CheckpointError,
    ConfigError,
    DataError,
    Diverged,
    MmsftError,
    Problems,
    Several,
    suggest,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 2), (DataError, 2), (AlignmentError, 1), (CheckpointError, 1), (Diverged, 1)],
)
def test_the_users_mistakes_exit_with_2_and_failed_runs_with_1(error: type[MmsftError], code: int) -> None:
    assert issubclass(error, MmsftError)
    assert error.exit_code == code


def test_only_a_close_name_is_suggested() -> None:
    assert suggest("trian", ["train", "out"]) == " (did you mean 'train'?)"
    assert suggest("zebra", ["train", "out"]) == ""
    assert suggest("x", []) == ""


def test_problems_are_told_together_and_each_once() -> None:
    inner, outer = Problems(), Problems()
    for problems, message in ((inner, "a"), (inner, "b"), (outer, "b"), (outer, "c")):
        with problems.collect():
            raise DataError(message)
    with outer.collect():
        inner.tell()
    with pytest.raises(Several) as caught:
        outer.tell()
    assert str(caught.value) == "3 problems:\n- b\n- c\n- a"
    # Processes that train together tell each other their errors.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_one_problem_is_raised_as_it_is_none_not_at_all_and_a_bug_at_once() -> None:
    problems = Problems()
    problems.tell()
    with problems.collect():
        raise CheckpointError("a")
    with pytest.raises(CheckpointError, match=r"^a$"):
        problems.tell()
    with pytest.raises(KeyError), problems.collect():
        raise KeyError("bug")
