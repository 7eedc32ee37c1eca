"""The rate at which conversations become tokens and targets, beside that of the tokenizer alone on the same texts.

``python -m scripts.bench.encode`` needs the assets of the demos. Both sides work on one thread, as data workers do, and
take turns on small blocks of rows, so that a busy machine slows both alike; a ratio is the median over all rounds.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias

import mmsft
from mmsft.data.chat import ChatEncoder
from mmsft.data.messages import guard
from mmsft.data.script import Script
from mmsft.noise import quiet_libraries
from mmsft.types import Conversation, Media, Text, Turn

BLOCK: Final = 64
"""Conversations that one side encodes before it is the other's turn."""

NO_LIMIT: Final = 1 << 20
"""Length of a thread at which no row is refused, so that both sides see all rows."""


Side: TypeAlias = Callable[[Sequence[Conversation], list[str]], object]
"""Makes tokens of conversations, given also as texts."""


@dataclass(frozen=True, slots=True)
class Case:
    """Conversations, and how they are encoded."""

    name: str
    encoder: ChatEncoder
    conversations: Sequence[Conversation]


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
    grown = growth(cases[0], options.memory) if options.memory else None
    if options.json:
        print(json.dumps({"rates": [asdict(rate) for rate in rates], "grown_mib": grown}))
        return
    print(f"{'conversations a second':<24}{'rows':>6}{'tokens':>9}{'tokenizer':>11}{'encode':>9}{'together':>10}{'ratio':>7}")
    for rate in rates:
        print(
            f"{rate.case:<24}{rate.conversations:>6}{rate.tokens:>9}"
            f"{rate.tokenizer:>11.0f}{rate.single:>9.0f}{rate.together:>10.0f}{rate.ratio:>7.2f}"
        )
    if grown is not None:
        print(f"the process's peak grew by {grown:.1f} MiB over {options.memory} different rows")


def make_cases(rows: int) -> tuple[Case, ...]:
    """Returns single answers, dialogues of eight turns, and short questions about pictures."""
    alpaca = demo_case("Alpaca rows", "configs/demo_text.yaml", 0, rows)
    dialogues = tuple(
        Conversation(f"dialogue {number}", tuple(turn for row in four for turn in row.turns))
        for number, four in enumerate(blocks_of(alpaca.conversations, 4))
    )
    pictures = demo_case("easy-VQA rows", "configs/demo.yaml", 1, rows)
    return alpaca, Case("dialogues of 8 turns", alpaca.encoder, dialogues), pictures


def demo_case(name: str, config: str, stage: int, rows: int) -> Case:
    """Returns the first rows of a shipped config's stage."""
    run = mmsft.load_run(Path(config))
    recipe = run.config.stages[stage].recipe
    mixture = run.mixture(recipe)
    conversations = tuple(mixture.conversation(pair) for pair in mixture.train[:rows])
    return Case(name, replace(run.encoder(recipe), length=NO_LIMIT), conversations)


def measure(case: Case, rounds: int) -> Rate:
    """Lets the tokenizer alone and the encoder take turns on the case."""
    encoder, backend = case.encoder, case.encoder.tokenizer.hf.backend_tokenizer
    blocks = [(block, [written(encoder, row) for row in block]) for block in blocks_of(case.conversations, BLOCK)]
    tokens = sum(len(encoder.encode(row)) for row in case.conversations)
    sides: dict[str, Side] = {
        "tokenizer": lambda rows, texts: backend.encode_batch(texts, add_special_tokens=False),
        "single": lambda rows, texts: [encoder.encode(row) for row in rows],
        "together": lambda rows, texts: encoder.encode_all(rows, [0] * len(rows)),
    }
    took = {name: [0.0] * rounds for name in sides}
    for number in range(rounds):
        for turn, (rows, texts) in enumerate(blocks):
            for name in rotated(list(sides), number + turn):
                took[name][number] += seconds(sides[name], rows, texts)
    return Rate(
        case=case.name,
        conversations=len(case.conversations),
        tokens=tokens,
        **{name: len(case.conversations) / median(times) for name, times in took.items()},
        ratio=median(alone / ours for alone, ours in zip(took["tokenizer"], took["together"], strict=True)),
    )


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Returns the names with another one first each time: who comes second finds the processor's caches filled."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def blocks_of(rows: Sequence[Conversation], size: int) -> list[Sequence[Conversation]]:
    """Cuts rows into blocks of one size, the last one smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def written(encoder: ChatEncoder, conversation: Conversation) -> str:
    """Returns the text that the template makes of a dialogue, media left out."""
    script = Script(conversation, encoder.template, guard(encoder.tokenizer), encoder.template_kwargs)
    pieces = script.messages.pieces(script.render(conversation.threads()[0]))
    return "".join(piece[0] for piece in pieces if not isinstance(piece, Media))


def seconds(side: Side, rows: Sequence[Conversation], texts: list[str]) -> float:
    """Returns how long a side takes."""
    start = time.perf_counter()
    side(rows, texts)
    return time.perf_counter() - start


def growth(case: Case, rows: int) -> float:
    """Returns by how many MiB the process's peak grows while rows are encoded, all of them different."""
    before = peak()
    for number in range(rows):
        row = case.conversations[number % len(case.conversations)]
        case.encoder.encode(replace(row, turns=(_numbered(row.turns[0], number), *row.turns[1:])))
    return peak() - before


def peak() -> float:
    """Returns the most memory that the process has held, in MiB."""
    # Kilobytes on Linux, bytes on a Mac.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def _numbered(turn: Turn, number: int) -> Turn:
    return replace(turn, parts=(Text(f"Question {number}, x{number:x}. "), *turn.parts))


if __name__ == "__main__":
    main()
