"""The settings of a recipe: what is trained on."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from mmsft.config.strict import Strict
from mmsft.config.values import (
    Fraction,
    Name,
    Strings,
    distinct,
    source_name,
)

_JOINED: Final = 64


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
