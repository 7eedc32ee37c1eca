"""What the commands that look at data take: a run's config, a run folder, or a recipe by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmsft import assets
from mmsft.adapters import adapter_spec
from mmsft.config import is_recipe, read_recipe
from mmsft.errors import ConfigError
from mmsft.modalities import modality_spec
from mmsft.run.load import Run, load_run
from mmsft.run.unseen import towers

TOKENIZER: Final = "asset:smollm2-135m-instruct"
"""Counts a recipe's tokens where no other is named."""


def load_target(name: str, overrides: Sequence[str] = (), tokenizer: str | None = None) -> Run:
    """Loads a run, or a recipe as the only stage of one without a model: media are then a token each.

    Args:
        name: a config file, a run folder, a recipe file, or the name of a recipe in ``data_recipes/``.
        overrides: as of `load_run`; of a recipe its own keys, ``length=512``.
        tokenizer: hub id or folder of a model whose tokenizer and template read a recipe.

    Raises:
        ConfigError: there is nothing of this name, or it is wrong.
    """
    path = Path(name)
    if path.is_dir() or (path.is_file() and not is_recipe(path)):
        if tokenizer is not None:
            raise ConfigError(f"--tokenizer {tokenizer}: {name} is a run, and has one of its own; leave it out")
        return load_run(path, overrides)
    chosen = tokenizer or _default()
    resolvers = {"modality": modality_spec, "adapter": adapter_spec}
    return Run(*read_recipe(name, overrides, resolvers, chosen, towers()))


def _default() -> str:
    try:
        assets.resolve(TOKENIZER)
    except ConfigError:
        raise ConfigError(
            "a recipe by itself has no tokenizer: name a model with --tokenizer, or fetch the one that is taken "
            "otherwise: mmsft assets fetch smollm2-135m-instruct"
        ) from None
    return TOKENIZER
