"""What a run writes while it trains: the log, the ledger and the trackers."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsft.config import RecipeConfig
from mmsft.data import quarantine
from mmsft.data.ledger import Booked, Entry, Fate, Ledger, reasons
from mmsft.data.order import chain
from mmsft.eval.loss import HeldOutLoss
from mmsft.journal import Journal
from mmsft.objectives.by_group import Sums, add_up, losses
from mmsft.parallel import Ranks
from mmsft.run.outcome import Outcome, Rows
from mmsft.train.checkpoint import State
from mmsft.train.loop import Step, check


class Books:
    """Books a stage's steps.

    A step is settled, i.e. read from the device, when the next one is under way; `flush` settles the last.

    Args:
        folder: of the run.
        state: where the stage stands; what was written after it is forgotten.
        ledger: of the stage.
        recipe: of the stage.
        sources: the recipe's source names.
        ranks: the processes; the main one writes.
    """

    def __init__(
        self, folder: Path, state: State, ledger: Ledger, recipe: RecipeConfig, sources: Sequence[str], ranks: Ranks
    ) -> None:
        self.state = state
        self.ledger = ledger
        self._loss_by = recipe.loss_by
        self._sources = sources
        self._ranks = ranks
        self._log = Journal(folder / "log.jsonl")
        self._ledger_file = Journal(folder / "ledger.jsonl")
        self._quarantine = Journal(folder / quarantine.FILE)
        self._held_out: Mapping[str, Mapping[str, int]] = {}
        self._waiting: Step | None = None
        # A stage that begins has nothing yet, not even the held-out loss of step 0.
        last = state.step or -1
        with ranks.together():
            for journal in (self._log, self._ledger_file, self._quarantine) if ranks.main else ():
                journal.rewind(state.stage, last)
            held = self._quarantine.read() if ranks.main else ()
            self._in_quarantine = {(line["source"], line["index"], line["mark"]) for line in held}

    def add(self, step: Step) -> None:
        """Takes a step; settles the one before."""
        self.flush()
        self._waiting = step
        if self._ranks.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Settles the step that waits.

        Raises:
            Diverged: its loss or gradient isn't finite.
            DataError: more rows are lost than the recipe's budget allows, or the processes don't agree about the rows.
            MmsftError: one of the processes could not go on.
        """
        step, self._waiting = self._waiting, None
        if step is None:
            return
        check(step)
        totals = step.totals
        if totals.failing:
            with self._ranks.together():
                pass
        entries = self._all(step.data.entries) if totals.entries else []
        by_group = add_up(self._ranks.gather(step.by_group)) if self._loss_by else {}
        order = chain(self.state.order, step.data.rows)
        self.state = self.state.moved(step=step.number, tokens=self.state.tokens + step.tokens, order=order)
        with self._ranks.deferred():
            if self._ranks.main:
                self._write(step, by_group)
                self._note(entries, step.number, held_out=False)
        self.ledger.add(len(step.data.rows), step.learned, entries)
        self.state = self.state.moved(ledger={name: dict(counts) for name, counts in self.ledger.counts.items()})

    def _all(self, entries: Sequence[Entry]) -> list[Entry]:
        """Returns those of all processes."""
        return [entry for share in self._ranks.gather(list(entries)) for entry in share]

    def _note(self, entries: Sequence[Entry], step: int, held_out: bool) -> None:
        for row in entries:
            line = {"source": row.source, "row": row.row, "fate": row.fate, "reason": row.reason}
            self._ledger_file.write(self.state.stage, step, {**line, "held_out": held_out, "known": row.known})
            if row.lost and (row.source, row.index, row.mark) not in self._in_quarantine:
                self._in_quarantine.add((row.source, row.index, row.mark))
                self._quarantine.write(self.state.stage, step, quarantine.line(row))

    def _write(self, step: Step, by_group: Sums) -> None:
        by_source, by_tag = step.loss_by_source(self._sources), losses(by_group, self._sources)
        line = {
            "name": self.state.name,
            "loss": None if step.learned_nothing else step.loss,
            "loss_by_source": by_source,
            **self._by_tag(by_tag),
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "targets": step.targets,
            "tokens": step.tokens,
            "spared": step.spared,
            "seconds": round(step.seconds, 4),
            "order": self.state.order,
        }
        self._log.write(self.state.stage, step.number, line)
        self._track(
            {
                "loss": step.loss,
                "grad_norm": step.grad_norm,
                **{f"loss/{name}": value for name, value in by_source.items()},
                **{f"loss/{name}/{tag}": value for name, each in by_tag.items() for tag, value in each.items()},
                **{f"lr/{name}": value for name, value in step.lr.items()},
            }
        )

    def _by_tag(self, found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """Returns what a line of the log says of losses by the values of a tag, if the recipe asks for them."""
        return {"loss_by_tag": found} if self._loss_by else {}

    def _track(self, values: Mapping[str, float]) -> None:
        """Sends what is a number to the loggers."""
        numbers = {f"{self.state.name}/{name}": value for name, value in values.items() if math.isfinite(value)}
        self._ranks.track(numbers, self.state.before + self.state.step)

    def media(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Books at a stage's end how many media this command read from the store of features, and how many it encoded.

        Args:
            counts: this process's, by tower.
        """
        shares = self._ranks.gather(dict(counts))
        with self._ranks.together():
            if self._ranks.main and counts:
                line = {
                    name: {what: sum(share[name][what] for share in shares) for what in count}
                    for name, count in counts.items()
                }
                self._log.write(self.state.stage, self.state.step, {"name": self.state.name, "media": line})

    def close(self) -> None:
        """Books at a stage's end what became of its rows."""
        self.flush()
        with self._ranks.together():
            if self._ranks.main:
                lines = [line for line in self._ledger_file.read() if line["stage"] == self.state.stage]
                why = [reasons(_entry(line) for line in lines if line["held_out"] is held) for held in (False, True)]
                found = Outcome(Rows(self.ledger.counts, why[0]), Rows(self._held_out, why[1]))
                self._log.write(self.state.stage, self.state.step, {"name": self.state.name, **found.as_dict()})

    def evaluated(self, found: HeldOutLoss, booked: Booked, rows: int) -> bool:
        """Books a held-out loss after the last step; returns whether it is the stage's lowest so far.

        That of before the first step is only written down: there is no checkpoint that it belongs to.

        Args:
            found: the loss over the rows that can be scored; NaN if none has anything to score.
            booked: what became of this process's share of the rows.
            rows: how many were to be scored.

        Raises:
            DataError: more rows are lost than the recipe's budget allows.
        """
        self.flush()
        # Each evaluation has the same rows: how they are used is said once.
        entries = self._all([entry for entry in booked.entries if entry.lost or not self.state.step])
        learned = sum(self._ranks.gather(booked.learned), Counter[tuple[int, Fate]]())
        number = found.loss if math.isfinite(found.loss) else None
        with self._ranks.deferred():
            if self._ranks.main:
                self._note(entries, self.state.step, held_out=True)
                by_tag = self._by_tag(losses(found.by_group, self._sources))
                line = {"name": self.state.name, "held_out_loss": number, **by_tag}
                self._log.write(self.state.stage, self.state.step, line)
                self._track({"held_out_loss": found.loss})
        ledger = Ledger(self._sources, rows, self.ledger.budget)
        ledger.add(rows, learned, entries)
        self._held_out = ledger.counts
        if not self.state.step:
            return False
        better = number is not None and (self.state.best is None or number < self.state.best)
        if better:
            self.state = self.state.moved(best=number, best_at=self.state.step, stale=0)
        else:
            self.state = self.state.moved(stale=self.state.stale + 1)
        return better


def _entry(line: Mapping[str, Any]) -> Entry:
    return Entry(line["row"], line["fate"], line["reason"], line["source"])
