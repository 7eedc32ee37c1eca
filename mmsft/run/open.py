"""Opens a run folder's model to talk to, score or export."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mmsft.assistant import Assistant
from mmsft.data.collate import collate
from mmsft.data.media_reader import Loaded
from mmsft.data.tree import threads
from mmsft.errors import CheckpointError, ConfigError, DataError, suggest
from mmsft.eval.accuracy import reference_of
from mmsft.model.export import Export, export_hf
from mmsft.parallel import Ranks
from mmsft.run.load import Run, load_run
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import Checkpoint
from mmsft.types import Batch, Conversation, Encoded, Media

_SEARCHED = 10_000
"""Rows of a recipe in which an export looks for one with media."""


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


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out rows to ask a model.

    Attributes:
        rows: those that can be asked; of a row with branches each is one.
        sources: name of the source of each.
        lost: why others that were drawn can't be.
    """

    rows: tuple[Conversation, ...]
    sources: tuple[str, ...]
    lost: tuple[str, ...]


class _Drawn(NamedTuple):
    """A held-out row, or a branch of it, and the name of its source."""

    conversation: Conversation
    source: str


def held_out(run: Run, checkpoint: str, rows: int) -> HeldOut:
    """Returns held-out rows of the recipe that a checkpoint was trained on, in the order in which they are asked.

    Rows with media of their own come first, so that a sample shows as many different media as it can.

    Raises:
        ConfigError: its recipe holds nothing out.
        DataError: no row of it can be asked.
    """
    stage = run.config.stages[find_checkpoint(run, checkpoint).state.stage]
    mixture = run.mixture(stage.recipe)
    if not len(mixture.held_out):
        raise ConfigError(f"stage {stage.name}: its recipe holds no rows out; give it a `validation`")
    encoder = run.encoder(stage.recipe)
    lost: list[str] = []

    def askable(drawn: _Drawn) -> bool:
        conversation = drawn.conversation
        try:
            reference_of(conversation)
            prompt = encoder.prompt(replace(conversation, turns=conversation.turns[:-1]))
            for placed in prompt.media:
                run.reader.load(placed.media)
        except DataError as error:
            lost.append(_named(conversation.id, error))
            return False
        return True

    def drawn() -> Iterator[_Drawn]:
        for pair in mixture.held_out:
            try:
                whole = mixture.conversation(pair)
            except DataError as error:
                lost.append(_named(mixture.row_id(pair), error))
            else:
                asked = _asked(whole)
                lost.extend([] if asked else [f"{whole.id}: none of its branches ends with an answer that is learned"])
                yield from (_Drawn(whole.chain(path), mixture.sources[int(pair[0])].name) for path in asked)

    found = _different_first(drawn(), askable, rows)
    if not found:
        raise DataError(f"stage {stage.name}: no held-out row can be asked; {len(lost)} lost, the first: {lost[0]}")
    return HeldOut(tuple(it.conversation for it in found), tuple(it.source for it in found), tuple(lost))


def _asked(whole: Conversation) -> list[tuple[int, ...]]:
    """Returns the threads to ask: of several those that end with a learned answer, which a rejected one is not."""
    paths = list(whole.threads())
    ends = [whole.turns[path[-1]] for path in paths]
    learned = [path for path, turn in zip(paths, ends, strict=True) if turn.role == "assistant" and turn.weight > 0]
    return learned if len(paths) > 1 else paths


def _different_first(drawn: Iterator[_Drawn], usable: Callable[[_Drawn], bool], rows: int) -> list[_Drawn]:
    """Returns usable conversations, the first about each media before the second; reads no more than it needs."""
    seen: Counter[tuple[Media, ...]] = Counter()
    found: list[_Drawn] = []
    later: list[tuple[int, _Drawn]] = []
    for one in drawn:
        if len(found) >= rows:
            break
        media = tuple(medium for turn in one.conversation.turns for medium in turn.media)
        if media and seen[media]:
            later.append((seen[media], one))
        elif usable(one):
            found.append(one)
        else:
            continue
        seen[media] += 1
    for _, one in sorted(later, key=lambda pair: pair[0]):
        if len(found) >= rows:
            break
        if usable(one):
            found.append(one)
    return found[:rows]


def _named(row: str, error: DataError) -> str:
    return str(error) if row in str(error) else f"{row}: {error}"


def export_run(run_folder: Path, out: Path, checkpoint: str, rows: int = 4) -> Export:
    """Writes a run's model for `transformers` and compares the two on its first training rows.

    Raises:
        ConfigError: no layout of `transformers` holds the model.
        CheckpointError: the logits differ, there is no row to compare on, or the folder can't be written.
    """
    run = load_run(run_folder)
    assistant = open_run(run_folder, checkpoint)
    batches = _rows_to_compare(run, find_checkpoint(run, checkpoint).state.stage, rows)
    template, stop_ids = assistant.encoder.exported_template, assistant.encoder.stop_ids
    return export_hf(assistant.model, run.tokenizer, template, batches, out, stop_ids)


def _rows_to_compare(run: Run, stage: int, rows: int) -> list[Batch]:
    """Returns a stage's first rows as batches of one thread; if need be one more, so that each tower has a medium."""
    found: list[Encoded] = []
    loaded: Loaded = {}
    missing = set(run.reader.towers)
    # A stage may be on text alone; those before it had media then.
    for trained in reversed(run.config.stages[: stage + 1]):
        mixture = run.mixture(trained.recipe)
        encoding = run.encoding(trained)
        for pair in mixture.train[:_SEARCHED]:
            if len(found) >= rows and not missing:
                break
            read = encoding.read(mixture, pair[None])
            shown = {placed.media.modality for row in read.rows.values() for placed in row.media}
            if len(found) < rows or shown & missing:
                found += read.rows.values()
                loaded = {**loaded, **read.loaded}
                missing -= shown
    if missing or not found:
        what = f"a medium for the tower {', '.join(sorted(missing))}" if missing else "tokens to compare"
        raise CheckpointError(
            f"{run.folder}: no row of the first {_SEARCHED:,} of its recipes gives {what}, so an export couldn't be "
            "compared; `mmsft check` says what is wrong with the rows"
        )
    return [collate([chain], run.reader, loaded) for row in found for chain in threads(row)]
