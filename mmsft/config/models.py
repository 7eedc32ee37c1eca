"""The settings that a run accepts; what isn't here is refused."""

from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mmsft.config.values import (
    AdapterSpec,
    BatchSize,
    Fraction,
    Interval,
    Length,
    ModalitySpec,
    Name,
    Rate,
    StageName,
    Strings,
    Tokens,
    TowerName,
    Warmup,
    distinct,
    setting,
    source_name,
)
from mmsft.duration import Duration

_MICRO_TOKENS: Final = 4096
_JOINED: Final = 64


class Strict(BaseModel):
    """A frozen model that refuses keys it doesn't know, and true or false where a number is due.

    Checks of one setting against another are field validators, which run though a third setting is wrong: so all
    problems come at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        taken = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and taken is not bool:
            off = "; null turns it off" if type(None) in get_args(taken) else ""
            raise ValueError(f"doesn't take true or false, got {str(value).lower()}{off}")
        return value


class LoraConfig(Strict):
    """LoRA on the decoder, by peft.

    Attributes:
        r: rank of the update.
        alpha: the update is scaled by alpha ÷ r.
        dropout: on what goes into the update.
        targets: names of linear layers under the decoder (``q_proj``, ``*.mlp.*``); ``all-linear`` is all but the head.
        rslora: scale by alpha ÷ √r instead.
        dora: learn the weights' magnitude apart from their direction.
    """

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Annotated[Strings, Field(min_length=1)] = ("all-linear",)
    rslora: bool = False
    dora: bool = False


class DecoderConfig(Strict):
    """The language model.

    Attributes:
        name: a hub id, a folder, a ``.gguf`` file, or ``asset:NAME``; of a causal language model or an encoder–decoder.
        revision: branch, tag or commit of a hub id.
        dtype: in which its matrices are held and computed with; vectors and what learns are fp32. bfloat16 halves the
            memory, and computes what ``precision: bf16`` computes over fp32.
        lora: adds LoRA; it learns as ``decoder.lora``.
        new_tokens: added to the tokenizer as special tokens, which rows may use; they learn as ``decoder.new_tokens``.
        trust_remote_code: run the Python code that a hub id or folder brings along.
    """

    name: Name
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraConfig | None = None
    new_tokens: Strings = ()
    trust_remote_code: bool = False


class TowerConfig(Strict):
    """How one kind of media becomes tokens.

    Attributes:
        modality: how its files are read and encoded; `kind` chooses it, the other keys are the kind's own.
        adapter: how the features become tokens; `kind` chooses it, the other keys are the kind's own.
        dtype: in which the encoder's weights are held, fp32 if they learn. bfloat16 takes half the memory, and under
            ``precision: bf16`` no weight is rounded again for each batch.
    """

    modality: ModalitySpec
    adapter: AdapterSpec
    dtype: Literal["float32", "bfloat16"] = "float32"


class ModelConfig(Strict):
    """A decoder and its towers.

    Attributes:
        decoder: the language model.
        towers: the media that it takes, by the name of the modality in the data; a text-only model has none.
    """

    decoder: DecoderConfig
    towers: dict[TowerName, TowerConfig] = Field(default_factory=dict)


class SourceConfig(Strict):
    """One file of rows.

    Attributes:
        path: JSON, JSONL or Parquet, relative to the working directory, or ``asset:NAME/FILE``.
        format: a name in `mmsft.data.formats.FORMATS`, or ``my_pkg.module:function``.
        name: in logs, scores and the ledger; the file's name where it isn't given.
        media_root: folder that relative media paths start from and may not leave; the file's folder by default.
        tags: columns of the rows that are kept, for scores per tag.
        where: keeps only rows whose column has one of the values.
        limit: keeps the first rows only.
        licence: of the data; noted, not acted on.
    """

    path: Name
    format: Name
    name: Name | None = None
    media_root: str | None = None
    tags: Strings = ()
    where: dict[str, Strings] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)
    licence: str | None = None


class ValidationConfig(Strict):
    """Which rows are held out; exactly one of `fraction`, `source` and `file`.

    Attributes:
        fraction: of all rows; rows with media in common stay on one side.
        source: name of the recipe's source that is held out whole.
        file: rows of their own.
        seed: of the fraction and of the order in which held-out rows are asked; apart from the run's, so that runs of
            several seeds hold out the same rows.
    """

    fraction: float | None = Field(default=None, gt=0, lt=1)
    source: str | None = None
    file: SourceConfig | None = Field(default=None, validate_default=True)
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @field_validator("file")
    @classmethod
    def _one(cls, value: SourceConfig | None, info: ValidationInfo) -> SourceConfig | None:
        ways = [*info.data.values(), value]
        if len(ways) == 3 and sum(way is not None for way in ways) != 1:
            raise ValueError("state exactly one of fraction, source and file")
        return value


class RecipeConfig(Strict):
    """A mixture: its sources, how rows become text, and which turns are learned.

    Attributes:
        sources: the files, joined before they are shuffled.
        template: ``auto`` (the tokenizer's own), the name of a shipped template, or a Jinja file.
        learn: ``assistant`` turns, the last of them (``completion``), ``all`` text, or the ``span`` after ``<answer>``.
        length: most tokens of a thread; a longer one is dropped and ledgered.
        validation: which rows are held out.
        budget: part of the rows that may be lost before the run stops.
        template_kwargs: variables for the template, e.g. ``enable_thinking``.
        join: ``shared_prefix`` lets rows of a source that begin alike (same system message, and the same first question
            up to its last medium, or all of it where it has none) follow one another, so that what those of one step
            share goes through the model once. Rows stay examples of their own.
        join_limit: most rows that follow one another so; 64 where it isn't given, and only with `join`. More spare more
            tokens, fewer leave steps more varied.
    """

    sources: Annotated[
        tuple[SourceConfig, ...], Field(min_length=1), distinct("sources", "give each a `name`", source_name)
    ]
    template: str = "auto"
    learn: Literal["assistant", "completion", "all", "span"] = "assistant"
    length: int = Field(default=2048, ge=2)
    validation: ValidationConfig | None = None
    budget: Fraction = 0.01
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    join: Literal["shared_prefix"] | None = None
    join_limit: int | None = Field(default=None, ge=2)

    @field_validator("validation")
    @classmethod
    def _held_out_source(cls, value: ValidationConfig | None, info: ValidationInfo) -> ValidationConfig | None:
        if value and value.source and "sources" in info.data:
            names = [source_name(source) for source in info.data["sources"]]
            if value.source not in names:
                raise ValueError(f"its source {value.source!r} isn't one of {', '.join(names)}")
            if len(names) == 1:
                raise ValueError(f"holding out {value.source!r}, the recipe's only source, leaves nothing to train on")
        return value

    @field_validator("join_limit")
    @classmethod
    def _limits_something(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "join" in info.data and info.data["join"] is None:
            raise ValueError(f"{value} limits nothing without join; add `join: shared_prefix`, or leave join_limit out")
        return value

    @property
    def joined_at_most(self) -> int:
        """Most rows that follow one another since they begin alike."""
        return _JOINED if self.join_limit is None else self.join_limit

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources' names in order."""
        return tuple(source_name(source) for source in self.sources)


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
        activation_checkpointing: compute the decoder's activations a second time instead of keeping them.
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
    activation_checkpointing: bool = False
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


class RunConfig(Strict):
    """A whole run.

    Attributes:
        out: the run folder, relative to the working directory.
        model: the decoder and its towers.
        stages: trained one after the other.
        seed: of the order of rows, of fresh weights and of dropout.
        precision: bf16 computes under autocast.
        workers: processes that read and tokenise rows.
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
