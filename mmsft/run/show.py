"""Shows rows as the model sees them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text as Styled

from mmsft.config import StageConfig
from mmsft.data.order import rows_at
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import threads
from mmsft.errors import ConfigError, DataError, suggest
from mmsft.run.load import Run
from mmsft.types import Encoded


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the model reads it.

    Attributes:
        id: in the vocabulary.
        text: what it says.
        weight: with which it is learned; None = context.
        media: what it is a slot of, if it is one.
        control: whether it is an added token, e.g. the end of a turn.
    """

    id: int
    text: str
    weight: float | None
    media: str | None
    control: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A thread of a row, or why the row can't be used; what threads share is learned in the first of them."""

    id: str
    tokens: tuple[Token, ...] = ()
    error: str | None = None
    thread: int = 1
    threads: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Returns the row as JSON has it."""
        tokens = [asdict(token) for token in self.tokens]
        return {"row": self.id, "thread": self.thread, "threads": self.threads, "error": self.error, "tokens": tokens}

    def text(self) -> str:
        """Returns the row for a terminal: learned tokens green, control tokens blue, media as one mark."""
        console = Console(highlight=False, soft_wrap=True)
        with console.capture() as captured:
            of = f", thread {self.thread} of {self.threads}" if self.threads > 1 else ""
            console.rule(Styled(self.id + of), align="left")
            if self.error:
                console.print(Styled(self.error, style="red"))
            else:
                console.print(self._body())
                console.print(Styled(self._ids(), style="dim"))
                learned = sum(token.weight is not None for token in self.tokens)
                media = sum(token.media is not None for token in self.tokens)
                console.print(Styled(f"{len(self.tokens)} tokens, {learned} learned, {media} of media", style="dim"))
        return captured.get().rstrip("\n")

    def _body(self) -> Styled:
        body = Styled()
        last: str | None = None
        for token in self.tokens:
            if token.media is None:
                style = "bold green" if token.weight else "blue" if token.control else ""
                mark = "" if token.weight in (None, 1.0) else f"[weight {token.weight:g}]"
                body.append(token.text + mark, style)
            elif token.media != last:
                body.append(token.media, "magenta")
            last = token.media
        return body

    def _ids(self) -> str:
        """Returns the token ids; those of a medium's slots as one, with their number."""
        runs = []
        for (media, id), same in groupby(self.tokens, key=lambda token: (token.media, token.id)):
            count = len(list(same))
            runs.append(f"[{count} * {id}]" if media else " ".join([str(id)] * count))
        return " ".join(runs)


def show_rows(run: Run, stage: str | None, start: int, rows: int) -> Iterator[Shown]:
    """Yields rows in the order in which training sees them, thread by thread.

    Raises:
        ConfigError: there is no such stage.
    """
    chosen = stage_named(run, stage)
    mixture = run.mixture(chosen.recipe)
    encoder = run.encoder(chosen.recipe)
    seed = run.order_seed(chosen)
    for row in rows_at(seed, len(mixture.train), start, start + rows):
        pair = mixture.train[row]
        try:
            encoded = encoder.encode(mixture.conversation(pair))
        except DataError as error:
            yield Shown(mixture.row_id(pair), error=str(error))
            continue
        chains = threads(encoded)
        for number, chain in enumerate(chains, 1):
            tokens = tuple(_tokens(chain, encoder.tokenizer))
            yield Shown(encoded.id, tokens, thread=number, threads=len(chains))


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
        int(slot): f"<{placed.media.modality}:{len(placed.slots)} tokens>"
        for placed in encoded.media
        for slot in placed.slots
    }
    for index, token in enumerate(encoded.input_ids.tolist()):
        text = "" if index in media else tokenizer.decode([token])
        yield Token(token, text, weights.get(index), media.get(index), text in tokenizer.added)
