"""What a model expects of each bit of some bytes, and what each bit and byte costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.errors import Ask, BitStreamError, ConfigError
from bit_transformer.evaluation.metrics import bit_costs, default_protocol
from bit_transformer.service.evaluation import check_overlap
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import PredictionsRequest
from bit_transformer.service.workspace import Workspace

MOST = 1 << 16  # bytes


@dataclass(frozen=True)
class Predictions:
    """Some bytes, bit by bit. Lists go by byte; a byte has `byte_bits` bits, first the most significant, with parity the parity bit last.

    Attributes:
        bytes: number of bytes.
        byte_bits: 8, or 9 with parity.
        bits: the bits of each byte.
        ones: the probability of a 1 at each bit, given all bits before it.
        costs: what each byte costs, in bits: the sum over its bits.
        by_position: what a bit costs at each position of a byte, on average.
        total: cost of all bytes, in bits; `bpb`: per byte.
        protocol: how they were scored.
    """

    run: str
    bytes: int
    byte_bits: int
    bits: list[list[int]]
    ones: list[list[float]]
    costs: list[float]
    by_position: list[float]
    total: float
    bpb: float
    protocol: str


def predictions(request: PredictionsRequest, workspace: Workspace, job: Job) -> Predictions:
    """What an autoregressive model expects of each bit of some bytes. The costs are those of `score`, by the same protocol.

    Raises:
        BitStreamError: no bytes, or too many; or the model predicts NaN.
        CheckpointError: no such run.
        ConfigError: a diffusion model, or an invalid overlap or protocol.
    """
    run, data = request.run, request.data
    if not 1 <= len(data) <= MOST:
        raise BitStreamError(
            f"got {len(data):,} bytes; it must be 1 to {MOST:,}",
            field="data",
            tries=("a part of them", Ask("score", run)) if data else ("at least one byte",),
        )
    check_overlap(request.overlap)
    model = workspace.model(run)
    c = model.config
    if not c.causal:
        raise ConfigError(
            f"{run}: got a diffusion model, which gives no probability of a next bit; it must be autoregressive",
            field="run",
            tries=(Ask("evaluate", run), "a run of an autoregressive model"),
        )
    protocol = default_protocol(model, request.overlap, request.learning)
    pieces, done = [], 0
    with job.cancellable():
        for piece_LU in bit_costs(model, bytes_corpus(data), protocol):
            pieces.append(piece_LU)
            done += len(piece_LU)
            job.tell(Reading(done, len(data), "scored"))
    cost_LU = np.concatenate(pieces)
    if not np.isfinite(cost_LU).all():
        raise BitStreamError(
            f"{run}: got predictions that are not finite; they must be", field="run", tries=("an earlier checkpoint",)
        )
    bit_LU = bytes_to_bits(data, parity=c.parity).reshape(-1, c.byte_bits)
    # What a bit costs says how probable it was; of a probability near 0 as precisely as of one near 1.
    nats_LU = cost_LU * math.log(2)
    one_LU = np.where(bit_LU == 1, np.exp(-nats_LU), -np.expm1(-nats_LU))
    cost_L = cost_LU.sum(-1)
    return Predictions(
        run=run,
        bytes=len(data),
        byte_bits=c.byte_bits,
        bits=bit_LU.tolist(),
        ones=one_LU.tolist(),
        costs=cost_L.tolist(),
        by_position=cost_LU.mean(0).tolist(),
        total=float(cost_L.sum()),
        bpb=float(cost_L.mean()),
        protocol=str(protocol),
    )
