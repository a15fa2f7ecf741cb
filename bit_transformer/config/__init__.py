"""All settings, validated once: frozen pydantic models. An unknown key gives an error that names the closest known key.

`ModelConfig` is the shape of a model and is stored with its weights. `TrainConfig` says how to train it, `DataConfig` on
which bytes, and `Sampling` how to generate. The command line (`--set model.d_model=256`), recipes (TOML) and keyword
arguments are all validated here.
"""

from bit_transformer.config.base import Config
from bit_transformer.config.comparison import ComparisonConfig, Contender
from bit_transformer.config.data import DataConfig
from bit_transformer.config.distributed import DistributedConfig
from bit_transformer.config.experts import ExpertConfig
from bit_transformer.config.model import FLIP_LEVELS, ModelConfig, Noise, Schedule
from bit_transformer.config.sampling import Sampling
from bit_transformer.config.steering import PENALTIES, RECORDED, STEERED, changed_settings
from bit_transformer.config.training import BUDGETS, GrowthConfig, OptimConfig, TrainConfig

__all__ = [
    "BUDGETS",
    "FLIP_LEVELS",
    "PENALTIES",
    "RECORDED",
    "STEERED",
    "ComparisonConfig",
    "Config",
    "Contender",
    "DataConfig",
    "DistributedConfig",
    "ExpertConfig",
    "GrowthConfig",
    "ModelConfig",
    "Noise",
    "OptimConfig",
    "Sampling",
    "Schedule",
    "TrainConfig",
    "changed_settings",
]
