"""Growth: the same function before and after, moments where their weights went, a training that grows and goes on."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
from bit_transformer.config import ModelConfig, Sampling, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.decoding.generation import generate
from bit_transformer.diffusion.denoiser import restored
from bit_transformer.errors import CheckpointError, ConfigError
from bit_transformer.growth import expand_model, smaller_config, stages
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.reversible import Coupling
from bit_transformer.objectives import losses
from bit_transformer.presets import preset
from bit_transformer.training import Record, Trainer, build_windows, train_loop
from bit_transformer.training.growing import expand_optimizers
from bit_transformer.training.optim import Optimizers
from tests.conftest import TEXT, random_bits, random_model

SHAPES = {
    "bytes": {},
    "flat": {"patch_bits": 1},
    "sensor words": {"patch_bits": 12, "max_seq_len": 96},
    "parity": {"patch_bits": 9, "parity": True, "max_seq_len": 72},
    "phases": {"patch_bits": 6, "max_seq_len": 48},
    "reversible": {"reversible": True},
    "checkpoints": {"use_checkpoint": True},
    "local": {"chunk_size": 16},
    "inner width": {"dim_feedforward": 40},
    "tables": {"ngram_orders": (2, 3), "ngram_rows": 64, "ngram_words": True},
    "experts": {"experts": {"buckets": 1024, "history": 1024}},
}
GROWTHS = {
    "depth": {"num_layers": 5},
    "width": {"d_model": 48},
    "inner width": {"dim_feedforward": 200},
    "window": {"max_seq_len": 288},
    "all": {"num_layers": 3, "d_model": 64, "max_seq_len": 288},
}


def model_of(**fields: object) -> BitTransformerLM:
    return random_model(**{"max_seq_len": 64, "dim_feedforward": None, "d_model": 32, **fields})


def logits_of(model: BitTransformerLM, bits: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if model.config.causal:
            return model(bits).logits
        from bit_transformer.nn.patching import pack_patches

        patches = pack_patches(bits, model.config.patch_bits)
        chance = torch.full((len(bits),), 0.1) if model.config.noise == "flips" else None
        seen = (
            patches if chance is not None else patches.masked_fill(torch.rand(patches.shape) < 0.5, model.trunk.start)
        )
        torch.manual_seed(0)
        return restored(model, seen, chance)


def rounding(model: BitTransformerLM) -> float:
    """How far two evaluation orders of the same logits may lie apart.

    A sum of n rounded terms is off by about sqrt(n) x eps of its size (Higham & Mary 2019, probabilistic rounding analysis); 5
    of these is beyond chance. A trunk of L blocks has 4 L + 1 products of at most F terms one after the other, and norms keep what they read
    near size 1. In a reversible trunk each of the 2 L + 2 sums may also land on the next multiple of the streams' unit in every
    one of D channels, which the head multiplies by the norm of a row.
    """
    c, eps = model.config, torch.finfo(model.head.weight.dtype).eps
    row = model.head.weight.norm(dim=1).max().item()
    bound = 5 * (4 * c.num_layers + 1) * math.sqrt(c.feedforward_width) * eps * row
    if c.reversible:
        bound += (2 * c.num_layers + 2) * row * math.sqrt(c.d_model) / Coupling(model.head.weight).unit
    return bound


@pytest.mark.parametrize("growth", ("width", "inner width", "all"))
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_grown_in_double_precision_computes_the_same_to_its_rounding(shape: str, growth: str) -> None:
    model = model_of(**SHAPES[shape]).double()
    bits = random_bits(2, model.config.max_seq_len)
    grown = expand_model(model, **GROWTHS[growth])
    assert rounding(grown) < 1e-9  # a channel that is not made good would show a million times larger
    assert (logits_of(grown, bits) - logits_of(model, bits)).abs().max().item() < rounding(grown)


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_grown_model_computes_the_same(shape: str, growth: str) -> None:
    model = model_of(**SHAPES[shape])
    bits = random_bits(2, model.config.max_seq_len)
    grown = expand_model(model, **GROWTHS[growth])
    for name, value in GROWTHS[growth].items():
        assert getattr(grown.config, name) == value
    change = (logits_of(grown, bits) - logits_of(model, bits)).abs().max().item()
    assert change == 0 if growth in ("depth", "window") else change < rounding(grown)
    assert grown.num_parameters().total > model.num_parameters().total or growth == "window"


@pytest.mark.parametrize("noise", ["hidden", "flips"])
def test_a_grown_diffusion_model_computes_the_same(noise) -> None:
    model = model_of(causal=False, noise=noise)
    bits = random_bits(2, 64)
    torch.manual_seed(1)
    want = logits_of(model, bits)
    torch.manual_seed(1)
    grown = expand_model(model, d_model=64, num_layers=4)
    assert_close(logits_of(grown, bits), want, rtol=0, atol=rounding(grown))


def test_the_one_given_stays_and_the_grown_one_loads_anywhere(tmp_path: Path) -> None:
    model = model_of(experts={"buckets": 1024, "history": 1024}).double()
    before, bank = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.bank
    grown = expand_model(model, d_model=48)
    assert grown.head.weight.dtype == torch.float64 and not grown.training and grown.bank is bank
    for parameter in grown.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    grown = expand_model(model_of(), d_model=48, num_layers=3)
    loaded = load_checkpoint(save_checkpoint(tmp_path, grown))
    bits = random_bits(1, 40)
    assert torch.equal(loaded(bits).logits, grown(bits).logits)
    greedy = Sampling(temperature=0)
    assert torch.equal(generate(loaded, bits, 16, greedy), generate(model_of(), bits, 16, greedy))


def trained(**fields: object) -> tuple[BitTransformerLM, Optimizers, TrainConfig]:
    torch.manual_seed(0)
    model = BitTransformerLM(d_model=32, nhead=2, num_layers=2, max_seq_len=64, **fields)
    config = TrainConfig(steps=6, batch_size=4)
    trainer = Trainer(model, build_windows(model, TEXT, config), config)
    trainer.run()
    return model.train(), trainer.optimizers, config


def update(model: BitTransformerLM, optimizers: Optimizers, bits: torch.Tensor) -> None:
    optimizers.zero_grad()
    losses(model, bits)[0].backward()
    optimizers.step()


@pytest.mark.parametrize("fields", [{}, {"reversible": True}, {"ngram_orders": (2,), "ngram_rows": 64}])
def test_after_growth_in_depth_the_next_update_is_what_it_would_have_been(fields: dict[str, object]) -> None:
    model, optimizers, config = trained(**fields)
    grown = expand_model(model, num_layers=4)
    carried = expand_optimizers(optimizers, model, grown, config.optim)
    for one in (optimizers, carried):
        one.set_rate(1.0)
    bits = torch.from_numpy(bytes_to_bits(TEXT[:32])).view(4, 64)
    update(model, optimizers, bits)
    update(grown, carried, bits)
    now = dict(grown.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(now[name], parameter, rtol=1e-5, atol=1e-6)


def test_moments_go_where_their_weights_went() -> None:
    model, optimizers, config = trained()
    grown = expand_model(model, d_model=64)
    carried = expand_optimizers(optimizers, model, grown, config.optim)
    s = math.sqrt(0.5)
    old = optimizers.parts["adam"].state[model.head.weight]
    new = carried.parts["adam"].state[grown.head.weight]
    assert_close(new["exp_avg"][:, :32], old["exp_avg"] / s)
    assert_close(new["exp_avg_sq"][:, :32], old["exp_avg_sq"] / s**2)
    assert (new["exp_avg"][:, 32:] == 0).all() and new["step"] == old["step"] == 6
    projection = model.trunk.blocks[1].attend.query_key_value.weight
    old_momentum = optimizers.parts["matrix"].state[projection]["momentum"].view(3, 32, 32)
    now = carried.parts["matrix"].state[grown.trunk.blocks[1].attend.query_key_value.weight]["momentum"].view(3, 64, 64)
    assert_close(now[:, :32, :32], old_momentum / s)
    assert (now[:, 32:] == 0).all() and (now[:, :, 32:] == 0).all()


def test_every_new_weight_learns() -> None:
    model, optimizers, config = trained(ngram_orders=(2,), ngram_rows=64)
    grown = expand_model(model, d_model=64, num_layers=3)
    carried = expand_optimizers(optimizers, model, grown, config.optim)
    before = {name: parameter.detach().clone() for name, parameter in grown.named_parameters()}
    bits = torch.from_numpy(bytes_to_bits(TEXT[:64])).view(8, 64)
    for _ in range(4):
        update(grown, carried, bits)
    for name, parameter in grown.named_parameters():
        moved = parameter != before[name]
        if name == "head.weight":
            moved = moved[1:]  # row 0 is no node
        share = moved.float().mean().item()
        assert share > (0.9 if "blocks" in name else 0.02), (name, share)
        if parameter.ndim == 2 and "table" not in name:
            assert moved[:, 32:].any(), name


# ---- stages ----


def test_stages_lead_from_a_small_model_to_the_target_by_depth_width_and_window() -> None:
    target = preset("medium", patch_bits=9, parity=True, dim_feedforward=1024, max_seq_len=9 * 4096)
    path = stages(target)
    assert path[-1] == target and path[0].num_layers == 2 and path[0].d_model == 256
    short = target.model_copy(update={"max_seq_len": 9 * 1024})
    assert all(shape.max_seq_len == 9 * 1024 for shape in stages(short))  # there attention is cheap
    assert path[0].max_seq_len == target.max_seq_len // 2 and path[0].dim_feedforward == 512
    for before, after in itertools.pairwise(path):
        changed = [n for n in ("num_layers", "d_model", "max_seq_len") if getattr(before, n) != getattr(after, n)]
        assert len(changed) == 1
        assert getattr(after, changed[0]) > getattr(before, changed[0])
    assert all(shape.max_seq_len == target.max_seq_len for shape in stages(target, context=False))
    assert stages(ModelConfig(num_layers=1, nhead=1, max_seq_len=8)) == [
        ModelConfig(num_layers=1, nhead=1, max_seq_len=8)
    ]


def growing(steps: int = 24, **fields: object) -> Trainer:
    target = ModelConfig(d_model=32, nhead=2, num_layers=4, max_seq_len=2048)
    config = TrainConfig.of(
        {
            "steps": steps,
            "batch_size": 4,
            "progressive": {"warmup_steps": 4, "latest": 0.5, "rate": 0.7},
            "eval_every": 0.1,
            **fields,
        }
    )
    torch.manual_seed(0)
    model = BitTransformerLM(stages(target)[0])
    return Trainer(model, build_windows(model, TEXT, config), config, bytes_corpus(TEXT[:512]), target=target)


def test_a_training_grows_to_its_target_and_says_so() -> None:
    trainer, seen = growing(), []
    trainer.observers = [lambda _, record: seen.append(record)]
    trainer.run()
    assert trainer.model.config == trainer.target and trainer.progress.stage == len(trainer.growth.stages) - 1 == 4
    events = [(r["step"], r["num_layers"], r["d_model"], r["max_seq_len"]) for r in seen if "num_layers" in r]
    assert [event[1:] for event in events] == [(s.num_layers, s.d_model, s.max_seq_len) for s in trainer.growth.stages]
    assert events[0][0] == 1 and events[-1][0] <= 13  # all of it by half of the budget
    for step, *_ in events[1:]:
        before, after, later = (seen[step - 2 + i] for i in (0, 1, 4))
        assert after["rate"] < 0.5 * before["rate"] or later["rate"] < before["rate"]


def test_a_plateau_brings_growth_forward() -> None:
    early = growing(progressive={"threshold": 0.99, "latest": 1.0}, eval_every=0.05)
    early.run()
    late = growing(progressive={"threshold": 0.0, "latest": 1.0, "patience": 100}, eval_every=0.05)
    grown_at: list[int] = []
    late.observers = [lambda t, record: grown_at.append(record["step"]) if "num_layers" in record else None]
    late.run()
    assert early.progress.stage == 4 and early.progress.grown_at < 12
    assert grown_at == [1, 6, 11, 16, 21]  # a fifth of the budget each


def test_without_memory_it_grows_no_further() -> None:
    trainer = growing()
    trainer.growth.may_grow = lambda shape: shape.num_layers < 4
    trainer.run()
    assert (
        trainer.progress.ceiling and trainer.model.config.num_layers == 2 and trainer.progress.stopped == "budget spent"
    )


def test_a_growing_training_that_was_stopped_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    whole = growing()
    whole.run()

    def stop(trainer: Trainer, record: Record) -> None:
        trainer.save(tmp_path / "training.safetensors")

    for at in (2, 3, 4, 5, 15):  # some are the last before a growth
        first = growing()
        first.observers = [lambda trainer, record, at=at: stop(trainer, record) if record["step"] == at else None]
        first.run()
        again = growing()
        again.load(tmp_path / "training.safetensors")
        assert again.model.config == again.growth.stages[again.progress.stage]
        again.run()
        for (name, a), b in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b), (at, name)
    plain = Trainer(BitTransformerLM(whole.target), again.windows, TrainConfig(steps=24, batch_size=4))
    with pytest.raises(CheckpointError, match="another train config"):
        plain.load(tmp_path / "training.safetensors")


def test_what_the_experts_know_goes_along_when_a_grown_training_goes_on(tmp_path: Path) -> None:
    target = ModelConfig(d_model=32, nhead=2, num_layers=2, max_seq_len=256, experts=SHAPES["experts"]["experts"])
    config = TrainConfig.of({"steps": 8, "batch_size": 4, "progressive": True})
    trainers = []
    for _ in range(2):
        model = BitTransformerLM(stages(target)[0])
        trainers.append(Trainer(model, build_windows(model, TEXT, config), config, target=target))
    trainers[0].run()
    trainers[0].save(tmp_path / "training.safetensors")
    trainers[1].load(tmp_path / "training.safetensors")
    assert trainers[1].progress.stage > 0 and trainers[1].model.has_bank
    assert trainers[1].model.bank.count == trainers[0].model.bank.count > 0


def test_a_budget_in_operations_is_spent() -> None:
    model = BitTransformerLM(d_model=32, nhead=2, num_layers=1, max_seq_len=64)
    step = 4 * 8 * model.flops_per_byte()
    history = train_loop(model, TEXT, flops=10 * step, batch_size=4)
    assert len(history) == 10


# ---- what a teacher says ----


def test_what_is_learned_from_a_teacher_is_the_cost_of_its_predictions() -> None:
    student, teacher = model_of(), expand_model(model_of(num_layers=1), d_model=48)
    bits = random_bits(3, 64)
    with torch.no_grad():
        z, taught = student.window_logits(bits)[0].flatten(1), teacher.window_logits(bits)[0].flatten(1)
        for trust in (0.0, 0.3, 1.0):
            loss, nats = losses(student, bits, teacher=teacher, trust=trust)
            total = 0.0
            for z_bit, t_bit, bit in zip(z.flatten(), taught.flatten(), bits.flatten(), strict=True):
                target = (1 - trust) * bit.item() + trust * torch.sigmoid(t_bit).item()
                p = torch.sigmoid(z_bit.double()).item()
                total -= target * math.log(p) + (1 - target) * math.log(1 - p)
            assert loss.item() == pytest.approx(total / bits.numel(), rel=1e-4)
            assert nats.item() == pytest.approx(student.nll(bits).mean().item(), rel=1e-6)


@pytest.mark.parametrize("noise", ["hidden", "flips"])
def test_a_diffusion_learns_from_a_teacher_too(noise) -> None:
    student, teacher = model_of(causal=False, noise=noise), model_of(causal=False, noise=noise, num_layers=3)
    bits = random_bits(4, 64)
    values = []
    for trust in (0.0, 1.0):
        torch.manual_seed(0)
        values.append(losses(student, bits, teacher=teacher, trust=trust))
    assert values[0][1] == values[1][1] and values[0][0] != values[1][0]
    torch.manual_seed(0)
    assert values[0][0] == losses(student, bits)[0]
    values[1][0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


# ---- what cannot be ----


def test_what_cannot_be_is_refused() -> None:
    model = model_of()
    for fields, said in (
        ({"num_layers": 1}, "num_layers=1 is less than the model's 2; expand_model only grows"),
        ({"d_model": 16}, "d_model=16 is less than the model's 32"),
        ({"dim_feedforward": 8}, "dim_feedforward=8 is less than the model's 128"),
        ({"max_seq_len": 32}, "max_seq_len=32 is less than the model's 64"),
        ({"d_model": 40}, "d_model=40 and nhead=2; heads must stay 16 wide"),
        ({"nhead": 4}, "d_model=32 and nhead=4; heads must stay 16 wide"),
        ({"d_model": 64, "nhead": 2}, "Try d_model=64, nhead=4"),
        ({"max_seq_len": 70}, "must be a multiple of patch_bits=8"),
    ):
        with pytest.raises(ConfigError, match=said):
            expand_model(model, **fields)
    with pytest.raises(ConfigError, match="progressive; train_loop trains in place"):
        train_loop(model, TEXT, steps=1, progressive=True)
    with pytest.raises(ConfigError, match="progressive and compile_model"):
        TrainConfig.of({"steps": 1, "progressive": True, "compile_model": True})
    config = TrainConfig.of({"steps": 1, "progressive": True})
    with pytest.raises(ConfigError, match="of another shape than it begins with"):
        Trainer(model, build_windows(model, TEXT, config), config)
    with pytest.raises(ConfigError, match="a curriculum needs a diffusion model"):
        train_loop(model, TEXT, steps=1, curriculum=0.5)
    plain = TrainConfig(steps=1)
    windows = build_windows(model, TEXT, plain)
    for teacher, said in (
        (model_of(patch_bits=4), "patch_bits=8 and a teacher with 4"),
        (model_of(causal=False), "causal=True and a teacher with False"),
        (model_of(max_seq_len=32), "max_seq_len=64; it must be at most the teacher's 32"),
    ):
        with pytest.raises(ConfigError, match=said):
            Trainer(model, windows, plain, teacher=teacher)
    assert smaller_config(model.config, {}).d_model == 16 and smaller_config(model.config, {}).num_layers == 1
