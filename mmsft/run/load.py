"""Reads a run's config and tells what it will do."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from mmsft import assets
from mmsft.adapters import adapter_spec
from mmsft.config import Origins, RecipeConfig, RunConfig, StageConfig, read_config
from mmsft.data import quarantine
from mmsft.data.chat import ChatEncoder
from mmsft.data.encoding import Encoding
from mmsft.data.ledger import Entry
from mmsft.data.media_reader import MediaReader
from mmsft.data.mixture import Measures, Mixture
from mmsft.data.seq2seq import Sides
from mmsft.data.shared import tell
from mmsft.data.template import resolve_template, template_in_file
from mmsft.data.token_store import TokenStore
from mmsft.data.tokens import Tokenizer
from mmsft.errors import ConfigError, Problems
from mmsft.modalities import modality_spec
from mmsft.model.build import build_model
from mmsft.model.decoder import decoder_start, load_tokenizer
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.run.stores import root, told
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import Checkpoint
from mmsft.train.optim import freeze, select

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Run:
    """A validated config; its parts are built when they are asked for.

    Attributes:
        config: all settings.
        origins: where each was stated.
    """

    config: RunConfig
    origins: Origins
    _mixtures: dict[str, Mixture] = field(default_factory=dict, init=False, repr=False, compare=False)
    _quarantines: dict[str, dict[tuple[int, int], Entry]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def folder(self) -> Path:
        """The run folder."""
        return assets.resolve(self.config.out)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The decoder's tokenizer, with the new tokens."""
        return load_tokenizer(self.config.model.decoder)

    @cached_property
    def sides(self) -> Sides | None:
        """How texts are given to an encoder–decoder; None for a causal language model."""
        start = decoder_start(self.config.model.decoder)
        return None if start is None else Sides.of(Tokenizer(self.tokenizer), start)

    @cached_property
    def reader(self) -> MediaReader:
        """The towers' modalities and adapters."""
        towers = self.config.model.towers
        return MediaReader({name: (tower.modality.value, tower.adapter.value) for name, tower in towers.items()})

    def encoder(self, recipe: RecipeConfig) -> ChatEncoder:
        """Returns how a recipe's conversations become tokens."""
        tokenizer = Tokenizer(self.tokenizer)
        return ChatEncoder(
            tokenizer=tokenizer,
            template=resolve_template(recipe.template, tokenizer),
            learn=recipe.learn,
            template_kwargs=recipe.template_kwargs,
            slots=self.reader.layout,
            contexts=self.reader.contexts,
            readings=self.reader.readings,
            loss_by=recipe.loss_by,
            length=recipe.length,
            too_long=recipe.too_long,
            data_tokens=self.config.model.decoder.new_tokens,
            sides=self.sides,
        )

    def encoding(self, stage: StageConfig, *, packs: bool = True) -> Encoding:
        """Returns how a stage's rows become batches.

        Args:
            stage: one of the run's.
            packs: whether the model takes packs of trees.
        """
        encoder = self.encoder(stage.recipe)
        encoding = Encoding(encoder, self.reader, stage.micro_tokens, packs, self.token_store(encoder))
        return replace(encoding, known=self.quarantined(stage.recipe, encoding))

    def token_store(self, encoder: ChatEncoder) -> TokenStore | None:
        """Returns where an encoder's rows are kept once they are tokenised; None = nowhere."""
        kept = self.config.tokens
        return TokenStore.of(root(kept, "tokens"), int(kept.limit), encoder) if kept else None

    def quarantined(self, recipe: RecipeConfig, encoding: Encoding) -> dict[tuple[int, int], Entry]:
        """Returns the rows (source, row) that the recipe's quarantine names; looked at once for all that ask.

        Raises:
            MmsftError: it can't be read.
        """
        if recipe.quarantine is None:
            return {}
        key = recipe.model_dump_json()
        if key not in self._quarantines:
            path = assets.resolve(recipe.quarantine)
            self._quarantines[key] = quarantine.known(path, self.mixture(recipe), encoding.reads)
        return self._quarantines[key]

    def order_seed(self, stage: StageConfig) -> int:
        """Returns the seed of a stage's order and dropout: stages on one recipe see it in different orders."""
        return self.config.seed + 1000 * self.config.stages.index(stage)

    def mixture(self, recipe: RecipeConfig) -> Mixture:
        """Returns a recipe's sources, opened once for all stages that use it."""
        key = recipe.model_dump_json()
        if key not in self._mixtures:
            self._mixtures[key] = Mixture(recipe, self.measures(recipe))
        return self._mixtures[key]

    def measures(self, recipe: RecipeConfig) -> Measures:
        """Returns what tells a recipe's mixture how long texts are."""

        @cache
        def encoder() -> ChatEncoder:
            return self.encoder(recipe)

        return Measures(
            count=lambda: encoder().tokenizer.count,
            length=lambda conversation: len(encoder().encode(conversation)),
        )

    def ahead(self, last: Checkpoint | None) -> tuple[StageConfig, ...]:
        """Returns the stages that aren't over at a checkpoint."""
        return self.config.stages[last.state.stage + last.state.done if last else 0 :]

    def starts(self, last: Checkpoint | None) -> list[Checkpoint]:
        """Returns the checkpoints that stages which haven't begun at a checkpoint will start from.

        Raises:
            ConfigError: a stage's `init_from` has no complete checkpoint.
        """
        waiting = self.config.stages[last.state.stage + 1 if last else 0 :]
        return [start for stage in waiting if (start := starting_point(stage))]

    def prepare(self, last: Checkpoint | None) -> None:
        """Opens what can be wrong without the model: data and templates of all stages, and what they start from.

        Args:
            last: where training goes on; what is over needs nothing more.

        Raises:
            MmsftError: with all that is wrong.
        """
        problems = Problems()
        for stage in self.ahead(last):
            with problems.collect():
                self.mixture(stage.recipe)
            with problems.collect():
                template_in_file(stage.recipe.template)
            with problems.collect():
                self.encoding(stage)
        with problems.collect():
            self.starts(last)
        problems.tell()

    def model(self, *, empty: bool = False) -> MultimodalModel:
        """Builds the model, with the weights that the config names; what is fresh follows from the seed.

        Args:
            empty: leave the decoder without weights, of which the files' headers are read only.
        """
        torch.manual_seed(self.config.seed)
        return build_model(self.config.model, self.tokenizer, empty=empty)

    def describe(self, model: MultimodalModel | None = None) -> str:
        """Returns what the run trains, stage by stage, and on what; builds the model unless it is given."""
        model = model or self.model(empty=True)
        names = named_parameters(model)
        total = sum(parameter.numel() for parameter in names.values())
        lines = [f"run {self.folder}", f"decoder {self.config.model.decoder.name}: {type(model.decoder).__name__}"]
        for name, tower in self.config.model.towers.items():
            lines.append(f"tower {name}: {tower.modality.kind} → {tower.adapter.kind}")
        lines.append(f"parameters {total:,}")
        learned = {name: parameter.requires_grad for name, parameter in names.items()}
        for stage in self.config.stages:
            lines += self._describe_stage(stage, model, names)
        for name, parameter in names.items():
            parameter.requires_grad_(learned[name])
        return "\n".join(lines)

    def _describe_stage(
        self, stage: StageConfig, model: MultimodalModel, names: Mapping[str, nn.Parameter]
    ) -> Iterator[str]:
        mixture = self.mixture(stage.recipe)
        groups = select(names, stage.train)
        freeze(names, groups)
        yield f"\nstage {stage.name}: {stage.duration}, batches of {stage.batch}"
        for number, source in enumerate(mixture.sources):
            split = {"trained on": mixture.train, "held out": mixture.held_out}
            counts = {what: int((pairs[:, 0] == number).sum()) for what, pairs in split.items()}
            used = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
            yield f"  data {source.name}: {used}, of {len(source.rows):,} rows, {source.format or 'templates'}"
        for source, rows, count in mixture.drawn():
            if rows != count:
                yield f"  mix  {source.name}: {count:,} rows an epoch, {count / mixture.epoch:.1%} of it"
        if mixture.groups is not None:
            yield f"  joined  {tell(mixture.groups)}"
        for group in groups:
            count = sum(names[name].numel() for name in group.names)
            yield f"  learns  {group.pattern:<32} {count:>13,} parameters at {group.config.lr:g}"
        for name, tower in model.towers.items():
            yield f"  media   towers.{name + '.encoder':<25} {told(self.config.features, tower)}"
        for part in model.parts():
            if part.frozen:
                yield f"  frozen  {part.name:<32} {part.frozen:>13,} parameters"


def newest(folder: Path) -> Checkpoint | None:
    """Returns a run's last complete checkpoint."""
    found = ckpt.complete(folder / "checkpoints")
    return found[-1] if found else None


def starting_point(stage: StageConfig) -> Checkpoint | None:
    """Returns the checkpoint that the stage's `init_from` means, if it has one.

    Raises:
        ConfigError: the folder has no complete checkpoint.
    """
    if stage.init_from is None:
        return None
    path = assets.resolve(stage.init_from)
    last = newest(path)
    if last is None:
        raise ConfigError(
            f"stage {stage.name}: init_from: {str(path)!r} has no complete checkpoint; "
            "name a run folder of `mmsft train`"
        )
    return last


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Reads a config file, or the config of a run folder.

    Args:
        path: a YAML file or a run folder.
        overrides: ``dotted.key=value``.

    Raises:
        ConfigError: with all that is wrong with it.
    """
    file = Path(path)
    if file.is_dir():
        # A run folder may have been moved, or be named from another directory, since it was written.
        overrides = [*overrides, f"out={json.dumps(str(file))}"]
        file /= CONFIG
    config, origins = read_config(file, overrides, {"modality": modality_spec, "adapter": adapter_spec})
    return Run(config, origins)
