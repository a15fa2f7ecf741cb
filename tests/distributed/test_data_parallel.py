"""DDP and FSDP on gloo processes: losses and every gradient are those of one process with the whole batch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bit_transformer.config import OptimConfig, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.data.windows import BitWindows, CorpusWindows
from bit_transformer.distributed import DataParallel, World, average_sparse, wrap_ddp, wrap_fsdp
from bit_transformer.distributed.checkpoints import PartWriter, complete, read_parts
from bit_transformer.distributed.matrices import on_replicas, on_shards
from bit_transformer.distributed.shards import whole
from bit_transformer.errors import CheckpointError, ConfigError
from bit_transformer.model import set_sparse
from bit_transformer.training import Trainer, build_windows, objective_for
from bit_transformer.training.optim import clip_gradients, orthogonalize
from tests.conftest import TEXT, random_bits, random_model
from tests.distributed.ranks import on_ranks

SHAPE = {"max_seq_len": 256, "ngram_orders": (2, 3), "ngram_rows": 256}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flat": {"patch_bits": 1, "max_seq_len": 64},
    "reversible": {"reversible": True},
    "local": {"chunk_size": 64},
    "hidden": {"causal": False},
    "flips": {"causal": False, "noise": "flips", "reversible": True},
    "experts": {"experts": {"buckets": 1024, "history": 1024}, "reversible": True},
    "penalties": {"lambda_K": 0.1, "lambda_C": 0.1},
}
STEPS = 6


def trainer(parallel: DataParallel | None, fields: dict[str, Any], **train: Any) -> Trainer:
    torch.manual_seed(0)
    model = random_model(**SHAPE | fields)
    how = {"steps": STEPS, "batch_size": 8, "amp": False, "eval_every": 0.5, "eval_bytes": 512, "seed": 3}
    config = TrainConfig(**how | train)
    windows = build_windows(model, TEXT[:6000], config)
    return Trainer(model, windows, config, bytes_corpus(TEXT[6000:7024]), parallel=parallel or DataParallel())


def with_gradients(of: Trainer) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, gradient norm and gradients of the first batch."""
    batch = of.parallel.mine(of.windows.draw(of.config.batch_size), of.config.batch_size)
    of.model.train()
    nats, _ = of._accumulated(batch)
    grads = {name: whole(p.grad).to_dense().clone() for name, p in of.model.named_parameters()}
    return float(nats), float(clip_gradients(of.model, 0.0)), grads


def on_rank(
    rank: int, shard: bool, work: Callable[[Trainer], Any], fields: dict[str, Any], train: dict[str, Any]
) -> Any:
    parallel = DataParallel(World(rank, dist.get_world_size()), shard=shard)
    return work(trainer(parallel, fields, **train))


def close(mine: Tensor, theirs: Tensor, name: str) -> None:
    assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1e-12), name


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient_are_those_of_the_whole_batch(kind: str, shard: bool):
    nats, norm, grads = with_gradients(trainer(None, KINDS[kind], accum_steps=4))
    for found in on_ranks(2, on_rank, shard, with_gradients, KINDS[kind], {"accum_steps": 2}):
        assert found[0] == pytest.approx(nats, rel=1e-6) and found[1] == pytest.approx(norm, rel=1e-5)
        assert found[2].keys() == grads.keys()
        for name, grad in grads.items():
            close(found[2][name], grad, name)


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_four_ranks_share_a_batch_with_experts_and_dropout(shard: bool):
    fields = KINDS["experts"] | {"dropout": 0.2, "ngram_dropout": (0.3, 0.2)}
    nats, _, grads = with_gradients(trainer(None, fields, accum_steps=4))
    for found in on_ranks(4, on_rank, shard, with_gradients, fields, {}):
        assert found[0] == pytest.approx(nats, rel=1e-6)
        for name, grad in grads.items():
            close(found[2][name], grad, name)


def trained(of: Trainer) -> tuple[dict[str, Tensor], float, float, int]:
    of.run()
    of.take_best()
    weights = {name: whole(p.detach()).clone() for name, p in of.model.named_parameters()}
    return weights, of.progress.train_bpb, of.progress.best_bpb, of.progress.best_step


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("fields", [{}, KINDS["experts"]], ids=["plain", "experts"])
@pytest.mark.parametrize("muon", [True, False])
def test_a_training_with_validation_is_that_of_one_process(shard: bool, fields: dict[str, Any], muon: bool):
    train = {"optim": OptimConfig(muon=muon)}
    weights, bpb, best, step = trained(trainer(None, fields, accum_steps=2, **train))
    found = on_ranks(2, on_rank, shard, trained, fields, train)
    for mine in found:
        assert mine[1:3] == pytest.approx((bpb, best), rel=1e-4) and mine[3] == step
        for name, weight in weights.items():
            # Adam divides by the size of the gradient: where that is tiny, rounding decides; so the mean, not the largest.
            assert (mine[0][name] - weight).abs().mean() <= 1e-3 * weight.abs().mean(), name
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in weights)  # replicas do not drift apart


def _grown(rank: int) -> tuple[int, float]:
    parallel = DataParallel(World(rank, dist.get_world_size()))
    made = trainer(None, {}).model
    config = TrainConfig(
        steps=8, batch_size=4, amp=False, progressive={"warmup_steps": 1}, eval_every=0.25, eval_bytes=256
    )
    from bit_transformer.growth import stages
    from bit_transformer.model import BitTransformerLM

    target = made.config.model_copy(update={"d_model": 48, "dim_feedforward": 80})
    torch.manual_seed(0)
    model = BitTransformerLM(stages(target)[0])
    of = Trainer(
        model,
        build_windows(model, TEXT[:6000], config),
        config,
        bytes_corpus(TEXT[6000:6512]),
        target=target,
        parallel=parallel,
    )
    of.run()
    return of.progress.stage, of.progress.train_bpb


def test_a_training_grows_on_two_ranks():
    (stage, bpb), other = on_ranks(2, _grown)
    assert stage > 0 and (stage, bpb) == other


def _stopped(rank: int) -> tuple[int, str]:
    from bit_transformer.training import StopTraining

    of = trainer(DataParallel(World(rank, dist.get_world_size())), {})

    def stop(trainer, record):
        if rank == 0 and record["step"] == 2:
            raise StopTraining("interrupted")

    of.observers = [stop]
    of.run()
    return of.progress.step, of.progress.stopped


def test_a_stop_of_rank_0_stops_all():
    assert on_ranks(2, _stopped) == [(2, "interrupted"), (2, "stopped by rank 0")]


def _by_the_clock(rank: int) -> tuple[list[float], dict[str, Tensor], int]:
    """A budget in seconds, where the clock of rank 1 is fast by a tenth and its experts took longer."""
    parallel, now, rates = DataParallel(World(rank, dist.get_world_size())), [0.0], []

    def clock() -> float:
        now[0] += 0.1 + 0.01 * rank
        return now[0]

    of = trainer(parallel, {}, steps=None, seconds=4.0, qat=None)
    of.clock, of.progress.seconds = clock, 0.5 * rank
    of.observers = [lambda trainer, record: rates.append(record["rate"])]
    of.run()
    return rates, {name: p.detach().clone() for name, p in of.model.named_parameters()}, of.progress.step


def test_a_budget_in_seconds_is_that_of_rank_0():
    mine, theirs = on_ranks(2, _by_the_clock)
    assert mine[0] == theirs[0] and mine[2] == theirs[2] > 5
    assert all(torch.equal(mine[1][name], theirs[1][name]) for name in mine[1])


def _coded(rank: int) -> tuple[list[float], int]:
    of = trainer(DataParallel(World(rank, dist.get_world_size())), {}, compress_prob=0.5)
    found = []
    of.observers = [lambda trainer, record: found.append(record.get("coded_bpb"))]
    of.run()
    return found, of.progress.step


def test_windows_and_their_codes_are_averaged_over_ranks():
    found, other = on_ranks(2, _coded)
    assert found == other and any(found[0])
    alone = trainer(None, {}, compress_prob=0.5, accum_steps=2)
    mine = []
    alone.observers = [lambda trainer, record: mine.append(record.get("coded_bpb"))]
    alone.run()
    assert mine == pytest.approx(found[0], rel=1e-5)
    with pytest.raises(
        ConfigError, match=r"rank 1: got train\.compress_prob=0\.5 and micro-batches of one window.*Try batch_size=16"
    ):
        trainer(DataParallel(World(1, 4)), {}, compress_prob=0.5, accum_steps=2)


def _met(rank: int) -> float:
    world, began = World(rank, dist.get_world_size()), time.monotonic()
    if rank == 2:
        time.sleep(0.5)
    world.meet()
    return time.monotonic() - began


def test_ranks_meet():
    assert min(on_ranks(3, _met)) > 0.4


def _ones_own_loop(rank: int, sparse: bool, shard: bool) -> dict[str, Tensor]:
    model, bits_BT = random_model(**SHAPE), random_bits(4, 256)
    set_sparse(model, sparse)
    wrapped = wrap_fsdp(model) if shard else wrap_ddp(Mean(model))
    for _ in range(2):
        rows = bits_BT[2 * rank : 2 * rank + 2]
        (wrapped.nll(rows).mean() if shard else wrapped(rows)).backward()
        average_sparse(model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * (parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
        model.zero_grad()
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


class Mean(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, bits_BT: Tensor) -> Tensor:
        return self.model.nll(bits_BT).mean()


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("sparse", [False, True])
def test_tables_in_a_loop_of_ones_own_stay_alike(sparse: bool, shard: bool):
    model, bits_BT = random_model(**SHAPE), random_bits(4, 256)
    for _ in range(2):
        model.nll(bits_BT).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad.to_dense()
        model.zero_grad()
    for found in on_ranks(2, _ones_own_loop, sparse, shard):
        for name, parameter in model.named_parameters():
            close(found[name], parameter.detach(), name)


# ---- pieces ----


def _spread(rank: int, count: int, rows: int) -> tuple[Tensor, Tensor]:
    matrices = torch.randn(count, rows, 6, generator=torch.Generator().manual_seed(0))
    part = matrices.chunk(dist.get_world_size(), dim=1)
    mine = part[rank] if rank < len(part) else matrices[:, :0]
    return on_replicas(orthogonalize, matrices), on_shards(orthogonalize, mine, rows)


@pytest.mark.parametrize("ranks, count, rows", [(2, 3, 7), (3, 2, 4), (3, 7, 6), (4, 1, 2)])
def test_work_on_whole_matrices_is_spread_over_ranks(ranks: int, count: int, rows: int):
    whole_MRC = orthogonalize(torch.randn(count, rows, 6, generator=torch.Generator().manual_seed(0)))
    found = on_ranks(ranks, _spread, count, rows)
    assert all(torch.allclose(replica, whole_MRC, atol=1e-6) for replica, _ in found)
    joined = torch.cat([part for _, part in found], dim=1)
    assert joined.shape == whole_MRC.shape and torch.allclose(joined, whole_MRC, atol=1e-6)


@pytest.mark.parametrize(
    "windows", [lambda: CorpusWindows(bytes_corpus(TEXT[:1000]), 64), lambda: BitWindows(random_bits(13, 16))]
)
def test_ranks_draw_the_rows_of_one_process_and_their_number_may_change(windows: Callable[[], Any]):
    alone = windows()
    batches = [alone.draw(4).bits_BT for _ in range(9)]
    for ranks in (1, 2, 4):
        each = [windows() for _ in range(ranks)]
        for rank, one in enumerate(each):
            one.share(rank, ranks)
        for batch in batches[:5]:
            assert torch.equal(torch.cat([one.draw(4).bits_BT for one in each]), batch)
        other = windows()
        other.load_state_dict(each[0].state_dict(), {})
        other.share(1, 2)
        for batch in batches[5:]:
            assert torch.equal(other.draw(4).bits_BT, batch[2:])


# ---- checkpoints in parts ----


def _saved(rank: int, folder: Any, fields: dict[str, Any]) -> dict[str, Any]:
    of = trainer(DataParallel(World(rank, dist.get_world_size()), shard=True), fields)
    parts = PartWriter(folder, "training", of.parallel.world)

    def save(trainer, record):
        if record["step"] % 2 == 1:
            parts.write(record["step"], *trainer.state())

    of.observers = [save]
    of.run()
    parts.finish()
    return {name: whole(p.detach()).clone() for name, p in of.model.named_parameters()}


def _resumed(rank: int, path: Any, fields: dict[str, Any], shard: bool) -> dict[str, Any]:
    of = trainer(
        DataParallel(World(rank, dist.get_world_size()), shard=shard), fields, accum_steps=4 // dist.get_world_size()
    )
    of.load(path)
    assert of.progress.step == 3
    of.run()
    return {name: whole(p.detach()).clone() for name, p in of.model.named_parameters()}


@pytest.mark.parametrize("fields", [{}, KINDS["experts"]], ids=["plain", "experts"])
def test_parts_of_four_ranks_are_resumed_by_two_and_by_one(fields: dict[str, Any], tmp_path):
    weights = on_ranks(4, _saved, tmp_path, fields)[0]
    there = complete(tmp_path, "training")
    assert [path.name for path in there] == ["training-00000003", "training-00000005"]  # two are kept
    alone = trainer(None, fields, accum_steps=4)
    alone.load(there[0])
    assert alone.progress.step == 3
    alone.run()
    found = [{name: p.detach() for name, p in alone.model.named_parameters()}]
    found += [on_ranks(2, _resumed, there[0], fields, shard)[0] for shard in (True, False)]
    for mine in found:
        for name, weight in weights.items():
            assert (mine[name] - weight).abs().mean() <= 1e-3 * weight.abs().mean(), name


def _one_to_two(rank: int, path: Any, shard: bool) -> dict[str, Tensor]:
    of = trainer(DataParallel(World(rank, 2), shard=shard), {})
    of.load(path)
    of.run()
    return {name: whole(p.detach()).clone() for name, p in of.model.named_parameters()}


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_a_file_of_one_process_is_resumed_by_two(shard: bool, tmp_path):
    alone = trainer(None, {}, accum_steps=2)
    alone.observers = [lambda of, record: of.save(tmp_path / "one.safetensors") if record["step"] == 3 else None]
    alone.run()
    found = on_ranks(2, _one_to_two, tmp_path / "one.safetensors", shard)
    for name, weight in alone.model.named_parameters():
        assert (found[0][name] - weight).abs().mean() <= 1e-3 * weight.abs().mean(), name


def test_damaged_and_incomplete_parts_are_refused(tmp_path):
    on_ranks(2, _saved, tmp_path, {})
    path = complete(tmp_path, "training")[-1]
    shard = next(path.glob("shard-00001*"))
    kept = shard.read_bytes()
    shard.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"does not fit its checksum\. Try an earlier one"):
        read_parts(path, {})
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"is incomplete .*Try an earlier one"):
        read_parts(path, {})
    shard.write_bytes(kept)
    (path / "document.json").unlink()
    assert len(complete(tmp_path, "training")) == 1
    with pytest.raises(CheckpointError, match="is incomplete"):
        trainer(None, {}).load(path)
    other = complete(tmp_path, "training")[0]
    with pytest.raises(CheckpointError, match="another model config"):
        trainer(None, {"d_model": 36}).load(other)


def _wrapped(rank: int) -> tuple[Tensor, Tensor]:
    """A loop of one's own, with the public names."""
    model, bits_BT = random_model(**SHAPE), random_bits(4, 256)
    wrap_fsdp(model)
    made = objective_for(model.config)(model, bits_BT[2 * rank : 2 * rank + 2])
    made.loss.backward()
    with torch.no_grad():
        logits = model(bits_BT[:, :100]).logits
    return whole(model.head.weight.grad), logits


def test_wrap_fsdp_keeps_the_models_methods():
    model, bits_BT = random_model(**SHAPE), random_bits(4, 256)
    model.nll(bits_BT).mean().backward()
    for grad, logits in on_ranks(2, _wrapped):
        close(grad, model.head.weight.grad, "head")
        assert torch.allclose(logits, model(bits_BT[:, :100]).logits, atol=1e-5)


def test_what_ranks_cannot_do_is_said():
    world = DataParallel(World(1, 3))
    with pytest.raises(ConfigError, match=r"rank 1: got batch_size=8 for 3 ranks .* multiple of 3\. Try batch_size=9"):
        trainer(world, {})
    with pytest.raises(ConfigError, match=r"rank 1: got auto_batch and 3 ranks"):
        trainer(world, {}, batch_size=9, auto_batch=True)
    with pytest.raises(ConfigError, match=r"rank 1: got progressive and sharded"):
        trainer(DataParallel(World(1, 3), shard=True), {}, batch_size=9, progressive=True)
    with pytest.raises(ConfigError, match="got no process group"):
        wrap_fsdp(random_model())
    with pytest.raises(ConfigError, match="got no process group"):
        wrap_ddp(random_model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from bit_transformer.distributed import join

        with (
            pytest.raises(
                ConfigError,
                match=r"without a launcher: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT must be set\. Try torchrun",
            ),
            join(),
        ):
            pass
