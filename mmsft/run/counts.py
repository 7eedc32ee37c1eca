"""Counts what can be counted: targets in their places, their weights, positions, and what towers encode."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmsft.data.chat import MARKER, ChatEncoder
from mmsft.data.collate import Question, collate, groups_of, pack
from mmsft.data.media_reader import Loaded, MediaReader
from mmsft.data.prefix import lay_out
from mmsft.model.fusion import MultimodalModel
from mmsft.model.modes import evaluating
from mmsft.model.tower import Tower
from mmsft.run.invariance import Check, distance
from mmsft.types import PREVIOUS, Batch, Conversation, Encoded, Ints


def equal(what: str, reference: int, variant: int) -> Check:
    """Compares two counts."""
    return Check(what, reference, variant, abs(reference - variant), 0)


def targets(
    encoder: ChatEncoder, conversations: Sequence[Conversation], batches: Mapping[str, Batch]
) -> Iterator[Check]:
    """Looks where targets stand, and whether what they say is what the assistant says.

    Args:
        encoder: of the conversations.
        conversations: what the batches were made of.
        batches: by what they are called; each of them holds all of the conversations.
    """
    rows = [encoder.encode(conversation) for conversation in conversations]
    count = sum(len(row.targets) for row in rows)
    weight = float(sum(row.targets.weight.sum() for row in rows))
    for name, batch in batches.items():
        yield equal(f"targets of the rows, and in {name}", count, len(batch.targets.token))
        yield equal(f"targets in {name}, and those that follow their position", count, int(_follows(batch).sum()))
        found = batch.targets.weight.sum().item()
        yield Check(f"weight of the rows, and in {name}", weight, found, abs(found / weight - 1), 1e-6)
    if encoder.learn == "all":
        plain = [row for row, conversation in zip(rows, conversations, strict=True) if _plain(conversation)]
        taken = sum(len(row.targets) for row in plain)
        yield equal(
            "tokens of plain rows but for the first, and their targets", sum(map(len, plain)) - len(plain), taken
        )
        return
    replies = [reply for conversation in conversations for reply in _replies(conversation, encoder)]
    alone = [encoder.encode(reply) for reply in replies]
    yield equal("targets of the replies one by one, and of the rows", sum(len(row.targets) for row in alone), count)
    learned = [row.targets.token.tolist() for row in alone]
    answers = sum(map(_answers, repeat(encoder), replies, alone, learned))
    yield equal("replies, and those learned from where a prompt ends to their own end", len(replies), answers)
    written = _as_written(encoder, replies, learned)
    yield equal("replies, and those learned as they are written", len(replies), written)
    weighed = sum(
        bool((row.targets.weight == reply.turns[-1].weight).all()) for reply, row in zip(replies, alone, strict=True)
    )
    yield equal("replies, and those learned with their weight", len(replies), weighed)


def _follows(batch: Batch) -> Tensor:
    """Tells for each target whether it is a token that follows its position in a thread."""
    at, token, ids = batch.targets.at, batch.targets.token, batch.input_ids.flatten()
    behind = torch.full((ids.numel() + 1,), -1)
    if batch.pack is None:
        width = batch.mask.shape[1]
        # Behind a row's last token there is nothing.
        inside = batch.mask[:, 1:] & batch.mask[:, :-1]
        behind[:-1].view(-1, width)[:, :-1][inside] = batch.input_ids[:, 1:][inside]
        return behind[at] == token
    found = torch.zeros(len(at), dtype=torch.bool)
    for segment in batch.pack.segments:
        if segment.parent >= 0:
            last = batch.pack.segments[segment.parent].end - 1
            found |= (at == last) & (token == ids[segment.start])
        behind[segment.start : segment.end - 1] = ids[segment.start + 1 : segment.end]
    return found | (behind[at] == token)


def _plain(conversation: Conversation) -> bool:
    """Tells whether all of it is text in one thread, none of it without weight."""
    turns = conversation.turns
    return len(conversation.threads()) == 1 and all(turn.weight > 0 and not turn.media for turn in turns)


def _replies(conversation: Conversation, encoder: ChatEncoder) -> Iterator[Conversation]:
    """Yields for each learned turn the conversation that leads to it, in which nothing else is learned."""
    seen: set[int] = set()
    for path in conversation.threads():
        speaks = [turn for turn in path if conversation.turns[turn].role == "assistant"]
        learned = speaks[-1:] if encoder.learn == "completion" else speaks
        for turn in learned:
            if turn in seen or conversation.turns[turn].weight <= 0:
                continue
            seen.add(turn)
            before = path[: path.index(turn) + 1]
            turns = [replace(conversation.turns[index], parent=PREVIOUS) for index in before]
            turns[:-1] = [replace(one, weight=0.0) if one.role == "assistant" else one for one in turns[:-1]]
            yield replace(conversation, turns=tuple(turns))


def _answers(encoder: ChatEncoder, reply: Conversation, row: Encoded, learned: list[int]) -> bool:
    """Tells whether a row begins with the prompt of inference, and what is learned is all that stands behind it."""
    if reply.turns[-1].media:
        return True  # of which nothing is learned
    prompt = encoder.prompt(replace(reply, turns=reply.turns[:-1])).input_ids.tolist()
    ids = row.input_ids.tolist()
    behind = ids[len(prompt) :]
    if encoder.learn == "span":
        return bool(ids[: len(prompt)] == prompt and behind[-len(learned) :] == learned)
    # An encoder–decoder may learn the tokens with which each of its replies begins.
    before, said = learned[: -len(behind)], learned[-len(behind) :]
    return bool(ids[: len(prompt)] == prompt and said == behind and not _bare(encoder, before))


def _as_written(encoder: ChatEncoder, replies: Sequence[Conversation], learned: Sequence[list[int]]) -> int:
    """Counts the replies of which that is learned which the assistant says, without regard to white space.

    Behind it stands what the template ends a reply with: always the same.
    """
    right = 0
    endings: Counter[str] = Counter()
    for reply, ids in zip(replies, learned, strict=True):
        turn, said = reply.turns[-1], _bare(encoder, ids)
        text = turn.text.partition(MARKER)[2] if encoder.learn == "span" else turn.text
        # As the tokenizer gives it back, which may write small letters only.
        meant = _bare(encoder, encoder.tokenizer.reply(text.strip()))
        if turn.media or turn.reasoning is not None or turn.tool_calls:
            right += bool(turn.media) or meant in said
        elif said.startswith(meant):
            endings[said.removeprefix(meant)] += 1
    return right + max(endings.values(), default=0)


def _bare(encoder: ChatEncoder, ids: list[int]) -> str:
    """Returns the text of ids without control tokens and white space."""
    text = encoder.tokenizer.decode(ids)
    for token in encoder.tokenizer.special:
        text = text.replace(token, "")
    return "".join(text.split())


def positions(name: str, batch: Batch) -> Check:
    """Compares each token's position with the number of tokens before it in its thread."""
    if batch.pack is None:
        counted = (batch.mask.long().cumsum(1) - 1)[batch.mask]
        given = batch.positions[batch.mask]
    else:
        given = batch.positions[0]
        counted = torch.zeros_like(given)
        for segment in batch.pack.segments:
            before = 0 if segment.parent < 0 else int(counted[batch.pack.segments[segment.parent].end - 1]) + 1
            counted[segment.start : segment.end] = before + torch.arange(segment.end - segment.start)
    right = int((given == counted).sum())
    return equal(f"tokens in {name}, and those whose position counts their own thread", len(given), right)


@torch.no_grad()
def towers(model: MultimodalModel, reader: MediaReader, loaded: Loaded, rows: Sequence[Encoded]) -> Iterator[Check]:
    """Counts what towers encode for a batch, and compares what fills its rows' slots with each medium's own tokens.

    Args:
        model: on its device.
        reader: of the media.
        loaded: all of the rows' media.
        rows: threads, if a decoder takes no packs.
    """
    device = next(model.parameters()).device
    batch = (pack if model.packs else collate)(rows, reader, loaded).map(lambda tensor: tensor.to(device))
    encoded = dict.fromkeys(batch.media, 0)
    with evaluating(model):
        hooks = [_tower(model, name).encoder.register_forward_hook(_counting(encoded, name)) for name in encoded]
        model(batch)
        for hook in hooks:
            hook.remove()
        embedded = model.embed(batch)
        places = lay_out(rows).places if model.packs else _places(rows, embedded.shape[1])
        for name, count in encoded.items():
            used = [
                ((placed.media, placed.context), place[placed.slots])
                for row, place in zip(rows, places, strict=True)
                for placed in row.media
                if placed.media.modality == name
            ]
            own = {question: _alone(_tower(model, name), reader, question, device) for question, _ in used}
            distinct = {medium for medium, _ in own}
            yield equal(f"distinct {name} media, and those encoded", len(distinct), count)
            expected = torch.cat([own[question] for question, _ in used])
            filled = embedded.flatten(0, 1)[torch.from_numpy(np.concatenate([slots for _, slots in used])).to(device)]
            bound = 1e-5 if filled.dtype == torch.float32 else 2e-2
            norms = float(expected.norm()), float(filled.norm())
            yield Check(f"{name} tokens by themselves, and in their slots", *norms, distance(expected, filled), bound)


def _places(rows: Sequence[Encoded], width: int) -> Iterator[Ints]:
    """Yields where a row's tokens lie among padded embeddings, flattened; for an encoder–decoder each prompt is a row.

    Args:
        rows: in the order of the batch.
        width: of each.
    """
    start = 0
    for row in rows:
        place = start + np.arange(len(row))
        prompts = [segment for segment in row.segments if segment.parent < 0] if row.two_sided else []
        for number, prompt in enumerate(prompts):
            place[prompt.start : prompt.end] = start + number * width + np.arange(prompt.end - prompt.start)
        yield place
        start += width * max(1, len(prompts))


def _tower(model: MultimodalModel, name: str) -> Tower:
    tower = model.towers[name]
    assert isinstance(tower, Tower)
    return tower


def _counting(encoded: dict[str, int], name: str) -> Any:
    def note(module: Any, inputs: Any, output: Any) -> None:
        encoded[name] += len(output.values)

    return note


def _alone(tower: Tower, reader: MediaReader, question: Question, device: torch.device) -> Tensor:
    """Returns the tokens [S, D] of a medium that is read, encoded and asked about by itself."""
    medium, _ = question
    [group], _ = groups_of([question], reader, {medium: reader.load(medium)})
    tokens: Tensor = tower(group.map(lambda tensor: tensor.to(device)))[0]
    return tokens
