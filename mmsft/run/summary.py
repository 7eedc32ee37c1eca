"""What became of a run, from what it wrote."""

from mmsft.journal import Journal
from mmsft.run.load import Run
from mmsft.run.outcome import Outcome
from mmsft.train import checkpoint as ckpt


def summary(run: Run, first: int = 0) -> str:
    """Returns what to know of each stage that is over: its loss, its held-out loss before and after, and its rows.

    Args:
        run: of which the stages are.
        first: number of the stage to begin with.
    """
    log = list(Journal(run.folder / "log.jsonl").read())
    lines = []
    for checkpoint in ckpt.complete(run.folder / "checkpoints"):
        state = checkpoint.state
        if not state.done or state.stage < first:
            continue
        of_stage = [line for line in log if line["stage"] == state.stage]
        losses = [line["loss"] for line in of_stage if line.get("loss") is not None]
        held_out = [line["held_out_loss"] for line in of_stage if line.get("held_out_loss") is not None]
        line = f"{state.name}: {state.step} steps; "
        line += f"loss {losses[0]:.4f} → {losses[-1]:.4f}" if losses else "nothing was learned"
        if spared := sum(line.get("spared", 0) for line in of_stage):
            read = sum(line.get("tokens", 0) for line in of_stage)
            line += f"; {read:,} tokens read, {spared:,} spared ({spared / (read + spared):.0%})"
        for name, media in ((name, line["media"][name]) for line in of_stage for name in line.get("media", {})):
            line += f"; {name} media: {media['read']:,} from the store, {media['encoded']:,} encoded"
        if held_out:
            line += f"; held-out loss {held_out[0]:.4f} before, {held_out[-1]:.4f} after"
        lines.append(line)
        for outcome in (Outcome.read(line) for line in of_stage if "trained" in line):
            lines += outcome.lines()
    return "\n".join(lines)
