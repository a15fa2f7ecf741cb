"""The main paths on a GPU; run by themselves wherever there is one: `pytest -m cuda`.

What a GPU computes is held against the processor in float32, where both round, and against itself where it must be exact.
`BTLM_TEST_GPU=cpu` runs the same tests on the processor, to prove the tests.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
from bit_transformer.config import Sampling, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.decoding.generation import generate, generate_bytes
from bit_transformer.decoding.session import Session
from bit_transformer.diffusion import diffusion_inference, repair
from bit_transformer.distributed import DataParallel, World, make_pipeline, wrap_fsdp
from bit_transformer.distributed.shards import whole
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn import reversible
from bit_transformer.objectives import objective_for
from bit_transformer.quantization import quantize_weights
from bit_transformer.training import Record, StopTraining, Trainer, build_windows
from tests.conftest import prose, random_bits, random_model

DEVICE = torch.device(os.environ.get("BTLM_TEST_GPU", "cuda"))
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]
SHAPES = {
    "bytes": {},
    "flat": {"patch_bits": 1},
    "phases": {"patch_bits": 6, "max_seq_len": 240},
    "parity": {"patch_bits": 9, "parity": True, "max_seq_len": 288},
    "tables": {"ngram_orders": (2, 3), "ngram_rows": 64, "ngram_words": True},
    "local": {"chunk_size": 64},
    "reversible": {"reversible": True},
    "checkpoints": {"use_checkpoint": True},
    "experts": {"experts": {"buckets": 1024, "history": 1024}},
}
KINDS = {**SHAPES, "masked": {"causal": False}, "flips": {"causal": False, "noise": "flips"}}


@pytest.fixture(autouse=True)
def full_float32() -> None:
    """TF32 keeps ten bits of a product, and would hide a wrong one."""
    if DEVICE.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def model_of(**fields: object) -> BitTransformerLM:
    return random_model(**{"max_seq_len": 256, "d_model": 32, "dim_feedforward": None, **fields})


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_the_processor(shape: str) -> None:
    """Both in float32; a reversible trunk rounds to 2^-18 as well, after each of its four updates."""
    bits = random_bits(2, model_of(**SHAPES[shape]).config.max_seq_len)
    found = []
    for device in (torch.device("cpu"), DEVICE):
        model = model_of(**SHAPES[shape]).to(device)
        loss = model.nll(bits.to(device)).mean()
        loss.backward()
        grads = {name: p.grad.to_dense().cpu() for name, p in model.named_parameters() if p.grad is not None}
        found.append((model(bits.to(device)).logits.detach().cpu(), grads))
    loose = 5e-3 if shape == "reversible" else 1e-4
    assert_close(found[1][0], found[0][0], rtol=loose, atol=loose)
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        assert_close(found[1][1][name], grad, rtol=10 * loose, atol=loose * grad.abs().max().item() + 1e-7)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains(kind: str, amp: bool) -> None:
    torch.manual_seed(0)
    fields = {"d_model": 32, "nhead": 2, "num_layers": 2, "max_seq_len": 256, "dropout": 0.1, **KINDS[kind]}
    model = BitTransformerLM(**fields).to(DEVICE)
    data = prose(1, 1500)
    config = TrainConfig(steps=40, batch_size=8, amp=amp, eval_every=0.5)
    losses: list[float] = []
    trainer = Trainer(model, build_windows(model, data, config), config, bytes_corpus(prose(2, 100)))
    trainer.observers = [lambda _, record: losses.append(record["train_bpb"])]
    trainer.run()
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert all(p.device.type == DEVICE.type for p in model.parameters())


def test_a_resumed_training_goes_on_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    """To rounding: a GPU adds up the gradients of embeddings in no fixed order."""
    config = TrainConfig(steps=12, batch_size=4, amp=False)

    def new() -> Trainer:
        torch.manual_seed(0)
        model = BitTransformerLM(
            d_model=32, nhead=2, num_layers=2, max_seq_len=256, dropout=0.1, experts={"buckets": 1024}
        )
        return Trainer(model.to(DEVICE), build_windows(model, prose(1, 500), config), config)

    def stop(_: Trainer, record: Record) -> None:
        if record["step"] == 5:
            raise StopTraining

    whole, first, second = new(), new(), new()
    whole.run()
    first.observers = [stop]
    first.run()
    first.save(tmp_path / "t")
    second.load(tmp_path / "t")
    second.run()
    for name, weight in whole.model.weights().items():
        assert_close(second.model.weights()[name], weight, rtol=1e-3, atol=1e-3)
    assert whole.model.bank.digest() == second.model.bank.digest()


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_reversible_gradients_equal_the_stored_ones_bit_for_bit(amp: bool, dropout: float, monkeypatch) -> None:
    model = model_of(reversible=True, num_layers=6, dropout=dropout).to(DEVICE).train()
    bits = random_bits(4, 256).to(DEVICE)
    found = []
    for stored in (False, True):
        if stored:
            monkeypatch.setattr(reversible, "run", lambda blocks, x, turn, *_: reversible.run_stored(blocks, x, turn))
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=amp):
            loss = model.nll(bits).mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for name, p in model.named_parameters() if name.startswith("blocks"))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_steps_are_the_whole_window(shape: str) -> None:
    model = model_of(**SHAPES[shape]).to(DEVICE)
    bits = random_bits(2, 120).to(DEVICE)
    with torch.inference_mode():
        session = Session(model, 2)
        stepped = torch.cat([session.step(piece) for piece in bits.split(37, dim=1)], dim=1)
        assert_close(stepped, model(bits).logits, rtol=1e-3, atol=5e-3 if shape == "reversible" else 1e-3)
    made = generate(model, bits, 48, Sampling(seed=1, force_parity=False))
    assert made.shape == (2, 48) and bool(((made == 0) | (made == 1)).all())


def test_generation_streams_behind_a_prompt(tmp_path: Path) -> None:
    model = load_checkpoint(save_checkpoint(tmp_path, model_of(**SHAPES["experts"])), device=DEVICE)
    assert model.head.weight.device.type == DEVICE.type
    made = generate_bytes(model, [b"one", b"another"], 40, Sampling(seed=1, learn="all"))
    assert [len(out) for out in made] == [40, 40]


@pytest.mark.parametrize("kind", ["masked", "flips"])
def test_diffusion_fills_in_and_repairs(kind: str) -> None:
    model = model_of(**KINDS[kind]).to(DEVICE)
    bits = torch.from_numpy(bytes_to_bits(prose(1, 50)[:64])).view(2, 256)
    fixed = torch.arange(256).expand(2, 256) < 128
    made = diffusion_inference(model, bits, fixed, seed=1).cpu()
    assert torch.equal(made[fixed], bits[fixed].to(made.dtype))
    mended = repair(model, bits, rate=0.01)
    assert mended.bits_BT.shape == bits.shape


@pytest.mark.parametrize("kind", ["bytes", "experts", "reversible", "masked"])
def test_evaluation_gives_what_the_processor_gives(kind: str) -> None:
    found = []
    for device in (torch.device("cpu"), DEVICE):
        model = model_of(**KINDS[kind]).to(device)
        found.append(bits_per_byte(model, bytes_corpus(prose(1, 200))).bpb)
    # Draws of a bound come from another generator on each device: within a tenth; all others only round.
    assert found[1] == pytest.approx(found[0], rel=0.1 if kind == "masked" else 1e-3)


@pytest.mark.parametrize("way", ["ddp", "fsdp", "pipeline"])
@pytest.mark.parametrize("kind", ["bytes", "reversible", "experts", "masked"])
def test_one_process_with_a_group_computes_what_one_without_does(way: str, kind: str, tmp_path: Path) -> None:
    """The code of several processes on NCCL. Two on one GPU are refused by NCCL; on gloo they are in `tests/distributed`."""
    model, bits = model_of(**KINDS[kind]).to(DEVICE).train(), random_bits(4, 256).to(DEVICE)
    if way == "pipeline":
        bits = bits.long()
    features = None if model.mixer is None else torch.from_numpy(model.bank.peek(bits.cpu().numpy())).to(DEVICE)
    objective, found = objective_for(model.config), []
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo",
        init_method=f"file://{tmp_path}/group",
        rank=0,
        world_size=1,
    )
    try:
        for shared in (False, True):
            each = copy.deepcopy(model)
            torch.manual_seed(0)
            if not shared:
                seed = int(torch.randint(1 << 62, (1, 1))[0]) if way == "pipeline" else 0
                torch.manual_seed(seed)
                objective(each, bits, features).loss.backward()
            elif way == "pipeline":
                make_pipeline(each, microbatches=1).step(bits, features)
            elif way == "fsdp":
                objective(wrap_fsdp(each), bits, features).loss.backward()
            else:
                world = DataParallel(World(0, 2, DEVICE))  # as one of two, with a group of one
                world.take(each, objective)
                world.predict(objective, each, bits, features, 1.0).loss.backward()
            found.append(
                {name: whole(p.grad).to_dense().cpu() for name, p in each.named_parameters() if p.grad is not None}
            )
    finally:
        torch.distributed.destroy_process_group()
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert_close(found[1][name], grad, rtol=1e-5, atol=1e-6 * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_models_compute_what_the_processor_computes(bits: int) -> None:
    small = quantize_weights(model_of(ngram_orders=(2,), ngram_rows=64), bits=bits)
    data = random_bits(2, 256)
    there = small.nll(data).cpu()
    assert_close(small.to(DEVICE).nll(data.to(DEVICE)).cpu(), there, rtol=1e-4, atol=1e-4)
