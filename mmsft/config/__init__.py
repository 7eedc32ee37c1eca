"""The configuration of a run: frozen pydantic models, read from YAML and dotted overrides."""

from mmsft.config.models import (
    DecoderConfig,
    GroupConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RecipeConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
    SourceConfig,
    Spec,
    StageConfig,
    TowerConfig,
    ValidationConfig,
)
from mmsft.config.reading import Origins, dump_config, read_config

__all__ = [
    "DecoderConfig",
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
]
