"""Errors that the user is meant to read are of one family, with the exit code of their cause."""

import pytest

from mmsft.errors import AlignmentError, CheckpointError, ConfigError, DataError, Diverged, MmsftError, suggest


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
