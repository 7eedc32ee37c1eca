"""Opens a run folder's model to talk to, score or export."""

from collections import Counter
from pathlib import Path

from mmsft.assistant import Assistant
from mmsft.data.collate import collate
from mmsft.data.loader import Encoding, read_rows
from mmsft.data.order import permutation
from mmsft.data.tree import threads
from mmsft.errors import CheckpointError, ConfigError, suggest
from mmsft.model.export import Export, export_hf
from mmsft.parallel import Ranks
from mmsft.run.load import Run, load_run
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import Checkpoint
from mmsft.types import Conversation, Media


def open_run(folder: str | Path, checkpoint: str = "last", *, trained: bool = True) -> Assistant:
    """Builds the model of a run folder with a checkpoint's weights.

    Args:
        folder: made by `mmsft train`.
        checkpoint: ``last``, ``best`` (lowest held-out loss), or a checkpoint's name.
        trained: False leaves the weights as the config loads them, to compare with.

    Raises:
        CheckpointError: there is no such complete checkpoint.
    """
    run = load_run(folder)
    found = find_checkpoint(run, checkpoint)
    model = run.model()
    if trained:
        ckpt.restore_weights(found.path, model)
    ranks = Ranks(run.config.precision)
    model.to(ranks.device).eval()
    recipe = run.config.stages[found.state.stage].recipe
    return Assistant(model, run.encoder(recipe), run.reader, ranks)


def find_checkpoint(run: Run, name: str) -> Checkpoint:
    """Returns a run's complete checkpoint by name.

    Raises:
        CheckpointError: there is none of that name.
    """
    folder = run.folder / "checkpoints"
    checkpoints = ckpt.complete(folder)
    if not checkpoints:
        raise CheckpointError(f"{folder}: no complete checkpoint; train first: mmsft train {run.folder}")
    if name == "last":
        return checkpoints[-1]
    if name == "best":
        lowest = ckpt.best(checkpoints)
        if lowest is None:
            raise CheckpointError(
                f"{folder}: stage {checkpoints[-1].state.name} measured no held-out loss, so none is the best; "
                "give the stage `evaluate`, or take the last"
            )
        return lowest
    found = {checkpoint.path.name: checkpoint for checkpoint in checkpoints}
    if name not in found:
        raise CheckpointError(f"{folder}: no checkpoint {name!r}{suggest(name, found)}; there are {', '.join(found)}")
    return found[name]


def held_out(run: Run, checkpoint: str, rows: int) -> list[Conversation]:
    """Returns held-out rows of the recipe that a checkpoint was trained on, drawn by the run's seed.

    Rows with media of their own come first, so that a sample shows as many different media as it can.

    Raises:
        ConfigError: its recipe holds nothing out.
    """
    stage = run.config.stages[find_checkpoint(run, checkpoint).state.stage]
    mixture = run.mixture(stage.recipe)
    if not len(mixture.held_out):
        raise ConfigError(f"stage {stage.name}: its recipe holds no rows out; give it a `validation`")
    drawn = permutation(run.config.seed, 0, len(mixture.held_out))
    conversations = [mixture.conversation(pair) for pair in mixture.held_out[drawn]]
    seen: Counter[tuple[Media, ...]] = Counter()
    turn_of = []
    for conversation in conversations:
        media = tuple(medium for turn in conversation.turns for medium in turn.media)
        turn_of.append(seen[media] if media else 0)
        seen[media] += 1
    first = sorted(range(len(conversations)), key=turn_of.__getitem__)
    return [conversations[index] for index in first[:rows]]


def export_run(run_folder: Path, out: Path, checkpoint: str, rows: int = 4) -> Export:
    """Writes a run's model for `transformers` and compares the two on its first training rows.

    Raises:
        ConfigError: no layout of `transformers` holds the model.
        CheckpointError: the logits differ, or the folder can't be written.
    """
    run = load_run(run_folder)
    assistant = open_run(run_folder, checkpoint)
    recipe = run.config.stages[find_checkpoint(run, checkpoint).state.stage].recipe
    mixture = run.mixture(recipe)
    encoding = Encoding(assistant.encoder, assistant.reader, recipe.length)
    encoded, loaded, _ = read_rows(mixture, encoding, mixture.train[:rows])
    batches = [collate([chain], run.reader, loaded) for row in encoded for chain in threads(row)]
    template = assistant.encoder.template.source
    return export_hf(assistant.model, run.tokenizer, template, batches, out)
