"""What the benchmark measures, stated once for all sides: rows, what learns, rate, batch and what is to be reached."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

ROWS: Final = 128
"""Alpaca rows of the text workloads."""

PICTURES: Final = 48
QUESTIONS: Final = 8
"""Questions about each picture, each a row of its own."""

TOKENS: Final = 2048
"""Tokens of a text step; peers cut longer rows, of which there are none."""

MICRO: Final = 1024
"""Tokens of mmsft's micro-batches, and most of a row: two make a step in half of the memory, and take no longer."""

PADDED_ROWS: Final = 8
"""Rows of a padded text step, at Alpaca's lengths about as many places as `TOKENS`."""

ASKED: Final = 16
"""Questions of a step about pictures."""

COMPARED_PART: Final = 4
"""Steps whose losses are compared have a fourth of the rows: there are many sides, and none is fast in fp32."""

EPOCHS: Final = 4
"""How often the rows are written out for the peers, in mmsft's order, so that none begins anew within the steps."""

RANK: Final = 16
ALPHA: Final = 32

OURS: Final = "mmsft"

Learns = Literal["all", "lora", "projector"]
Purpose = Literal["time", "flops", "agree", "fill"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be reached.

    Attributes:
        speed: times the fastest peer's rate.
        memory: part of the leanest peer's peak memory, if that is asked for.
        over: times the rate of peers by name.
    """

    speed: float
    memory: float | None = None
    over: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workload:
    """A training problem.

    Attributes:
        name: as in the tables.
        pictures: whether rows show one.
        learns: all weights of the decoder (and the projector, where there is one), LoRA, or the projector alone.
        lr: constant.
        goals: what mmsft's sides are to reach.
        peers: who else runs it.
    """

    name: str
    pictures: bool
    learns: Learns
    lr: float
    goals: Mapping[str, Goal]
    peers: tuple[str, ...]

    @property
    def sides(self) -> tuple[str, ...]:
        """Who runs it, in turn."""
        return (*self.goals, *self.peers)

    @property
    def unit(self) -> str:
        """What is counted a second."""
        return "questions/s" if self.pictures else "tokens/s"


@dataclass(frozen=True, slots=True)
class Side:
    """One way to train.

    Attributes:
        venv: whose Python runs it, see `VENVS` in processes.py.
        module: its script.
        settings: what the script is told beside the workload.
    """

    venv: str
    module: str
    settings: dict[str, Any]


def _ours(**settings: Any) -> Side:
    return Side(OURS, "scripts.bench.ours", settings)


def _trl(**settings: Any) -> Side:
    return Side("peers", "scripts.bench.trl_sft", settings)


def _factory(**settings: Any) -> Side:
    return Side("llamafactory", "scripts.bench.llama_factory", settings)


SIDES: Final = {
    OURS: _ours(),
    "mmsft warm": _ours(warm=True),
    "HF Trainer": Side("peers", "scripts.bench.hf_trainer", {}),
    "TRL": _trl(),
    "TRL, no checkpointing": _trl(gradient_checkpointing=False),
    "TRL packed": _trl(gradient_checkpointing=False, packing=True),
    "LLaMA-Factory": _factory(),
    "LLaMA-Factory neat": _factory(neat_packing=True),
}
"""TRL checkpoints activations by default; LLaMA-Factory's default is switched off, see llama_factory.py."""

_PACKED: Final = ("TRL packed", "LLaMA-Factory neat")
_VISION: Final = ("HF Trainer", "TRL", "TRL, no checkpointing", "LLaMA-Factory")

WORKLOADS: Final = {
    one.name: one
    for one in (
        Workload("T1", False, "all", 2e-5, {OURS: Goal(1.8, 0.6, {"TRL": 3})}, ("TRL", "HF Trainer", *_PACKED)),
        Workload("T2", False, "lora", 2e-4, {OURS: Goal(2, 0.5)}, _PACKED),
        Workload("M2", True, "all", 2e-5, {OURS: Goal(6)}, _VISION),
        Workload("M1", True, "projector", 1e-4, {OURS: Goal(6), "mmsft warm": Goal(8)}, _VISION),
    )
}


@dataclass(frozen=True, slots=True)
class Job:
    """One process's work.

    Attributes:
        workload: a name in `WORKLOADS`.
        side: a name in `SIDES`.
        precision: bf16 is autocast over fp32 weights.
        steps: optimiser steps.
        parts: the folder that parts.py wrote.
        out: a folder for what the side writes.
        purpose: to be timed; to count the FLOPs of each step by torch.utils.flop_counter; to be compared, each step
            with the same rows on all sides; or to fill the feature store for runs to come.
        store: the feature store of a run that is warm; else it is in `out`, and empty.
    """

    workload: str
    side: str
    precision: Literal["bf16", "fp32"]
    steps: int
    parts: str
    out: str = ""
    purpose: Purpose = "time"
    store: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Workload, precision and side."""
        return self.workload, self.precision, self.side

    @property
    def problem(self) -> Workload:
        """What is trained."""
        return WORKLOADS[self.workload]

    @property
    def compared(self) -> bool:
        """Whether each step has the same rows on all sides; with pictures it always does."""
        return self.purpose == "agree"

    @property
    def settings(self) -> dict[str, Any]:
        """What the side is told beside the workload."""
        return SIDES[self.side].settings

    @property
    def model(self) -> str:
        """The folder that a peer loads."""
        return f"{self.parts}/{'llava' if self.problem.pictures else 'decoder'}"

    @property
    def examples(self) -> int:
        """Rows of a step, where they aren't counted in tokens."""
        whole = ASKED if self.problem.pictures else PADDED_ROWS
        return whole // COMPARED_PART if self.compared else whole

    def rows(self) -> list[dict[str, Any]]:
        """Reads a peer's rows, in mmsft's order."""
        text = Path(self.parts, f"{self.kind}.peers.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def kind(self) -> str:
        """Which rows."""
        return "pictures" if self.problem.pictures else "text"

    def write(self) -> str:
        """Returns the job as an argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "Job":
        """Reads the job that a side's script was given."""
        return cls(**json.loads(arguments[1]))


@dataclass(slots=True)
class Track:
    """What a side did.

    Attributes:
        ends: when each step ended, in seconds.
        losses: of each step, before it moved the weights.
        tokens: of each step's rows, prompts and replies, be they read once or often; padding doesn't count.
        targets: learned tokens of each step: those of the replies, and the token that ends each.
        learning: how many parameters learn, by dtype.
        flops: from the first step to the end of each, if they were counted.
    """

    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    learning: dict[str, int] = field(default_factory=dict)
    flops: list[int] = field(default_factory=list)

    def save(self, folder: str) -> None:
        """Writes it for the process that started this one."""
        Path(folder, "track.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


def learning(parameters: Any) -> dict[str, int]:
    """Counts the numbers that learn among a model's parameters, by dtype."""
    counts: dict[str, int] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            name = str(parameter.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + parameter.numel()
    return counts
