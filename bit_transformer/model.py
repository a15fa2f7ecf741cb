"""BitTransformerLM reads bits and gives the probability of every next bit.

    bits -> patches -> trunk (embedding, n-grams, blocks) -> prefix-tree head -> + -> bits
    bits -> expert bank ------------------ features ------------> mixer ---------^

One class: `patch_bits=1` is the flat model; 8 reads bytes, 9 bytes with parity, 12 sensor words. The trunk is in `nn/trunk.py`, patches
and the head in `nn/patching.py`, training objectives in `objectives.py`, cached decoding in `decoding/`, and the functions of
diffusion models in `diffusion/`.
"""

# Shapes: B batch, T bits, N patches, P bits of a patch, D model width, V = 2^P symbols, F features of a bit.
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.config import ModelConfig
from bit_transformer.errors import Ask, BitStreamError, CheckpointError, ConfigError, NoExperts
from bit_transformer.nn.mixer import ExpertMixer
from bit_transformer.nn.ngram import NgramEmbedding
from bit_transformer.nn.patching import PrefixTreeHead, pack_patches, tree_nodes
from bit_transformer.nn.quantized import Rounding
from bit_transformer.nn.trunk import Trunk
from bit_transformer.presets import preset
from bit_transformer.telemetry import Telemetry, lz_complexity, negentropy, symbiosis

if TYPE_CHECKING:
    from bit_transformer.experts.bank import ExpertBank


BANK = "bank."  # prefix of the experts' tables in a state dict
OLD_PARTS = ("embed.", "phase.", "level.", "ngrams.", "blocks.")


class ModelOutput(NamedTuple):
    """Result of a forward pass: `logits, telemetry = model(bits)`.

    Attributes:
        logits: (B, T, 2); `logits[:, t]` are the log-odds of the two values of bit t + 1, given bits 0 .. t.
        telemetry: measurements of the pass, by name, computed when read. `K`: (B,), negentropy of the predictions. `C`: (B,), Lempel-Ziv
            complexity of the input bits; needs eight of them. `S`, with experts: (B,), symbiosis of predictions and experts. With
            `full_attn_logging` also `attention`: (L, B, H, N, N), the attention weights between the N positions (the start symbol,
            then the patches) in every layer and head; and `activations`: (L, 2, B, N), the root mean square of what attention and
            feed-forward of each layer add to the stream.
    """

    logits: Tensor
    telemetry: Telemetry


class BitTransformerLM(nn.Module):
    """Autoregressive transformer over patches of bits.

    Args:
        config: the shape. Its fields can also be given as keywords: `BitTransformerLM(d_model=128, patch_bits=9)`.

    Raises:
        ConfigError: an unknown keyword, or values that do not go together.
    """

    def __init__(self, config: ModelConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = ModelConfig.of({**(config.model_dump() if config else {}), **fields})
        self.trunk = Trunk(c)
        # The head starts as zeros: every bit has probability 1/2, so training starts at 8 bits per byte.
        self.head = PrefixTreeHead(c.d_model, c.patch_bits)
        self.rounding: Rounding | None = None  # how weights are rounded; set by `quantization`
        self._bank: ExpertBank | None = None
        self.mixer = self._new_mixer() if c.experts else None
        self.trunk.init_weights()

    def _new_mixer(self) -> ExpertMixer:
        from bit_transformer.experts.bank import FEATURE_ONE, feature_count  # imports numba, so only when needed

        c = self.config
        return ExpertMixer(c.d_model, c.patch_bits, feature_count(c), 1 / FEATURE_ONE)

    def __getattr__(self, name: str) -> Any:
        """As for any module. A model without experts raises `NoExperts` for `bank`, so `hasattr` is False."""
        if name == "bank" and self.config.experts is None:
            raise NoExperts("got a model without experts; it has no bank. Try BitTransformerLM(experts=True)")
        return super().__getattr__(name)

    @classmethod
    def of_preset(cls, name: str = "tiny", **fields: Any) -> BitTransformerLM:
        """Make a model from a preset, as `btlm train --preset` does. Keywords replace fields of the preset.

        Raises:
            ConfigError: no such preset, or invalid fields.
        """
        return cls(preset(name, **fields))

    @property
    def has_bank(self) -> bool:
        """Whether the model holds a bank of experts, with what they have learned."""
        return self._bank is not None

    @property
    def bank(self) -> ExpertBank:
        """The experts. The bank starts empty; in training it is the one that computes the windows' features.

        Raises:
            NoExperts: the model has no experts.
            ConfigError: the experts need more memory than there is.
        """
        if self.config.experts is None:
            raise NoExperts("no bank")  # `__getattr__` raises the full message
        if self._bank is None:
            from bit_transformer.experts.bank import ExpertBank

            self._bank = ExpertBank.of(self.config)
        return self._bank

    @bank.setter
    def bank(self, bank: ExpertBank) -> None:
        c = self.config
        if (bank.config, bank.unit_bits, bank.text_bits) != (c.experts, c.unit_bits, c.text_bits):
            raise CheckpointError(
                f"got a bank for units of {bank.unit_bits} bits and {bank.experts} contexts; it does not fit the model's patches and "
                f"experts={c.experts and c.experts.model_dump()}. Try ExpertBank.of(model.config)"
            )
        self._bank = bank

    # ---- state dict ----

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Parameters and the experts' tables, as views. Before the experts have learned anything, only a count of 0."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.config.experts is None:
            return
        learned = self._bank is not None and self._bank.count > 0
        tables = self.bank.state_dict() if learned else {"learned": np.zeros(1, dtype=np.int64)}
        destination.update({f"{prefix}{BANK}{name}": torch.from_numpy(table) for name, table in tables.items()})

    def weights(self) -> dict[str, Tensor]:
        """The state dict without the experts' tables."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(BANK)}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *more: Any
    ) -> None:
        """Load parameters, and a copy of the experts' tables. If the tables are absent, a missing key is reported.

        In older files the names of the trunk's parts have no `trunk.` prefix.
        """
        for old in list(state_dict):
            state_dict[prefix + current_name(old.removeprefix(prefix))] = state_dict.pop(old)
        if self.config.experts is not None:
            begin = prefix + BANK
            tables = {name[len(begin) :]: value for name, value in state_dict.items() if name.startswith(begin)}
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith(begin)}
            if "learned" not in tables:
                missing.append(f"{begin}learned")
            elif int(tables["learned"]):
                self.bank.load_state_dict({name: table.cpu().numpy() for name, table in tables.items()})
            else:
                self._bank = None
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *more)

    # ---- whole windows ----

    def forward(self, bits_BT: Tensor | NDArray[Any]) -> ModelOutput:
        """Logits of all bits after the first, including the one that follows the last.

        Args:
            bits_BT: zeros and ones, a tensor or an array of any integer or bool dtype. T is 1 to `max_seq_len`; the last patch may be
                partial.

        Raises:
            BitStreamError: a wrong shape, a wrong value, or a window that is too long.
        """
        bits_BT = torch.as_tensor(bits_BT, device=self.head.weight.device)
        on_request: dict[str, Callable[[], Tensor]] = {}
        if self.config.full_attn_logging:
            maps: list[Tensor] = []
            with self._watched_branches() as added:
                z_BT, q_BT = self._all_bit_logits(bits_BT, maps)
            on_request["attention"] = lambda: torch.stack(maps)
            on_request["activations"] = lambda: torch.stack(added).view(self.config.num_layers, 2, *added[0].shape)
        else:
            z_BT, q_BT = self._all_bit_logits(bits_BT)
        return ModelOutput(as_pair(z_BT[:, 1:]), self._telemetry(bits_BT, z_BT, q_BT, **on_request))

    def _telemetry(self, bits_BT: Tensor, z_BT: Tensor, q_BT: Tensor | None, **more: Callable[[], Tensor]) -> Telemetry:
        """Measurements of a pass: z_BT are logits of all bits and of the next one, q_BT the experts' probabilities for the same bits."""
        z_BT = z_BT.detach()
        makers = {"K": lambda: negentropy(as_pair(z_BT[:, 1:])), "C": lambda: lz_complexity(bits_BT), **more}
        if q_BT is not None:
            makers["S"] = lambda: symbiosis(torch.sigmoid(z_BT.double()), q_BT)
        return Telemetry(makers)

    @contextmanager
    def _watched_branches(self) -> Iterator[list[Tensor]]:
        """Within: collects the root mean square, by position, of what each branch adds, in the order of the branches."""
        added: list[Tensor] = []

        def watch(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            added.append(made.detach().float().square().mean(-1).sqrt())

        branches = [branch for block in self.trunk.blocks for branch in block.children()]
        handles = [branch.register_forward_hook(watch) for branch in branches]
        try:
            yield added
        finally:
            for handle in handles:
                handle.remove()

    def all_bit_logits(self, bits_BT: Tensor) -> Tensor:
        """Logits of P(bit = 1) for bits 0 .. T, including the first and the one that follows the last: z of (B, T + 1)."""
        return self._all_bit_logits(bits_BT)[0]

    def _all_bit_logits(self, bits_BT: Tensor, maps: list[Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
        """The same, and with experts also P(bit = 1) from the experts' own mixture.

        Args:
            maps: if given, the attention map of every layer is appended to it.
        """
        self.check_causal()
        self.check_bits(bits_BT)
        T, P = bits_BT.shape[1], self.config.patch_bits
        whole = T - T % P
        patch_BN = pack_patches(bits_BT[:, :whole], P)
        # The bits after the last whole patch are padded to a patch. The padding's values are never read.
        padded_BP = F.pad(bits_BT[:, whole:], (0, P - (T - whole)))
        known_BN = torch.cat((patch_BN, pack_patches(padded_BP, P)), dim=1)
        h_BND = self.trunk(self.shift(patch_BN, last=True), maps=maps)
        features_BTF = self._features(torch.cat((bits_BT[:, :whole], padded_BP), dim=1)) if self.mixer else None
        z_BT = self.path_logits(h_BND, known_BN, features_BTF).flatten(1)[:, : T + 1]
        return z_BT, None if features_BTF is None else self.experts_probability(features_BTF)[:, : T + 1]

    def experts_probability(self, features_BTF: Tensor) -> Tensor:
        """P(bit = 1) from the experts' own mixture, which is their last feature."""
        assert self.mixer is not None
        return torch.sigmoid(features_BTF[..., -1] * self.mixer.scale)

    def path_logits(self, h_BND: Tensor, patch_BN: Tensor, features_BTF: Tensor | None = None) -> Tensor:
        """Logits along the paths to the given patches: the head's plus, if features are given, the experts'; z_BNP."""
        z_BNP = self.head.bit_logits(h_BND, patch_BN)
        if self.mixer is None or features_BTF is None:
            return z_BNP
        features_BNPF = features_BTF.view(*z_BNP.shape, -1)
        return z_BNP + self.mixer(h_BND, features_BNPF, tree_nodes(patch_BN, self.config.patch_bits))

    def _features(self, bits_BT: Tensor) -> Tensor:
        """The bank's features of windows without context, without learning: features_BTF."""
        return torch.from_numpy(self.bank.peek(bits_BT.cpu().numpy())).to(bits_BT.device)

    def learn(self, bits_BT: Tensor | NDArray[Any]) -> None:
        """Train the experts on some windows, in your own training loop. Call it after `losses`, so that they are predicted first.

        Each row starts without context. The experts predict repeated data too well. For several epochs, use the windows of
        `build_windows`: their features are computed before anything is learned from them.

        Args:
            bits_BT: zeros and ones; T is a multiple of the experts' unit (bytes by default).

        Raises:
            ConfigError: the model has no experts.
            BitStreamError: no bits, or a partial unit.
        """
        from bit_transformer.experts.bank import pack_units

        c = self.config
        if c.experts is None:
            raise ConfigError(
                "got a model without experts; learn() trains only experts. Try BitTransformerLM(experts=True)"
            )
        bits_BT = torch.as_tensor(bits_BT)
        self.check_bits(bits_BT)
        if bits_BT.shape[1] % c.unit_bits:
            raise BitStreamError(
                f"got windows of {bits_BT.shape[1]} bits; a multiple of the experts' unit of {c.unit_bits} is needed. "
                f"Try bits[:, :{bits_BT.shape[1] // c.unit_bits * c.unit_bits}]"
            )
        rows_BT = bits_BT.cpu().numpy().astype(np.uint8)
        for row_T, unit_N in zip(rows_BT, pack_units(rows_BT, c.unit_bits), strict=True):
            self.bank.note(np.packbits(row_T))
            self.bank.read(unit_N, self.bank.stream(), learn=True, wanted=False)

    def nll(self, bits_BT: Tensor | NDArray[Any], features_BTF: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of every bit, including the first, in nats: (B, T), T a multiple of `patch_bits`.

        It checks the shape, not the values.

        Args:
            features_BTF: int8, for a model with experts: their features of each bit. Default: computed by the bank as it is, without
                context from before the window.

        Raises:
            BitStreamError: a partial last patch, or a window that is too long.
        """
        bits_BT = torch.as_tensor(bits_BT, device=self.head.weight.device)
        z_BNP, _, _ = self.window_logits(bits_BT, features_BTF)
        return nats_of(z_BNP, bits_BT)

    def window_logits(
        self, bits_BT: Tensor, features_BTF: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of all bits of windows of whole patches, including the first: z_BNP. Also returns the patches, and the experts' features,
        computed if not given. Arguments and errors as in `nll`."""
        c = self.config
        self.check_causal()
        self.check_window(bits_BT)
        if self.mixer and features_BTF is None:
            features_BTF = self._features(bits_BT)
        patch_BN = pack_patches(bits_BT, c.patch_bits)
        return self.path_logits(self.trunk(self.shift(patch_BN)), patch_BN, features_BTF), patch_BN, features_BTF

    def check_causal(self) -> None:
        """Refuse a diffusion model.

        Raises:
            ConfigError: it is a diffusion model.
        """
        if not self.config.causal:
            raise ConfigError(
                "got a diffusion model, which does not predict a next bit",
                tries=(Ask("infill"), "diffusion_inference", "a model with causal=True"),
            )

    def check_window(self, bits_BT: Tensor) -> None:
        """Refuse windows of the wrong shape; values are not checked.

        Raises:
            BitStreamError: the shape is not (batch, bits), the last patch is partial, or there are more bits than a window holds.
        """
        _check_shape(bits_BT)
        T, c = bits_BT.shape[1], self.config
        if T % c.patch_bits or c.max_seq_len < T:
            raise BitStreamError(
                f"got windows of {T} bits; at most {c.max_seq_len} and a multiple of patch_bits={c.patch_bits} is needed. "
                f"Try bits[:, :{min(T, c.max_seq_len) // c.patch_bits * c.patch_bits}]"
            )

    def shift(self, patch_BN: Tensor, *, last: bool = False) -> Tensor:
        """The start symbol, then the patches. The last patch is dropped unless `last`, which also predicts the patch after it."""
        return F.pad(patch_BN if last else patch_BN[:, :-1], (1, 0), value=self.trunk.start)

    # ---- cost ----

    def num_parameters(self) -> ParameterCount:
        """All parameters, and those that one position reads: one row per order of an n-gram table, one row of an embedding."""
        total = sum(p.numel() for p in self.parameters())
        tables = [m for m in self.modules() if isinstance(m, nn.Embedding)]
        rows_read = {id(m): 1 for m in tables}
        if self.trunk.ngrams is not None:
            rows_read[id(self.trunk.ngrams.table)] = self.trunk.ngrams.contexts
        idle = sum(m.weight.numel() - rows_read[id(m)] * m.embedding_dim for m in tables)
        return ParameterCount(total, total - idle)

    def flops_per_byte(self, *, training: bool = True) -> float:
        """Floating-point operations per data byte in a full window: matrix products, a multiply-add counted as two.

        Counted: the projections, the attention products inside the causal mask (half the square; all of it without a mask), all nodes of the
        head, and the mixer's gate. Not counted: norms, activations and look-ups, all of order D, and the recomputation in reversible or
        checkpointed blocks. Training costs three forward passes: the backward pass has two products for each one in the forward.
        """
        c = self.config
        positions = c.byte_bits / c.patch_bits
        block = 2 * (4 * c.d_model**2 + 2 * c.d_model * c.feedforward_width)
        window = min(c.attention_window or c.max_patches, c.max_patches)
        # keys that a position reads, on average
        keys = window - window * (window - 1) / 2 / c.max_patches if c.causal else float(c.max_patches)
        attention = 2 * 2 * c.d_model * keys
        head = 2 * c.d_model * (1 << c.patch_bits) + (2 * self.mixer.gate.numel() if self.mixer else 0)
        return positions * (c.num_layers * (block + attention) + head) * (3 if training else 1)

    def check_bits(self, bits_BT: Tensor) -> None:
        """Refuse invalid bits, or more than a window holds.

        Raises:
            BitStreamError: the shape is not (batch, bits), a value is not 0 or 1, or there are more bits than a window holds.
        """
        _check_shape(bits_BT)
        if bits_BT.dtype != torch.bool and int(((bits_BT != 0) & (bits_BT != 1)).sum()):
            bad = bits_BT[(bits_BT != 0) & (bits_BT != 1)][0].item()
            raise BitStreamError(
                f"got the value {bad} among the bits; each must be 0 or 1. Try bytes_to_bits for bytes"
            )
        if bits_BT.shape[1] > self.config.max_seq_len:
            raise BitStreamError(
                f"got {bits_BT.shape[1]} bits; a window holds at most max_seq_len={self.config.max_seq_len}. "
                f"Try windows of that size, or infer_long for generation"
            )


def _check_shape(bits_BT: Tensor) -> None:
    if bits_BT.ndim != 2 or bits_BT.shape[1] == 0 or bits_BT.is_floating_point() or bits_BT.is_complex():
        raise BitStreamError(
            f"got a tensor of shape {tuple(bits_BT.shape)} and {bits_BT.dtype}; bits must be (batch, length >= 1) of "
            f"an integer type. Try bits.long().unsqueeze(0)"
        )


def current_name(parameter: str) -> str:
    """A parameter's current name, from its name in a file that may be older."""
    return f"trunk.{parameter}" if parameter.startswith(OLD_PARTS) else parameter


@contextmanager
def in_use(model: nn.Module) -> Iterator[None]:
    """Within: the model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class ParameterCount(NamedTuple):
    """Numbers of parameters.

    Attributes:
        total: all parameters.
        active: those that one position uses.
    """

    total: int
    active: int


def nats_of(z_BNP: Tensor, bits_BT: Tensor) -> Tensor:
    """Cost of bits (or of probabilities of ones) under their logits, in nats: (B, T)."""
    return F.binary_cross_entropy_with_logits(z_BNP.flatten(1), bits_BT.to(z_BNP.dtype), reduction="none")


def as_pair(z: Tensor) -> Tensor:
    """Convert logits of P(bit = 1) to pairs of logits whose softmax is (P(0), P(1))."""
    return torch.stack((torch.zeros_like(z), z), dim=-1)


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of every dropout layer of a model; n-gram row dropout stays as configured."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def set_sparse(model: nn.Module, sparse: bool) -> None:
    """Choose sparse or dense gradients for n-gram tables. Only `SparseAdam`, `Adagrad`, `SGD` and our `Optimizers` take sparse ones.

    Dense gradients update every row at every step. Call `set_sparse(model, False)` before `torch.optim.AdamW(model.parameters())`.
    """
    for module in model.modules():
        if isinstance(module, NgramEmbedding):
            module.table.sparse = sparse
