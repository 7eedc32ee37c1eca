"""Shows rows as the model sees them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text as Styled

from mmsft.config import StageConfig
from mmsft.data.order import rows_at
from mmsft.errors import ConfigError, DataError, suggest
from mmsft.run.load import Run
from mmsft.types import Encoded


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the model reads it: what it says, and the weight with which it is learned (None = context)."""

    id: int
    text: str
    weight: float | None
    media: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A row, or why it can't be used."""

    id: str
    tokens: tuple[Token, ...] = ()
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the row as JSON has it."""
        tokens = [
            {"id": token.id, "text": token.text, "weight": token.weight, "media": token.media} for token in self.tokens
        ]
        return {"row": self.id, "error": self.error, "tokens": tokens}

    def text(self) -> str:
        """Returns the row for a terminal: learned tokens green, control tokens blue, media as one mark."""
        console = Console(highlight=False, soft_wrap=True)
        with console.capture() as captured:
            console.rule(Styled(self.id), align="left")
            if self.error:
                console.print(Styled(self.error, style="red"))
            else:
                console.print(self._body())
                learned = sum(token.weight is not None for token in self.tokens)
                media = sum(token.media is not None for token in self.tokens)
                console.print(Styled(f"{len(self.tokens)} tokens, {learned} learned, {media} of media", style="dim"))
        return captured.get().rstrip("\n")

    def _body(self) -> Styled:
        body = Styled()
        last: str | None = None
        for token in self.tokens:
            if token.media is None:
                style = "bold green" if token.weight else "blue" if token.text.startswith("<|") else ""
                mark = "" if token.weight in (None, 1.0) else f"[weight {token.weight:g}]"
                body.append(token.text + mark, style)
            elif token.media != last:
                body.append(token.media, "magenta")
            last = token.media
        return body


def show_rows(run: Run, stage: str | None, start: int, rows: int) -> Iterator[Shown]:
    """Yields rows in the order in which training sees them.

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
        yield Shown(encoded.id, tuple(_tokens(encoded, encoder.tokenizer.decode)))


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


def _tokens(encoded: Encoded, decode: Any) -> Iterator[Token]:
    # A target's token is the one after its position, in the thread; with one segment, the next.
    weights = dict(zip((encoded.targets.position + 1).tolist(), encoded.targets.weight.tolist(), strict=True))
    media = {
        int(slot): f"<{placed.media.modality}:{len(placed.slots)} tokens>"
        for placed in encoded.media
        for slot in placed.slots
    }
    for index, token in enumerate(encoded.input_ids.tolist()):
        text = "" if index in media else decode([token])
        yield Token(token, text, weights.get(index), media.get(index))
