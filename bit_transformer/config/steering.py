"""Settings that can be changed while a training runs."""

from __future__ import annotations

from collections.abc import Mapping

from bit_transformer.config.model import ModelConfig
from bit_transformer.config.training import OptimConfig
from bit_transformer.errors import Ask, ConfigError

PENALTIES = ("lambda_K", "lambda_C", "lambda_S")
RECORDED = (
    *(
        "bytes",
        "seconds",
        "train_bpb",
        "val_bpb",
        "coded_bpb",
        "grad_norm",
        "rate",
        "lr",
        "K",
        "C",
        "S",
        "parity_errors",
    ),
    *(f"bit_{place}" for place in range(9)),
    *("bytes_per_s", "cpu_percent", "memory", "num_layers", "d_model", "max_seq_len"),
)  # metrics of a training
STEERED = ("lr", "matrix_lr", "table_lr", *PENALTIES)


def changed_settings(
    model: ModelConfig, optim: OptimConfig, settings: Mapping[str, float]
) -> tuple[ModelConfig, OptimConfig]:
    """What the settings of a training are with some of them changed.

    Raises:
        ConfigError: a setting that cannot be changed while a training runs, or a value that is not allowed.
    """
    other = next((name for name in settings if name not in STEERED), None)
    if other is not None:
        raise ConfigError(
            f"got {other!r}; while a training runs, only {', '.join(STEERED)} can be changed",
            field=f"settings.{other}",
            tries=(Ask("runs.branch"),),
        )
    penalties = {name: value for name, value in settings.items() if name in PENALTIES}
    rates = {name: value for name, value in settings.items() if name not in PENALTIES}
    return (
        ModelConfig.of({**model.model_dump(), **penalties}),
        OptimConfig.of({**optim.model_dump(), **rates}),
    )
