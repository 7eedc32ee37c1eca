"""The configuration of a run: frozen pydantic models, read from YAML and dotted overrides."""

from mmsft.config.dump import dump_config
from mmsft.config.kinds import resolve_kind
from mmsft.config.model import DecoderConfig, LoraConfig, ModelConfig, TowerConfig
from mmsft.config.origins import Origins
from mmsft.config.reading import is_recipe, read_config, read_recipe
from mmsft.config.recipe import MixConfig, RecipeConfig, SourceConfig, TemplatesConfig, ValidationConfig
from mmsft.config.run import (
    Checkpointing,
    EvaluationConfig,
    GroupConfig,
    OptimizerConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
    StageConfig,
    StoreConfig,
)
from mmsft.config.values import Spec

__all__ = [
    "Checkpointing",
    "DecoderConfig",
    "EvaluationConfig",
    "GroupConfig",
    "LoraConfig",
    "MixConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Origins",
    "RecipeConfig",
    "RunConfig",
    "SaveConfig",
    "ScheduleConfig",
    "SourceConfig",
    "Spec",
    "StageConfig",
    "StoreConfig",
    "TemplatesConfig",
    "TowerConfig",
    "ValidationConfig",
    "dump_config",
    "is_recipe",
    "read_config",
    "read_recipe",
    "resolve_kind",
]
