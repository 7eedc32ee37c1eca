"""The errors that mmsft raises on purpose: each message says the place, the value and the way out."""

import difflib
from collections.abc import Iterable


class MmsftError(Exception):
    """Base of all errors whose message is meant for the user; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(MmsftError):
    """The user's configuration, command line or file layout is wrong."""

    exit_code = 2


class DataError(MmsftError):
    """A row, a medium or a whole data source cannot be used."""

    exit_code = 2


class AlignmentError(MmsftError):
    """Places kept for features and the features that arrived differ in number."""


class CheckpointError(MmsftError):
    """A checkpoint could not be written, read, or does not belong to this run."""


class Diverged(MmsftError):
    """The loss or a gradient is no longer finite."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
