"""What saves memory must change nothing else: reversible layers, checkpoints, local attention, attention maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bit_transformer.config import Sampling
from bit_transformer.decoding.generation import generate, infer_long
from bit_transformer.errors import ConfigError, NotRebuilt, StreamOverflow
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn import reversible
from bit_transformer.nn.block import Block
from bit_transformer.nn.position import rotary_table
from tests.conftest import random_bits, random_model
from tests.reference import model as reference


@pytest.fixture
def stored(monkeypatch):
    """Runs a function with reversible trunks that keep everything."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(reversible, "run", lambda blocks, x, turn, *_: reversible.run_stored(blocks, x, turn))
            return function()

    return call


def gradients(
    model: nn.Module, bits_BT: torch.Tensor, amp: bool = False, parts: int = 1
) -> dict[str, torch.Tensor | None]:
    """Of the mean likelihood, over micro-batches, with one seed; the loss and where randomness stands afterwards too."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    loss = torch.zeros(())
    for part_BT in bits_BT.chunk(parts):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            share = model.nll(part_BT).mean() / parts
        share.backward()
        loss = loss + share.detach()
    return {"loss": loss, "random": torch.rand(1), **{name: p.grad for name, p in model.named_parameters()}}


def assert_same_bits(one: dict[str, torch.Tensor | None], other: dict[str, torch.Tensor | None]) -> None:
    assert all(value is not None for value in one.values())
    dense = [{k: v.to_dense() if v.is_sparse else v for k, v in each.items()} for each in (one, other)]
    assert [name for name in one if not torch.equal(dense[0][name], dense[1][name])] == []


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [2, 12, 32])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_reversible_gradients_equal_the_stored_ones_bit_for_bit(layers, amp, dropout, stored):
    model = random_model(reversible=True, num_layers=layers, max_seq_len=256, dropout=dropout).train()
    bits_BT = random_bits(3, 256)
    assert_same_bits(gradients(model, bits_BT, amp), stored(lambda: gradients(model, bits_BT, amp)))


@pytest.mark.parametrize(
    "shape",
    [
        {"patch_bits": 1, "max_seq_len": 64},
        {"patch_bits": 9, "parity": True, "max_seq_len": 144, "ngram_orders": (2, 3), "ngram_rows": 64},
        {"max_seq_len": 192, "chunk_size": 32, "dropout": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("parts", [1, 2])
def test_reversible_gradients_are_exact_for_every_kind_of_trunk_and_accumulated(shape, parts, stored):
    model = random_model(reversible=True, num_layers=3, **shape).train()
    bits_BT = random_bits(4, model.config.max_seq_len)
    assert_same_bits(gradients(model, bits_BT, parts=parts), stored(lambda: gradients(model, bits_BT, parts=parts)))


def bidirectional_blocks(layers: int) -> list[Block]:
    torch.manual_seed(0)
    blocks = [Block(16, 2, 32, dropout=0.1, causal=False) for _ in range(layers)]
    for p in nn.ModuleList(blocks).parameters():
        nn.init.normal_(p, std=0.3)
    return blocks


def test_reversible_gradients_are_exact_without_a_causal_mask():
    blocks = bidirectional_blocks(3)
    turn = rotary_table(10, 8).float()
    weight, found = torch.randn(2, 10, 16), []
    branches = [(block.attend, block.feed_forward) for block in blocks]
    for run in (reversible.run, reversible.run_stored):
        nn.ModuleList(blocks).zero_grad()
        x = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
        torch.manual_seed(1)
        y = run(branches, x, turn)
        (y * weight).sum().backward()
        found.append({"x": x.grad, "y": y, **{n: p.grad for n, p in nn.ModuleList(blocks).named_parameters()}})
    assert_same_bits(*found)
    late_changed = torch.cat((x[:, :-1], x[:, -1:] + 1), dim=1)
    nn.ModuleList(blocks).eval()
    with torch.no_grad():
        changed = reversible.run(branches, late_changed, turn) != reversible.run(branches, x, turn)
    assert changed[:, 0].any()  # the first position reads the last


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_inputs_are_rebuilt_exactly(amp):
    model = random_model(reversible=True, num_layers=24)
    x = torch.randn(2, 30, 24) * 5
    coupling = reversible.Coupling(x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        begin = one = two = coupling.enter(x)
        for block in model.trunk.blocks:
            one = coupling.add(one, block.attend(coupling.read(two), model.trunk.rotary_NK2[:30]))
            two = coupling.add(two, block.feed_forward(coupling.read(one)))
        assert not torch.equal(two, begin)
        for block in reversed(model.trunk.blocks):
            two = coupling.take_off(two, block.feed_forward(coupling.read(one)))
            one = coupling.take_off(one, block.attend(coupling.read(two), model.trunk.rotary_NK2[:30]))
    assert torch.equal(one, begin) and torch.equal(two, begin)
    assert (coupling.read(begin) - x).abs().max() <= 2**-19


def test_backward_inside_autocast_is_the_same(stored):
    model = random_model(reversible=True, num_layers=3, max_seq_len=64).train()
    bits_BT = random_bits(2, 64)

    def inside() -> dict[str, torch.Tensor | None]:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.nll(bits_BT).mean()
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    assert_same_bits(inside(), stored(inside))


def test_frozen_embeddings_do_not_cost_the_blocks_their_gradients():
    model = random_model(reversible=True, max_seq_len=64).train()
    model.trunk.embed.requires_grad_(False)
    model.nll(random_bits(2, 64)).mean().backward()
    assert all(p.grad is not None for p in model.trunk.blocks.parameters())


def test_the_backward_pass_can_be_taken_twice():
    model = random_model(reversible=True, max_seq_len=64).train()
    loss = model.nll(random_bits(2, 64)).mean()
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    loss.backward()
    for name, p in model.named_parameters():
        assert_close(p.grad, 2 * once[name], rtol=1e-6, atol=1e-7)


def test_values_too_large_to_be_rebuilt_are_an_error_and_nan_stays_nan():
    model = random_model(reversible=True, max_seq_len=64)
    with torch.no_grad():
        model.trunk.embed.weight.fill_(4_000)
        model.nll(random_bits(2, 64))
        for large in (5_000.0, -5_000.0):
            model.trunk.embed.weight.fill_(large)
            with pytest.raises(StreamOverflow, match=r"got values of 5.*must stay below 4096"):
                model.nll(random_bits(2, 64))
    with torch.no_grad():
        model.trunk.embed.weight.fill_(float("nan"))
    assert model.nll(random_bits(2, 64)).isnan().all()


def test_a_trunk_that_changed_before_the_backward_pass_is_an_error():
    model = random_model(reversible=True, dropout=0.2, max_seq_len=64).train()
    for change in (model.eval, lambda: model.trunk.blocks[0].feed_forward.out.weight.data.mul_(1.01)):
        model.train()
        loss = model.nll(random_bits(2, 64)).mean()
        change()
        with pytest.raises(NotRebuilt, match="must be the same in both"):
            loss.backward()


def test_updates_that_cancel_are_no_overflow():
    coupling = reversible.Coupling(torch.zeros(1))
    stream = coupling.enter(torch.tensor([3_000.0]))
    for update in (-3_900.0, 3_000.0, -2_000.0):
        stream = coupling.add(stream, torch.tensor([update]))
    assert coupling.leave(stream, stream).item() == 200.0


def test_dropout_needs_a_generator_that_can_be_set_back():
    model = random_model(reversible=True, dropout=0.1, max_seq_len=64).train().to("meta")
    with pytest.raises(ConfigError, match=r"reversible=True with dropout=0\.1"):
        model.nll(random_bits(2, 64).to("meta"))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointed_gradients_equal_the_plain_ones_bit_for_bit(every, dropout):
    bits_BT = random_bits(3, 64)
    plain, again = (
        gradients(random_model(num_layers=3, max_seq_len=64, dropout=dropout, **fields).train(), bits_BT)
        for fields in ({}, {"use_checkpoint": True, "checkpoint_every": every})
    )
    assert_same_bits(plain, again)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor warns about its own deprecations
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_compiled_branches_are_as_exact(amp, stored):
    model = random_model(reversible=True, num_layers=3, max_seq_len=64).train()
    bits_BT = random_bits(2, 64)
    with model.trunk.compiled():
        compiled = gradients(model, bits_BT, amp)
        assert_same_bits(compiled, stored(lambda: gradients(model, bits_BT, amp)))
        assert model.trunk.is_compiled
    assert not model.trunk.is_compiled


@pytest.mark.parametrize("reversibly", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_local_attention_goes_on_beyond_the_window_without_forgetting(reversibly, batch):
    """The window slides, but what a position can read is all there: as one long window says."""
    shape = {"num_layers": 2, "chunk_size": 24, "reversible": reversibly}
    short, long = random_model(max_seq_len=64, **shape), random_model(max_seq_len=640, **shape)
    prompt_BT = random_bits(1, 48).repeat(batch, 1)
    drawn_BT = infer_long(short, prompt_BT, 560, Sampling(temperature=0))
    assert torch.equal(drawn_BT, generate(long, prompt_BT, 560, Sampling(temperature=0)))
    assert short.trunk.new_cache(batch).layers[0].key_BHSK.shape[2] == 3


def test_attention_maps_of_several_layers_survive_a_backward_pass_and_autocast():
    model = random_model(num_layers=3, max_seq_len=64, full_attn_logging=True, use_checkpoint=True).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, telemetry = model(random_bits(2, 64))
    logits.sum().backward()
    assert telemetry["attention"].shape == (3, 2, 2, 9, 9) and telemetry["attention"].dtype == torch.float32
    assert_close(telemetry["attention"].sum(-1), torch.ones(3, 2, 2, 9))


@pytest.mark.parametrize("shape", [{}, {"chunk_size": 24}, {"reversible": True}, {"use_checkpoint": True}], ids=str)
def test_attention_maps_match_the_loops_and_change_nothing(shape):
    fields = {"num_layers": 1, "max_seq_len": 64, "nhead": 2, **shape}
    model, quiet = (random_model(full_attn_logging=flag, **fields) for flag in (True, False))
    bits_BT = random_bits(2, 64)
    logits, telemetry = model(bits_BT)
    assert torch.equal(logits, quiet(bits_BT).logits) and "attention" not in quiet(bits_BT).telemetry
    map_LBHNN = telemetry["attention"].double().numpy()
    assert map_LBHNN.shape == (1, 2, 2, 9, 9)
    weights = reference.weights_of(model)["blocks.0.attend.query_key_value.weight"]
    symbols = [256, *(reference.patch_value(bits_BT[1, n * 8 : n * 8 + 8].tolist()) for n in range(8))]
    projected = [weights @ reference.rms_norm(x) for x in reference.embed(model, symbols)]
    for head in range(2):
        query, key = (
            np.stack([reference.rotate(x[at : at + 12], n) for n, x in enumerate(projected)])
            for at in (head * 12, 24 + head * 12)
        )
        want = reference.attention_weights(query, key, shape.get("chunk_size") and 3)
        np.testing.assert_allclose(map_LBHNN[0, 1, head], want, rtol=1e-4, atol=1e-6)


def test_plain_and_reversible_models_have_the_same_parameters():
    plain, other = (BitTransformerLM(d_model=16, nhead=2, num_layers=2, reversible=flag) for flag in (False, True))
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
