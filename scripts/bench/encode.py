"""The rate at which conversations become tokens and targets, beside that of the tokenizer alone on the same texts.

``python -m scripts.bench.encode`` needs the assets of the demos. All sides work on one thread, as data workers do, and
take turns, so that a busy machine slows them alike; figures are medians over all rounds.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import mmsft
from mmsft.adapters.spec import Layout
from mmsft.config import StageConfig
from mmsft.data.chat import ChatEncoder
from mmsft.data.messages import Shown, guard
from mmsft.data.script import Script
from mmsft.data.token_store import TokenStore
from mmsft.noise import quiet_libraries
from mmsft.run import Run
from mmsft.types import Conversation, Media, Text

STEP: Final = 128
"""Conversations that a side is given at once, as a data worker is given the rows of a global step."""

NO_LIMIT: Final = 1 << 20
"""Length of a thread at which no row is refused, so that both sides see all rows."""


Side: TypeAlias = Callable[[Sequence[Conversation], list[str]], object]
"""Makes tokens of conversations, given also as texts."""


@dataclass(frozen=True, slots=True)
class Case:
    """Conversations, and how they are encoded.

    Attributes:
        name: in the table.
        encoder: of the recipe.
        conversations: its rows.
        stage: which reads them; None = none does.
    """

    name: str
    encoder: ChatEncoder
    conversations: Sequence[Conversation]
    stage: tuple[Run, StageConfig] | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """What one case gave.

    Attributes:
        case: its name.
        conversations: how many.
        tokens: how many, those that media take included.
        tokenizer: conversations a second that the tokenizer alone makes.
        single: those that `encode` makes, one by one.
        together: those that `encode_all` makes.
        ratio: of `encode_all` to the tokenizer alone; the issue asks for 0.85.
    """

    case: str
    conversations: int
    tokens: int
    tokenizer: float
    single: float
    together: float
    ratio: float


def main() -> None:
    """Measures all cases, and memory if asked to, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="rows a case (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds a case (default: %(default)s)")
    parser.add_argument(
        "--memory", type=int, default=0, metavar="N", help="also encode N different rows; see them grow"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    quiet_libraries()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cases = make_cases(options.rows)
    rates = [measure(case, options.rounds) for case in cases]
    kept = {case.name: from_store(case, options.rounds) for case in cases if case.stage is not None}
    grown = growth(cases[0], options.memory) if options.memory else None
    if options.json:
        print(json.dumps({"rates": [asdict(rate) for rate in rates], "stored": kept, "grown_mib": grown}))
        return
    print(
        f"{'conversations/s':<22}{'rows':>6}{'tokens':>9}{'tokenizer':>11}{'encode':>9}{'encode_all':>12}{'ratio':>7}"
    )
    for rate in rates:
        print(
            f"{rate.case:<22}{rate.conversations:>6}{rate.tokens:>9}"
            f"{rate.tokenizer:>11.0f}{rate.single:>9.0f}{rate.together:>12.0f}{rate.ratio:>7.2f}"
        )
    for name, stored in kept.items():
        print(f"{name} from the store of tokens: {stored:.0f} rows/s, read, compared and looked up by one process")
    if grown is not None:
        print(f"the process grew by {grown:.1f} MiB over {options.memory} different rows, after as many others")


def make_cases(rows: int) -> tuple[Case, ...]:
    """Returns single answers, dialogues of eight turns, and short questions about pictures."""
    alpaca = demo_case("Alpaca rows", "configs/demo_text.yaml", 0, rows)
    dialogues = tuple(
        Conversation(f"dialogue {number}", tuple(turn for row in four for turn in row.turns))
        for number, four in enumerate(cut(alpaca.conversations, 4))
    )
    pictures = demo_case("easy-VQA rows", "configs/demo.yaml", 1, rows)
    return alpaca, Case("dialogues of 8 turns", alpaca.encoder, dialogues), pictures


def demo_case(name: str, config: str, stage: int, rows: int) -> Case:
    """Returns the first rows of a shipped config's stage."""
    run = mmsft.load_run(Path(config))
    recipe = run.config.stages[stage].recipe
    mixture = run.mixture(recipe)
    conversations = tuple(mixture.conversation(pair) for pair in mixture.train[:rows])
    encoder = replace(run.encoder(recipe), length=NO_LIMIT)
    slots = remembered(encoder.slots)
    return Case(name, replace(encoder, slots=slots), conversations, (run, run.config.stages[stage]))


def remembered(slots: Callable[[Media], Layout]) -> Callable[[Media], Layout]:
    """Returns `slots` for towers to which all media are alike; no file is opened, which isn't the tokenizer's work."""
    layouts: dict[str, Layout] = {}

    def layout(media: Media) -> Layout:
        if media.modality not in layouts:
            layouts[media.modality] = slots(media)
        return layouts[media.modality]

    return layout


def measure(case: Case, rounds: int) -> Rate:
    """Lets the tokenizer alone and the encoder take turns on the case."""
    encoder, backend = case.encoder, case.encoder.tokenizer.hf.backend_tokenizer
    steps = [(step, [written(encoder, row) for row in step]) for step in cut(case.conversations, STEP)]
    tokens = sum(len(encoder.encode(row)) for row in case.conversations)
    sides: dict[str, Side] = {
        "tokenizer": lambda rows, texts: backend.encode_batch(texts, add_special_tokens=False),
        "single": lambda rows, texts: [encoder.encode(row) for row in rows],
        "together": lambda rows, texts: encoder.encode_all(rows, [0] * len(rows)),
    }
    took = {name: [0.0] * rounds for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            took[name][number] = sum(seconds(side, rows, texts) for rows, texts in steps)
    return Rate(
        case=case.name,
        conversations=len(case.conversations),
        tokens=tokens,
        **{name: len(case.conversations) / median(times) for name, times in took.items()},
        ratio=median(alone / ours for alone, ours in zip(took["tokenizer"], took["together"], strict=True)),
    )


def from_store(case: Case, rounds: int) -> float:
    """Returns the rows a second that come from a store of tokens that has them all."""
    assert case.stage is not None
    run, stage = case.stage
    mixture = run.mixture(stage.recipe)
    with TemporaryDirectory() as folder:
        store = TokenStore.of(Path(folder), 1 << 30, case.encoder)
        encoding = replace(run.encoding(stage), encoder=case.encoder, tokens=store)
        pairs = [mixture.train[start : start + STEP] for start in range(0, len(case.conversations), STEP)]
        took = []
        for _ in range(rounds + 1):
            start = time.process_time()
            for some in pairs:
                encoding.rows(mixture, some)
            took.append(time.process_time() - start)
    return sum(map(len, pairs)) / median(took[1:])


def cut(rows: Sequence[Conversation], size: int) -> list[Sequence[Conversation]]:
    """Cuts rows into stretches of one size, the last one smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def written(encoder: ChatEncoder, conversation: Conversation) -> str:
    """Returns the text that the template makes of a dialogue, media left out."""
    script = Script(conversation, encoder.template, guard(encoder.tokenizer), encoder.template_kwargs)
    pieces = script.messages.pieces(script.render(conversation.threads()[0]))
    return "".join(piece[0] for piece in pieces if not isinstance(piece, Shown))


def seconds(side: Side, rows: Sequence[Conversation], texts: list[str]) -> float:
    """Returns how long a side keeps the processor busy; what other processes do meanwhile doesn't count."""
    start = time.process_time()
    side(rows, texts)
    return time.process_time() - start


def growth(case: Case, rows: int) -> float:
    """Returns by how many MiB the process grows while rows are encoded, all of them different, after as many others."""
    held = []
    for first in (0, rows):
        for start in range(first, first + rows, STEP):
            some = [_numbered(case.conversations, number) for number in range(start, min(first + rows, start + STEP))]
            case.encoder.encode_all(some, [0] * len(some))
        held.append(resident())
    return held[1] - held[0]


def resident() -> float:
    """Returns the memory that the process holds, in MiB; Linux alone tells."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def _numbered(conversations: Sequence[Conversation], number: int) -> Conversation:
    """Returns a conversation whose words no other one has."""
    row = conversations[number % len(conversations)]
    ask = replace(row.turns[0], parts=(Text(f"Question {number}, x{number:x}. "), *row.turns[0].parts))
    return replace(row, turns=(ask, *row.turns[1:]))


if __name__ == "__main__":
    main()
