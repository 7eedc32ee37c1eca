"""Exact-match accuracy on conversations whose last turn is the reference answer."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmsft.assistant import Assistant
from mmsft.errors import DataError
from mmsft.types import Conversation, Text


@dataclass(frozen=True, slots=True)
class Answer:
    """One question, what the model said and what it should have said."""

    id: str
    question: str
    answer: str
    reference: str
    correct: bool


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A score from 0 to 1, overall and for each value of each tag, with the answers."""

    accuracy: float
    by_tag: dict[str, dict[str, float]]
    answers: tuple[Answer, ...]


def normalise(text: str) -> str:
    """Returns the text in lower case, without surrounding space and a final full stop."""
    return text.strip().casefold().removesuffix(".").strip()


def accuracy(
    assistant: Assistant, conversations: Sequence[Conversation], max_new_tokens: int, batch: int = 32
) -> Accuracy:
    """Asks each conversation's last question and compares with its last turn.

    Raises:
        DataError: a conversation doesn't end with an assistant turn, or a medium can't be read.
    """
    references = [reference_of(conversation) for conversation in conversations]
    prompts = [replace(conversation, turns=conversation.turns[:-1]) for conversation in conversations]
    replies = assistant.answers(prompts, max_new_tokens=max_new_tokens, batch=batch)
    answers = tuple(
        Answer(prompt.id, question_of(prompt), reply, reference, normalise(reply) == normalise(reference))
        for prompt, reply, reference in zip(prompts, replies, references, strict=True)
    )
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for conversation, answer in zip(conversations, answers, strict=True):
        for tag in conversation.tags.items():
            hits[tag].append(answer.correct)
    by_tag: dict[str, dict[str, float]] = {}
    for (name, value), correct in sorted(hits.items()):
        by_tag.setdefault(name, {})[value] = sum(correct) / len(correct)
    return Accuracy(sum(answer.correct for answer in answers) / max(1, len(answers)), by_tag, answers)


def reference_of(conversation: Conversation) -> str:
    """Returns the text of the last turn, the assistant's.

    Raises:
        DataError: it is another's.
    """
    last = conversation.turns[-1]
    if last.role != "assistant":
        raise DataError(f"{conversation.id}: the last turn is the {last.role}'s, so there is no reference answer")
    return last.text


def question_of(conversation: Conversation) -> str:
    """Returns the text of the last user turn."""
    for turn in reversed(conversation.turns):
        if turn.role == "user":
            return "".join(part.text for part in turn.parts if isinstance(part, Text)).strip()
    return ""
