"""Preferences: several answers to one prompt, and which of them are better."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from mmsft.data.formats.alpaca import ANSWER, asked
from mmsft.data.formats.dialogue import read_answered, read_dialogue, turn_list
from mmsft.data.formats.fields import find, items, require, show
from mmsft.data.formats.prompt_completion import prompt_completion, turns_of
from mmsft.data.formats.turns import known_speaker
from mmsft.errors import DataError
from mmsft.types import Conversation, Record, Turn

_SPEAKERS: Final = re.compile(r"\n\n(Human|Assistant):")
_COLUMNS: Final = ("chosen", "rejected", "answers", "rank", "scores", "rejected_response", "rejected_messages")
_OF_PROMPTS: Final = ("images", "videos", "audios", "tools", "objects")


def preference(record: Record, row: str) -> Conversation:
    """Reads a prompt with a ``chosen`` and a ``rejected`` answer; the chosen one is learned.

    The prompt is a column ``prompt`` (a text or turns), ``instruction`` and ``input``, or ``conversations`` or
    ``messages``; where there is none, what both answers begin with, which are lists of turns then, or dialogues of
    ``Human:`` and ``Assistant:``. ms-swift's rows are dialogues, and state as ``rejected_response`` what is rejected in
    the place of all that follows the last question, or as ``rejected_messages`` another dialogue. Rows with a ``label``
    of true or false have one answer, which is learned if it is liked, and has the rank 1 if not.

    Raises:
        DataError: the row isn't of this form, or both answers are the same.
    """
    if isinstance(record.get("label"), bool):
        return _judged(record, row)
    prompt, answers = _pair(record, row)
    return ranked_answers(record, row, prompt, answers, (0, 1))


def _pair(record: Record, row: str) -> tuple[Sequence[Any], Sequence[Any]]:
    """Returns a prompt, and the better and the worse answer to it."""
    _refuse_another_prompt(record, row)
    if record.get("rejected_response") is not None:
        talk = _talk(record, row)
        at = _last_question(talk) + 1
        if at == len(talk):
            raise DataError(f"{row}: ends with a question: there is no answer but the rejected one; add it")
        return talk[:at], [talk[at:], record["rejected_response"]]
    if record.get("rejected_messages") is not None:
        better, worse = (require(record, it, row) for it in (("chosen_messages", "messages"), ("rejected_messages",)))
        return _parted(turn_list(better, row), turn_list(worse, row), row)
    chosen, rejected = (_dialogue(require(record, (name,), row)) for name in ("chosen", "rejected"))
    prompt = _prompt(record, row)
    return _parted(chosen, rejected, row) if prompt is None else (prompt, [chosen, rejected])


def _judged(record: Record, row: str) -> Conversation:
    """Reads one answer and whether it is liked: the answers before it are context."""
    others = {name: value for name, value in record.items() if name != "label"}
    if record.get("completion") is not None:
        talk = prompt_completion(others, row)
    else:
        talk = read_dialogue(others, row, _talk(others, row))
    last = max((index for index, turn in enumerate(talk.turns) if turn.role == "user"), default=-1)
    rank = 0 if record["label"] else 1
    turns = [
        replace(turn, weight=0.0) if index < last else replace(turn, rank=rank, weight=0.0 if rank else turn.weight)
        for index, turn in enumerate(talk.turns)
        if turn.role == "assistant"
    ]
    if not turns or turns[-1].rank is None:
        raise DataError(f"{row}: `label` judges an answer, and there is none behind the last question; add it")
    own = iter(turns)
    return replace(talk, turns=tuple(next(own) if turn.role == "assistant" else turn for turn in talk.turns))


def _talk(record: Record, row: str) -> list[Any]:
    """Returns all turns of a row of ms-swift's: listed, or a question with its answer and a history."""
    listed = find(record, ("messages", "conversations", "conversation"), row)
    if listed is None:
        return [*asked(record, row), {"role": "assistant", "content": require(record, ANSWER, row)}]
    return list(turn_list(listed, row))


def _last_question(talk: Sequence[Any]) -> int:
    return max((index for index, turn in enumerate(talk) if known_speaker(turn) == "user"), default=-1)


def _refuse_another_prompt(record: Record, row: str) -> None:
    """Refuses media, tools or objects of the rejected answer's own: its prompt would be another one."""
    for name in _OF_PROMPTS:
        own = record.get(f"rejected_{name}")
        if own is not None and own != record.get(name):
            raise DataError(
                f"{row}: 'rejected_{name}' differ from {name!r}: answers to two prompts can't be compared; mend or "
                "remove the row"
            )


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
        whole, shared = read_answered(others, row, _context(prompt), answer)
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
        return turns_of(asked(record, row, ("instruction",)), "user", f"{row}: prompt", weight=0)
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


def _parted(chosen: Any, rejected: Any, row: str) -> tuple[list[Any], list[Any]]:
    """Divides two dialogues into what they begin with and, as a list, what is left of each."""
    if not isinstance(chosen, list | tuple) or not isinstance(rejected, list | tuple):
        raise DataError(
            f"{row}: no prompt: neither a column (prompt, instruction, conversations, messages) nor turns in both "
            f"answers, which are {show(chosen)} and {show(rejected)}"
        )
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    if shared in (0, len(chosen), len(rejected)):
        raise DataError(f"{row}: chosen and rejected must begin with the same prompt and then differ; mend the row")
    return list(chosen[:shared]), [list(chosen[shared:]), list(rejected[shared:])]


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
