"""What a run writes while it trains: the log, the ledger and the trackers."""

from collections.abc import Sequence
from pathlib import Path

from mmsft.data.ledger import Ledger, Loss
from mmsft.data.order import chain
from mmsft.journal import Journal
from mmsft.parallel import Ranks
from mmsft.train.checkpoint import State
from mmsft.train.loop import Step, check_finite


class Books:
    """Books a stage's steps.

    A step is settled, i.e. read from the device, when the next one is under way; `flush` settles the last.

    Args:
        folder: of the run.
        state: where the stage stands; what was written after it is forgotten.
        ledger: of the stage.
        sources: the recipe's source names.
        ranks: the processes; the main one writes.
    """

    def __init__(self, folder: Path, state: State, ledger: Ledger, sources: Sequence[str], ranks: Ranks) -> None:
        self.state = state
        self.ledger = ledger
        self._sources = sources
        self._ranks = ranks
        self._log = Journal(folder / "log.jsonl")
        self._ledger_file = Journal(folder / "ledger.jsonl")
        self._waiting: Step | None = None
        if ranks.main:
            # A stage that begins has nothing yet, not even the held-out loss of step 0.
            last = state.step or -1
            self._log.rewind(state.stage, last)
            self._ledger_file.rewind(state.stage, last)

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
            DataError: more rows are lost than the recipe's budget allows.
        """
        step, self._waiting = self._waiting, None
        if step is None:
            return
        check_finite(step)
        shares = self._ranks.gather(((step.data.used, step.targets, step.tokens), step.data.losses))
        used, targets, tokens = (sum(counts) for counts in zip(*(counts for counts, _ in shares), strict=True))
        losses = [loss for _, lost in shares for loss in lost]
        order = chain(self.state.order, step.data.rows)
        self.state = self.state.moved(step=step.number, tokens=self.state.tokens + tokens, order=order)
        if self._ranks.main:
            self._write(step, targets, tokens)
        self._note(losses, step.number, held_out=False)
        self.ledger.add(used, losses)
        self.state = self.state.moved(ledger=dict(self.ledger.counts))

    def _note(self, losses: Sequence[Loss], step: int, held_out: bool) -> None:
        for loss in losses if self._ranks.main else ():
            line = {"row": loss.row, "fate": loss.fate, "reason": loss.reason, "held_out": held_out}
            self._ledger_file.write(self.state.stage, step, line)

    def _write(self, step: Step, targets: int, tokens: int) -> None:
        by_source = step.loss_by_source(self._sources)
        line = {
            "name": self.state.name,
            "loss": None if step.learned_nothing else step.loss,
            "loss_by_source": by_source,
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "targets": targets,
            "tokens": tokens,
            "seconds": round(step.seconds, 4),
            "order": self.state.order,
        }
        self._log.write(self.state.stage, step.number, line)
        self._ranks.track(
            {
                f"{self.state.name}/loss": step.loss,
                f"{self.state.name}/grad_norm": step.grad_norm,
                **{f"{self.state.name}/loss/{name}": value for name, value in by_source.items()},
                **{f"{self.state.name}/lr/{name}": value for name, value in step.lr.items()},
            },
            self.state.before + step.number,
        )

    def evaluated(self, loss: float, losses: Sequence[Loss], rows: int) -> bool:
        """Books a held-out loss after the last step; returns whether it is the stage's lowest so far.

        That of before the first step is only written down: there is no checkpoint that it belongs to.

        Args:
            loss: over the rows that can be scored.
            losses: this process's share of those that can't.
            rows: how many were to be scored.

        Raises:
            DataError: more rows are lost than the recipe's budget allows.
        """
        self.flush()
        lost = [item for share in self._ranks.gather(list(losses)) for item in share]
        self._note(lost, self.state.step, held_out=True)
        Ledger(rows, self.ledger.budget).add(rows - len(lost), lost)
        better = bool(self.state.step) and (self.state.best is None or loss < self.state.best)
        if self.state.step:
            found = (
                {"best": loss, "best_at": self.state.step, "stale": 0} if better else {"stale": self.state.stale + 1}
            )
            self.state = self.state.moved(**found)
        if self._ranks.main:
            line = {"name": self.state.name, "held_out_loss": loss}
            self._log.write(self.state.stage, self.state.step, line)
            self._ranks.track({f"{self.state.name}/held_out_loss": loss}, self.state.before + self.state.step)
        return better
