"""A model with what it needs to talk: its template, its media and its device."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmsft.data.chat import ChatEncoder
from mmsft.data.collate import collate
from mmsft.data.media import locate
from mmsft.data.media_reader import MediaReader
from mmsft.data.tree import threads
from mmsft.errors import ConfigError, DataError
from mmsft.model.fusion import MultimodalModel
from mmsft.model.generation import generate as generate_ids
from mmsft.parallel import Ranks
from mmsft.types import Batch, Conversation, Encoded, Media, Part, Text, Turn


@dataclass(frozen=True)
class Assistant:
    """A model that answers.

    Attributes:
        model: the root module, on the device of `ranks`.
        encoder: the template that the model was trained with.
        reader: its modalities.
        ranks: its device and precision.
    """

    model: MultimodalModel
    encoder: ChatEncoder
    reader: MediaReader
    ranks: Ranks

    def blind(self) -> "Assistant":
        """Returns the same model with every medium replaced by a blank one."""
        return replace(self, reader=replace(self.reader, blank=True))

    def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        batch: int = 32,
    ) -> list[str]:
        """Continues each conversation with the assistant's next turn.

        Args:
            conversations: each a chain that ends before the turn that is asked for.
            max_new_tokens: longest answer.
            temperature: 0 takes the likeliest token.
            seed: of the draws; None draws anew each time.
            batch: how many conversations go through the model together.

        Raises:
            DataError: a medium can't be read, the model has no tower for it, or a text isn't Unicode.
            ConfigError: an argument is out of its bounds.
        """
        if batch < 1:
            raise ConfigError(f"batch: {batch} conversations at a time; write 1 or more")
        encoded = [self.encoder.prompt(located(conversation)) for conversation in conversations]
        # Prompts of like length go together, so that little is padded.
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        answers = [""] * len(encoded)
        for start in range(0, len(order), batch):
            indices = order[start : start + batch]
            prompt = self._batch([encoded[index] for index in indices])
            with self.ranks.autocast():
                replies = generate_ids(
                    self.model,
                    prompt,
                    max_new_tokens=max_new_tokens,
                    stop_ids=self.encoder.stop_ids,
                    temperature=temperature,
                    seed=seed,
                )
            for index, reply in zip(indices, replies, strict=True):
                answers[index] = self.encoder.decode_reply(reply)
        return answers

    def read(self, media: Media) -> Media:
        """Reads a medium, so that what is wrong with it is said before there is a question about it.

        Returns:
            The medium, its path made absolute.

        Raises:
            DataError: it can't be read, or the model has no tower for it.
        """
        placed = _placed(media, str(media))
        self.reader.load(placed)
        return placed

    def _batch(self, prompts: Sequence[Encoded]) -> Batch:
        chains = [chain for prompt in prompts for chain in threads(prompt)]
        loaded = {placed.media: self.reader.load(placed.media) for chain in chains for placed in chain.media}
        padded = collate(chains, self.reader, loaded, side="left")
        return padded.map(lambda tensor: tensor.to(self.ranks.device))


def generate(assistant: Assistant, conversation: Conversation, **options: int | float | None) -> str:
    """Returns the assistant's next turn; `options` are those of `Assistant.answers`."""
    return assistant.answers([conversation], **options)[0]  # type: ignore[arg-type]


def ask(question: str, media: Sequence[Media] = (), after: Sequence[Turn] = ()) -> Conversation:
    """Returns a conversation that ends with a question about some media.

    Args:
        question: its text.
        media: stand before the text.
        after: what was said before.

    Raises:
        DataError: nothing is asked.
    """
    if not question.strip() and not media:
        raise DataError(f"question: {question!r} asks nothing; write a question, or attach a medium")
    return Conversation("question", (*after, Turn("user", (*media, Text(question)))))


def located(conversation: Conversation) -> Conversation:
    """Returns the conversation with its media's paths made absolute, relative to the working directory.

    Raises:
        DataError: there is no such file, or it isn't one; or a text isn't Unicode.
    """

    def place(part: Part) -> Part:
        if isinstance(part, Media):
            return _placed(part, f"{conversation.id}: {part}")
        _refuse_halves(part.text, conversation.id)
        return part

    turns = tuple(replace(turn, parts=tuple(place(part) for part in turn.parts)) for turn in conversation.turns)
    return replace(conversation, turns=turns)


def _placed(media: Media, where: str) -> Media:
    found = locate(media.ref, where)
    return replace(media, ref=found if isinstance(found, bytes) else str(found))


def _refuse_halves(text: str, where: str) -> None:
    # Python reads bytes of a command line that aren't UTF-8 as halves of surrogate pairs, which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} is {text[error.start]!r}, half of a surrogate pair; write the text in "
            "UTF-8, or replace it"
        ) from None


def swap_media(conversations: Sequence[Conversation], seed: int) -> list[Conversation]:
    """Gives every conversation the media of others and none of its own, so that a score shows what looking is worth.

    Conversations about one medium stay together: each distinct medium is replaced by another of its modality.

    Raises:
        DataError: there are too few different media for that.
    """
    beside: dict[Media, set[Media]] = {}
    for conversation in conversations:
        own = {medium for turn in conversation.turns for medium in turn.media}
        for medium in own:
            beside.setdefault(medium, set()).update(own)
    other: dict[Media, Media] = {}
    for modality in sorted({medium.modality for medium in beside}):
        members = sorted((medium for medium in beside if medium.modality == modality), key=repr)
        random.Random(seed).shuffle(members)
        other |= _exchanged(members, beside)

    def swap(turn: Turn) -> Turn:
        return replace(turn, parts=tuple(other[part] if isinstance(part, Media) else part for part in turn.parts))

    return [replace(conv, turns=tuple(map(swap, conv.turns))) for conv in conversations]


def _exchanged(members: Sequence[Media], beside: Mapping[Media, set[Media]]) -> dict[Media, Media]:
    """Maps the media onto one another, none to one that stands beside it in a conversation."""
    other = dict(zip(members, [*members[1:], *members[:1]], strict=True))
    for medium in members:
        if other[medium] not in beside[medium]:
            continue
        fits = (m for m in members if other[m] not in beside[medium] and other[medium] not in beside[m])
        partner = next(fits, None)
        if partner is None:
            raise DataError(
                f"{len(members)} different {medium.modality} media can't be swapped so that no row keeps its own; "
                "take more rows"
            )
        other[medium], other[partner] = other[partner], other[medium]
    return other
