"""Refuses wrong settings of an adapter, all of them at once."""

from collections.abc import Iterable, Iterator


def below(least: int, **values: int | None) -> Iterator[str]:
    """Yields what is wrong with settings that must be at least so much; None is right."""
    for name, value in values.items():
        if value is not None and value < least:
            yield f"{name}: at least {least}, got {value}"


def above_zero(**values: float | None) -> Iterator[str]:
    """Yields what is wrong with settings that must be greater than 0; None is right."""
    for name, value in values.items():
        if value is not None and not value > 0:
            yield f"{name}: must be greater than 0, got {value}"


def refuse(problems: Iterable[str]) -> None:
    """Raises a ValueError with all problems, if there are any."""
    found = list(problems)
    if found:
        raise ValueError("; ".join(found))
