"""The configuration of a run: frozen pydantic models, read from YAML and dotted overrides."""

from mmsft.config.dump import dump_config
from mmsft.config.kinds import resolve_kind
from mmsft.config.model import DecoderConfig, LoraConfig, ModelConfig, TowerConfig
from mmsft.config.origins import Origins
from mmsft.config.reading import read_config
from mmsft.config.recipe import RecipeConfig, SourceConfig, ValidationConfig
from mmsft.config.run import (
    Checkpointing,
    EvaluationConfig,
    FeaturesConfig,
    GroupConfig,
    OptimizerConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
    StageConfig,
)
from mmsft.config.values import Spec

__all__ = [
    "Checkpointing",
    "DecoderConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "GroupConfig",
    "LoraConfig",
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
    "TowerConfig",
    "ValidationConfig",
    "dump_config",
    "read_config",
    "resolve_kind",
]
