"""Finds what is wrong with a run before it trains."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mmsft.config import StageConfig
from mmsft.data.loader import Encoding, read_rows
from mmsft.data.order import rows_at
from mmsft.errors import MmsftError
from mmsft.model.export import export_problem
from mmsft.model.names import named_parameters
from mmsft.run.execute import newest, refuse_other_settings, towers_without_media
from mmsft.run.load import Run
from mmsft.train.optim import freeze, select

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
    names = None
    try:
        names = named_parameters(run.model())
        report.facts.append(f"model: {sum(parameter.numel() for parameter in names.values()):,} parameters")
    except MmsftError as error:
        report.problems.append(f"model: {error}")
    for stage in run.config.stages:
        if names is not None:
            _collect(report, _learning(stage, names))
        _collect(report, _data(run, stage, rows))
    return report


def _collect(report: Report, findings: Iterator[tuple[str, str]]) -> None:
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


def _learning(stage: StageConfig, names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    groups = select(names, stage.train)
    freeze(names, groups)
    for group in groups:
        count = sum(names[name].numel() for name in group.names)
        yield "facts", f"stage {stage.name}: {group.pattern} learns, {count:,} parameters at {group.config.lr:g}"


def _data(run: Run, stage: StageConfig, rows: int) -> Iterator[tuple[str, str]]:
    mixture = run.mixture(stage.recipe)
    encoding = Encoding(run.encoder(stage.recipe), run.reader, int(stage.micro_batch.value))
    total = len(mixture.train)
    pairs = mixture.train[rows_at(run.order_seed(stage), total, 0, min(rows, total))]
    used, learned, tokens = 0, 0, 0
    lost: Counter[str] = Counter()
    reasons: list[str] = []
    for start in range(0, len(pairs), 32):
        encoded, _, losses = read_rows(mixture, encoding, pairs[start : start + 32])
        used += len(encoded)
        learned += sum(len(row.targets) for row in encoded)
        tokens += sum(len(row) for row in encoded)
        lost.update(loss.fate for loss in losses)
        reasons += [loss.reason for loss in losses]
    held = f", {len(mixture.held_out):,} held out" if len(mixture.held_out) else ""
    yield "facts", f"stage {stage.name}: {total:,} rows{held}; {used} of the first {len(pairs)} read"
    if used:
        yield "facts", f"stage {stage.name}: {tokens / used:.1f} tokens a row, {learned / used:.1f} of them learned"
    for reason in reasons[:_SHOWN]:
        yield "notes" if used else "problems", f"stage {stage.name}: {reason}"
    if sum(lost.values()) > stage.recipe.budget * len(pairs):
        counts = ", ".join(f"{count} {fate}" for fate, count in lost.items())
        yield "problems", f"stage {stage.name}: {counts} of {len(pairs)} rows; the budget is {stage.recipe.budget:.1%}"
    for name in sorted(towers_without_media(run, mixture)):
        kind = "problems" if any(pattern.startswith(f"towers.{name}") for pattern in stage.train) else "notes"
        yield kind, f"stage {stage.name}: no row has {name} media, and the model has an {name} tower"
