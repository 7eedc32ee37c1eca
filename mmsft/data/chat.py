"""From a conversation to tokens and targets: the prompt as inference tokenises it, each learned reply apart from it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar

from mmsft.adapters.spec import Layout, slots_of
from mmsft.data import tree
from mmsft.data.fit import Fitted, Limits, OverLong, TooLong
from mmsft.data.media_reader import Reading
from mmsft.data.messages import Guard, guard
from mmsft.data.script import PrefixBroken, Reply, Script
from mmsft.data.seq2seq import Sides, joined
from mmsft.data.strand import CONTEXT, Contexts, Credit, Strand
from mmsft.data.template import ChatTemplate
from mmsft.data.tokens import Tokenizer
from mmsft.errors import ConfigError, DataError, LeftOut
from mmsft.types import Conversation, Encoded, Media, Text, Turn

Learn: TypeAlias = Literal["assistant", "completion", "all", "span"]

MARKER: Final = "<answer>"
"""With ``learn: span``, an assistant's turn is learned from behind this."""

_PROBE: Final = "mmsft probe"

_In = ParamSpec("_In")
_Out = TypeVar("_Out")


class _Thread(NamedTuple):
    """What a thread is made of: turns along a path, and those of them that the recipe learns."""

    path: tuple[int, ...]
    turns: tuple[int, ...]


class _Draft(NamedTuple):
    """A conversation's threads, a strand each, or two for an encoder–decoder: prompt and reply; and the row's note."""

    conversation: Conversation
    threads: dict[_Thread, tuple[Strand, ...]]
    note: str


class NothingToLearn(LeftOut):
    """No turn of the conversation is learned."""


def no_tower(media: Media) -> Layout:
    """The `slots` of a model without towers.

    Raises:
        DataError: always.
    """
    raise DataError(f"{media}: the model has no tower {media.modality!r}; add it under model.towers")


def no_readings(media: Media) -> Sequence[Reading]:
    """The `readings` of a model without towers; as of `no_tower`."""
    return (Reading(media, slots_of(no_tower(media))),)


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes conversations for one tokenizer, template and way to learn; picklable.

    Attributes:
        tokenizer: the decoder's.
        template: how conversations are written.
        learn: the ``assistant``'s turns, its last one (``completion``), ``all`` text, or the ``span`` behind `MARKER`.
        length: most tokens of a thread.
        too_long: what becomes of a thread that is longer: ``trim`` its last turns, ``shrink`` its media, ``drop`` it,
            or stop with an ``error``.
        template_kwargs: the recipe's variables for the template; a row's own come on top.
        slots: what a medium occupies among the tokens.
        contexts: what adapters read of the turns in which media stand.
        readings: how a medium can be read, as it is first, then to fewer and fewer tokens.
        loss_by: the tag whose values number the targets; None = they aren't numbered.
        data_tokens: added tokens that rows may use, ``decoder.new_tokens``, except for those that the template or the
            tokenizer itself uses; every other one stays text in a row.
        sides: for an encoder–decoder: each learned turn is then a reply to a prompt of its own.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    learn: Learn = "assistant"
    length: int = 2048
    too_long: OverLong = "drop"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    slots: Callable[[Media], Layout] = no_tower
    contexts: Contexts = field(default_factory=dict)
    readings: Callable[[Media], Sequence[Reading]] = no_readings
    loss_by: str | None = None
    data_tokens: tuple[str, ...] = ()
    sides: Sides | None = None
    _guard: Guard = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.sides and self.learn == "all":
            raise ConfigError(
                "learn: all learns prompts too, which an encoder-decoder reads and doesn't write; use learn: assistant"
            )
        if self.contexts and self.learn == "all":
            raise ConfigError(
                f"learn: all learns prompts too, which the adapter of towers.{next(iter(self.contexts))} reads before "
                "they are said; use learn: assistant, or an adapter that doesn't read what is asked"
            )
        for read in self.contexts.values():
            read("")  # what can't be loaded is the config's fault, not a row's
        marker = MARKER if self.learn == "span" else None
        object.__setattr__(self, "_guard", guard(self.tokenizer, marker, self._free()))

    def encode(self, conversation: Conversation, source: int = 0) -> Encoded:
        """Returns the conversation's tokens and what is learned of them, each turn in the first thread that has it.

        Of several threads those that have more than `length` tokens are left out, lose their last turns with
        ``too_long: trim``, or have their media read smaller with ``shrink``, and the row's note says so.

        Raises:
            Unfit: a thread has more than `length` tokens, with ``too_long: error``.
            TooLong: each thread has more than `length` tokens.
            NothingToLearn: no turn is learned.
            DataError: the template refuses the conversation, loses a part of it, or breaks the prefix rule.
        """
        (encoded,) = self.encode_all([conversation], [source])
        if isinstance(encoded, DataError):
            raise encoded
        return encoded

    def encode_all(self, conversations: Sequence[Conversation], sources: Sequence[int]) -> list[Encoded | DataError]:
        """Encodes conversations of the given sources, in less time than one by one.

        Returns:
            For each what `encode` returns or raises.
        """
        drafts = [_tried(self._draft, conversation) for conversation in conversations]
        written = [draft for draft in drafts if not isinstance(draft, DataError)]
        # Apart from the other work: tokenising is faster while what it looks up stays in the processor's caches.
        for strand in [strand for draft in written for thread in draft.threads.values() for strand in thread]:
            strand.tokenise()
        return [
            draft if isinstance(draft, DataError) else _tried(self._finished, draft, source)
            for draft, source in zip(drafts, sources, strict=True)
        ]

    def prompt(self, conversation: Conversation) -> Encoded:
        """Returns the conversation up to where the assistant begins to speak, for inference; nothing is learned.

        With ``too_long: shrink`` its media are read smaller where it is too long, as in training.

        Raises:
            DataError: the conversation has several threads, or as with `encode`.
        """
        encoded = self._prompt(conversation)
        if len(encoded) > self.length and self.too_long == "shrink":
            limits = Limits(self.length, lambda chain: len(self._prompt(chain)), self.readings)
            encoded = self._prompt(limits.shrunk(conversation, conversation.threads()).conversation)
        return self._fitting(encoded)

    def _prompt(self, conversation: Conversation) -> Encoded:
        paths = conversation.threads()
        if len(paths) > 1:
            raise DataError(f"{conversation.id}: {len(paths)} threads; a prompt is one thread")
        script = self._script(conversation)
        text = script.render(paths[0], generate=True)
        script.check(paths[0], text, generate=True)
        strand = self._strand(script)
        if not self.sides:
            strand.write(text)
            return strand.encoded(conversation.id)
        reply = self._strand(script)
        self.sides.ask(strand, text)
        self.sides.begin(reply)
        return joined(strand.encoded(conversation.id), reply.encoded(conversation.id))

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which a reply is over: the sequence's end, and what this template closes an assistant's turn with."""
        probe = Conversation("probe", (Turn("user", (Text("?"),)), Turn("assistant", (Text(_PROBE),))))
        text = self._script(probe).render((0, 1))
        tail = text[text.rindex(_PROBE) + len(_PROBE) :]
        # Where the template ends no reply, an encoder–decoder's ends as the tokenizer has it, not with white space.
        closing = [self.tokenizer.reply(end or tail) for _, end in self.tokenizer.ends(tail) if end or not self.sides]
        # Text of several tokens could be the beginning of something else.
        return tuple({*self.tokenizer.end_ids, *(ids[0] for ids in closing if len(ids) == 1)})

    @property
    def exported_template(self) -> str:
        """The template's text, by which other tools write the prompts that the model was trained on."""
        if not self.sides:
            return self.template.source
        probe = Conversation("probe", (Turn("user", (Text(_PROBE),)),))
        return self.sides.template(self.template.source, self._script(probe).render((0,), generate=True))

    def decode_reply(self, ids: list[int]) -> str:
        """Returns what the model said, without the white space that templates put around it."""
        return self.tokenizer.decode(ids).strip()

    def _free(self) -> set[str]:
        """Returns the data's tokens without those that end or frame a turn: of a row, these would be an injection."""
        written = self.template.source + (self.template.tool_source or "")
        named = set(self.tokenizer.named.values())
        return {token for token in self.data_tokens if token not in written and token not in named}

    def _script(self, conversation: Conversation) -> Script:
        return Script(conversation, self.template, self._guard, self.template_kwargs)

    def _strand(self, script: Script) -> Strand:
        return Strand(script.messages, self._guard, self.slots, self.contexts)

    def _learned(self, conversation: Conversation, path: Sequence[int]) -> list[int]:
        turns = conversation.turns
        speaks = [index for index in path if turns[index].role == "assistant"]
        if self.learn == "all":
            odd = next((index for index in path if turns[index].role != "assistant" and turns[index].weight != 1), None)
            if odd is not None:
                raise DataError(
                    f"{conversation.id}: turn {odd} ({turns[odd].role}) has weight {turns[odd].weight:g}, but learn: "
                    "all learns it with weight 1; use learn: assistant, or leave its weight out"
                )
            return speaks
        if self.learn == "completion":
            speaks = speaks[-1:]
        return [index for index in speaks if turns[index].weight > 0 and self._says_something(conversation, index)]

    def _says_something(self, conversation: Conversation, index: int) -> bool:
        turn = conversation.turns[index]
        if turn.text.strip() or turn.media or turn.tool_calls:
            return True
        raise DataError(
            f"{conversation.id}: assistant turn {index} is empty; give it text, or a weight of 0 to keep it as context"
        )

    def _draft(self, conversation: Conversation, without: Collection[_Thread] = ()) -> _Draft:
        """Writes a conversation's threads, but for some; turns that are in another thread too are learned there."""
        script = self._script(conversation)
        learned: set[int] = set()
        threads: dict[_Thread, tuple[Strand, ...]] = {}
        note = ""
        for path in conversation.threads():
            turns = self._learned(conversation, path)
            new = set(turns) - learned
            if new or self.learn == "all":
                written, broken = self._written(script, self._thread(path, turns), new, without)
                threads |= written
                note = note or broken
                learned.update(*(thread.turns for thread in written))
        if not note and not self.sides and (parted := script.parted([thread.path for thread in threads])):
            note = f"{parted}; its branches run as threads that share only what comes before that"
        return _Draft(conversation, threads, note)

    def _thread(self, path: Sequence[int], turns: Sequence[int]) -> _Thread:
        """Returns the thread of a path; behind what is learned it ends."""
        return _Thread(tuple(path if self.learn == "all" else path[: path.index(turns[-1]) + 1]), tuple(turns))

    def _written(
        self, script: Script, thread: _Thread, new: set[int], without: Collection[_Thread]
    ) -> tuple[dict[_Thread, tuple[Strand, ...]], str]:
        """Writes a path as one thread; if its template rewrites earlier turns, as one for each turn, and says so.

        Thinking, say, is often left out of all turns but the last: each turn then is learned as inference would say it.
        """
        apart = [
            one for turn in thread.turns if turn in new and (one := self._thread(thread.path, [turn])) not in without
        ]
        if self.sides:
            return {one: self._answered(script, one, self.sides) for one in apart}, ""
        try:
            return ({} if thread in without else {thread: (self._strand_of(script, thread, new),)}), ""
        except PrefixBroken as broken:
            if len(thread.turns) == 1:
                raise
            threads: dict[_Thread, tuple[Strand, ...]] = {one: (self._strand_of(script, one, new),) for one in apart}
            return threads, f"{broken.what}; each of its learned turns runs as a thread of its own"

    def _finished(self, draft: _Draft, source: int) -> Encoded:
        id = draft.conversation.id
        threads, long = self._encoded(draft, source)
        fitted = Fitted(draft.conversation)
        if long:
            limits = Limits(self.length, self._longest, self.readings)
            turns = {thread.path: thread.turns for thread in long}
            fitted = limits.fitted(draft.conversation, turns, self.too_long, next(iter(long.values())))
        if fitted.note:
            draft = self._draft(fitted.conversation)
            threads, long = self._encoded(draft, source)
        notes = [fitted.note] if fitted.note else []
        left_out = {thread: fitted.explained(thread.path, error) for thread, error in long.items()}
        while long:
            # What stood in a thread that is too long may be learned in another one.
            draft = self._draft(draft.conversation, left_out)
            threads, long = self._encoded(draft, source)
            left_out |= long
        if not any(len(thread.targets) for thread in threads):
            raise next(iter(left_out.values()), None) or NothingToLearn(
                f"{id}: nothing to learn with learn: {self.learn}; it takes an assistant turn with a weight above 0"
            )
        notes += [draft.note] if draft.note else []
        if left_out:
            count = f"{len(left_out)} of {len(left_out) + len(threads)} threads too long, the others are learned from"
            notes.append(f"{count}; the first: {next(iter(left_out.values()))}")
        encoded = tree.join(threads)
        left = len(left_out) + fitted.cut
        return replace(encoded, note="; ".join(notes), left_out=left, shrunk=fitted.shrunk) if notes else encoded

    def _longest(self, conversation: Conversation) -> int:
        """Returns the tokens of a conversation's longest thread."""
        threads = self._draft(conversation).threads.values()
        return max((sum(len(strand.encoded(conversation.id)) for strand in strands) for strands in threads), default=0)

    def _encoded(self, draft: _Draft, source: int) -> tuple[list[Encoded], dict[_Thread, TooLong]]:
        """Returns a draft's threads as tokens, and those that are too long."""
        threads: list[Encoded] = []
        long: dict[_Thread, TooLong] = {}
        id = draft.conversation.id
        for which, (strand, *reply) in draft.threads.items():
            thread = strand.encoded(id, source, threads if self.learn == "all" else ())
            if self.loss_by is not None:
                thread = replace(thread, values=(draft.conversation.tags_of(which.path).get(self.loss_by, ""),))
            try:
                threads.append(self._fitting(joined(thread, reply[0].encoded(id, source)) if reply else thread))
            except TooLong as error:
                long[which] = error
        return threads, long

    def _strand_of(self, script: Script, thread: _Thread, new: set[int]) -> Strand:
        """Writes a thread; of its turns the new ones are learned."""
        everything = self.learn == "all"
        path, turns = thread
        replies = script.replies(path, turns)
        text = script.render(path)
        script.check(path, text)
        context = Credit(1.0) if everything else CONTEXT
        strand = self._strand(script)
        at, lead = 0, None
        for reply in replies:
            weight = script.conversation.turns[reply.turn].weight if reply.turn in new else 0.0
            credit = Credit(weight, reply.turn)
            start = reply.start if self.learn != "span" else self._behind_marker(script, reply, text)
            strand.write(text[at:start], context, lead)
            strand.write(text[start : reply.stop], credit)
            at, lead = reply.stop, credit if reply.end else None
        # The end token stands before what follows it, as its tokenizer wants to see it: some take white space along.
        strand.write(text[at : len(text) if everything else at + len(replies[-1].end)], context, lead)
        return strand

    def _answered(self, script: Script, thread: _Thread, sides: Sides) -> tuple[Strand, Strand]:
        """Returns the one turn that is learned of a thread as a reply to what was said before it."""
        path, (turn,) = thread
        (found,) = script.replies(path, [turn])
        text = script.render(path)
        script.check(path, text)
        start = found.start if self.learn != "span" else self._behind_marker(script, found, text)
        prompt, reply = self._strand(script), self._strand(script)
        sides.ask(prompt, text[: found.start])
        credit = Credit(script.conversation.turns[turn].weight, turn)
        sides.answer(reply, text[found.start : start], text[start : found.stop], found.end, credit)
        return prompt, reply

    def _behind_marker(self, script: Script, reply: Reply, text: str) -> int:
        at = text.find(MARKER, reply.start, reply.stop)
        if at < 0:
            raise DataError(
                f"{script.conversation.id}: learn: span learns what follows {MARKER}, and assistant turn {reply.turn} "
                "has none; write it into the turn, or give the turn a weight of 0"
            )
        return at + len(MARKER)

    def _fitting(self, encoded: Encoded) -> Encoded:
        if len(encoded) > self.length:
            slots = sum(len(placed.slots) for placed in encoded.media)
            media = f", {slots} of them of {len(encoded.media)} media" if slots else ""
            raise TooLong(
                f"{encoded.id}: {len(encoded)} tokens{media}; the recipe's length is {self.length}: raise it, or "
                "shorten the row"
            )
        return encoded


def _tried(work: Callable[_In, _Out], *args: _In.args, **kwargs: _In.kwargs) -> _Out | DataError:
    try:
        return work(*args, **kwargs)
    except DataError as error:
        return error
