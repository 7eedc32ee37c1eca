"""The settings that a run accepts; what isn't here is refused."""

from typing import Annotated, Final, Literal

from pydantic import ByteSize, Field, ValidationInfo, field_validator

from mmsft.config.model import ModelConfig
from mmsft.config.recipe import RecipeConfig
from mmsft.config.strict import Strict
from mmsft.config.values import (
    BatchSize,
    Fraction,
    Interval,
    Length,
    Name,
    Rate,
    Size,
    StageName,
    Strings,
    Tokens,
    Warmup,
    distinct,
    setting,
)
from mmsft.duration import Duration

_MICRO_TOKENS: Final = 4096


class GroupConfig(Strict):
    """How the parameters under a name learn.

    Attributes:
        lr: learning rate after the warm-up.
        weight_decay: instead of the optimizer's.
    """

    lr: Rate
    weight_decay: float | None = Field(default=None, ge=0)


class ScheduleConfig(Strict):
    """The learning rate over a stage: linear warm-up, then decay.

    Attributes:
        warmup: how long the rate rises from 0.
        decay: its way down from there to the stage's end.
        floor: where it ends, as a part of lr.
    """

    warmup: Warmup = 0.03
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    floor: Fraction = 0.0


class OptimizerConfig(Strict):
    """AdamW's constants.

    Attributes:
        betas: decay of the mean gradient, and of the mean squared gradient.
        eps: added to the denominator.
        weight_decay: for groups that state none; biases and norms have none.
    """

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class EvaluationConfig(Strict):
    """Validation loss on a schedule.

    Attributes:
        every: when; always at the end of the stage too.
        rows: at most this many held-out rows, the same each time.
        patience: stop the stage after so many evaluations without a better loss; None = never.
    """

    every: Interval
    rows: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)


Checkpointing = Literal["none", "selective", "full"]
"""Which decoder layers' activations are computed a second time instead of kept, from none to all."""


class StageConfig(Strict):
    """One stage: what learns, on what, for how long.

    Attributes:
        name: in logs, overrides and checkpoints.
        recipe: the data: a name in ``data_recipes/``, a YAML file, or the recipe itself.
        train: name pattern → how it learns. What matches none is frozen; the most specific match wins.
        duration: of the stage.
        batch: one global step, over all ranks and micro-batches.
        micro_batch: most tokens, padding included, that go through the model at once; at least the recipe's `length`.
            By default 4096, or the recipe's `length` where that is more.
        schedule: the learning rate over the stage.
        optimizer: AdamW's constants.
        clip: largest norm of the gradient, over all that learns; null = no clipping.
        activation_checkpointing: which decoder layers' activations are computed a second time instead of kept: of every
            layer (full), of every second one (selective: half the memory back for half the time), or of none.
        evaluate: validation loss on a schedule, the best checkpoint, early stopping.
        init_from: a run folder; what its last checkpoint holds, i.e. what learned there, is laid over the model as it
            is when the stage begins.
    """

    name: StageName
    recipe: RecipeConfig
    train: dict[str, GroupConfig] = Field(min_length=1)
    duration: Length
    batch: BatchSize
    micro_batch: Tokens | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    clip: float | None = Field(default=1.0, gt=0)
    activation_checkpointing: Checkpointing = "none"
    evaluate: EvaluationConfig | None = None
    init_from: str | None = None

    @property
    def micro_tokens(self) -> int:
        """Most tokens that go through the model at once."""
        return max(_MICRO_TOKENS, self.recipe.length) if self.micro_batch is None else int(self.micro_batch.value)

    @field_validator("micro_batch")
    @classmethod
    def _holds_a_thread(cls, value: Duration | None, info: ValidationInfo) -> Duration | None:
        recipe = info.data.get("recipe")
        if value and recipe and recipe.length > value.value:
            raise ValueError(
                f"{value} can't hold a thread of the recipe's length, {recipe.length} tokens; raise it, or lower that"
            )
        return value

    @field_validator("evaluate")
    @classmethod
    def _needs_rows(cls, value: EvaluationConfig | None, info: ValidationInfo) -> EvaluationConfig | None:
        recipe = info.data.get("recipe")
        if value and recipe and not recipe.validation:
            raise ValueError("validation loss needs rows: give the recipe a `validation`")
        return value


class SaveConfig(Strict):
    """When checkpoints are written, and which are kept.

    Attributes:
        every: when; always at a stage's end too.
        keep: how many of a stage are kept, beside the best.
    """

    every: Interval = Duration(500, "steps")
    keep: int = Field(default=2, ge=1)


class StoreConfig(Strict):
    """A store on disk of what would be computed again: frozen encoders' features, or rows' tokens.

    Attributes:
        folder: where it lies; null = ``features`` or ``tokens`` in the cache folder, $MMSFT_CACHE or ~/.cache/mmsft.
        limit: of all that lies there, e.g. ``20 GB``. What is of encoders and tokenizers that weren't used for a day
            makes room; else what finds no room is computed at each use.
    """

    folder: str | None = None
    limit: Size = ByteSize(20_000_000_000)


class RunConfig(Strict):
    """A whole run.

    Attributes:
        out: the run folder, relative to the working directory.
        model: the decoder and its towers.
        stages: trained one after the other.
        seed: of the order of rows, of fresh weights and of dropout.
        precision: bf16 computes under autocast.
        workers: processes that read and tokenise rows.
        features: the store of frozen encoders' features; null = they are computed at each use.
        tokens: the store of rows' tokens; null = rows are tokenised at each use.
        save: checkpoints.
        loggers: trackers of accelerate, e.g. ``tensorboard``, ``wandb``.
    """

    out: Name
    model: ModelConfig
    stages: Annotated[
        tuple[StageConfig, ...],
        Field(min_length=1),
        distinct("stages", "rename one", lambda stage: setting(stage, "name")),
    ]
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    precision: Literal["fp32", "bf16"] = Field(default="bf16", validate_default=True)
    workers: int = Field(default=1, ge=0)
    features: StoreConfig | None = StoreConfig()
    tokens: StoreConfig | None = StoreConfig()
    save: SaveConfig = SaveConfig()
    loggers: Strings = ()

    @field_validator("precision")
    @classmethod
    def _one_half(cls, value: str, info: ValidationInfo) -> str:
        model = info.data.get("model")
        if value == "bf16" and model and model.decoder.dtype == "float16":
            raise ValueError(
                "bf16 computes with a decoder held in bfloat16 or float32, and model.decoder.dtype is float16; "
                "hold it in bfloat16, or take precision: fp32"
            )
        return value
