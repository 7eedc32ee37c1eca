"""The settings of a recipe: what is trained on."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from mmsft.config.strict import Strict
from mmsft.config.values import (
    Fraction,
    Name,
    Strings,
    distinct,
    setting,
    source_name,
)

_JOINED: Final = 64


class TemplatesConfig(Strict):
    """Instructions as data: templates that make a row's fields a question and its answer.

    Attributes:
        file: YAML: a list of ``name``, ``jinja`` (question ``|||`` answer), ``answer_choices`` and ``system``; or one
            of PromptSource's files.
        names: of those that are used; all by default.
        use: one is ``drawn`` for each row, ``all`` become branches of one conversation, or rows come once for ``each``.
        seed: of the draw.
    """

    file: Name
    names: Strings = ()
    use: Literal["drawn", "all", "each"] = "drawn"
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class SourceConfig(Strict):
    """Rows of one format: a file, a folder or a pattern of files; or another recipe.

    Attributes:
        path: JSON, JSONL, Parquet, Arrow, CSV, a folder of one of these, of the `datasets` library, or of media; or a
            pattern, ``data/part-*.jsonl``. Relative to the working directory, ``asset:NAME/FILE``, on the hub,
            ``hub:OWNER/NAME/FILE``, or a URL: of a file, of a ``….build.json`` of `mmsft data build`, or of shards,
            ``https://host/train-{000000..000099}.tar``.
        urls: lets rows name media by URL, of ``public`` hosts or of ``any``, those of the own network too. `path` may
            be of a public host anyway, and with ``any`` of any.
        split: of a folder with several.
        sha256: of the file; another one is refused.
        format: ``auto`` (recognised from the rows), a name in `mmsft.data.formats.FORMATS`, or
            ``my_pkg.module:function``.
        options: of the format, by name.
        columns: renames columns; the name that the format knows: the name that the rows have.
        templates: make conversations of the columns, instead of a format.
        entry: of LLaMA-Factory's ``dataset_info.json``, which `path` names then: the data set that it describes.
        name: in logs, scores and the ledger; the file's name where it isn't given.
        media_root: folder that relative media paths start from and may not leave, the file's folder by default; or one
            file that holds the media: a tar, or JSON of base64 by name.
        tags: columns of the rows that are kept, for scores per tag.
        where: keeps only rows whose column has one of the values.
        limit: keeps the first rows only.
        licence: of the data; noted, not acted on.
        weight: part that the source has in an epoch, with ``mix: {by: weight}``.
        repeat: how often each row comes in an epoch; 0.5 = in every second one.
        cap: most rows of it in an epoch; the next epoch takes the next ones.
        recipe: sources and mix of another recipe, which count as one source; what it holds out stays held out. Its
            `template`, `learn` and `template_kwargs` must be those of the recipe around it, which decides all else.
    """

    path: Name | None = None
    urls: Literal["public", "any"] | None = None
    split: Name | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    format: Name = "auto"
    options: dict[str, Any] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict)
    templates: TemplatesConfig | None = None
    entry: Name | None = None
    name: Name | None = None
    media_root: str | None = None
    tags: Strings = ()
    where: dict[str, Strings] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)
    licence: str | None = None
    weight: float | None = Field(default=None, gt=0)
    repeat: float = Field(default=1.0, gt=0)
    cap: int | None = Field(default=None, ge=1)
    recipe: "RecipeConfig | None" = Field(default=None, validate_default=True)

    @field_validator("templates")
    @classmethod
    def _reads_alone(cls, value: TemplatesConfig | None, info: ValidationInfo) -> TemplatesConfig | None:
        if value and (info.data.get("format", "auto") != "auto" or info.data.get("options")):
            raise ValueError("templates read the columns themselves; leave format and options out")
        return value

    @field_validator("entry")
    @classmethod
    def _says_all(cls, value: str | None, info: ValidationInfo) -> str | None:
        said = ("split", "sha256", "format", "options", "columns", "templates")
        stated = [name for name in said if info.data.get(name, "auto") not in (None, "auto", {})]
        if value is not None and stated:
            raise ValueError(f"the entry says how its rows are read; leave out {', '.join(stated)}")
        return value

    @field_validator("recipe")
    @classmethod
    def _one(cls, value: "RecipeConfig | None", info: ValidationInfo) -> "RecipeConfig | None":
        if value is None and "path" in info.data and info.data["path"] is None:
            raise ValueError("state a path, or a recipe")
        if value is not None:
            if info.data.get("name") is None:
                raise ValueError("give the source a `name`: a recipe has none of its own")
            own = (name for name, given in info.data.items() if name not in _OF_RECIPES and given)
            stated = [name for name in own if info.data[name] != cls.model_fields[name].default]
            if stated:
                raise ValueError(f"a recipe has sources of its own; leave out {', '.join(stated)}")
        return value


_OF_RECIPES: Final = ("name", "weight", "repeat", "cap")
"""What can be said of a source that is a recipe."""


class MixConfig(Strict):
    """How much of each source an epoch has.

    Attributes:
        by: ``size``: all rows, times `repeat`; ``weight``: the sources' own; ``temperature``: size to the power of
            1 / `temperature`; ``proportional``: size, but at most `maximum` (FLAN).
        unit: what the weights are parts of: ``rows``, or ``tokens``, by the mean length of a sample of each source.
        temperature: 1 = by size, 2 = by its square root (InstructBLIP); more comes nearer to equal parts.
        maximum: rows from which on a source counts no more.
        rows: of an epoch; as many as the sources have by default.
        order: ``shuffled``, or ``sequential``: one source after the other, each shuffled.
    """

    by: Literal["size", "weight", "temperature", "proportional"] = "size"
    unit: Literal["rows", "tokens"] = "rows"
    temperature: float | None = Field(default=None, ge=1, validate_default=True)
    maximum: int | None = Field(default=None, ge=1, validate_default=True)
    rows: int | None = Field(default=None, ge=1)
    order: Literal["shuffled", "sequential"] = "shuffled"

    @field_validator("unit")
    @classmethod
    def _of_weights(cls, value: str, info: ValidationInfo) -> str:
        if value == "tokens" and info.data.get("by", "weight") != "weight":
            raise ValueError("tokens are the unit of weights; write `by: weight`, or leave it out")
        return value

    @field_validator("temperature", "maximum")
    @classmethod
    def _belongs(cls, value: float | None, info: ValidationInfo) -> float | None:
        by = {"temperature": "temperature", "maximum": "proportional"}[info.field_name or ""]
        if "by" in info.data and (value is not None) != (info.data["by"] == by):
            raise ValueError(f"`by: {by}` needs it" if value is None else f"it is for `by: {by}`; leave it out")
        return value

    @field_validator("rows")
    @classmethod
    def _has_parts(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("by") == "size":
            raise ValueError("by size, an epoch has all rows; take another `by`, or set the stage's duration")
        return value


class ValidationConfig(Strict):
    """Which rows are held out; exactly one of `fraction`, `source` and `file`.

    Attributes:
        fraction: of all rows; rows with media in common stay on one side.
        near: keeps rows on one side of a `fraction` whose texts have at least this part of their word sequences in
            common, e.g. 0.8; by MinHash, with ``pip install 'mmsft[near]'``.
        source: name of the recipe's source that is held out whole.
        file: rows of their own.
        seed: of the fraction and of the order in which held-out rows are asked; apart from the run's, so that runs of
            several seeds hold out the same rows.
    """

    fraction: float | None = Field(default=None, gt=0, lt=1)
    source: str | None = None
    file: SourceConfig | None = Field(default=None, validate_default=True)
    near: float | None = Field(default=None, gt=0, lt=1, validate_default=True)
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @field_validator("near")
    @classmethod
    def _of_a_fraction(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("fraction") is None and "fraction" in info.data:
            raise ValueError("it says which rows a fraction keeps together; leave it out")
        return value

    @field_validator("file")
    @classmethod
    def _one(cls, value: SourceConfig | None, info: ValidationInfo) -> SourceConfig | None:
        ways = [*info.data.values(), value]
        if len(ways) == 3 and sum(way is not None for way in ways) != 1:
            raise ValueError("state exactly one of fraction, source and file")
        given = {name: setting(value, name) for name in ("recipe", "weight", "repeat", "cap")} if value else {}
        idle = [name for name, stated in given.items() if stated != SourceConfig.model_fields[name].default]
        if idle:
            raise ValueError(f"held-out rows come from one file, each once; leave out {', '.join(idle)}")
        return value


class RecipeConfig(Strict):
    """A mixture: its sources, how rows become text, and which turns are learned.

    Attributes:
        sources: the files, joined before they are shuffled.
        mix: how much of each source an epoch has.
        template: ``auto`` (the tokenizer's own), the name of a shipped template, or a Jinja file.
        learn: ``assistant`` turns, the last of them (``completion``), ``all`` text, or the ``span`` after ``<answer>``.
        length: most tokens of a thread.
        too_long: what becomes of a longer one: ``drop`` it; ``trim`` its last turns, so that as many answers as fit
            stay, each with all that comes before it; ``shrink`` its media to fewer tokens, the largest first, until it
            fits, and drop it where it can't; or stop with an ``error``. The ledger names each.
        validation: which rows are held out.
        budget: part of the rows that may be lost before the run stops; those of `quarantine` don't count.
        quarantine: a ``quarantine.jsonl`` of an earlier run or of `mmsft data check`: rows that it names are lost
            without being read, unless they, their media or how they are read have changed.
        loss_by: a tag by whose values losses are logged, within each source: ``wording``, or one of the `tags`.
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
    mix: MixConfig = Field(default_factory=MixConfig, validate_default=True)
    template: str = "auto"
    learn: Literal["assistant", "completion", "all", "span"] = "assistant"
    length: int = Field(default=2048, ge=2)
    too_long: Literal["drop", "trim", "shrink", "error"] = "drop"
    validation: ValidationConfig | None = None
    budget: Fraction = 0.01
    quarantine: Name | None = None
    loss_by: Name | None = None
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    join: Literal["shared_prefix"] | None = None
    join_limit: int | None = Field(default=None, ge=2)

    @field_validator("mix")
    @classmethod
    def _parts_are_stated(cls, value: MixConfig, info: ValidationInfo) -> MixConfig:
        sources = info.data.get("sources", ())
        weighed = [source_name(source) for source in sources if source.weight is not None]
        if value.by == "weight" and len(weighed) < len(sources):
            without = [str(source_name(source)) for source in sources if source.weight is None]
            raise ValueError(f"by: weight needs a weight for each source; {', '.join(without)} has none")
        if value.by != "weight" and weighed:
            raise ValueError(f"{', '.join(map(str, weighed))} has a weight, which counts with `by: weight` only")
        repeated = [str(source_name(source)) for source in sources if source.repeat != 1]
        if value.by != "size" and repeated:
            raise ValueError(f"{', '.join(repeated)} has `repeat`, which counts with `by: size` only")
        return value

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


SourceConfig.model_rebuild()
