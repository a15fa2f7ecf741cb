"""Models of tokens, from other libraries: training under a budget, and bits per byte of any bytes.

A token's likelihood is turned into bits of the bytes it stands for. With byte pairs, the bytes have other encodings too, whose likelihood is
left out, as everywhere; so the figure is an upper bound, and hardly above.
"""

# Shapes: B windows, N tokens of a window, V tokens of the vocabulary, D width.
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.config import TrainConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.data.windows import epoch_key, permuted
from bit_transformer.errors import BitStreamError, NonFiniteLoss
from bit_transformer.evaluation.scorer import Score, check_filled
from bit_transformer.extras import require
from bit_transformer.machine import keep_freed_memory
from bit_transformer.peers.byte_softmax import bit_logits_of
from bit_transformer.peers.tokens import Vocabulary
from bit_transformer.training.optim import Muon, clip_gradients, schedule
from bit_transformer.training.precision import autocast
from bit_transformer.training.state import crossed

BATCH = 32  # windows that are scored at once


class TokenModel(nn.Module):
    """A Hugging Face model of the GPT-2 architecture over a vocabulary, with a start symbol, so that the first token has a cost too.

    Args:
        vocabulary: what turns bytes into tokens.
        context: tokens of a window.

    Raises:
        MissingExtra: transformers is not installed.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners".
    """

    def __init__(self, vocabulary: Vocabulary, *, d_model: int, nhead: int, num_layers: int, context: int) -> None:
        super().__init__()
        transformers = require("transformers", extra="compare", purpose="the comparison with GPT-2")
        self.vocabulary, self.context = vocabulary, context
        self.start = vocabulary.size
        self.inner = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=vocabulary.size + 1,
                n_positions=context,
                n_embd=d_model,
                n_layer=num_layers,
                n_head=nhead,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                bos_token_id=self.start,
                eos_token_id=None,
                pad_token_id=None,
            )
        )

    def forward(self, token_BN: Tensor) -> Tensor:
        """Logits of every token of windows, the first included: logit_BNV."""
        before_BN = F.pad(token_BN[:, :-1], (1, 0), value=self.start)
        return self.inner(input_ids=before_BN).logits[..., : self.start]

    def nats(self, token_BN: Tensor) -> Tensor:
        """Negative log-likelihood of every token in nats: (B, N)."""
        logit_BNV = self(token_BN).float()
        return F.cross_entropy(logit_BNV.flatten(0, 1), token_BN.flatten(), reduction="none").view(token_BN.shape)

    def flops_per_token(self) -> float:
        """Operations of a training step per token in a full window: matrix products, a multiply-add counted as two, three forward passes."""
        c = self.inner.config
        block = 2 * 12 * c.n_embd**2 + 4 * c.n_embd * (self.context + 1) / 2
        return 3 * (c.n_layer * block + 2 * c.n_embd * c.vocab_size)

    def parts(self, config: Any) -> list[torch.optim.Optimizer]:
        """Optimizers: Muon for the matrices of the blocks if `config.muon`, AdamW for the rest. Vectors do not decay."""
        matrices = [p for p in self.inner.transformer.h.parameters() if p.ndim == 2] if config.muon else []
        taken = {id(p) for p in matrices}
        rest = [p for p in self.parameters() if id(p) not in taken]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, config.lr, config.betas, fused=True)
        if not matrices:
            return [adam]
        # The library's matrices are (inputs, outputs), and Muon's step depends on which is which.
        shapes = {tuple(p.shape) for p in matrices}
        of_shape = [
            {
                "params": [p for p in matrices if tuple(p.shape) == (ins, outs)],
                "lr": config.matrix_lr * (max(1.0, outs / ins) / max(1.0, ins / outs)) ** 0.5,
            }
            for ins, outs in sorted(shapes)
        ]
        return [Muon(of_shape, config.matrix_lr, config.momentum, config.weight_decay), adam]


@dataclass(frozen=True)
class Point:
    """Where a training stands.

    Attributes:
        seconds: since it began; `bytes`: of data seen; `flops`: operations.
        val_bpb: of the validation sample, where it was scored.
    """

    step: int
    seconds: float
    bytes: float
    flops: float
    train_bpb: float
    val_bpb: float | None = None


@dataclass
class TokenTraining:
    """A training of a model of tokens, under the same budgets, schedule and batches of bytes as ours.

    Args:
        tokens: of the training data.
        data_bytes: that they stand for.
        config: budget, windows per update, optimizer, validations.
        validation: bytes that are scored during training.
        spent: seconds that preparing took: they are part of the budget.
        told: called after every update.
        clock: in seconds.
    """

    model: TokenModel
    tokens: NDArray[np.int32]
    data_bytes: int
    config: TrainConfig
    validation: Corpus | None = None
    spent: float = 0.0
    told: Callable[[Point], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    point: Point = field(default_factory=lambda: Point(0, 0.0, 0.0, 0.0, math.inf))

    def run(self) -> Point:
        """Train until the budget is spent.

        Raises:
            BitStreamError: less data than one window.
            NonFiniteLoss: the loss is not finite.
        """
        model, config = self.model, self.config
        context = model.context
        windows = len(self.tokens) // context - 1  # one less, for windows that begin at an offset
        if windows < 1:
            raise BitStreamError(f"got {len(self.tokens)} tokens; at least {2 * context} are needed. Try more data")
        per_token = self.data_bytes / len(self.tokens)
        parts = model.parts(config.optim)
        peaks = [group["lr"] for part in parts for group in part.param_groups]
        device = next(model.parameters()).device
        keep_freed_memory()  # as in our own trainings
        self._warm_up(device)
        began = self.clock() - self.spent
        share = validated = 0.0
        drawn = epoch = 0
        model.train()
        while (share := self._share(self.clock() - began)) < 1:
            for group, peak in zip((g for part in parts for g in part.param_groups), peaks, strict=True):
                group["lr"] = peak * schedule(share, config.optim)
            rows: list[int] = []
            while len(rows) < config.batch_size:
                key = epoch_key(config.seed, epoch)
                take = np.arange(drawn, min(windows, drawn + config.batch_size - len(rows)))
                offset = int(np.random.default_rng((config.seed, epoch)).integers(context))
                rows += (permuted(take, windows, key=key) * context + offset).tolist()
                drawn += len(take)
                if drawn == windows:
                    drawn, epoch = 0, epoch + 1
            token_BN = torch.from_numpy(np.stack([self.tokens[at : at + context] for at in rows]).astype(np.int64))
            with autocast(device, config.amp):
                nats = model.nats(token_BN.to(device)).mean()
            nats.backward()  # type: ignore[no-untyped-call]
            norm = clip_gradients(model, config.clip_norm)
            if not (math.isfinite(loss := nats.item()) and math.isfinite(norm)):
                raise NonFiniteLoss(
                    f"got loss {loss} at step {self.point.step + 1}. Try a lower optim.lr", self.point.step + 1
                )
            for part in parts:
                part.step()
                part.zero_grad(set_to_none=True)
            p, count = self.point, token_BN.numel()
            seconds = self.clock() - began
            self.point = Point(
                p.step + 1,
                seconds,
                p.bytes + count * per_token,
                p.flops + count * model.flops_per_token(),
                loss / math.log(2) / per_token,
            )
            share = self._share(seconds)
            if self.validation is not None and crossed(validated, share, config.eval_every):
                validated = share
                bpb = sum(float(cost.sum()) for cost in token_costs(model, self.validation)) / len(self.validation)
                model.train()
                p = self.point
                self.point = Point(p.step, self.clock() - began, p.bytes, p.flops, p.train_bpb, bpb)
            self.told(self.point)
        model.eval()
        return self.point

    def _warm_up(self, device: torch.device) -> None:
        """Load what a first update loads, which takes seconds and is no part of training."""
        size = self.model.context
        token_BN = torch.from_numpy(self.tokens[:size].astype(np.int64)[None]).to(device)
        with autocast(device, self.config.amp):
            nats = self.model.nats(token_BN).mean()
        nats.backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)

    def _share(self, seconds: float) -> float:
        name, amount = self.config.budget
        p = self.point
        spent = {"steps": p.step, "epochs": p.bytes / self.data_bytes, "bytes": p.bytes, "flops": p.flops}
        return min(1.0, (seconds if name == "seconds" else spent[name]) / amount)


def token_costs(model: TokenModel, corpus: Corpus, *, by_bit: bool = False) -> Iterator[NDArray[np.float64]]:
    """The cost of each byte of a corpus in bits, in order, in pieces: (L,). A token's cost is spread evenly over its bytes.

    Windows overlap by half: every token is scored once, with at least half a window of context after the first.

    Args:
        by_bit: of a model of bytes: pieces of (L, 8), the cost of each bit.
    """
    check_filled(corpus)
    vocabulary, window = model.vocabulary, model.context
    tokens = vocabulary.encode(corpus.read(0, len(corpus)).tobytes())
    stride, device = max(1, window // 2), next(model.parameters()).device
    starts = range(0, -(-max(0, len(tokens) - window) // stride) * stride + 1, stride)
    model.eval()
    done = 0
    for first in range(0, len(starts), BATCH):
        group = starts[first : first + BATCH]
        rows = [tokens[start : start + window] for start in group]
        longest = max(map(len, rows))
        block = np.zeros((len(rows), longest), dtype=np.int64)
        for row, given in zip(block, rows, strict=True):
            row[: len(given)] = given
        token_BN = torch.from_numpy(block).to(device)
        with torch.inference_mode():
            if by_bit:
                z_BNP = bit_logits_of(model(token_BN).float(), token_BN).double()
                bit_BNP = token_BN[..., None] >> torch.arange(7, -1, -1, device=device) & 1
                nats = F.binary_cross_entropy_with_logits(z_BNP, bit_BNP.double(), reduction="none")
            else:
                nats = model.nats(token_BN).double()
        for start, given, cost in zip(group, rows, nats.cpu().numpy() / math.log(2), strict=True):
            fresh = slice(done - start, len(given))
            done += len(given[fresh])
            if by_bit:
                yield cost[fresh]
            else:
                length = vocabulary.lengths(given[fresh])
                yield np.repeat(cost[fresh] / length, length)


@dataclass(frozen=True)
class TokenScorer:
    """A model of tokens as a `Scorer`."""

    model: TokenModel
    name: str = "GPT-2"

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """A score after each piece."""
        bits, done = 0.0, 0
        protocol = protocol_of(self.model)
        for cost in token_costs(self.model, corpus):
            bits, done = bits + float(cost.sum()), done + len(cost)
            if done:
                yield Score(bits, done, protocol)


def protocol_of(model: TokenModel) -> str:
    """How a model of tokens is scored."""
    window = model.context
    return f"static weights, windows of {window} tokens every {max(1, window // 2)}, every byte scored once"
