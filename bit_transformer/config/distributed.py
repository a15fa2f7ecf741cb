"""How a training is spread over processes."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from bit_transformer.config.base import Config


class DistributedConfig(Config):
    """How a training is spread over processes."""

    nproc: PositiveInt | None = Field(
        None,
        description="Processes to start on this machine. Default: the ones that torchrun has started, of which this is one.",
    )
    shard: bool = Field(
        False,
        description="FSDP: each process keeps a part of weights, gradients and moments. False: each keeps all of them (DDP).",
    )
    restarts: int = Field(
        3, ge=0, description="How often a failed training starts again from its last checkpoint, with nproc."
    )
    timeout: PositiveFloat = Field(600.0, description="Seconds that a process waits for the others before it gives up.")
