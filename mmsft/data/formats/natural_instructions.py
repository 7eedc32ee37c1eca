"""Natural Instructions, both versions: a task's definition and examples, and one of its instances."""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from mmsft.data.formats.chance import pick
from mmsft.data.formats.fields import find, items, mapping, require, text
from mmsft.errors import DataError
from mmsft.types import Conversation, Record, Text, Turn


class Encoding(NamedTuple):
    """What of a task stands before an instance: its definition, and how many examples of either kind."""

    definition: bool
    positive: int
    negative: int
    explanation: bool


TK_INSTRUCT: Final = (
    Encoding(True, 0, 0, False),
    Encoding(False, 2, 0, False),
    Encoding(True, 2, 0, False),
    Encoding(True, 2, 2, False),
    Encoding(True, 2, 0, True),
)
"""Of which Tk-Instruct (Wang et al. 2022, arXiv 2204.07705) draws one for each instance."""


def natural_instructions(  # noqa: PLR0913 - each is one of the source's options
    record: Record,
    row: str,
    *,
    count: Callable[[str], int],
    definition: bool = True,
    positive: int = 2,
    negative: int = 0,
    explanation: bool = False,
    tk_instruct: bool = False,
    budget: int = 1024,
    seed: int = 0,
) -> Conversation:
    """Reads a task's fields with one of its instances, as the files of both versions have them.

    Super-NaturalInstructions: ``{"Definition": […], "Positive Examples": […], "Negative Examples": […], "input": "…",
    "output": […]}``; the first version has its examples in ``Examples`` and, beside the definition, ``Title``,
    ``Things to Avoid``, ``Emphasis & Caution`` and ``Prompt``. Of several outputs one is drawn.

    Args:
        record: the row.
        row: its id.
        count: tokens of a text.
        definition: begin with the task's definition.
        positive: at most so many examples.
        negative: at most so many examples of what not to do.
        explanation: say why an example is one.
        tk_instruct: draw one of `TK_INSTRUCT` instead.
        budget: tokens of the whole prompt: examples are added one by one while they fit.
        seed: of what is drawn.

    Raises:
        DataError: the row isn't of this form.
    """
    stated = Encoding(definition, positive, negative, explanation)
    how = pick(row, "encoding", seed, TK_INSTRUCT) if tk_instruct else stated
    instance = _instance(record, row)
    head = _definition(record, row) if how.definition else ""
    asked = text(require(instance, ("input",), row), f"{row}: input").strip()
    tail = f"Now complete the following example -\nInput: {_stopped(asked)}\nOutput: "
    shown: list[str] = []
    for kind, most in (("Positive", how.positive), ("Negative", how.negative)):
        for number, example in enumerate(_examples(record, kind, row)[:most], 1):
            said = _example(example, kind, number, how.explanation, f"{row}: {kind} Examples {number}")
            if count("".join([head, *shown, said, tail])) > budget:
                break
            shown.append(said)
    answers = [_answer(each, row) for each in _outputs(instance, row)]
    question = Turn("user", (Text("".join([head, *shown, tail])),))
    return Conversation(row, (question, Turn("assistant", (Text(pick(row, "output", seed, answers)),))), _tags(record))


def _instance(record: Record, row: str) -> Mapping[str, Any]:
    """Returns where the instance stands: in the row itself, or, in Tk-Instruct's own files, under ``Instance``."""
    nested = find(record, ("Instance",), row)
    return record if nested is None else mapping(nested, f"{row}: Instance")


def _definition(record: Record, row: str) -> str:
    said = _lines(require(record, ("Definition", "definition"), row), f"{row}: Definition")
    parts = [f"Definition: {_stopped(said)}"]
    for name in ("Things to Avoid", "Emphasis & Caution", "Prompt"):
        more = find(record, (name,), row)
        if more is not None and (found := _lines(more, f"{row}: {name}")) and found != "-":
            parts.append(f"{name}: {_stopped(found)}")
    return "\n".join(parts) + "\n\n"


def _lines(value: Any, where: str) -> str:
    """Returns a text that some files hold as a list of one."""
    several = value if isinstance(value, list | tuple) else [value]
    return " ".join(text(each, where).strip() for each in items(several, where))


def _examples(record: Record, kind: str, row: str) -> Sequence[Any]:
    name = f"{kind} Examples"
    within = find(record, ("Examples",), row)
    found = find(record if within is None else mapping(within, f"{row}: Examples"), (name,), row)
    # The first version says "-" where a task has none.
    return () if found is None or found in ([], "-", "") else items(found, f"{row}: {name}")


def _example(value: Any, kind: str, number: int, explained: bool, where: str) -> str:
    example = mapping(value, where)
    given = text(require(example, ("input",), where), f"{where}: input").strip()
    answer = _lines(require(example, ("output",), where), f"{where}: output")
    lines = [f" {kind} Example {number} -", f"Input: {_stopped(given)}", f" Output: {_stopped(answer)}"]
    why = find(example, ("explanation", "reason"), where) if explained else None
    if why is not None and (reason := text(why, f"{where}: explanation").strip()):
        lines.append(f" Explanation: {_stopped(reason)}")
    return "\n".join(lines) + "\n\n"


def _outputs(instance: Mapping[str, Any], row: str) -> Sequence[Any]:
    found = require(instance, ("output",), row)
    return items(found, f"{row}: output") if isinstance(found, list | tuple) else (found,)


def _answer(value: Any, row: str) -> str:
    answer = text(value, f"{row}: output").strip()
    if not answer:
        raise DataError(f"{row}: an output is empty; fill it, or remove the instance")
    return answer


def _stopped(said: str) -> str:
    return said if not said or said[-1] in string.punctuation else f"{said}."


def _tags(record: Record) -> dict[str, str]:
    """Returns the task and its category, by which Tk-Instruct's scores are told."""
    found = {"task": record.get("Task", record.get("task")), "category": record.get("Categories")}
    first = {name: value[0] if isinstance(value, list | tuple) and value else value for name, value in found.items()}
    return {name: value for name, value in first.items() if isinstance(value, str)}
