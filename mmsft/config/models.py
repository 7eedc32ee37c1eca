"""The settings that a run accepts; what isn't here is refused."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from mmsft.duration import Duration, Unit


class Strict(BaseModel):
    """A frozen model that refuses keys it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class Spec:
    """A part chosen by name: the `kind` that the config states and the frozen dataclass it stands for."""

    kind: str
    value: Any


def _resolve(role: str) -> PlainValidator:
    def resolve(value: Any, info: ValidationInfo) -> Spec:
        if isinstance(value, Spec):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
            raise ValueError("write a mapping with a `kind`")
        if info.context is None:
            raise ValueError(f"a {role} is resolved by mmsft.load_run")
        spec: Spec = info.context[role](value)
        return spec

    return PlainValidator(resolve)


def _dump_spec(spec: Spec) -> dict[str, Any]:
    return {"kind": spec.kind, **asdict(spec.value)}


ModalitySpec = Annotated[Spec, _resolve("modality"), PlainSerializer(_dump_spec)]
AdapterSpec = Annotated[Spec, _resolve("adapter"), PlainSerializer(_dump_spec)]


def _amount(*units: Unit) -> tuple[BeforeValidator, AfterValidator, PlainSerializer]:
    def parse(value: Any) -> Any:
        return Duration.parse(value) if isinstance(value, str) else value

    def check(value: Duration) -> Duration:
        if value.unit not in units:
            raise ValueError(f"{value} is counted in {value.unit}; this setting takes {' or '.join(units)}")
        return value

    return BeforeValidator(parse), AfterValidator(check), PlainSerializer(str)


Length = Annotated[Duration, *_amount("epochs", "steps", "tokens", "examples")]
Interval = Annotated[Duration, *_amount("steps", "epochs")]
BatchSize = Annotated[Duration, *_amount("examples", "tokens")]
Tokens = Annotated[Duration, *_amount("tokens")]
Warmup = Annotated[float, Field(ge=0, lt=1)] | Annotated[Duration, *_amount("steps")]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Strings = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class LoraConfig(Strict):
    """LoRA on the decoder, by peft.

    Attributes:
        targets: names of linear layers under the decoder (``q_proj``, ``*.mlp.*``), or ``all-linear``: all but the head.
    """

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Strings = ("all-linear",)
    rslora: bool = False
    dora: bool = False


class DecoderConfig(Strict):
    """The language model.

    Attributes:
        name: a hub id, a folder, a ``.gguf`` file, or ``asset:NAME``.
        dtype: in which its weights are held; under ``precision: bf16`` fp32 weights compute in bf16.
        new_tokens: added to the tokenizer as special tokens; their embeddings learn as ``decoder.new_tokens``.
    """

    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraConfig | None = None
    new_tokens: Strings = ()
    trust_remote_code: bool = False


class TowerConfig(Strict):
    """A modality and the adapter that turns its features into tokens."""

    modality: ModalitySpec
    adapter: AdapterSpec


class ModelConfig(Strict):
    """A decoder and its towers; a text-only model has none."""

    decoder: DecoderConfig
    towers: dict[str, TowerConfig] = Field(default_factory=dict)


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
    """

    path: str
    format: str
    name: str | None = None
    media_root: str | None = None
    tags: Strings = ()
    where: dict[str, Strings] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)
    licence: str | None = None


class ValidationConfig(Strict):
    """Which rows are held out; exactly one of the three.

    Attributes:
        fraction: of all rows; rows with the same media stay on one side.
        source: name of the recipe's source that is held out whole.
        file: rows of their own.
    """

    fraction: float | None = Field(default=None, gt=0, lt=1)
    source: str | None = None
    file: SourceConfig | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.fraction, self.source, self.file)) != 1:
            raise ValueError("state exactly one of fraction, source and file")
        return self


class RecipeConfig(Strict):
    """A mixture: its sources, how rows become text, and which turns are learned.

    Attributes:
        template: ``auto`` (the tokenizer's own), the name of a shipped template, or a Jinja file.
        learn: ``assistant`` turns, the last one only (``completion``), ``all`` text, or the ``span`` after ``<answer>``.
        length: most tokens of a thread; a longer one is dropped and ledgered.
        budget: part of the rows that may be lost before the run stops.
        template_kwargs: variables for the template, e.g. ``enable_thinking``.
    """

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    template: str = "auto"
    learn: Literal["assistant", "completion", "all", "span"] = "assistant"
    length: int = Field(default=2048, ge=2)
    validation: ValidationConfig | None = None
    budget: Fraction = 0.01
    template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = self.source_names
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"two sources have one name, {', '.join(twice)}: give each a `name`")
        if self.validation and self.validation.source and self.validation.source not in names:
            raise ValueError(f"validation.source {self.validation.source!r} isn't one of {', '.join(names)}")
        if self.validation and self.validation.source and len(names) == 1:
            raise ValueError("validation.source holds out the recipe's only source; nothing is left to train on")
        return self

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources' names in order."""
        return tuple(source.name or source.path.rsplit("/", 1)[-1] for source in self.sources)


class GroupConfig(Strict):
    """How the parameters under a name learn."""

    lr: Rate
    weight_decay: float | None = Field(default=None, ge=0)


class ScheduleConfig(Strict):
    """The learning rate over a stage: linear warm-up (a part of the stage, or steps), then decay to `floor` × lr."""

    warmup: Warmup = 0.03
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    floor: Fraction = 0.0


class OptimizerConfig(Strict):
    """AdamW's constants."""

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
        train: name pattern → how it learns. What matches none is frozen; the most specific match wins.
        batch: one global step, over all ranks and micro-batches.
        micro_batch: most tokens, padding included, that go through the model at once.
        init_from: a run folder whose last checkpoint this stage starts from, instead of the stage before.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    recipe: RecipeConfig
    train: dict[str, GroupConfig] = Field(min_length=1)
    duration: Length
    batch: BatchSize
    micro_batch: Tokens = Duration(4096, "tokens")
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    clip: float | None = Field(default=1.0, gt=0)
    activation_checkpointing: bool = False
    evaluate: EvaluationConfig | None = None
    init_from: str | None = None

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if self.evaluate and not self.recipe.validation:
            raise ValueError("evaluate needs rows: give the recipe a `validation`")
        return self


class SaveConfig(Strict):
    """Checkpoints: when (always at a stage's end too), and how many of a stage are kept beside the best."""

    every: Interval = Duration(500, "steps")
    keep: int = Field(default=2, ge=1)


class RunConfig(Strict):
    """A whole run.

    Attributes:
        out: the run folder, relative to the working directory.
        precision: bf16 computes under autocast.
        workers: processes that read and tokenise rows.
        loggers: trackers of accelerate, e.g. ``tensorboard``, ``wandb``.
    """

    out: str
    model: ModelConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    workers: int = Field(default=1, ge=0)
    save: SaveConfig = SaveConfig()
    loggers: Strings = ()

    @model_validator(mode="after")
    def _stage_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        return self
