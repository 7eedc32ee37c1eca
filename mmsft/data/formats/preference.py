"""Preferences: several answers to one prompt, and which of them are better."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import find, items, require, show, with_more
from mmsft.data.formats.prompt_completion import turns_of
from mmsft.errors import DataError
from mmsft.types import Conversation, Record, Turn

_SPEAKERS: Final = re.compile(r"\n\n(Human|Assistant):")
_COLUMNS: Final = ("chosen", "rejected", "answers", "rank", "scores", "rejected_response")


def preference(record: Record, row: str) -> Conversation:
    """Reads a prompt with a ``chosen`` and a ``rejected`` answer; the chosen one is learned.

    The prompt is a column ``prompt`` (a text or turns), ``instruction`` and ``input``, or ``conversations`` or
    ``messages``; where there is none, what both answers begin with, which are lists of turns then, or dialogues of
    ``Human:`` and ``Assistant:``. Rows of ``messages`` may state a ``rejected_response`` only: what is rejected in
    the place of their last turn.

    Raises:
        DataError: the row isn't of this form, or both answers are the same.
    """
    if record.get("rejected_response") is not None:
        talk = list(items(require(record, ("messages",), row), f"{row}: messages"))
        return ranked_answers(record, row, talk[:-1], [talk[-1:], record["rejected_response"]], (0, 1))
    chosen, rejected = (_dialogue(require(record, (name,), row)) for name in ("chosen", "rejected"))
    prompt = _prompt(record, row)
    if prompt is None:
        prompt, chosen, rejected = _parted(chosen, rejected, row)
    return ranked_answers(record, row, prompt, [chosen, rejected], (0, 1))


def ranked(record: Record, row: str, *, learn: Literal["best", "all"] = "best") -> Conversation:
    """Reads a prompt with ``answers`` and their ``rank`` (0 is the best) or ``scores`` (more is better).

    Args:
        record: the row.
        row: its id.
        learn: the ``best`` answer, or ``all``.

    Raises:
        DataError: the row isn't of this form, or ranks and answers differ in number.
    """
    answers = items(require(record, ("answers", "responses", "completions"), row), f"{row}: answers")
    prompt = _prompt(record, row)
    if prompt is None:
        prompt = require(record, ("prompt",), row)
    conversation = ranked_answers(record, row, prompt, answers, _ranks(record, len(answers), row))
    if learn == "best":
        return conversation
    return replace(conversation, turns=tuple(_learned(turn) for turn in conversation.turns))


def ranked_answers(
    record: Record, row: str, prompt: Sequence[Any], answers: Sequence[Any], ranks: Sequence[int]
) -> Conversation:
    """Returns a tree: the prompt with its answers as branches, of which those of rank 0 are learned.

    Args:
        record: the row, of which files, tools and a system text are read.
        row: its id.
        prompt: turns.
        answers: a text, a turn or a list of turns each.
        ranks: of the answers, from 0 on.

    Raises:
        DataError: a turn can't be read, two answers are the same, or all are equally good.
    """
    said = [turns_of(answer, "assistant", f"{row}: answer {number}") for number, answer in enumerate(answers, 1)]
    if len(said) < 2 or len(set(ranks)) < 2:
        raise DataError(
            f"{row}: {len(said)} answers of ranks {list(ranks)}: none is better than another; remove the row"
        )
    if any(one == other for number, one in enumerate(said) for other in said[:number]):
        raise DataError(f"{row}: two of its answers are the same, {show(said[0][-1])}; remove one, or the row")
    others = {name: value for name, value in record.items() if name not in _COLUMNS}
    turns: list[Turn] = []
    whole: Conversation | None = None
    for answer, rank in zip(said, ranks, strict=True):
        whole = read_dialogue(others, row, [*_context(prompt), *answer])
        shared = len(whole.turns) - len(answer)
        branch = whole.turns[shared:]
        weighed = [replace(turn, rank=rank, weight=turn.weight if rank == 0 else 0.0) for turn in branch]
        turns += whole.turns[: 0 if turns else shared]
        turns += [replace(weighed[0], parent=shared - 1), *weighed[1:]]
    assert whole is not None
    return replace(whole, turns=tuple(turns))


def _context(prompt: Sequence[Any]) -> list[Any]:
    return turns_of(list(prompt), "user", "prompt", weight=0)


def _learned(turn: Turn) -> Turn:
    return turn if turn.rank is None or turn.role != "assistant" else replace(turn, weight=1.0)


def _prompt(record: Record, row: str) -> list[Any] | None:
    """Returns the turns before the answers, or None where no column holds them."""
    if record.get("instruction") is not None:
        return [{"role": "user", "content": with_more(record, ("instruction",), "input", row)}]
    value = find(record, ("prompt", "conversations", "messages", "question"), row)
    return None if value is None else turns_of(_dialogue(value), "user", f"{row}: prompt")


def _dialogue(value: Any) -> Any:
    """Returns the turns of a text of ``Human:`` and ``Assistant:``, each behind an empty line; else the value."""
    if not isinstance(value, str) or not (pieces := _SPEAKERS.split(value))[1:] or pieces[0].strip():
        return value
    speakers = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": speakers[who], "content": what.strip()} for who, what in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _parted(chosen: Any, rejected: Any, row: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Divides two dialogues into what they begin with and what is left of each."""
    if not isinstance(chosen, list | tuple) or not isinstance(rejected, list | tuple):
        raise DataError(
            f"{row}: no prompt: neither a column (prompt, instruction, conversations, messages) nor turns in both "
            f"answers, which are {show(chosen)} and {show(rejected)}"
        )
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    if shared in (0, len(chosen), len(rejected)):
        raise DataError(f"{row}: chosen and rejected must begin with the same prompt and then differ; mend the row")
    return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])


def _ranks(record: Record, count: int, row: str) -> list[int]:
    ranks, scores = find(record, ("rank", "ranks", "ranking"), row), find(record, ("scores", "score"), row)
    if (ranks is None) == (scores is None):
        raise DataError(f"{row}: state either a `rank` or `scores` for its answers, a list of {count} numbers")
    values = [_number(value, row) for value in items(scores if ranks is None else ranks, f"{row}: rank or scores")]
    if len(values) != count:
        raise DataError(f"{row}: {count} answers, but {len(values)} ranks or scores; mend the row")
    order = sorted(set(values), reverse=ranks is None)
    return [order.index(value) for value in values]


def _number(value: Any, row: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{row}: a rank or score must be a number, got {show(value)}")
    return float(value)
