"""What became of a run, from what it wrote."""

from mmsft.data.ledger import FATES
from mmsft.journal import Journal
from mmsft.run.load import Run
from mmsft.train import checkpoint as ckpt


def summary(run: Run) -> str:
    """Returns a line for each stage that is over: its rows, its loss, its held-out loss before and after."""
    log = list(Journal(run.folder / "log.jsonl").read())
    lines = []
    for checkpoint in ckpt.complete(run.folder / "checkpoints"):
        state = checkpoint.state
        if not state.done:
            continue
        of_stage = [line for line in log if line["stage"] == state.stage]
        losses = [line["loss"] for line in of_stage if line.get("loss") is not None]
        held_out = [line["held_out_loss"] for line in of_stage if line.get("held_out_loss") is not None]
        rows = ", ".join(f"{state.ledger.get(fate, 0):,} {fate}" for fate in FATES)
        line = f"{state.name}: {state.step} steps; rows {rows}; "
        line += f"loss {losses[0]:.4f} → {losses[-1]:.4f}" if losses else "nothing was learned"
        if spared := sum(line.get("spared", 0) for line in of_stage):
            read = sum(line.get("tokens", 0) for line in of_stage)
            line += f"; {read:,} tokens read, {spared:,} spared ({spared / (read + spared):.0%})"
        for name, media in ((name, line["media"][name]) for line in of_stage for name in line.get("media", {})):
            line += f"; {name} media: {media['read']:,} from the store, {media['encoded']:,} encoded"
        if held_out:
            line += f"; held-out loss {held_out[0]:.4f} before, {held_out[-1]:.4f} after"
        lines.append(line)
    return "\n".join(lines)
