"""Amounts read as people write them and print what reads back to the same amount."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsft.duration import Duration, Unit


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("2 epochs", 2, "epochs"),
        ("1 epoch", 1, "epochs"),
        (" 1.5Epochs ", 1.5, "epochs"),
        ("4_000 steps", 4000, "steps"),
        ("1e9 tokens", 10**9, "tokens"),
        ("2.5e+3 examples", 2500, "examples"),
        ("1e-1 epochs", 0.1, "epochs"),
    ],
)
def test_amounts_read_as_people_write_them(text: str, value: float, unit: Unit) -> None:
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not an amount"),
        ("3", "is not an amount"),
        ("epochs", "is not an amount"),
        ("-1 steps", "is not an amount"),
        ("1 stps", r"did you mean 'steps'\?"),
        ("0 steps", "must be greater than 0"),
        ("1e999 steps", "must be greater than 0"),
        ("1.5 steps", "steps must be whole"),
        ("1 hour", "one of epochs, steps, tokens, examples"),
    ],
)
def test_what_is_no_amount_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Duration.parse(text)


def test_an_amount_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match="steps must be whole"):
        Duration(0.5, "steps")


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Duration(1, "epochs"), "1 epoch"),
        (Duration(1e9, "tokens"), "1e9 tokens"),
        (Duration(123456789, "tokens"), "123456789 tokens"),
        (Duration(1.23456789, "epochs"), "1.23456789 epochs"),
    ],
)
def test_an_amount_prints_short_and_exact(amount: Duration, text: str) -> None:
    assert str(amount) == text


@settings(deadline=None)  # a busy machine is no defect
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_any_number_of_epochs_prints_and_reads_back(value: float) -> None:
    assert Duration.parse(str(Duration(value, "epochs"))) == Duration(value, "epochs")


@settings(deadline=None)  # a busy machine is no defect
@given(st.integers(1, 10**30))
def test_any_number_of_tokens_prints_and_reads_back(value: int) -> None:
    amount = Duration(float(value), "tokens")
    assert Duration.parse(str(amount)) == amount
