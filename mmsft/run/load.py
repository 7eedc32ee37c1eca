"""Reads a run's config and tells what it will do."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from mmsft import assets
from mmsft.adapters import adapter_spec
from mmsft.config import Origins, RecipeConfig, RunConfig, StageConfig, read_config
from mmsft.data.chat import ChatEncoder
from mmsft.data.media_reader import MediaReader
from mmsft.data.mixture import Mixture
from mmsft.data.template import resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.modalities import modality_spec
from mmsft.model.build import build_model
from mmsft.model.decoder import load_tokenizer
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
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

    @property
    def folder(self) -> Path:
        """The run folder."""
        return assets.resolve(self.config.out)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The decoder's tokenizer, with the new tokens."""
        return load_tokenizer(self.config.model.decoder)

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
            length=recipe.length,
            data_tokens=self.config.model.decoder.new_tokens,
        )

    def order_seed(self, stage: StageConfig) -> int:
        """Returns the seed of a stage's order and dropout: stages on one recipe see it in different orders."""
        return self.config.seed + 1000 * self.config.stages.index(stage)

    def mixture(self, recipe: RecipeConfig) -> Mixture:
        """Returns a recipe's sources, opened once for all stages that use it."""
        key = recipe.model_dump_json()
        if key not in self._mixtures:
            self._mixtures[key] = Mixture(recipe, self.config.seed)
        return self._mixtures[key]

    def model(self) -> MultimodalModel:
        """Builds the model, with the weights that the config names; what is fresh follows from the seed."""
        torch.manual_seed(self.config.seed)
        return build_model(self.config.model, self.tokenizer)

    def describe(self, model: MultimodalModel | None = None) -> str:
        """Returns what the run trains, stage by stage, and on what; builds the model unless it is given."""
        model = model or self.model()
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
        for source in mixture.sources:
            yield f"  data {source.name}: {len(source.rows):,} rows, {source.config.format}"
        yield f"  trained on {len(mixture.train):,} rows, held out {len(mixture.held_out):,}"
        for group in groups:
            count = sum(names[name].numel() for name in group.names)
            yield f"  learns  {group.pattern:<32} {count:>13,} parameters at {group.config.lr:g}"
        for part in model.parts():
            if part.frozen:
                yield f"  frozen  {part.name:<32} {part.frozen:>13,} parameters"


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
