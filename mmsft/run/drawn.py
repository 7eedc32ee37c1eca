"""Rows for a page: with their turns and media as they are written, also where the model can't use them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from mmsft.config import StageConfig
from mmsft.data.mixture import Mixture
from mmsft.errors import DataError
from mmsft.report.media import Album, Medium
from mmsft.report.rows import Drawn, Piece, Said
from mmsft.report.rows import Token as Shown
from mmsft.report.tree import counted, drawn
from mmsft.run.load import Run
from mmsft.run.show import Row, Token, rows_of, stage_named
from mmsft.types import ROOT, Conversation, Encoded, Ints, Text, Turn

_RAW: Final = 4000
"""Characters that are shown of a row that can't be read."""


def drawn_rows(run: Run, stage: str | None, start: int, rows: int) -> list[Drawn]:
    """Returns rows for a page, in the order in which the first epoch sees them; threads of a row stand together.

    Args:
        run: a run.
        stage: the name of the stage whose recipe is shown; the first if there is none.
        start: the first row, from 0.
        rows: how many at most.

    Raises:
        ConfigError: there is no such stage, or no such row.
    """
    chosen = stage_named(run, stage)
    mixture, album = run.mixture(chosen.recipe), Album()
    read = list(rows_of(run, chosen, start, rows))
    found = [_drawn(mixture, row, start + number, album) for number, row in enumerate(read, 1)]
    return list(_joined(run, chosen, read, found))


def facts(run: Run, stage: str | None, rows: Sequence[Drawn]) -> list[str]:
    """Returns what a page says about its rows."""
    chosen = stage_named(run, stage)
    mixture = run.mixture(chosen.recipe)
    of_stage = f" of stage {chosen.name}" if len(run.config.stages) > 1 else ""
    tokens, learned = sum(row.tokens for row in rows), sum(row.learned for row in rows)
    lost = sum(row.error is not None for row in rows)
    first, last = (rows[0].number, rows[-1].number) if rows else (0, 0)
    part = f", {learned / tokens:.1%}" if tokens else ""
    return [
        f"Rows {first:,} to {last:,} of the {mixture.epoch:,} of an epoch{of_stage}, in training order, of "
        f"{len(mixture.sources):,} sources: {tokens:,} tokens, {learned:,} of them learned{part}"
        + (f"; {lost:,} rows can't be used." if lost else "."),
        reading(run, stage),
    ]


def reading(run: Run, stage: str | None) -> str:
    """Returns what turns a stage's rows into tokens, in words."""
    recipe = stage_named(run, stage).recipe
    kinds = {name: tower.modality.kind for name, tower in run.config.model.towers.items()}
    towers = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    if any(kind.endswith(":Unseen") for kind in kinds.values()):
        media = "A recipe has no model: each medium counts as a token."
    else:
        media = f"Towers: {towers}." if towers else "No towers: the model is text-only."
    return f"Tokenizer {run.config.model.decoder.name}, template {recipe.template}, learned: {recipe.learn}. {media}"


def _drawn(mixture: Mixture, row: Row, number: int, album: Album) -> Drawn:
    first, source = row.shown[0], mixture.sources[int(row.pair[0])]
    drawing = Drawn(first.id, number, source.name, group=first.group, error=first.error)
    try:
        conversation = mixture.conversation(row.pair)
    except DataError:
        return replace(drawing, raw=_raw(mixture, row.pair))
    tags = tuple((name, str(value)) for name, value in conversation.tags.items())
    drawing = replace(drawing, tags=tags, turns=tuple(_said(conversation, album)))
    if row.encoded is None:
        return drawing
    return replace(
        drawing,
        threads=tuple(tuple(_pieces(one.tokens)) for one in row.shown),
        tree=drawn(row.encoded),
        tokens=len(row.encoded),
        learned=len(row.encoded.targets),
        slots=sum(len(placed.slots) for placed in row.encoded.media),
        note=row.encoded.note,
    )


def _joined(run: Run, stage: StageConfig, read: Sequence[Row], found: Sequence[Drawn]) -> Iterator[Drawn]:
    """Yields the rows; the first of those that are joined with the tree that they make."""
    encoding = run.encoding(stage)
    for group, some in groupby(zip(read, found, strict=True), key=lambda pair: pair[1].group):
        pairs = list(some)
        usable = [row.encoded for row, _ in pairs if row.encoded is not None]
        trees: list[Encoded] = []
        if group is not None and len(usable) > 1:
            trees = encoding.joined(usable, [group] * len(usable))
        for at, (_, one) in enumerate(pairs):
            yield replace(one, joined=drawn(trees[0])) if at == 0 and len(trees) == 1 else one


def _said(conversation: Conversation, album: Album) -> Iterator[Said]:
    turns = conversation.turns
    parents = [conversation.parent(index) for index in range(len(turns))]
    depths: list[int] = []
    shown: dict[object, Medium] = {}
    for index, (turn, parent) in enumerate(zip(turns, parents, strict=True)):
        above = depths[parent] if parent != ROOT else 0
        depths.append(above + (parents.count(parent) > 1))
        parts: list[str | Medium] = []
        for part in turn.parts:
            if isinstance(part, Text):
                if part.text.strip():
                    parts.append(part.text.strip("\n"))
            elif part in shown:
                parts.append(shown[part]._replace(kind="", uris=(), poster="", note="as above"))
            else:
                shown[part] = album.medium(part)
                parts.append(shown[part])
        answers = None if parent in (ROOT, index - 1) else parent + 1
        yield Said(index + 1, turn.role, answers, depths[-1], turn.weight, tuple(parts), _more(turn))


def _more(turn: Turn) -> tuple[tuple[str, str], ...]:
    thought = [("reasoning", turn.reasoning)] if turn.reasoning else []
    calls = []
    for call in turn.tool_calls:
        arguments = json.dumps(call.arguments, ensure_ascii=False, default=str)
        calls.append(("call", f"{call.name}({arguments})"))
    return (*thought, *calls)


def _raw(mixture: Mixture, pair: Ints) -> str:
    """Returns a row that can't be read as a conversation, as far as it can be read at all."""
    try:
        record = mixture.sources[int(pair[0])].record(int(pair[1]))
    except DataError:
        return ""
    told = json.dumps(dict(record), ensure_ascii=False, default=lambda value: f"<{type(value).__name__}>")
    return told if len(told) <= _RAW else f"{told[:_RAW]} … and {len(told) - _RAW:,} characters more"


def _pieces(tokens: Sequence[Token]) -> Iterator[Piece]:
    """Yields runs of tokens that a page shows alike."""
    for (media, weight, control), same in groupby(tokens, key=lambda it: (it.media, it.weight, it.control)):
        run = list(same)
        if media:
            yield Piece("media", weight, (Shown(f"{len(run):,} slots", f"{media} · {counted(len(run))}"),))
        else:
            shown = tuple(Shown(str(token.id), token.text) for token in run)
            yield Piece("control" if control else "text", weight, shown)
