"""What a training or a forward pass really takes, in a process of its own; `btlm bench memory` and `estimator` use it.

python footprint.py '{"model": {"num_layers": 8}, "train": {"steps": 1}}'
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.data.windows import BitWindows
from bit_transformer.decoding.session import Session
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import pack_patches
from bit_transformer.objectives import losses
from bit_transformer.training import Trainer, autocast

# glibc keeps what is freed below a threshold that grows as the program runs; fixed, it gives all but small pieces back.
EXACT_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17), "MALLOC_TRIM_THRESHOLD_": str(1 << 17)}
DEFAULT_ALLOCATOR: dict[str, str] = {}


def saved_for_backward(forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, counted: every storage once, parameters left out.

    Args:
        forward: makes a loss, or anything with a graph; called once.
    """

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor.detach()  # with its graph it would keep itself alive

    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor)
        whole = tensor if tensor._base is None else tensor._base
        if not isinstance(whole, torch.nn.Parameter):
            alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        result = forward()
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in alive}
    del result
    return sum(storages.values())


def resident(key: str) -> int:
    """Bytes of this process in memory now (`VmRSS`), or at most since the last reset (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def windows(model: ModelConfig, train: TrainConfig) -> BitWindows:
    """One batch of random bits, of experts random features."""
    shape = (train.batch_size, train.window or model.max_seq_len)
    features = None
    if model.experts:
        from bit_transformer.experts.bank import feature_count

        features = torch.randint(-99, 99, (*shape, feature_count(model)), dtype=torch.int8)
    return BitWindows(torch.randint(0, 2, shape, dtype=torch.uint8), seed=0, features_NTF=features)


def trained(model: ModelConfig, train: TrainConfig, updates: int) -> Trainer:
    """Some updates."""
    trainer = Trainer(BitTransformerLM(model), windows(model, train), train)
    trainer.model.train()
    if model.experts:
        for table in trainer.model.bank.tables:
            table += 0  # pages that nothing was written to do not count
    for _ in range(updates):
        trainer.update()
    return trainer


def measure(model: ModelConfig, train: TrainConfig, *, training: bool = True, updates: int = 2) -> dict[str, int]:
    """`peak`: most bytes beyond what the libraries take; `saved`: bytes that a micro-batch keeps for the backward pass."""
    small = {
        "d_model": 64,
        "nhead": 2,
        "num_layers": 1,
        "patch_bits": model.patch_bits,
        "max_seq_len": 60 * model.patch_bits,
    }
    trained(ModelConfig.of(small), TrainConfig(steps=1, batch_size=2, amp=train.amp), updates=2)  # what is loaded late
    gc.collect()
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if not training:
        bits_BT = windows(model, train).bits_NT
        built = BitTransformerLM(model).eval()
        with torch.inference_mode(), autocast(torch.device("cpu"), train.amp):
            built.nll(bits_BT)
            session = Session(built, len(bits_BT))
            session.advance(pack_patches(bits_BT, model.patch_bits)[:, 1:])
            session.advance(pack_patches(bits_BT, model.patch_bits)[:, :1])
        return {"peak": resident("VmHWM") - base, "saved": 0}
    trainer = trained(model, train, updates)
    peak = resident("VmHWM") - base
    batch = trainer.windows.draw(train.batch_size // train.accum_steps)
    with autocast(torch.device("cpu"), train.amp):
        # Of diffusion models with what the objective itself keeps, such as the masks.
        saved = saved_for_backward(
            lambda: (
                trainer.model.nll(batch.bits_BT, batch.features_BTF).mean()
                if model.causal
                else losses(trainer.model, batch.bits_BT)[0].mean()
            )
        )
    return {"peak": peak, "saved": saved}


def footprint(
    model: dict[str, Any],
    train: dict[str, Any],
    *,
    training: bool = True,
    environment: dict[str, str] = EXACT_ALLOCATOR,
) -> dict[str, int]:
    """`measure` in a fresh process."""
    order = json.dumps({"model": model, "train": train, "training": training})
    done = subprocess.run(
        [sys.executable, __file__, order],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    torch.manual_seed(0)
    print(
        json.dumps(
            measure(
                ModelConfig.of(asked["model"]), TrainConfig.of(asked["train"]), training=asked.get("training", True)
            )
        )
    )
