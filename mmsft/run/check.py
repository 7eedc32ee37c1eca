"""Finds what is wrong with a run before it trains."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from torch import nn

from mmsft.config import StageConfig
from mmsft.data.ledger import LostRow
from mmsft.data.loader import Encoding, read_rows
from mmsft.data.order import rows_at
from mmsft.errors import MmsftError
from mmsft.model.export import export_problem
from mmsft.model.names import named_parameters
from mmsft.parallel import check_loggers
from mmsft.run.load import Run
from mmsft.run.stages import newest, refuse_idle_towers, refuse_other_settings
from mmsft.train.optim import idle_parts, select
from mmsft.types import Encoded

_SHOWN = 5


@dataclass
class Report:
    """What was found.

    Attributes:
        facts: what is in order.
        notes: what is worth knowing before a long run.
        problems: what has to be mended.
    """

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the run can start."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        return {"ok": self.ok, "problems": self.problems, "notes": self.notes, "facts": self.facts}

    def text(self) -> str:
        """Returns the report for a terminal."""
        lines = [f"  ok       {fact}" for fact in self.facts]
        lines += [f"  note     {note}" for note in self.notes]
        lines += [f"  problem  {problem}" for problem in self.problems]
        return "\n".join([*lines, "ready to train" if self.ok else f"{len(self.problems)} to mend"])


def check(run: Run, rows: int = 200) -> Report:
    """Reads the first rows of every stage in training order, builds the model, and matches the two.

    Args:
        run: what would be trained.
        rows: how many rows of each stage are encoded, with their media decoded.
    """
    report = Report()
    report.facts.append(f"config: {len(run.config.stages)} stages, written to {run.folder}")
    problem = export_problem(run.reader.towers)
    if problem:
        report.notes.append(f"`mmsft export` will not be possible: {problem}")
    _collect(report, _folder(run))
    _collect(report, _loggers(run))
    names = None
    try:
        names = named_parameters(run.model())
        report.facts.append(f"model: {sum(parameter.numel() for parameter in names.values()):,} parameters")
        for part in idle_parts(names, [stage.train for stage in run.config.stages]):
            report.notes.append(f"model.{part} has no learning rate in any stage: it stays as it was drawn")
    except MmsftError as error:
        report.problems.append(f"model: {error}")
    for stage in run.config.stages:
        if names is not None:
            _collect(report, _learning(run, stage, names))
        _collect(report, _data(run, stage, rows))
    return report


def _collect(report: Report, findings: Iterator[tuple[str, str]]) -> None:
    """Files (``facts``, ``notes`` or ``problems``, text) pairs, and the error that ends them as a problem."""
    try:
        for kind, text in findings:
            getattr(report, kind).append(text)
    except MmsftError as error:
        report.problems.append(str(error))


def _folder(run: Run) -> Iterator[tuple[str, str]]:
    last = newest(run.folder)
    if last is not None:
        refuse_other_settings(last, run)
        yield "notes", f"{run.folder} has a checkpoint: training goes on from {last.path.name}"


def _loggers(run: Run) -> Iterator[tuple[str, str]]:
    check_loggers(run.config.loggers)
    if run.config.loggers:
        yield "facts", f"loggers: {', '.join(run.config.loggers)}"


def _learning(run: Run, stage: StageConfig, names: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, str]]:
    groups = select(names, stage.train)
    for group in groups:
        count = sum(names[name].numel() for name in group.names)
        yield "facts", f"stage {stage.name}: {group.pattern} learns, {count:,} parameters at {group.config.lr:g}"
    learning = [name for group in groups for name in group.names]
    refuse_idle_towers(run, stage, run.mixture(stage.recipe), learning)


def _data(run: Run, stage: StageConfig, rows: int) -> Iterator[tuple[str, str]]:
    mixture = run.mixture(stage.recipe)
    encoding = Encoding(run.encoder(stage.recipe), run.reader, int(stage.micro_batch.value))
    total = len(mixture.train)
    pairs = mixture.train[rows_at(run.order_seed(stage), total, 0, min(rows, total))]
    read: list[Encoded] = []
    lost: list[LostRow] = []
    for start in range(0, len(pairs), 32):
        encoded, _, unread = read_rows(mixture, encoding, pairs[start : start + 32])
        read, lost = read + encoded, lost + unread
    held = f", {len(mixture.held_out):,} held out" if len(mixture.held_out) else ""
    yield "facts", f"stage {stage.name}: {total:,} rows{held}; {len(read)} of the first {len(pairs)} read"
    if read:
        tokens, learned = mean(len(row) for row in read), mean(len(row.targets) for row in read)
        yield "facts", f"stage {stage.name}: {tokens:.1f} tokens a row, {learned:.1f} of them learned"
    for row in lost[:_SHOWN]:
        yield "notes" if read else "problems", f"stage {stage.name}: {row.reason}"
    if len(lost) > stage.recipe.budget * len(pairs):
        counts = ", ".join(f"{count} {fate}" for fate, count in Counter(row.fate for row in lost).items())
        yield "problems", f"stage {stage.name}: {counts} of {len(pairs)} rows; the budget is {stage.recipe.budget:.1%}"
    seen = {placed.media.modality for row in read for placed in row.media}
    for name in sorted(run.config.model.towers.keys() - seen):
        yield "notes", f"stage {stage.name}: none of these rows has {name} media, and the model has an {name} tower"
