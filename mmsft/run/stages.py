"""Runs the stages of a config: trains, logs, evaluates, saves, and goes on from where it was stopped."""

import json
import logging
import os
from collections.abc import Collection, Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from transformers import PreTrainedModel

from mmsft.assistant import Assistant
from mmsft.config import StageConfig, dump_config
from mmsft.data.encoding import Encoding, Share
from mmsft.data.ledger import Booked, Ledger
from mmsft.data.loader import held_out_batches, read_steps, sample_of
from mmsft.data.mixture import Mixture
from mmsft.errors import CheckpointError, ConfigError, DataError, MmsftError
from mmsft.eval.loss import held_out_loss
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import fresh, named_parameters
from mmsft.model.tuning.lora import skip_idle_lora
from mmsft.objectives import sft
from mmsft.parallel import Ranks
from mmsft.run.books import Books
from mmsft.run.forecast import telling_what_fits
from mmsft.run.load import CONFIG, Run, newest, starting_point
from mmsft.run.lock import locked, unwritable
from mmsft.run.machines import give_back_freed_memory
from mmsft.run.profile import train_profiled
from mmsft.run.steps import steps_of
from mmsft.run.stores import Stores, stored
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import Checkpoint, State
from mmsft.train.loop import Step, Trainer, train
from mmsft.train.optim import build, freeze, idle_parts, select
from mmsft.train.schedule import factor

_SOURCE = dict.fromkeys(("licence", "tags", "media_root"), True)
log = logging.getLogger(__name__)

# Settings that may change between the parts of one run: they decide no weight beyond its rounding and dropout's masks.
_FREE: dict[str, Any] = {
    **dict.fromkeys(("out", "workers", "features", "tokens", "save", "loggers"), True),
    "stages": {
        "__all__": {
            **dict.fromkeys(("micro_batch", "activation_checkpointing"), True),
            "recipe": {
                "budget": True,
                "loss_by": True,
                "sources": {"__all__": _SOURCE},
                "validation": {"file": _SOURCE},
            },
        }
    },
}


@dataclass
class Session:
    """A run under way: what lasts over its stages.

    Attributes:
        kept: canonical names of the weights that differ from what the config loads.
        profile: measure where time and memory go.
    """

    run: Run
    ranks: Ranks
    model: MultimodalModel
    kept: set[str]
    profile: bool = False

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.run.folder / "checkpoints"


def execute(run: Run, *, profile: bool = False) -> Generator[tuple[StageConfig, Step, Assistant], None, None]:
    """Trains the run's stages, from the last complete checkpoint in its folder if there is one.

    Of several processes each calls it. While it is under way, no other run may train in the folder; closing it ends
    that.

    Args:
        run: what to train.
        profile: measure where time and memory go; what was found is in ``profile/STAGE`` of the run folder.

    Yields:
        The stage, the step just done, and the model as an assistant.

    Raises:
        MmsftError: the config doesn't fit its data or model, too many rows are lost, the loss diverges, a checkpoint
            can't be written, or another process trains in the folder.
    """
    give_back_freed_memory()
    ranks = Ranks(run.config.precision, run.config.loggers, run.folder)
    with ExitStack() as held:
        with ranks.together():
            if ranks.main:
                held.enter_context(locked(run.folder))
        last = newest(run.folder)
        if last is not None:
            refuse_other_settings(last, run)
            if last.state.done and last.state.stage == len(run.config.stages) - 1:
                return
        session = replace(_session(run, ranks, last), profile=profile)
        with ranks.trackers(run.folder.name):
            yield from _stages(session, last)


def _session(run: Run, ranks: Ranks, last: Checkpoint | None) -> Session:
    with ranks.main_first(), suppress(MmsftError):
        run.tokenizer  # noqa: B018 - may fill a cache; `prepare` tells what is wrong with it, beside the rest
    with ranks.together():
        run.prepare(last)
    with ranks.main_first():
        model = run.model()
        for start in run.starts(last):
            ckpt.check_weights(start.path, model)
    for part in idle_parts(named_parameters(model), [stage.train for stage in run.config.stages]):
        log.warning("model.%s has no learning rate in any stage: it stays as it was drawn", part)
    # Before there is an optimiser: its restored moments lie where the parameters do.
    place(model, ranks)
    with ranks.together():
        if ranks.main:
            _write_config(run)
    kept = fresh(named_parameters(model))
    if last is not None:
        kept |= ckpt.restore_weights(last.path, model)
    return Session(run, ranks, model, kept)


def place(model: MultimodalModel, ranks: Ranks) -> None:
    """Brings a model to its device, and finds out how it may attend there: as all processes can."""
    model.to(ranks.device)
    with ranks.together(), ranks.autocast():
        model.find_attention()
    model.packs = all(ranks.gather(model.packs))


def _stages(session: Session, last: Checkpoint | None) -> Iterator[tuple[StageConfig, Step, Assistant]]:
    stages = session.run.config.stages
    before = 0
    for number, stage in enumerate(stages):
        if last is not None and number <= last.state.stage:
            resumed, state = last, last.state
            before = state.before + state.step
            if number < state.stage or state.done:
                continue
        else:
            resumed, state = None, State(number, stage.name, 0, 0, before, config=deciding(session.run))
        state = yield from _stage(session, stage, state, resumed)
        before = state.before + state.step


def _write_config(run: Run) -> None:
    aside = run.folder / f".{CONFIG}"
    try:
        aside.write_text(dump_config(run.config, run.origins), encoding="utf-8")
        os.replace(aside, run.folder / CONFIG)
    except OSError as error:
        raise unwritable(run.folder, error) from error


def deciding(run: Run) -> dict[str, Any]:
    """Returns the settings that decide the weights, as JSON has them."""
    values = run.config.model_dump(mode="json", exclude=_FREE)
    for stage in values["stages"]:
        # Patience ends a stage; all else of an evaluation only looks.
        if not (stage["evaluate"] or {}).get("patience"):
            del stage["evaluate"]
    settings: dict[str, Any] = json.loads(json.dumps(values))
    return settings


def refuse_other_settings(last: Checkpoint, run: Run) -> None:
    """Compares a checkpoint's settings with the run's.

    Raises:
        CheckpointError: one that decides the weights differs.
    """
    found = ckpt.differences(last.state.config, deciding(run))
    if found:
        listed = "\n".join(f"  - {line}" for line in found[:12])
        ways = "take the settings back, give this run another `out`, or start it from these weights with `init_from`"
        if any(".duration: " in line for line in found):
            ways += (
                "\na duration decides the learning rate of every step, so that it can't change on the way; to train "
                f"longer, write a config with another `out` and a stage with `init_from: {run.folder}`"
            )
        raise CheckpointError(f"{last.path} is from another config:\n{listed}\n{ways}")


def _stage(
    session: Session, stage: StageConfig, state: State, resumed: Checkpoint | None
) -> Generator[tuple[StageConfig, Step, Assistant], None, State]:
    """Trains a stage; returns where it ended."""
    run, model = session.run, session.model
    if resumed is None and (start := starting_point(stage)):
        session.kept |= ckpt.restore_weights(start.path, model)
    optimizer = optimizer_of(session, stage, run.mixture(stage.recipe))
    if resumed is not None:
        names = named_parameters(model)
        ckpt.restore_optimizer(resumed.path, optimizer, names)
    model.checkpoint_activations(stage.activation_checkpointing)
    encoding = run.encoding(stage, packs=model.packs)
    with stored(run.config.features, model, encoding, session.ranks) as stores:
        return (yield from _trained(session, stage, state, optimizer, stores))


def _trained(
    session: Session, stage: StageConfig, state: State, optimizer: Optimizer, stores: Stores
) -> Generator[tuple[StageConfig, Step, Assistant], None, State]:
    """Takes the steps of a stage that are still to be done, with all that is due between them."""
    run, ranks, model, encoding = session.run, session.ranks, session.model, stores.encoding
    mixture = run.mixture(stage.recipe)
    state = state.moved(rows=_rows_as_before(mixture, state))
    steps = steps_of(run, stage, encoding, Share(ranks.rank, ranks.count))
    state = state.moved(steps=len(steps))
    names = [source.name for source in mixture.sources]
    ledger = Ledger(names, min(steps.limit, mixture.epoch), stage.recipe.budget, state.ledger)
    books = Books(run.folder, state, ledger, stage.recipe, names, ranks)
    trainer = Trainer(
        model=ranks.wrap(model),
        optimizer=optimizer,
        objective=sft,
        ranks=ranks,
        factor=lambda step: factor(stage.schedule, step, len(steps)),
        seed=run.order_seed(stage),
        sources=len(mixture.sources),
        clip=stage.clip,
    )
    assistant = Assistant(model, encoding.encoder, run.reader, ranks)
    if stage.evaluate and not state.step:
        _evaluate(session, trainer, stage, mixture, encoding, books)
    data = read_steps(steps, state.step, run.config.workers, pin=ranks.device.type == "cuda")
    done = train(trainer, data, len(steps))
    if session.profile and ranks.main:
        done = train_profiled(trainer, data, len(steps), model, run.folder / "profile" / stage.name)
    for step in telling_what_fits(done, run, stage, model.packs, ranks.count):
        books.add(step)
        over = step.number == len(steps)
        improved = False
        if stage.evaluate and (over or steps.due(stage.evaluate.every, step.number - 1)):
            improved = _evaluate(session, trainer, stage, mixture, encoding, books)
            over = over or _patience_is_over(stage, books.state)
        if over:
            books.close()
        if over or improved or steps.due(run.config.save.every, step.number - 1):
            _save(session, books, optimizer, over)
        if over:
            books.media(stores.counts())
        yield stage, step, assistant
        if over:
            break
    return books.state


def _rows_as_before(mixture: Mixture, state: State) -> dict[str, int]:
    """Returns the rows of each source.

    Raises:
        CheckpointError: a stage that goes on began with others, so that its order would be another one.
    """
    rows = {source.name: len(source.rows) for source in mixture.sources}
    for name, before in state.rows.items():
        if rows.get(name, before) != before:
            raise CheckpointError(
                f"stage {state.name}: source {name!r} has {rows[name]:,} rows, and had {before:,} when the stage "
                "began, so that other rows would come in the steps that are left; put the old file back, or give this "
                "run another `out`"
            )
    return rows


def optimizer_of(session: Session, stage: StageConfig, mixture: Mixture) -> Optimizer:
    """Lets the stage's parts of the model learn and freezes the rest; returns the optimiser over them."""
    names = named_parameters(session.model)
    refuse_moving_positions(session.model.decoder, stage)
    groups = select(names, stage.train)
    freeze(names, groups)
    learning = {name for group in groups for name in group.names}
    refuse_idle_towers(session.run, stage, mixture, learning)
    session.kept |= learning
    skip_idle_lora(session.model.decoder)
    return build(names, groups, stage.optimizer)


def refuse_moving_positions(decoder: PreTrainedModel, stage: StageConfig) -> None:
    """Looks for rotary embeddings that follow the longest thread of a batch, and for threads long enough.

    What is computed for a row then depends on its neighbours, in whatever framework.

    Raises:
        ConfigError: the decoder has such embeddings, and the recipe admits threads to which it matters.
    """
    settings = decoder.config.get_text_config()
    rope = getattr(settings, "rope_parameters", None) or {}
    for kind in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if kind.get("rope_type") not in ("dynamic", "longrope"):
            continue
        short = kind.get("original_max_position_embeddings") or settings.max_position_embeddings
        if stage.recipe.length > short:
            raise ConfigError(
                f"stage {stage.name}: recipe.length: {stage.recipe.length} tokens; with its {kind['rope_type']} rotary "
                f"embeddings {type(decoder).__name__} reads a thread otherwise beside one of more than "
                f"{short} tokens: set length to {short} or less"
            )


def refuse_idle_towers(run: Run, stage: StageConfig, mixture: Mixture, learning: Collection[str]) -> None:
    """Looks for media for each tower that learns; stops reading once each has been seen.

    Raises:
        ConfigError: the recipe has none for one of them.
    """
    missing = {name for name in run.config.model.towers if any(it.startswith(f"towers.{name}.") for it in learning)}
    for pair in mixture.train:
        if not missing:
            break
        try:
            turns = mixture.conversation(pair).turns
        except DataError:
            continue
        missing -= {medium.modality for turn in turns for medium in turn.media}
    for name in sorted(missing):
        raise ConfigError(
            f"stage {stage.name}: the {name} tower learns, but none of the recipe's {len(mixture.train)} rows has "
            f"{name} media; take towers.{name} out of `train`, or mend the recipe"
        )


def _evaluate(
    session: Session, trainer: Trainer, stage: StageConfig, mixture: Mixture, encoding: Encoding, books: Books
) -> bool:
    """Measures and books the held-out loss; returns whether it is the stage's lowest."""
    ranks, rows = session.ranks, stage.evaluate.rows if stage.evaluate else None
    pairs = mixture.held_out[:rows]
    booked = Booked()
    sample = sample_of(mixture, pairs, Share(ranks.rank, ranks.count))
    batches = held_out_batches(mixture, encoding, sample, booked)
    found = held_out_loss(session.model, batches, ranks, trainer.sources, sample.division)
    return books.evaluated(found, booked, len(pairs))


def _patience_is_over(stage: StageConfig, state: State) -> bool:
    patience = stage.evaluate.patience if stage.evaluate else None
    return patience is not None and state.stale >= patience


def _save(session: Session, books: Books, optimizer: Optimizer, over: bool) -> None:
    books.flush()
    with session.ranks.together():
        if session.ranks.main:
            folder = session.checkpoints
            state = books.state.moved(done=over)
            names = named_parameters(session.model)
            ckpt.save(folder, state, session.model, optimizer, names, session.kept)
            ckpt.prune(folder, session.run.config.save.keep)
