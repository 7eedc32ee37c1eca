"""The errors that mmsft raises on purpose: each message says the place, the value and the way out."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MmsftError(Exception):
    """Base of all errors whose message is meant for the user; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(MmsftError):
    """The user's configuration, command line or file layout is wrong."""

    exit_code = 2


class Several(ConfigError):
    """Errors that were found together; `args` holds them."""

    def __str__(self) -> str:
        return "\n".join([f"{len(self.args)} problems:", *(f"- {error}" for error in self.args)])


class DataError(MmsftError):
    """A row, a medium or a whole data source cannot be used."""

    exit_code = 2


class LeftOut(DataError):
    """A row that can be read, and that the recipe's rules leave out."""


class AlignmentError(MmsftError):
    """Places kept for features and the features that arrived differ in number."""


class CheckpointError(MmsftError):
    """A checkpoint could not be written, read, or does not belong to this run."""


class Diverged(MmsftError):
    """The loss or a gradient is no longer finite."""


class OutOfMemory(MmsftError):
    """A step needs more memory than there is.

    Attributes:
        step: its number in the stage, counted from 0.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class Problems:
    """Goes on after an error, so that the user hears of all of them at once.

    Attributes:
        found: the errors, each once.
    """

    def __init__(self) -> None:
        self.found: list[MmsftError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keeps an `MmsftError` back and leaves the block."""
        try:
            yield
        except MmsftError as error:
            told = {str(other) for other in self.found}
            several = error.args if isinstance(error, Several) else (error,)
            self.found += [other for other in several if str(other) not in told]

    def tell(self) -> None:
        """Raises what was found: one error as it is, more as `Several`."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise Several(*self.found)


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
