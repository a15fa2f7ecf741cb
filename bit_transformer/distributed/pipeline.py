"""Pipeline parallelism: consecutive blocks of a model on consecutive processes, for models that are too large for one device.

    pipeline = make_pipeline(model, stages=4, microbatches=8)   # in every process, with the same model
    optimizer = torch.optim.AdamW(pipeline.parameters())                           # of this process's stages only
    loss, nats = pipeline.step(bits_BT)                                            # forward and backward of all micro-batches

The first stage has the embeddings, the last one the head, the mixer and the objective. Stages consist of the model's own modules, and read
no others: the rest of the model may be on the meta device. Between stages go activations, or of a reversible model both streams of
integers, so its pipeline rebuilds activations as exactly as the model does. Stages are not compiled.

Random numbers of a stage (noise, dropout) depend on a seed of the micro-batch and on the stage, not on the schedule.

Sources: Huang et al. 2019, arXiv:1811.06965 (GPipe); Narayanan et al. 2021, arXiv:2104.04473 (1F1B, interleaved); Qi et al. 2023,
arXiv:2401.10241 (zero bubble). The schedules are those of `torch.distributed.pipelining`.
"""

# Shapes: B windows, T bits, N patches, D model width, F features of a bit, M micro-batches.
from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from bit_transformer.diffusion import denoiser
from bit_transformer.diffusion.noise import flip_level
from bit_transformer.distributed.gradients import average_gradients
from bit_transformer.errors import BitStreamError, BitTransformerError, ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import pack_patches
from bit_transformer.objectives import Objective, objective_for

# Names in `torch.distributed.pipelining`, which is loaded when a schedule is made; those of one stage per process.
SCHEDULES = {
    "1f1b": "Schedule1F1B",
    "gpipe": "ScheduleGPipe",
    "interleaved": "ScheduleInterleaved1F1B",
    "zero_bubble": "ScheduleInterleavedZeroBubble",
}
SINGLE = ("1f1b", "gpipe")


def make_pipeline(
    model: BitTransformerLM,
    objective: Objective | None = None,
    *,
    stages: int | None = None,
    schedule: str = "1f1b",
    microbatches: int | None = None,
    mesh: DeviceMesh | None = None,
) -> Pipeline:
    """Cut a model into stages, and give this process its part.

    Args:
        model: the same in every process.
        objective: of the last stage; it must draw its noise before anything else. Default: `objective_for(model.config)`.
        stages: how many; default: one per process, with "interleaved" two.
        schedule: "1f1b": few activations at once; "gpipe": all; "interleaved": several stages per process, which wait less for one another;
            "zero_bubble": gradients of weights fill the waiting. A reversible model computes them with those of activations, so it gains nothing.
        microbatches: pieces of every batch, by rows; default: two per process.
        mesh: processes by "stage", or by "data" and "stage": then every row of the mesh trains on its own windows, and gradients are
            averaged over "data". Default: all processes are one row.

    Raises:
        ConfigError: no process group, or settings that do not fit together.
    """
    if not dist.is_initialized():
        raise ConfigError(
            "got no process group; a pipeline needs one. Try torch.distributed.init_process_group() in processes that torchrun starts"
        )
    group, data_group = _groups(mesh)
    processes = dist.get_world_size(group)
    if schedule not in SCHEDULES:
        raise _config_error(f"got schedule={schedule!r}; it must be one of {', '.join(SCHEDULES)}. Try schedule='1f1b'")
    one_each = schedule in SINGLE
    stages = processes * (2 if schedule == "interleaved" else 1) if stages is None else stages
    if stages < 1 or stages % processes or (one_each and stages != processes):
        must = f"{processes}" if one_each else f"a multiple of {processes}"
        raise _config_error(
            f"got stages={stages} on {processes} processes; with schedule={schedule!r} it must be {must}. Try stages={processes}"
        )
    if stages > model.config.num_layers:
        raise _config_error(
            f"got stages={stages} for num_layers={model.config.num_layers}; it must be at most that. Try num_layers={stages}"
        )
    microbatches = 2 * processes if microbatches is None else microbatches
    least = stages if schedule == "1f1b" else 1
    if microbatches < least or (not one_each and microbatches % max(1, microbatches // processes)):
        must = (
            f"at least {least}"
            if microbatches < least
            else f"a multiple of {max(1, microbatches // processes)}, the rounds of {processes} processes"
        )
        raise _config_error(
            f"got microbatches={microbatches}; with schedule={schedule!r} it must be {must}. Try microbatches={2 * processes}"
        )
    return Pipeline(model, objective or objective_for(model.config), stages, schedule, microbatches, group, data_group)


def _groups(mesh: DeviceMesh | None) -> tuple[dist.ProcessGroup, dist.ProcessGroup | None]:
    """The processes of this one's row of the mesh, and those with the same stages in all rows."""
    if mesh is None:
        return dist.distributed_c10d._get_default_group(), None
    names = mesh.mesh_dim_names or ()
    if sorted(names) not in (["stage"], ["data", "stage"]) or mesh.get_coordinate() is None:
        raise _config_error(
            f"got a mesh of shape {tuple(mesh.shape)} and dimensions {names}; it must contain this process, and be named ('stage',) or "
            f"('data', 'stage'). Try init_device_mesh({mesh.device_type!r}, (1, {dist.get_world_size()}), mesh_dim_names=('data', 'stage'))"
        )
    return mesh.get_group("stage"), mesh.get_group("data") if "data" in names else None


def _config_error(what: str) -> ConfigError:
    return ConfigError(f"rank {dist.get_rank()}: {what}")


class Stage(nn.Module):
    """Consecutive blocks of a model, with the embeddings before the first and everything after the last.

    Its submodules are the model's own, under the model's names.

    Args:
        which: the blocks.
        index: of the stage.
    """

    model: BitTransformerLM

    def __init__(self, model: BitTransformerLM, objective: Objective, which: range, index: int) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # not a submodule: a stage has no parameters but its own
        self.objective, self.which, self.index = objective, which, index
        self.begins, self.ends = which.start == 0, which.stop == model.config.num_layers
        before = {name: part for name, part in model.trunk.named_children() if name not in ("blocks", "final_norm")}
        blocks = nn.ModuleDict({str(i): model.trunk.blocks[i] for i in which})
        self.trunk = nn.ModuleDict({**(before if self.begins else {}), "blocks": blocks})
        for name, part in model.named_children() if self.ends else ():
            if name != "trunk":
                self.add_module(name, part)

    def forward(
        self, x: Tensor, *, bits_BT: Tensor, seed_1: Tensor, features_BTF: Tensor | None = None, reach: float = 1.0
    ) -> Tensor:
        """One micro-batch.

        Args:
            x: what the stage before gave; the first stage reads only the bits.
            seed_1: the micro-batch's seed, on the CPU.

        Returns:
            what the next stage gets; the last stage gives loss and nats, (2,).
        """
        seed = int(seed_1)
        with _seeded(seed + self.index, bits_BT.device):
            x = self.model.trunk.segment(self._embedded(bits_BT, reach) if self.begins else x, self.which)
        if not self.ends:
            return x
        with _seeded(seed, bits_BT.device):  # the noise that the first stage saw
            made = self.objective(_with_states(self.model, x), bits_BT, features_BTF, reach=reach)
        return torch.stack((made.loss, made.nats.detach()))

    def _embedded(self, bits_BT: Tensor, reach: float) -> Tensor:
        trunk, patch_BN = self.model.trunk, pack_patches(bits_BT, self.model.config.patch_bits)
        if self.model.config.causal:
            return trunk.embedded(self.model.shift(patch_BN))
        noised = denoiser.noised(self.model, patch_BN, reach)
        level_B = None if noised.chance_B is None else flip_level(noised.chance_B)
        return trunk.embedded(noised.seen_BN, level_B=level_B)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within: random numbers by this seed; afterwards torch's generators go on as before."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


class _Known(nn.Module):
    """In the place of a trunk: its states, which are already computed."""

    def __init__(self, start: int, h_BND: Tensor) -> None:
        super().__init__()
        self.start, self.h_BND = start, h_BND

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return self.h_BND


def _with_states(model: BitTransformerLM, h_BND: Tensor) -> BitTransformerLM:
    """The model, with the same modules, except that it has these states of the trunk for any input."""
    twin = copy.copy(model)
    twin._modules = {**model._modules, "trunk": _Known(model.trunk.start, h_BND)}
    return twin


class Pipeline:
    """This process's part of a pipeline; see `make_pipeline`.

    Attributes:
        stages: of this process, in order.
        microbatches: pieces of every batch.
    """

    def __init__(
        self,
        model: BitTransformerLM,
        objective: Objective,
        stages: int,
        schedule: str,
        microbatches: int,
        group: dist.ProcessGroup,
        data_group: dist.ProcessGroup | None,
    ) -> None:
        self.model, self.microbatches, self.count, self.schedule = model, microbatches, stages, schedule
        self.group, self.data_group = group, data_group
        cuts = [model.config.num_layers * i // stages for i in range(stages + 1)]
        mine = range(dist.get_rank(group), stages, dist.get_world_size(group))
        self.stages = [Stage(model, objective, range(cuts[i], cuts[i + 1]), i) for i in mine]
        self._schedules: dict[tuple[int, int], Any] = {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that this process trains, under their names in the model."""
        for stage in self.stages:
            yield from stage.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that this process trains."""
        return (parameter for _, parameter in self.named_parameters())

    def step(
        self, bits_BT: Tensor | NDArray[np.integer[Any]], features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of a batch. Gradients are added to `.grad` of this process's parameters.

        Call it in every process, with the same windows in all that are of one row of the mesh.

        Args:
            bits_BT: zeros and ones, which are not checked; the number of windows is a multiple of `microbatches`.
            features_BTF: int8, for a model with experts: their features; only the process of the last stage reads them. Default: computed by
                its bank as it is, without context from before the windows.
            reach: of a diffusion model, as in `Objective`.

        Returns:
            loss and nats, as the objective gives them: the mean over micro-batches, and over all windows of the mesh; without gradient.

        Raises:
            BitStreamError: windows of a wrong shape, or a number of them that is not a multiple of `microbatches`; raised in every process.
            StreamOverflow, NotRebuilt: as in `reversible.run`, in the process where it happened. Others wait for it until it ends.
        """
        model, M = self.model, self.microbatches
        bits_BT = torch.as_tensor(bits_BT, device=self._device)
        model.check_window(bits_BT)
        B, T = bits_BT.shape
        if B % M:
            raise BitStreamError(
                f"rank {dist.get_rank()}: got {B} windows; their number must be a multiple of microbatches={M}. Try {-(-B // M) * M} windows"
            )
        given = {"bits_BT": bits_BT, "seed_1": self._seeds()}  # the schedule divides them
        ends = self.stages[-1].ends
        if ends and model.mixer is not None:
            if features_BTF is None:
                features_BTF = torch.from_numpy(model.bank.peek(bits_BT.cpu().numpy()))
            given["features_BTF"] = features_BTF.to(bits_BT.device)
        first = (bits_BT,) if self.stages[0].begins else ()
        try:
            made = self._schedule(B // M, T).step(*first, target=bits_BT, **given, reach=reach)
        except RuntimeError as error:
            if not isinstance(cause := error.__cause__, BitTransformerError):
                raise
            cause.what = f"rank {dist.get_rank()}: {cause.what}"
            raise cause from None
        total_2 = torch.zeros(2, dtype=torch.promote_types(model.head.weight.dtype, torch.float32), device=self._device)
        if ends:
            total_2 += made.detach().view(M, 2).mean(0)
        dist.all_reduce(total_2, group=self.group)
        if self.data_group is not None:
            dist.all_reduce(total_2, group=self.data_group)
            total_2 /= dist.get_world_size(self.data_group)
            average_gradients(self.parameters(), self.data_group)
        loss, nats = total_2.unbind()
        return loss, nats

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _seeds(self) -> Tensor:
        """A seed for each micro-batch, other ones in each row of the mesh: seed_M, on the CPU.

        Drawn from torch's generator, of noise by the process of the first stage: the last stage has to know what was lost.
        """
        row, rows = (
            (dist.get_rank(self.data_group), dist.get_world_size(self.data_group)) if self.data_group else (0, 1)
        )
        seed_M = torch.randint(1 << 62, (rows, self.microbatches))[row]
        if not self.model.config.causal:
            seed_M = seed_M.to(self._device)
            dist.broadcast(seed_M, group=self.group, group_src=0)
        return seed_M.cpu()

    def _schedule(self, rows: int, bits: int) -> Any:
        """The schedule for micro-batches of a shape. Torch would infer shapes by a backward pass, whose gradients a reversible model keeps."""
        if (rows, bits) not in self._schedules:
            from torch.distributed.pipelining import PipelineStage, schedules

            model, meta = self.model, torch.device("meta")
            between = model.trunk.between(rows, bits // model.config.patch_bits).requires_grad_()
            stages = [
                PipelineStage(
                    stage,
                    stage.index,
                    self.count,
                    self._device,
                    input_args=torch.empty((rows, bits), dtype=torch.long, device=meta) if stage.begins else between,
                    output_args=torch.empty(2, device=meta).requires_grad_() if stage.ends else between,
                    group=self.group,
                )
                for stage in self.stages
            ]
            kind = getattr(schedules, SCHEDULES[self.schedule])
            self._schedules[rows, bits] = kind(
                stages[0] if self.schedule in SINGLE else stages,
                self.microbatches,
                loss_fn=lambda made_2, _: made_2[0] / self.microbatches,
                scale_grads=False,  # it would scale what was there before the step, too
            )
        return self._schedules[rows, bits]
