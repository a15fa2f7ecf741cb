"""BitTransformerLM: bits in, the probability of every next bit out.

    bits -> patches -> trunk (embedding, n-grams, blocks) -> prefix-tree head -> + -> bits
    bits -> expert bank ------------------ features ------------> mixer ---------^

One class: `patch_bits=1` is the flat model, 8 sees bytes, 9 parity-protected bytes, 12 sensor words. The trunk is in `nn/trunk.py`,
patches and head in `nn/patching.py`; what is lowered in training in `training/objectives.py`, cached decoding in `decoding/`, what
diffusion models do in `diffusion/`.
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
from bit_transformer.nn.trunk import Trunk
from bit_transformer.presets import preset
from bit_transformer.telemetry import Telemetry, lz_complexity, negentropy, symbiosis

if TYPE_CHECKING:
    from bit_transformer.experts.bank import ExpertBank


BANK = "bank."  # in a state dict, before the names of the experts' tables
OLD_PARTS = ("embed.", "phase.", "level.", "ngrams.", "blocks.")


class ModelOutput(NamedTuple):
    """What a forward pass gives: unpack it as `logits, telemetry = model(bits)`.

    Attributes:
        logits: (B, T, 2); `logits[:, t]` are the log-odds of the two values of bit t + 1, given bits 0 .. t.
        telemetry: measurements of the pass, by name, made when they are read. `K`: (B,), negentropy of the predictions; `C`:
            (B,), Lempel-Ziv complexity of the bits read, of which eight are needed; `S`, where there are experts: (B,), symbiosis of
            predictions and experts. With `full_attn_logging` also `attention`: (L, B, H, N, N), how much each
            of the N positions (the start symbol, then the patches) reads from each, in every layer and head; and
            `activations`: (L, 2, B, N), the root mean square of what attention and feed-forward of each layer add to the stream.
    """

    logits: Tensor
    telemetry: Telemetry


class BitTransformerLM(nn.Module):
    """Autoregressive transformer over patches of bits.

    Args:
        config: the shape; or give its fields as keywords: `BitTransformerLM(d_model=128, patch_bits=9)`.

    Raises:
        ConfigError: a keyword that is unknown, or values that do not go together.
    """

    def __init__(self, config: ModelConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = ModelConfig.of({**(config.model_dump() if config else {}), **fields})
        self.trunk = Trunk(c)
        self.head = PrefixTreeHead(
            c.d_model, c.patch_bits
        )  # of zeros, which say 1/2 to every bit: training starts at 8 bits a byte
        self._bank: ExpertBank | None = None
        self.mixer = self._new_mixer() if c.experts else None
        self.trunk.init_weights()

    def _new_mixer(self) -> ExpertMixer:
        from bit_transformer.experts.bank import FEATURE_ONE, feature_count  # numba, where it is needed

        c = self.config
        return ExpertMixer(c.d_model, c.patch_bits, feature_count(c), 1 / FEATURE_ONE)

    def __getattr__(self, name: str) -> Any:
        """As of any module; but a model without experts says so when asked for its bank, and `hasattr` finds none."""
        if name == "bank" and self.config.experts is None:
            raise NoExperts("got a model without experts, which has no bank. Try BitTransformerLM(experts=True)")
        return super().__getattr__(name)

    @classmethod
    def of_preset(cls, name: str = "tiny", **fields: Any) -> BitTransformerLM:
        """A model of a named shape, as `btlm train --preset` makes it; fields as keywords replace those of the preset.

        Raises:
            ConfigError: no such preset, or invalid fields.
        """
        return cls(preset(name, **fields))

    @property
    def has_bank(self) -> bool:
        """Whether there is a bank of experts, with what it has learned."""
        return self._bank is not None

    @property
    def bank(self) -> ExpertBank:
        """The experts: an empty bank at first, in training the one that its windows' features come from.

        Raises:
            NoExperts: the model has none.
            ConfigError: they need more memory than there is.
        """
        if self.config.experts is None:
            raise NoExperts("no bank")  # `__getattr__` says it in full
        if self._bank is None:
            from bit_transformer.experts.bank import ExpertBank

            self._bank = ExpertBank.of(self.config)
        return self._bank

    @bank.setter
    def bank(self, bank: ExpertBank) -> None:
        c = self.config
        if (bank.config, bank.unit_bits, bank.text_bits) != (c.experts, c.unit_bits, c.text_bits):
            raise CheckpointError(
                f"got a bank for units of {bank.unit_bits} bits and {bank.experts} contexts; the model's patches and its "
                f"experts={c.experts and c.experts.model_dump()} need another. Try ExpertBank.of(model.config)"
            )
        self._bank = bank

    # ---- what a state dict holds ----

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Parameters, and what the experts have learned: views of their tables, or only a count of 0 before they learned anything."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.config.experts is None:
            return
        learned = self._bank is not None and self._bank.count > 0
        tables = self.bank.state_dict() if learned else {"learned": np.zeros(1, dtype=np.int64)}
        destination.update({f"{prefix}{BANK}{name}": torch.from_numpy(table) for name, table in tables.items()})

    def weights(self) -> dict[str, Tensor]:
        """The state dict without what the experts have learned."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(BANK)}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *more: Any
    ) -> None:
        """Take parameters, and a copy of what the experts have learned; a state without it lacks a key.

        In older files the trunk's parts are the model's own: their names lack `trunk.`.
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
        """Logits of every bit after the first, the one after the last included.

        Args:
            bits_BT: zeros and ones, a tensor or an array of any integer or bool dtype; any T from 1 to `max_seq_len`, a last patch may
                be partial.

        Raises:
            BitStreamError: another shape, another value, or a longer window.
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
        """Measurements of a pass over bits, with logits of all of them and of the one after, and the experts' chances for these."""
        z_BT = z_BT.detach()
        makers = {"K": lambda: negentropy(as_pair(z_BT[:, 1:])), "C": lambda: lz_complexity(bits_BT), **more}
        if q_BT is not None:
            makers["S"] = lambda: symbiosis(torch.sigmoid(z_BT.double()), q_BT)
        return Telemetry(makers)

    @contextmanager
    def _watched_branches(self) -> Iterator[list[Tensor]]:
        """Within: the root mean square, by position, of what every branch adds, in the order of the branches."""
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
        """Logits of P(bit = 1) for all bits 0 .. T, the first and the one after the last included: z of (B, T + 1)."""
        return self._all_bit_logits(bits_BT)[0]

    def _all_bit_logits(self, bits_BT: Tensor, maps: list[Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
        """The same, and the chance of a one that the experts' own mixture gives each, where there are experts.

        Args:
            maps: the attention map of every layer is appended to it, if it is given.
        """
        self.check_causal()
        self.check_bits(bits_BT)
        T, P = bits_BT.shape[1], self.config.patch_bits
        whole = T - T % P
        patch_BN = pack_patches(bits_BT[:, :whole], P)
        # The bits after the last whole patch, and one more, whose value nothing reads, make up the patch in progress.
        padded_BP = F.pad(bits_BT[:, whole:], (0, P - (T - whole)))
        known_BN = torch.cat((patch_BN, pack_patches(padded_BP, P)), dim=1)
        h_BND = self.trunk(self.shift(patch_BN, last=True), maps=maps)
        features_BTF = self._features(torch.cat((bits_BT[:, :whole], padded_BP), dim=1)) if self.mixer else None
        z_BT = self.path_logits(h_BND, known_BN, features_BTF).flatten(1)[:, : T + 1]
        return z_BT, None if features_BTF is None else self.experts_probability(features_BTF)[:, : T + 1]

    def experts_probability(self, features_BTF: Tensor) -> Tensor:
        """What the experts' own mixture, their last feature, says: P(bit = 1)."""
        assert self.mixer is not None
        return torch.sigmoid(features_BTF[..., -1] * self.mixer.scale)

    def path_logits(self, h_BND: Tensor, patch_BN: Tensor, features_BTF: Tensor | None = None) -> Tensor:
        """Logits along the paths to the given patches: the head's and, with features of their bits, the experts'; z_BNP."""
        z_BNP = self.head.bit_logits(h_BND, patch_BN)
        if self.mixer is None or features_BTF is None:
            return z_BNP
        features_BNPF = features_BTF.view(*z_BNP.shape, -1)
        return z_BNP + self.mixer(h_BND, features_BNPF, tree_nodes(patch_BN, self.config.patch_bits))

    def _features(self, bits_BT: Tensor) -> Tensor:
        """What the bank as it is says of windows that follow nothing: features_BTF."""
        return torch.from_numpy(self.bank.peek(bits_BT.cpu().numpy())).to(bits_BT.device)

    def learn(self, bits_BT: Tensor | NDArray[Any]) -> None:
        """Teach the experts some windows, in a training loop of one's own: after their `losses`, so that they were predicted first.

        Each row is read from a blank context. Bits that come again are predicted too well; for several epochs use the windows of
        `build_windows`, whose features were made before anything was learned from them.

        Args:
            bits_BT: zeros and ones, T whole units of the experts (bytes, unless told otherwise).

        Raises:
            ConfigError: the model has no experts.
            BitStreamError: no bits, or a partial unit.
        """
        from bit_transformer.experts.bank import pack_units

        c = self.config
        if c.experts is None:
            raise ConfigError(
                "got a model without experts, which learn from bits directly. Try BitTransformerLM(experts=True)"
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
        """Negative log-likelihood of every bit, the first included, in nats: (B, T), T a multiple of `patch_bits`.

        It checks the shape, not the values.

        Args:
            features_BTF: int8, of a model with experts: what they say of each bit. Not given, they are asked as they
                are, and know nothing of what came before the window.

        Raises:
            BitStreamError: a partial last patch, or a longer window than the model's.
        """
        bits_BT = torch.as_tensor(bits_BT, device=self.head.weight.device)
        z_BNP, _, _ = self.window_logits(bits_BT, features_BTF)
        return nats_of(z_BNP, bits_BT)

    def window_logits(
        self, bits_BT: Tensor, features_BTF: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of all bits of windows of whole patches, the first included: z_BNP; the patches; and the experts' features, asked
        for where they were not given. Arguments and errors are those of `nll`."""
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
            ConfigError: it is one.
        """
        if not self.config.causal:
            raise ConfigError(
                "got a diffusion model, which has no next bit",
                tries=(Ask("infill"), "diffusion_inference", "a model with causal=True"),
            )

    def check_window(self, bits_BT: Tensor) -> None:
        """Refuse windows that do not fit; their values are not looked at.

        Raises:
            BitStreamError: another shape than (batch, bits), a partial last patch, or more bits than a window holds.
        """
        _check_shape(bits_BT)
        T, c = bits_BT.shape[1], self.config
        if T % c.patch_bits or c.max_seq_len < T:
            raise BitStreamError(
                f"got windows of {T} bits; at most {c.max_seq_len} and a multiple of patch_bits={c.patch_bits} is needed. "
                f"Try bits[:, :{min(T, c.max_seq_len) // c.patch_bits * c.patch_bits}]"
            )

    def shift(self, patch_BN: Tensor, *, last: bool = False) -> Tensor:
        """The start symbol, then the patches; without the last one unless `last`, which predicts beyond the end."""
        return F.pad(patch_BN if last else patch_BN[:, :-1], (1, 0), value=self.trunk.start)

    # ---- what it costs ----

    def num_parameters(self) -> ParameterCount:
        """All parameters, and those that one position reads: of a table, one row an order; of an embedding, one row."""
        total = sum(p.numel() for p in self.parameters())
        tables = [m for m in self.modules() if isinstance(m, nn.Embedding)]
        rows_read = {id(m): 1 for m in tables}
        if self.trunk.ngrams is not None:
            rows_read[id(self.trunk.ngrams.table)] = self.trunk.ngrams.contexts
        idle = sum(m.weight.numel() - rows_read[id(m)] * m.embedding_dim for m in tables)
        return ParameterCount(total, total - idle)

    def flops_per_byte(self, *, training: bool = True) -> float:
        """Floating-point operations a data byte costs in a full window: matrix products, a multiply-add being two.

        Counted: the projections, the attention scores and sums that a causal mask leaves (half the square; all without one), and all
        nodes of the head, the mixer's gate. Not counted: norms, activations, look-ups, all of the order of D, and what
        reversible or checkpointed blocks compute a second time. Training costs three times the forward: one pass and
        two products in the backward for each in the forward.
        """
        c = self.config
        positions = c.byte_bits / c.patch_bits
        block = 2 * (4 * c.d_model**2 + 2 * c.d_model * c.feedforward_width)
        window = min(c.attention_window or c.max_patches, c.max_patches)
        # What a position reads, on average.
        keys = window - window * (window - 1) / 2 / c.max_patches if c.causal else float(c.max_patches)
        attention = 2 * 2 * c.d_model * keys
        head = 2 * c.d_model * (1 << c.patch_bits) + (2 * self.mixer.gate.numel() if self.mixer else 0)
        return positions * (c.num_layers * (block + attention) + head) * (3 if training else 1)

    def check_bits(self, bits_BT: Tensor) -> None:
        """Refuse what are no bits, or too many for a window.

        Raises:
            BitStreamError: another shape than (batch, bits), other values than 0 and 1, or more bits than a window holds.
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
    """What a parameter is called, by its name in a file that may be older."""
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
    """How many numbers a model learns.

    Attributes:
        total: all of them.
        active: those that take part in one position.
    """

    total: int
    active: int


def nats_of(z_BNP: Tensor, bits_BT: Tensor) -> Tensor:
    """What bits, or probabilities of ones, cost under their logits, in nats: (B, T)."""
    return F.binary_cross_entropy_with_logits(z_BNP.flatten(1), bits_BT.to(z_BNP.dtype), reduction="none")


def as_pair(z: Tensor) -> Tensor:
    """Logit of P(bit = 1) to a pair of logits whose softmax is (P(0), P(1))."""
    return torch.stack((torch.zeros_like(z), z), dim=-1)


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the chance of every dropout layer of a model; n-gram row dropout stays as configured."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def set_sparse(model: nn.Module, sparse: bool) -> None:
    """Whether n-gram tables get sparse gradients, which only some optimizers take: `SparseAdam`, `Adagrad`, `SGD`, and `Optimizers` here.

    Dense ones cost an update of every row at every step: `set_sparse(model, False)` before `torch.optim.AdamW(model.parameters())`.
    """
    for module in model.modules():
        if isinstance(module, NgramEmbedding):
            module.table.sparse = sparse
