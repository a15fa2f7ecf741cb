"""Every setting, validated once: frozen pydantic models whose unknown keys are answered with the nearest known one.

`ModelConfig` is the shape of a model and is stored verbatim beside its weights; `TrainConfig` says how to train it;
`DataConfig` which bytes are trained on; `Sampling` how bytes are drawn. The command line (`--set model.d_model=256`),
recipes (TOML) and keyword arguments all end here.
"""

from bit_transformer.config.base import Config
from bit_transformer.config.data import DataConfig
from bit_transformer.config.experts import ExpertConfig
from bit_transformer.config.model import FLIP_LEVELS, ModelConfig, Noise, Schedule
from bit_transformer.config.sampling import Sampling
from bit_transformer.config.training import BUDGETS, GrowthConfig, OptimConfig, TrainConfig

__all__ = [
    "BUDGETS",
    "FLIP_LEVELS",
    "Config",
    "DataConfig",
    "ExpertConfig",
    "GrowthConfig",
    "ModelConfig",
    "Noise",
    "OptimConfig",
    "Sampling",
    "Schedule",
    "TrainConfig",
]
