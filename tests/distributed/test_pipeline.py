"""A pipeline of processes has the loss and the gradients of one process with the whole model, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bit_transformer.distributed.pipeline import SCHEDULES, Objective, Pipeline, Stage, make_pipeline
from bit_transformer.errors import BitStreamError, ConfigError, NotRebuilt
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.reversible import Coupling
from bit_transformer.objectives import objective_for
from tests.conftest import random_bits, random_model
from tests.distributed.ranks import on_ranks

REVERSIBLE = {"reversible": True}
FLAT = {"patch_bits": 1, "max_seq_len": 27, "parity": True}  # with phases
NGRAMS = {"ngram_orders": (1, 3), "ngram_rows": 512}  # more than there are contexts
HIDDEN, FLIPS = {"causal": False}, {"causal": False, "noise": "flips"}
EXPERTS = {"experts": {"orders": (1, 2)}}
M = 4  # micro-batches


@pytest.fixture(autouse=True)
def one_thread(same_settings_everywhere: None) -> None:
    """As in the forked processes, so that sums have the same order."""
    torch.set_num_threads(1)


def small(**fields: Any) -> BitTransformerLM:
    return random_model(**{"num_layers": 4, "max_seq_len": 24, **fields})


class Found(NamedTuple):
    loss_2: torch.Tensor
    grads: dict[str, torch.Tensor]


def take_grads(loss_2: torch.Tensor, module: torch.nn.Module | Pipeline) -> Found:
    """And leave none."""
    grads = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        grads[name], parameter.grad = parameter.grad, None
    return Found(loss_2, grads)


def features_of(model: BitTransformerLM, bits_BT: torch.Tensor) -> torch.Tensor | None:
    if model.mixer is None:
        return None
    generator = torch.Generator().manual_seed(2)
    return torch.randint(-99, 99, (*bits_BT.shape, model.mixer.features), dtype=torch.int8, generator=generator)


def pieces(model: BitTransformerLM, bits_BT: torch.Tensor, rows: int) -> list[tuple[torch.Tensor, ...]]:
    """Every micro-batch of every row of the mesh: the seed that a pipeline draws for it after `manual_seed(0)`, bits, features."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seeds = torch.randint(1 << 62, (rows, M)).flatten().split(1)
    features_BTF = features_of(model, bits_BT)
    features = [None] * rows * M if features_BTF is None else features_BTF.chunk(rows * M)
    return list(zip(seeds, bits_BT.chunk(rows * M), features, strict=True))


def whole(model: BitTransformerLM, objective: Objective, bits_BT: torch.Tensor, rows: int = 1) -> Found:
    """The mean over micro-batches, in this process."""
    losses = []
    with torch.random.fork_rng():
        for seed_1, bits, features in pieces(model, bits_BT, rows):
            torch.manual_seed(int(seed_1))
            made = objective(model, bits, features, reach=0.9)
            (made.loss / (rows * M)).backward()
            losses.append(torch.stack((made.loss, made.nats)).detach())
    return take_grads(torch.stack(losses).mean(0), model)


def in_sequence(model: BitTransformerLM, bits_BT: torch.Tensor, stages: int) -> Found:
    """The same, one stage after another."""
    cuts = [4 * i // stages for i in range(stages + 1)]
    objective, losses = objective_for(model.config), []
    modules = [Stage(model, objective, range(cuts[i], cuts[i + 1]), i) for i in range(stages)]
    for seed_1, bits, features in pieces(model, bits_BT, 1):
        x = bits
        for stage in modules:
            x = stage(x, bits_BT=bits, seed_1=seed_1, features_BTF=features, reach=0.9)
        (x[0] / M).backward()
        losses.append(x.detach())
    return take_grads(torch.stack(losses).mean(0), model)


def joined(results: list[Found]) -> Found:
    """Of the processes of a row of the mesh: the loss, which is the same everywhere, and gradients, none of them twice."""
    grads: dict[str, torch.Tensor] = {}
    for result in results:
        assert torch.equal(result.loss_2, results[0].loss_2) and not grads.keys() & result.grads.keys()
        grads.update(result.grads)
    return Found(results[0].loss_2, grads)


def assert_same(found: Found, want: Found, tolerance: float = 0.0) -> None:
    """Equal losses and gradients, sparse ones too; the tolerance is relative to the largest element."""
    torch.testing.assert_close(found.loss_2, want.loss_2.to(found.loss_2.dtype), rtol=tolerance, atol=0)
    assert found.grads.keys() == want.grads.keys()
    for name, grad in want.grads.items():
        got = found.grads[name]
        assert got.is_sparse == grad.is_sparse
        if grad.is_sparse:
            assert torch.equal(got.coalesce().indices(), grad.coalesce().indices())
            got, grad = got.to_dense(), grad.to_dense()
        largest = grad.abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(got, grad, rtol=0, atol=tolerance * largest, msg=partial("{}: {}".format, name))


def two_steps(model: BitTransformerLM, objective: Objective, bits_BT: torch.Tensor, **given: Any) -> list[Found]:
    """Of the process that it runs in, with gradients cleared in between."""
    pipeline, found = make_pipeline(model, objective, microbatches=M, **given), []
    for _ in range(2):
        torch.manual_seed(0)
        loss_2 = torch.stack(pipeline.step(bits_BT, features_of(model, bits_BT), reach=0.9))
        found.append(take_grads(loss_2, pipeline))
    return found


def assert_pipelines(
    model: BitTransformerLM,
    *,
    processes: int = 2,
    schedules: tuple[str, ...] = tuple(SCHEDULES),
    objective: Objective | None = None,
    want: Found | None = None,
    amp: bool = False,
    **given: Any,
) -> None:
    """Both steps of a pipeline, by every schedule, give what this process computes with the whole model."""
    bits_BT, objective = random_bits(2 * M, model.config.max_seq_len), objective or objective_for(model.config)

    def work(rank: int) -> list[list[Found]]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            return [two_steps(model, objective, bits_BT, schedule=schedule, **given) for schedule in schedules]

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        want = want or whole(model, objective, bits_BT)
    results = on_ranks(processes, work)
    for number, _ in enumerate(schedules):
        for step in range(2):
            assert_same(joined([result[number][step] for result in results]), want)


@pytest.mark.parametrize("kind", [{}, REVERSIBLE], ids=["plain", "reversible"])
@pytest.mark.parametrize(
    "fields",
    [
        NGRAMS,
        FLAT,
        HIDDEN,
        {**HIDDEN, **NGRAMS, "schedule": "linear"},
        FLIPS,
        {**FLIPS, **FLAT},
        EXPERTS,
        {"chunk_size": 16},
    ],
    ids=["n-grams", "flat", "hidden", "hidden-n-grams", "flips", "flips-flat", "experts", "local"],
)
def test_loss_and_gradients_are_those_of_one_process(fields, kind):
    assert_pipelines(small(**fields, **kind))


def test_activations_may_be_recomputed():
    assert_pipelines(small(use_checkpoint=True, checkpoint_every=2))


@pytest.mark.parametrize("kind", [{}, REVERSIBLE], ids=["plain", "reversible"])
def test_mixed_precision(kind):
    assert_pipelines(small(**kind, **NGRAMS), amp=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_reversible_weights_of_any_dtype(dtype):
    assert_pipelines(small(**REVERSIBLE).to(dtype), schedules=("interleaved",))


def test_penalties_and_teachers_are_part_of_the_objective():
    model = small(**EXPERTS, lambda_K=0.1, lambda_C=0.2, lambda_S=0.3)
    assert_pipelines(model, schedules=("1f1b",))
    teacher = small(**EXPERTS, **REVERSIBLE)
    objective = objective_for(model.config, teacher=teacher, trust=0.7)
    assert_pipelines(model, schedules=("1f1b", "zero_bubble"), objective=objective)


@pytest.mark.parametrize("kind", [{}, REVERSIBLE], ids=["plain", "reversible"])
@pytest.mark.parametrize("fields", [NGRAMS, HIDDEN], ids=["causal", "diffusion"])
def test_dropout_depends_on_stages_and_micro_batches_only(fields, kind):
    """So that all schedules drop the same: what the stages drop one after another."""
    more = {"ngram_dropout": (0.3, 0.3)} if fields is NGRAMS else {}
    model = small(**fields, **kind, **more, dropout=0.2).train()
    bits_BT = random_bits(2 * M, 24)
    assert_pipelines(model, want=in_sequence(model, bits_BT, 2), stages=2)
    assert_pipelines(model, want=in_sequence(model, bits_BT, 4), stages=4, schedules=("interleaved", "zero_bubble"))
    dropped, kept = in_sequence(model, bits_BT, 2), in_sequence(model.eval(), bits_BT, 2)
    assert not torch.equal(dropped.loss_2, kept.loss_2)


def test_stages_drop_different_activations():
    model, x_BND = small(dropout=0.5).train(), torch.randn(2, 3, 24)
    given = {"bits_BT": random_bits(2, 24), "seed_1": torch.ones(1, dtype=torch.long)}
    first, again, other = (Stage(model, objective_for(model.config), range(1, 2), i)(x_BND, **given) for i in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_four_processes_and_layers_that_do_not_divide(schedule):
    assert_pipelines(small(num_layers=9, **REVERSIBLE, **NGRAMS), processes=4, schedules=(schedule,))


def test_one_process_may_have_all_stages():
    assert_pipelines(small(**REVERSIBLE), processes=1, stages=2, schedules=("interleaved", "zero_bubble"))
    assert_pipelines(small(), processes=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [{}, REVERSIBLE], ids=["plain", "reversible"])
def test_stages_one_after_another_are_the_model(kind, dtype):
    model, bits_BT = small(**kind).to(dtype), random_bits(2 * M, 24)
    want = whole(model, objective_for(model.config), bits_BT)
    for stages in (1, 2, 4):
        assert_same(in_sequence(model, bits_BT, stages), want)


@pytest.mark.parametrize("kind", [{}, REVERSIBLE], ids=["plain", "reversible"])
@pytest.mark.parametrize("fields", [NGRAMS, FLIPS], ids=["causal", "diffusion"])
def test_rows_of_a_mesh_average_their_gradients(fields, kind):
    """Of sparse tables every row of the mesh has looked up other rows."""
    model = small(**fields, **kind)
    bits_BT, objective = random_bits(4 * M, 24), objective_for(model.config)
    want = whole(model, objective, bits_BT, rows=2)

    def work(rank: int) -> tuple[list[Found], list[Found]]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "stage"))
        return two_steps(model, objective, bits_BT.chunk(2)[rank // 2], mesh=mesh)

    results = on_ranks(4, work)
    for step in range(2):
        first, second = (joined([result[step] for result in row]) for row in (results[:2], results[2:]))
        assert_same(first, want, 1e-5)
        assert_same(second, first)


def test_a_mesh_may_have_stages_only():
    def work(rank: int) -> list[Found]:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("stage",))
        return two_steps(model, objective_for(model.config), bits_BT, mesh=mesh)

    model, bits_BT = small(), random_bits(2 * M, 24)
    want = whole(model, objective_for(model.config), bits_BT)
    assert_same(joined([result[0] for result in on_ranks(2, work)]), want)


@pytest.mark.parametrize("fields", [{**NGRAMS, **REVERSIBLE}, {**FLIPS, **FLAT}, EXPERTS], ids=str)
def test_a_process_needs_no_parameters_but_its_own(fields):
    model, bits_BT = small(**fields), random_bits(2 * M, 24)
    objective = objective_for(model.config)

    def work(rank: int) -> list[Found]:
        mine = {id(p) for p in make_pipeline(model, objective).parameters()}
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in mine:
                    setattr(module, name, torch.nn.Parameter(parameter.to("meta")))
        return two_steps(model, objective, bits_BT)

    want = whole(model, objective, bits_BT)
    assert_same(joined([result[0] for result in on_ranks(2, work)]), want)


def test_noise_is_drawn_by_the_first_stage():
    """Whatever state the other processes' generators are in."""
    model, bits_BT = small(**HIDDEN), random_bits(2 * M, 24)
    objective = objective_for(model.config)

    def work(rank: int) -> Found:
        pipeline = make_pipeline(model, objective, microbatches=M)
        torch.manual_seed(rank)
        return take_grads(torch.stack(pipeline.step(bits_BT, reach=0.9)), pipeline)

    assert_same(joined(on_ranks(2, work)), whole(model, objective, bits_BT))


def test_gradients_of_several_steps_add_up_and_windows_may_change_their_shape():
    model, few_BT, more_BT = small(**REVERSIBLE), random_bits(M, 24), random_bits(3 * M, 16, seed=1)
    objective = objective_for(model.config)

    def work(rank: int) -> Found:
        pipeline = make_pipeline(model, objective, microbatches=M)
        losses = [torch.stack(pipeline.step(bits)) for bits in (few_BT, more_BT, few_BT)]
        return take_grads(torch.stack(losses), pipeline)

    found = joined(on_ranks(2, work))
    want = [whole(model, objective, bits) for bits in (few_BT, more_BT, few_BT)]
    grads = {name: sum(part.grads[name] for part in want) for name in found.grads}
    assert_same(found, Found(torch.stack([part.loss_2 for part in want]), grads), 1e-5)


def test_a_bank_gives_the_features_that_are_not_given():
    model, bits_BT = small(**EXPERTS), random_bits(2 * M, 24)
    model.learn(random_bits(20, 24, seed=5))

    def work(rank: int) -> float:
        loss, nats = make_pipeline(model, objective_for(model.config), microbatches=M).step(bits_BT.numpy())
        assert torch.equal(loss, nats)
        return loss.item()

    want = model.nll(bits_BT).mean().item()
    assert on_ranks(2, work) == [pytest.approx(want, rel=1e-6)] * 2


def test_training_goes_on_as_in_one_process():
    """Each process updates its own parameters, which together are the model's."""
    bits_BT = random_bits(2 * M, 24)

    def trained(rank: int | None) -> dict[str, torch.Tensor]:
        model = small(**NGRAMS, **REVERSIBLE)
        objective = objective_for(model.config)
        pipeline = model if rank is None else make_pipeline(model, objective, microbatches=M)
        named = dict(pipeline.named_parameters())
        assert [id(p) for p in pipeline.parameters()] == [id(p) for p in named.values()]
        tables = [p for name, p in named.items() if "table" in name]
        rest = [p for name, p in named.items() if "table" not in name]
        optimizers = [torch.optim.AdamW(rest, lr=0.01), *([torch.optim.SparseAdam(tables, lr=0.01)] if tables else [])]
        for _ in range(3):
            if rank is None:
                for bits in bits_BT.chunk(M):
                    (objective(model, bits).loss / M).backward()
            else:
                pipeline.step(bits_BT)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return {name: p.detach() for name, p in pipeline.named_parameters()}

    parts, want = on_ranks(2, trained), trained(None)
    found = {**parts[0], **parts[1]}
    assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)


# ---- what goes wrong ----


def messages(processes: int, work: Callable[[int], Any], kind: type[Exception] = ConfigError) -> list[str]:
    """One line of every process."""

    def said(rank: int) -> str:
        with pytest.raises(kind) as error:
            work(rank)
        return str(error.value)

    lines = on_ranks(processes, said)
    for rank, line in enumerate(lines):
        assert line.startswith(f"rank {rank}: got ") and ". Try " in line and "\n" not in line
    return lines


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"schedule": "2f2b"}, "schedule='2f2b'; it must be one of 1f1b, gpipe, interleaved, zero_bubble"),
        ({"stages": 4}, "stages=4 on 2 processes; with schedule='1f1b' it must be 2. Try stages=2"),
        ({"stages": 0}, "stages=0 on 2 processes"),
        ({"stages": 3, "schedule": "zero_bubble"}, "with schedule='zero_bubble' it must be a multiple of 2"),
        ({"stages": 8, "schedule": "interleaved"}, "stages=8 for num_layers=4; it must be at most that"),
        ({"microbatches": 1}, "microbatches=1; with schedule='1f1b' it must be at least 2"),
        ({"microbatches": 0, "schedule": "gpipe"}, "microbatches=0; with schedule='gpipe' it must be at least 1"),
        (
            {"microbatches": 5, "schedule": "interleaved"},
            "microbatches=5; with schedule='interleaved' it must be a multiple",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_an_error(given, says):
    model = small()
    for line in messages(2, lambda rank: make_pipeline(model, objective_for(model.config), **given)):
        assert says in line


def test_meshes_and_batches_that_do_not_fit_are_errors():
    model = small()
    objective = objective_for(model.config)

    def with_mesh(*names: str) -> Callable[[int], Pipeline]:
        return lambda rank: make_pipeline(
            model, objective, mesh=init_device_mesh("cpu", (1, 2)[-len(names) :], mesh_dim_names=names)
        )

    for line in messages(2, with_mesh("data", "model")) + messages(2, with_mesh("data")):
        assert "named ('stage',) or ('data', 'stage')" in line

    def step(rank: int, bits_BT: torch.Tensor) -> None:
        make_pipeline(model, objective, microbatches=M).step(bits_BT)

    for line in messages(2, partial(step, bits_BT=random_bits(6, 24)), BitStreamError):
        assert "got 6 windows; their number must be a multiple of microbatches=4. Try 8 windows" in line


def test_without_processes_there_is_no_pipeline():
    assert not dist.is_initialized()
    model = small()
    with pytest.raises(ConfigError, match=r"no process group; .* Try torch\.distributed\.init_process_group"):
        make_pipeline(model, objective_for(model.config))


def test_what_cannot_be_rebuilt_is_an_error_in_its_process():
    model, bits_BT = small(**REVERSIBLE), random_bits(2 * M, 24)
    with torch.no_grad():
        model.trunk.blocks[3].feed_forward.out.weight.fill_(5_000)

    def work(rank: int) -> None:
        make_pipeline(model, objective_for(model.config), microbatches=M).step(bits_BT)

    with pytest.raises(RuntimeError, match=r"^rank 1 failed:(?s:.*)StreamOverflow: rank 1: got values of .* Try "):
        on_ranks(2, work)


def test_values_that_are_not_finite_reach_the_loss_everywhere():
    model, bits_BT = small(**REVERSIBLE), random_bits(2 * M, 24)
    with torch.no_grad():
        model.trunk.blocks[0].attend.out.weight[0, 0] = torch.nan
    pipeline = partial(make_pipeline, model, objective_for(model.config), schedule="interleaved")
    assert all(loss.isnan() for loss, _ in on_ranks(2, lambda rank: pipeline().step(bits_BT)))


def test_a_stage_that_changed_before_the_backward_pass_is_an_error():
    model, bits_BT = small(**REVERSIBLE), random_bits(2, 24)
    objective, seed_1 = objective_for(model.config), torch.zeros(1, dtype=torch.long)
    given = {"bits_BT": bits_BT, "seed_1": seed_1}
    x = Stage(model, objective, range(2), 0)(bits_BT, **given).detach().requires_grad_()
    loss, _ = Stage(model, objective, range(2, 4), 1)(x, **given)
    with torch.no_grad():
        model.trunk.blocks[3].feed_forward.out.weight.mul_(1.01)
    with pytest.raises(NotRebuilt, match="must be the same in both"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_packed_streams_are_exact_and_say_if_they_are_lost(dtype):
    """Where nothing waits for the device, an overflow is not an error but NaN in the end."""
    coupling = Coupling(torch.zeros((), dtype=dtype), waits=False)
    info = torch.iinfo(coupling.integer)
    streams = torch.randint(info.min + 1, info.max, (2, 3, 5, 8), dtype=coupling.integer)
    packed = coupling.pack(*streams)
    assert packed.dtype == dtype and not packed._is_view()
    assert torch.equal(coupling.unpack(packed), streams) and coupling.reach == 0
    for reach in (coupling.limit, torch.inf, torch.nan):
        sent, got = (Coupling(torch.zeros((), dtype=dtype), waits=False) for _ in range(2))
        sent.reach = sent.reach + reach
        stream_1, stream_2 = got.unpack(sent.pack(*streams))
        assert got.leave(stream_1, got.add(stream_2, torch.zeros(3, 5, 8, dtype=dtype))).isnan().all()
