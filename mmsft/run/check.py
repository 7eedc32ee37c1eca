"""Finds what is wrong with a run before it trains."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from mmsft.config import StageConfig
from mmsft.data.ledger import Entry
from mmsft.data.order import Numbers
from mmsft.data.shared import tell
from mmsft.errors import Problems
from mmsft.model.export import rehearsal_problem
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.parallel import check_loggers
from mmsft.run.load import Run, newest
from mmsft.run.rules import rules
from mmsft.run.stages import refuse_idle_towers, refuse_moving_positions, refuse_other_settings
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import Checkpoint
from mmsft.train.optim import idle_parts, select
from mmsft.types import Encoded, Ints

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

    def add(self, problems: Problems) -> None:
        """Files errors; what two stages share fails in both, and is told once."""
        self.problems += [text for text in map(str, problems.found) if text not in self.problems]

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
    """Reads the first rows of every stage in training order, builds the model without weights, and matches the two.

    Args:
        run: what would be trained.
        rows: how many rows of each stage, and how many held out, are encoded, with their media decoded.
    """
    report = Report()
    report.facts.append(
        f"config: stages {', '.join(stage.name for stage in run.config.stages)}; written to {run.folder}"
    )
    last = _last(run, report)
    _collect(report, _loggers(run))
    _collect(report, _parts(run, last))
    model = _model(run, report)
    if model is not None:
        _collect(report, _model_facts(run, model))
        _collect(report, _starts(run, model, last))
    for stage in run.ahead(last):
        if model is not None:
            _collect(report, _learning(run, stage, model))
        _collect(report, _data(run, stage, rows))
    return report


def _collect(report: Report, findings: Iterator[tuple[str, str]]) -> None:
    """Files (``facts``, ``notes`` or ``problems``, text) pairs, and the error that ends them."""
    problems = Problems()
    with problems.collect():
        for kind, text in findings:
            getattr(report, kind).append(text)
    report.add(problems)


def _last(run: Run, report: Report) -> Checkpoint | None:
    """Returns the checkpoint from which training would go on."""
    problems = Problems()
    last = None
    with problems.collect():
        last = newest(run.folder)
        if last is not None:
            goes_on = f"training goes on from {last.path.name}" if run.ahead(last) else "it is complete"
            report.notes.append(f"{run.folder} has a checkpoint: {goes_on}")
            refuse_other_settings(last, run)
    report.add(problems)
    return last


def _parts(run: Run, last: Checkpoint | None) -> Iterator[tuple[str, str]]:
    run.prepare(last)
    if run.ahead(last):
        yield "facts", "data, templates and tokenizer: found"


def _model(run: Run, report: Report) -> MultimodalModel | None:
    """Builds the model without the decoder's weights; where that fails, looks at every tower all the same."""
    problems = Problems()
    model = None
    with problems.collect():
        model = run.model(empty=True)
    if model is None:
        for tower in run.config.model.towers.values():
            with problems.collect():
                tower.modality.value.encoder()
    report.add(problems)
    return model


def _model_facts(run: Run, model: MultimodalModel) -> Iterator[tuple[str, str]]:
    names = named_parameters(model)
    total = sum(parameter.numel() for parameter in names.values())
    yield "facts", f"model: {total:,} parameters; its files hold those of the decoder"
    for part in idle_parts(names, [stage.train for stage in run.config.stages]):
        yield "notes", f"model.{part} has no learning rate in any stage: it stays as it was drawn"
    if problem := rehearsal_problem(model, run.tokenizer):
        yield "notes", f"`mmsft export` will not be possible: {problem}"


def _starts(run: Run, model: MultimodalModel, last: Checkpoint | None) -> Iterator[tuple[str, str]]:
    """Compares the checkpoints that will be loaded with the model."""
    problems = Problems()
    found = [last] if last else []
    with problems.collect():
        found += run.starts(last)
    for start in found:
        with problems.collect():
            ckpt.check_weights(start.path, model)
            yield "facts", f"{start.path}: fits the model"
    problems.tell()


def _loggers(run: Run) -> Iterator[tuple[str, str]]:
    check_loggers(run.config.loggers)
    if run.config.loggers:
        yield "facts", f"loggers: {', '.join(run.config.loggers)}"


def _learning(run: Run, stage: StageConfig, model: MultimodalModel) -> Iterator[tuple[str, str]]:
    refuse_moving_positions(model.decoder, stage)
    names = named_parameters(model)
    groups = select(names, stage.train)
    for group in groups:
        count = sum(names[name].numel() for name in group.names)
        yield "facts", f"stage {stage.name}: {group.pattern} learns, {count:,} parameters at {group.config.lr:g}"
    learning = [name for group in groups for name in group.names]
    refuse_idle_towers(run, stage, run.mixture(stage.recipe), learning)


def _data(run: Run, stage: StageConfig, rows: int) -> Iterator[tuple[str, str]]:
    mixture = run.mixture(stage.recipe)
    total, held_out = mixture.epoch, len(mixture.held_out)
    for source in mixture.sources:
        if source.config.format == "auto" and source.format:
            yield "facts", f"stage {stage.name}: {source.name} is read as {source.format}"
    for source, size, count in mixture.drawn():
        if size != count:
            part = f"{count:,} of an epoch's {total:,} rows"
            yield "facts", f"stage {stage.name}: {source.name} gives {part}, and has {size:,}"
    first = mixture.order(run.order_seed(stage)).at(0, min(rows, total))
    together = None
    if mixture.groups is not None:
        together = mixture.groups[first]
        idle = mixture.groups.max() + 1 == len(mixture.train)
        yield "notes" if idle else "facts", f"stage {stage.name}: {tell(mixture.groups)}"
    yield from rules(run, stage, mixture.train[first])
    yield from _rows(run, stage, f"{total:,} rows", mixture.train[first], together)
    if held_out:
        yield from _rows(run, stage, f"{held_out:,} rows held out", mixture.held_out[:rows])


def _rows(
    run: Run, stage: StageConfig, whole: str, pairs: Ints, together: Numbers | None = None
) -> Iterator[tuple[str, str]]:
    """Encodes rows, the first of a whole, and loads their media; neighbours of one number are joined."""
    mixture = run.mixture(stage.recipe)
    encoding = run.encoding(stage)
    read: list[Encoded] = []
    lost: list[Entry] = []
    numbers: list[int] = []
    for start in range(0, len(pairs), 32):
        some = encoding.read(mixture, pairs[start : start + 32])
        read, lost = [*read, *some.rows.values()], lost + some.lost
        numbers += [start + number for number in some.rows]
    yield "facts", f"stage {stage.name}: {whole}; {len(read)} of the first {len(pairs)} read"
    if read:
        tokens, learned = mean(len(row) for row in read), mean(len(row.targets) for row in read)
        yield "facts", f"stage {stage.name}: {tokens:.1f} tokens a row, {learned:.1f} of them learned"
        if together is not None:
            trees = encoding.joined(read, together[numbers].tolist())
            spared = 1 - sum(map(len, trees)) / sum(map(len, read))
            yield "facts", f"stage {stage.name}: {spared:.1%} of these rows' tokens are spared, since rows share them"
    noted = [row for row in read if row.note]
    for one in noted[:_SHOWN]:
        yield "notes", f"stage {stage.name}: {one.id}: {one.note}"
    for count, what in [
        ([one.left_out for one in noted], "threads or turns of {} rows are left out: too long"),
        ([one.shrunk for one in noted], "media of {} rows are read smaller: these are too long"),
    ]:
        if any(count):
            rows = sum(number > 0 for number in count)
            yield "notes", f"stage {stage.name}: {sum(count)} {what.format(rows)}"
    for row in lost[:_SHOWN]:
        yield "notes" if read else "problems", f"stage {stage.name}: {row.reason}"
    lost = [row for row in lost if not row.known]
    if len(lost) > stage.recipe.budget * len(pairs):
        counts = ", ".join(f"{count} {fate}" for fate, count in Counter(row.fate for row in lost).items())
        budget = f"the budget is {stage.recipe.budget:.1%}"
        yield "problems", f"stage {stage.name}: {whole}: {counts} of the first {len(pairs)}; {budget}"
    seen = {placed.media.modality for row in read for placed in row.media}
    for name in sorted(run.config.model.towers.keys() - seen):
        missing = f"none of the first {len(pairs)} of its {whole} has {name} media, and the model has an {name} tower"
        yield "notes", f"stage {stage.name}: {missing}"
