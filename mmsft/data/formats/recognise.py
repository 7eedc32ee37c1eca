"""Recognises the format of a file from its rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from mmsft.data.formats.media_tags import COLUMNS
from mmsft.errors import ConfigError
from mmsft.types import Record

Sign: TypeAlias = Callable[[Record], bool]


def recognise(rows: Sequence[Record], where: str) -> str:
    """Returns the name of the format that all of the rows are of.

    Args:
        rows: some of a file's, as they are read.
        where: the file, for errors.

    Raises:
        ConfigError: they are of none, or of more than one.
    """
    found = [name for name, sign in SIGNS.items() if rows and all(sign(row) for row in rows)]
    # Without a picture the two are read alike.
    if found == ["llava", "sharegpt"]:
        found = ["sharegpt"]
    if len(found) == 1:
        return found[0]
    keys = ", ".join(dict.fromkeys(str(name) for row in rows for name in row)) or "none"
    if found:
        raise ConfigError(
            f"{where}: its rows could be {' or '.join(found)} (columns: {keys}); state `format`, and rename columns "
            "with `columns` where they are in the way"
        )
    raise ConfigError(
        f"{where}: its rows are of no format that is known (columns: {keys}); state `format`, rename columns with "
        "`columns`, or write `templates`"
    )


def _has(*groups: str) -> Sign:
    """Returns a sign: of each group, names with | between them, one column is filled."""
    names = [group.split("|") for group in groups]
    return lambda row: all(any(row.get(name) is not None for name in some) for some in names)


def _without(*names: str) -> Sign:
    return lambda row: all(row.get(name) is None for name in names)


def _both(*signs: Sign) -> Sign:
    return lambda row: all(sign(row) for sign in signs)


def _first(row: Record, name: str) -> Mapping[str, Any]:
    """Returns the first item of a column of objects."""
    value = row.get(name)
    item = value[0] if isinstance(value, list | tuple) and value else value
    return item if isinstance(item, Mapping) else {}


def _is_baize(row: Record) -> bool:
    value = row.get("input")
    return isinstance(value, str) and "[|Human|]" in value


def _is_judged(row: Record) -> bool:
    """Tells a row whose answer is liked or not; elsewhere a `label` may be anything."""
    return isinstance(row.get("label"), bool) and (_has("messages")(row) or _has("prompt", "completion")(row))


_ANY_MEDIUM: Final = "|".join(["media", *(name for names in COLUMNS.values() for name in names)])
_NO_PAIR: Final = _without(
    "chosen", "rejected", "rejected_response", "rejected_messages", "answers", "responses", "completions"
)
_TALK: Final = _both(_has("conversations|conversation"), _without("pcl", "task_type"), _NO_PAIR)

_PREFERENCES: Final = (
    _has("chosen", "rejected"),
    _has("messages|conversations|conversation|query|instruction", "rejected_response"),
    _has("messages|chosen_messages", "rejected_messages"),
    _both(_is_judged, _NO_PAIR),
)

SIGNS: Final[Mapping[str, Sign]] = {
    "alpaca": _both(
        _has("instruction|prompt|query", "output|response"),
        _without("context", "category", "instances", "Definition", "completion", "question"),
        _NO_PAIR,
    ),
    "baize": _is_baize,
    "conversation": lambda row: "parts" in _first(row, "turns"),
    "dolly": _both(_has("instruction", "response", "context|category"), _without("output"), _NO_PAIR),
    "inputs_targets": _has("inputs|inputs_pretokenized", "targets|targets_pretokenized"),
    "lamm": _both(_has("conversations", "pcl|task_type"), _NO_PAIR),
    "llava": _TALK,
    "messages": _both(_has("messages"), _NO_PAIR, lambda row: not _is_judged(row)),
    "mimic_it": _both(_has("instruction", "answer"), lambda row: "examples" in row),
    "multi_instruct": _has("image_path", "prompt"),
    "natural_instructions": _has("Definition", "input|Instance"),
    "openassistant": lambda row: "replies" in _first(row, "prompt"),
    "orca": _both(_has("question", "response"), _NO_PAIR),
    "pmc_vqa": _has("Figure_path", "Question"),
    "preference": lambda row: any(sign(row) for sign in _PREFERENCES),
    "prompt_completion": _both(_has("prompt", "completion"), _NO_PAIR, lambda row: not _is_judged(row)),
    "ranked": _has("answers|responses|completions", "rank|ranks|ranking|scores|score"),
    "self_instruct": _both(
        _has("instruction", "instances"), lambda row: "instruction_with_input" not in _first(row, "instances")
    ),
    "sharegpt": _both(_TALK, lambda row: not _has(_ANY_MEDIUM)(row)),
    "unnatural_instructions": _both(
        _has("instruction", "instances"), lambda row: "instruction_with_input" in _first(row, "instances")
    ),
}
"""By which each format is known: its columns, and what tells it from those with the same."""
