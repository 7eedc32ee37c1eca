"""Shows rows as the model sees them."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.text import Text as Styled

from mmsft.config import StageConfig
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import threads
from mmsft.errors import ConfigError, DataError, suggest
from mmsft.report.tree import counted, outline
from mmsft.run.load import Run
from mmsft.types import Encoded, Ints, Media

_LONGEST: Final = 4  # bytes of a character
# Rows may hold what a terminal would obey; Unicode has a picture of each, from U+2400 on.
_UNSEEN: Final = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(127, 160), 0x2421),
}


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the model reads it.

    Attributes:
        id: in the vocabulary.
        text: what it says; a character of several tokens is the last one's.
        weight: with which it is learned; None = context.
        media: the medium that it is a slot of, if it is one.
        control: whether it is an added token, e.g. the end of a turn.
    """

    id: int
    text: str
    weight: float | None
    media: str | None
    control: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A thread of a row, or why the row can't be used; what threads share is learned in the first of them.

    Attributes:
        id: of the row.
        tokens: of the thread.
        added: texts of the tokenizer's control tokens; a row that holds one as text is not to look like the token.
        error: why the row can't be used.
        thread: its number among the row's `threads`.
        group: number of the rows that begin alike and are joined, if the recipe joins rows.
        tree: how the row's threads share what they begin with, at the first of several.
    """

    id: str
    tokens: tuple[Token, ...] = ()
    added: tuple[str, ...] = ()
    error: str | None = None
    thread: int = 1
    threads: int = 1
    group: int | None = None
    tree: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the row as JSON has it."""
        tokens = [asdict(token) for token in self.tokens]
        place = {"row": self.id, "group": self.group, "thread": self.thread, "threads": self.threads}
        return {**place, "error": self.error, "tokens": tokens}

    def text(self) -> str:
        """Returns the row for a terminal or a file: learned text in ⟦ ⟧, media in ⟨ ⟩, typed control tokens marked."""
        console = Console(highlight=False, soft_wrap=True)
        with console.capture() as captured:
            group = "" if self.group is None else f", group {self.group}"
            of = f", thread {self.thread} of {self.threads}" if self.threads > 1 else ""
            console.print(Styled(f"── {self.id}{group}{of} ──", style="bold"))
            if self.tree:
                console.print(Styled(self.tree, style="dim"))
            if self.error:
                console.print(Styled(self.error, style="red"))
            else:
                console.print(self._body())
                console.print(Styled(self._ids(), style="dim"))
                console.print(Styled(self._counts(), style="dim"))
        return captured.get().rstrip("\n")

    def _body(self) -> Styled:
        body = Styled()
        for (media, weight), same in groupby(self.tokens, key=lambda token: (token.media, token.weight)):
            run = list(same)
            if media is not None:
                body.append(f"⟨{media}, {counted(len(run))}⟩", "magenta")
            elif weight is None:
                self._write(body, run, "")
            else:
                body.append("⟦", "green")
                self._write(body, run, "bold green")
                body.append("⟧" if weight == 1 else f"⟧[weight {weight:g}]", "green")
        return body

    def _write(self, body: Styled, tokens: Sequence[Token], style: str) -> None:
        for control, same in groupby(tokens, key=lambda token: token.control):
            text = "".join(token.text for token in same).translate(_UNSEEN)
            if control:
                body.append(text, style or "blue")
                continue
            for index, piece in enumerate(self._typed().split(text)):
                body.append(f"[text: {piece}]" if index % 2 else piece, "yellow" if index % 2 else style)

    def _typed(self) -> re.Pattern[str]:
        return re.compile(f"({'|'.join(map(re.escape, self.added)) or '(?!)'})")

    def _counts(self) -> str:
        learned = sum(token.weight is not None for token in self.tokens)
        media = sum(token.media is not None for token in self.tokens)
        return f"{len(self.tokens)} tokens, {learned} learned ⟦ ⟧, {media} of media ⟨ ⟩"

    def _ids(self) -> str:
        """Returns the token ids; those of a medium's slots as one, with their number."""
        runs = []
        for (media, id), same in groupby(self.tokens, key=lambda token: (token.media, token.id)):
            count = len(list(same))
            runs.append(f"[{count} * {id}]" if media else " ".join([str(id)] * count))
        return " ".join(runs)


def show_rows(run: Run, stage: str | None, start: int, rows: int) -> Iterator[Shown]:
    """Yields rows in the order in which the first epoch sees them, thread by thread.

    Args:
        run: a run.
        stage: the name of the stage whose recipe is shown; the first if there is none.
        start: the first row, from 0.
        rows: how many at most.

    Raises:
        ConfigError: there is no such stage, or no such row.
    """
    for row in rows_of(run, stage_named(run, stage), start, rows):
        yield from row.shown


class Row(NamedTuple):
    """A row: its threads, or one that says why it can't be used; and its tokens, if it can.

    Attributes:
        pair: [2] its source and number.
        shown: its threads.
        encoded: its tokens.
    """

    pair: Ints
    shown: list[Shown]
    encoded: Encoded | None


def rows_of(run: Run, stage: StageConfig, start: int, rows: int) -> Iterator[Row]:
    """Yields rows as of `show_rows`."""
    mixture = run.mixture(stage.recipe)
    encoder = run.encoder(stage.recipe)
    count = mixture.epoch
    if not 0 <= start < count:
        raise ConfigError(f"--start {start}: stage {stage.name} trains on {count} rows; write 0 to {count - 1}")
    for row in mixture.order(run.order_seed(stage)).at(start, min(start + rows, count)):
        pair = mixture.train[row]
        group = None if mixture.groups is None else int(mixture.groups[row])
        try:
            encoded = encoder.encode(mixture.conversation(pair))
        except DataError as error:
            yield Row(pair, [Shown(mixture.row_id(pair), error=str(error), group=group)], None)
            continue
        chains, added = threads(encoded), encoder.tokenizer.added
        shown = [
            Shown(encoded.id, tuple(_tokens(chain, encoder.tokenizer)), added, None, number, len(chains), group)
            for number, chain in enumerate(chains, 1)
        ]
        if len(shown) > 1:
            shown[0] = replace(shown[0], tree=outline(encoded))
        yield Row(pair, shown, encoded)


def stage_named(run: Run, name: str | None) -> StageConfig:
    """Returns the stage of that name, the first if none is given.

    Raises:
        ConfigError: there is none.
    """
    stages = {stage.name: stage for stage in run.config.stages}
    if name is None:
        return run.config.stages[0]
    if name not in stages:
        raise ConfigError(f"no stage {name!r}{suggest(name, stages)}; there are {', '.join(stages)}")
    return stages[name]


def _tokens(encoded: Encoded, tokenizer: Tokenizer) -> Iterator[Token]:
    # A target's token is the one after its position in its thread; branches that begin alike each learn it there.
    weights: dict[int, float] = {}
    for position, weight in zip(encoded.targets.position.tolist(), encoded.targets.weight.tolist(), strict=True):
        weights[position + 1] = weights.get(position + 1, 0.0) + weight
    media = {
        int(slot): f"{placed.media.modality} {number}: {_name(placed.media)}"
        for number, placed in enumerate(encoded.media, 1)
        for slot in placed.slots
    }
    ids = encoded.input_ids.tolist()
    for index, (id, text) in enumerate(zip(ids, _texts(ids, media, tokenizer), strict=True)):
        yield Token(id, text, weights.get(index), media.get(index), text in tokenizer.added)


def _texts(ids: Sequence[int], slots: Container[int], tokenizer: Tokenizer) -> list[str]:
    """Returns the text of each token; of those that spell one character together, the last has it."""
    texts: list[str] = []
    begun: list[int] = []
    for index, id in enumerate(ids):
        alone = "" if index in slots else tokenizer.decode([id])
        if index in slots or alone in tokenizer.added:
            if begun:
                texts[-1], begun = tokenizer.decode(begun), []
            texts.append(alone)
            continue
        begun.append(id)
        text = tokenizer.decode(begun) if len(begun) > 1 else alone
        if text.endswith("�") and len(begun) < _LONGEST and index + 1 < len(ids):
            texts.append("")
        else:
            texts.append(text)
            begun = []
    return texts


def _name(media: Media) -> str:
    return Path(media.ref).name if isinstance(media.ref, str) else f"{len(media.ref)} bytes"
