"""BitTransformerLM: bits in, the probability of every next bit out.

    bits -> patches -> patch embedding (+ n-grams, + phase) -> trunk -> prefix-tree head -> bits
    bits -> expert bank ------------------- features ------------------> mixer -------^

One class: `patch_bits=1` is the flat model, 8 sees bytes, 9 parity-protected bytes, 12 sensor words. Patches and head are
in `nn/patching.py`, the blocks in `nn/block.py`, cached decoding state in `nn/cache.py`; read `training.py` next.
"""

# Shapes: B batch, T bits, N patches, P bits of a patch, D model width, V = 2^P symbols, F features of a bit.
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bit_transformer.config import FLIP_LEVELS, ModelConfig
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError
from bit_transformer.nn import reversible
from bit_transformer.nn.block import Block
from bit_transformer.nn.cache import DecodeCache, LayerCache, RollingCache
from bit_transformer.nn.mixer import ExpertMixer
from bit_transformer.nn.ngram import NgramEmbedding
from bit_transformer.nn.noise import flip_bits, flip_level, flips_cost, hide_some, noise_levels, noise_share
from bit_transformer.nn.norm import RMSNorm
from bit_transformer.nn.patching import (
    PrefixTreeHead,
    bit_chances,
    node_depths,
    pack_patches,
    tree_nodes,
    unpack_patches,
)
from bit_transformer.nn.position import rotary_table
from bit_transformer.nn.single import SingleStream
from bit_transformer.telemetry import Telemetry, lz_complexity, negentropy, penalties, symbiosis

if TYPE_CHECKING:
    from bit_transformer.experts.bank import ExpertBank
    from bit_transformer.experts.streams import ExpertStreams


BANK = "bank."  # in a state dict, before the names of the experts' tables


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
        # One symbol more than patches: what stands before the first of a window, or in a diffusion model for one that is hidden.
        self.start = self.mask = 1 << c.patch_bits
        self.embed = nn.Embedding((1 << c.patch_bits) + 1, c.d_model)
        self.phase = nn.Embedding(c.phases, c.d_model) if c.phases > 1 else None
        self.level = nn.Embedding(FLIP_LEVELS, c.d_model) if c.noise == "flips" else None
        word_shift = c.patch_bits - 8 if c.ngram_words else None
        self.ngrams = (
            NgramEmbedding(
                c.d_model, c.ngram_orders, c.ngram_rows, c.ngram_dropout, word_shift, both_sides=not c.causal
            )
            if c.ngram_orders or c.ngram_words
            else None
        )
        self.blocks = nn.ModuleList(
            Block(c.d_model, c.nhead, c.feedforward_width, c.dropout, causal=c.causal, window=c.attention_window)
            for _ in range(c.num_layers)
        )
        self.final_norm = RMSNorm()
        self.head = PrefixTreeHead(c.d_model, c.patch_bits)
        self._bank: ExpertBank | None = None
        self.mixer = self._new_mixer() if c.experts else None
        # One position more than a window has patches: the start symbol stands before the first.
        table = rotary_table(c.max_patches + 1, c.d_model // c.nhead).to(torch.get_default_dtype())
        self.register_buffer("turn_NK2", table, persistent=False)
        self.turn_NK2: Tensor
        self._init_weights()

    def _new_mixer(self) -> ExpertMixer:
        from bit_transformer.experts.bank import FEATURE_ONE, feature_count  # numba, where it is needed

        c = self.config
        return ExpertMixer(c.d_model, c.patch_bits, feature_count(c), 1 / FEATURE_ONE)

    @property
    def has_bank(self) -> bool:
        """Whether there is a bank of experts, with what it has learned."""
        return self._bank is not None

    @property
    def bank(self) -> ExpertBank:
        """The experts: an empty bank at first, in training the one that its windows' features come from.

        Raises:
            ConfigError: the model has no experts, or they need more memory than there is.
        """
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
        """Take parameters, and a copy of what the experts have learned; a state without it lacks a key."""
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

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.attend.out.weight)
            nn.init.zeros_(block.feed_forward.out.weight)
        for embedding in (self.embed, self.phase, self.level):
            if embedding is not None:
                nn.init.normal_(embedding.weight)
        # A zero head says 1/2 to every bit: training starts at exactly 8 bits per byte.

    # ---- whole windows ----

    def forward(self, bits_BT: Tensor) -> ModelOutput:
        """Logits of every bit after the first, the one after the last included.

        Args:
            bits_BT: zeros and ones, any integer or bool dtype; any T from 1 to `max_seq_len`, a last patch may be partial.

        Raises:
            BitStreamError: another shape, another value, or a longer window.
        """
        on_request: dict[str, Callable[[], Tensor]] = {}
        if self.config.full_attn_logging:
            maps: list[Tensor] = []
            with self._watched_branches() as added:
                z_BT, q_BT = self._all_bit_logits(bits_BT, maps)
            on_request["attention"] = lambda: torch.stack(maps)
            on_request["activations"] = lambda: torch.stack(added).view(len(self.blocks), 2, *added[0].shape)
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

        branches = [branch for block in self.blocks for branch in block.children()]
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
        self._check_causal()
        self._check_bits(bits_BT)
        B, T = bits_BT.shape
        P = self.config.patch_bits
        whole = T - T % P
        patch_BN = pack_patches(bits_BT[:, :whole], P) if whole else bits_BT.new_zeros(B, 0, dtype=torch.long)
        # The bits after the last whole patch, and one more, whose value nothing reads, make up the patch in progress.
        padded_BP = F.pad(bits_BT[:, whole:], (0, P - (T - whole)))
        known_BN = torch.cat((patch_BN, pack_patches(padded_BP, P)), dim=1)
        h_BND = self.trunk(self.shift(patch_BN, last=True), maps=maps)
        features_BTF = self._features(torch.cat((bits_BT[:, :whole], padded_BP), dim=1)) if self.mixer else None
        z_BT = self.path_logits(h_BND, known_BN, features_BTF).flatten(1)[:, : T + 1]
        return z_BT, None if features_BTF is None else self.experts_chances(features_BTF)[:, : T + 1]

    def experts_chances(self, features_BTF: Tensor) -> Tensor:
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

    def _new_streams(self, batch: int) -> ExpertStreams:
        from bit_transformer.experts.streams import ExpertStreams

        return ExpertStreams(self.bank, batch, self.config.patch_bits)

    def _features(self, bits_BT: Tensor, streams: ExpertStreams | None = None) -> Tensor:
        """What the bank as it is says of bits that follow some streams, or nothing: features_BTF."""
        made_BTF = (streams or self._new_streams(len(bits_BT))).peek(bits_BT.cpu().numpy())
        return torch.from_numpy(made_BTF).to(bits_BT.device)

    def learn(self, bits_BT: Tensor) -> None:
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
        self._check_bits(bits_BT)
        if bits_BT.shape[1] % c.unit_bits:
            raise BitStreamError(
                f"got windows of {bits_BT.shape[1]} bits; a multiple of the experts' unit of {c.unit_bits} is needed. "
                f"Try bits[:, :{bits_BT.shape[1] // c.unit_bits * c.unit_bits}]"
            )
        rows_BT = bits_BT.cpu().numpy().astype(np.uint8)
        for row_T, unit_N in zip(rows_BT, pack_units(rows_BT, c.unit_bits), strict=True):
            self.bank.note(np.packbits(row_T))
            self.bank.read(unit_N, self.bank.stream(), learn=True, wanted=False)

    def nll(self, bits_BT: Tensor, features_BTF: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of every bit, the first included, in nats: (B, T), T a multiple of `patch_bits`.

        It checks the shape, not the values.

        Args:
            features_BTF: int8, of a model with experts: what they say of each bit. Not given, they are asked as they
                are, and know nothing of what came before the window.

        Raises:
            BitStreamError: a partial last patch, or a longer window than the model's.
        """
        z_BNP, _, _ = self.window_logits(bits_BT, features_BTF)
        return _nats(z_BNP, bits_BT)

    def hidden_nll(self, patch_BN: Tensor, hidden_BN: Tensor) -> Tensor:
        """Of a diffusion model: negative log-likelihood of each hidden patch given all that are not, in nats; 0 elsewhere: (B, N).

        Raises:
            ConfigError: an autoregressive model, or one that knows flips.
        """
        if self.config.noise == "flips":
            raise ConfigError("got a model of flips; hidden patches are for one with noise='hidden'. Try repair")
        z_BNP = self._along(patch_BN, self.restored(patch_BN.masked_fill(hidden_BN, self.mask)))
        bit_BNP = unpack_patches(patch_BN, self.config.patch_bits).to(z_BNP.dtype)
        nats_BNP = F.binary_cross_entropy_with_logits(z_BNP, bit_BNP, reduction="none")
        return nats_BNP.sum(-1).masked_fill(~hidden_BN, 0.0)

    def restored(self, seen_BN: Tensor, chance_B: Tensor | None = None) -> Tensor:
        """Of a diffusion model: logits at all nodes of every patch, given what is seen of a window: node_logit_BNV.

        Of a model of flips they begin with the odds that a bit is what it seems by the chance of flips alone, so that where nothing is
        flipped nothing is changed.

        Args:
            seen_BN: patches, the symbol `mask` where one is hidden.
            chance_B: of a model of flips: with which each bit was flipped.

        Raises:
            ConfigError: an autoregressive model, or a chance of flips for a model of hidden patches or none for one of flips.
        """
        if self.config.causal:
            raise ConfigError("got an autoregressive model; hidden patches are for diffusion. Try causal=False, or nll")
        if (chance_B is None) != (self.config.noise == "hidden"):
            got = "no chance_B" if chance_B is None else "a chance_B"
            raise ConfigError(
                f"got {got} and noise={self.config.noise!r}; it goes with flips, and only with these. Try repair"
            )
        node_logit_BNV = self.head(self.trunk(seen_BN, chance_B=chance_B))
        if chance_B is None:
            return node_logit_BNV
        P = self.config.patch_bits
        seems_BNP = (2 * unpack_patches(seen_BN, P) - 1) * -torch.logit(chance_B, eps=1e-6)[:, None, None]
        return node_logit_BNV + seems_BNP[..., node_depths(P, seen_BN.device)]

    def half_lost_logits(self, bits_BT: Tensor) -> Tensor:
        """Of a diffusion model, for measuring: logits of the bits of every second patch, given the others, or where a quarter of
        all bits were flipped, all; z_BNP."""
        c = self.config
        patch_BN = pack_patches(bits_BT, c.patch_bits)
        if c.noise == "hidden":
            lost_N = torch.arange(patch_BN.shape[1], device=patch_BN.device) % 2 == 0
            z_BNP = self._along(patch_BN, self.restored(patch_BN.masked_fill(lost_N, self.mask)))
            return z_BNP[:, lost_N]
        chance_B = torch.full((len(patch_BN),), 0.25, device=patch_BN.device)
        return self._along(patch_BN, self.restored(flip_bits(patch_BN, chance_B, c.patch_bits), chance_B))

    def _along(self, patch_BN: Tensor, node_logit_BNV: Tensor) -> Tensor:
        return node_logit_BNV.gather(-1, tree_nodes(patch_BN, self.config.patch_bits))

    def losses(
        self,
        bits_BT: Tensor,
        features_BTF: Tensor | None = None,
        *,
        reach: float = 1.0,
        teacher: BitTransformerLM | None = None,
        trust: float = 0.5,
    ) -> tuple[Tensor, Tensor]:
        """The training path: what is lowered, and the mean of `nll`, in nats a bit, which it is without lambdas.

        With lambdas it is their mean plus lambda_K (1 - K) + lambda_C r + lambda_S (1 - S)^2 of the predictions, each in [0, 1], as
        `telemetry/penalties.py` defines them. Arguments and errors are those of `nll`.

        Of a diffusion model: the bound on that mean, at one time for each window, drawn from torch's generator; with flips what is
        lowered is the cost of the patches instead, with the same weights.

        Args:
            reach: of a diffusion model: times are drawn up to here, in (0, 1]; below 1 it is the mean over these, and no bound.
            teacher: if given, the target of each bit is its prediction, given the data's bits before it, with weight `trust`, and the
                data's own bit with the rest (distillation along the data's path; after Hinton et al. 2015, arXiv:1503.02531).
        """
        c = self.config
        if not c.causal:
            return self._diffusion_losses(bits_BT, reach, teacher, trust)
        z_BNP, patch_BN, features_BTF = self.window_logits(bits_BT, features_BTF)
        nats = loss = _nats(z_BNP, bits_BT).mean()
        if teacher is not None:
            with torch.no_grad():
                taught_BNP, _, _ = teacher.window_logits(bits_BT, features_BTF)
            loss = _nats(
                z_BNP, torch.lerp(bits_BT.to(z_BNP.dtype), taught_BNP.flatten(1).sigmoid().to(z_BNP.dtype), trust)
            ).mean()
        if c.lambda_K:
            loss = loss + c.lambda_K * penalties.uncertainty(z_BNP)
        if c.lambda_C:
            loss = loss + c.lambda_C * penalties.repetition(z_BNP, patch_BN)
        if c.lambda_S and features_BTF is not None:
            loss = loss + c.lambda_S * penalties.disagreement(z_BNP, self.experts_chances(features_BTF).view_as(z_BNP))
        return loss, nats

    def _diffusion_losses(
        self, bits_BT: Tensor, reach: float, teacher: BitTransformerLM | None, trust: float
    ) -> tuple[Tensor, Tensor]:
        c = self.config
        self._check_window(bits_BT)
        patch_BN = pack_patches(bits_BT, c.patch_bits)
        share_B, weight_B = noise_levels(len(patch_BN), c.schedule, reach, patch_BN.device)
        reached = noise_share(torch.tensor(reach), c.schedule).item() / reach  # the mean of weight times share
        chance_B = None
        if c.noise == "hidden":
            lost_BN = hide_some(patch_BN.shape, share_B)
            seen_BN = patch_BN.masked_fill(lost_BN, self.mask)
        else:
            lost_BN, chance_B = torch.ones_like(patch_BN, dtype=torch.bool), share_B / 2
            seen_BN = flip_bits(patch_BN, chance_B, c.patch_bits)
        node_logit_BNV = self.restored(seen_BN, chance_B)
        z_BNP = self._along(patch_BN, node_logit_BNV)
        bit_BNP = unpack_patches(patch_BN, c.patch_bits)

        def cost(target_BNP: Tensor) -> Tensor:
            nats_BNP = F.binary_cross_entropy_with_logits(z_BNP, target_BNP, reduction="none")
            nats_B = nats_BNP.sum(-1).masked_fill(~lost_BN, 0.0).sum(1)
            return (nats_B * weight_B).mean() / bits_BT.shape[1] / reached

        loss = bound = cost(bit_BNP.to(z_BNP.dtype))
        if teacher is not None:
            with torch.no_grad():
                taught_BNP = self._along(patch_BN, teacher.restored(seen_BN, chance_B)).sigmoid()
            loss = cost(torch.lerp(bit_BNP.to(z_BNP.dtype), taught_BNP.to(z_BNP.dtype), trust))
        if c.noise == "flips":
            one_BNP = bit_chances(node_logit_BNV.detach().float())
            seen_BNP = unpack_patches(seen_BN, c.patch_bits)
            bound = flips_cost(one_BNP, bit_BNP, seen_BNP, share_B, weight_B).mean() / bits_BT.shape[1]
        if c.lambda_K:
            loss = loss + c.lambda_K * penalties.uncertainty(z_BNP[lost_BN])
        return loss, bound

    def window_logits(
        self, bits_BT: Tensor, features_BTF: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of all bits of windows of whole patches, the first included: z_BNP; the patches; and the experts' features, asked
        for where they were not given. Arguments and errors are those of `nll`."""
        c = self.config
        self._check_causal()
        self._check_window(bits_BT)
        if self.mixer and features_BTF is None:
            features_BTF = self._features(bits_BT)
        patch_BN = pack_patches(bits_BT, c.patch_bits)
        return self.path_logits(self.trunk(self.shift(patch_BN)), patch_BN, features_BTF), patch_BN, features_BTF

    def _check_causal(self) -> None:
        if not self.config.causal:
            raise ConfigError(
                "got a diffusion model, which has no next bit. Try btlm infill or diffusion_inference, or a model with causal=True"
            )

    def _check_window(self, bits_BT: Tensor) -> None:
        T, c = bits_BT.shape[1], self.config
        if T % c.patch_bits or c.max_seq_len < T:
            raise BitStreamError(
                f"got windows of {T} bits; at most {c.max_seq_len} and a multiple of patch_bits={c.patch_bits} is needed. "
                f"Try bits[:, :{min(T, c.max_seq_len) // c.patch_bits * c.patch_bits}]"
            )

    def shift(self, patch_BN: Tensor, *, last: bool = False) -> Tensor:
        """The start symbol, then the patches; without the last one unless `last`, which predicts beyond the end."""
        return F.pad(patch_BN if last else patch_BN[:, :-1], (1, 0), value=self.start)

    def trunk(
        self,
        input_BN: Tensor,
        cache: DecodeCache | None = None,
        maps: list[Tensor] | None = None,
        chance_B: Tensor | None = None,
    ) -> Tensor:
        """Input symbols to the states that predict what follows each: h_BND.

        Args:
            cache: the streams that the symbols continue; it moves on by N symbols.
            maps: the attention map of every layer is appended to it, if it is given.
            chance_B: of a model of flips: with which the bits of each window were flipped.
        """
        N = input_BN.shape[1]
        begin, seen = (cache.length, cache.symbols_seen) if cache else (0, 0)
        x_BND = self.embed(input_BN)
        if self.phase is not None:
            step_N = torch.arange(seen, seen + N, device=input_BN.device)
            x_BND = x_BND + self.phase(step_N % self.config.phases)
        if self.level is not None:
            assert chance_B is not None
            x_BND = x_BND + self.level(flip_level(chance_B))[:, None]
        if self.ngrams is not None:
            recent_BN = cache.recent_BN if cache else self._no_history(input_BN)
            beyond = () if self.config.causal else (recent_BN,)
            context_BC = torch.cat((recent_BN, input_BN, *beyond), dim=1)
            x_BND = x_BND + self.ngrams(context_BC)
            if cache:
                cache.recent_BN = context_BC[:, N:]
        if cache is None:
            return self.run_blocks(x_BND, self.turn_NK2[:N], maps=maps)
        cache.symbols_seen += N
        if cache.single is not None and N == 1 and not self.training:
            state_D = cache.single.step(x_BND[0, 0].detach().numpy())
            return torch.from_numpy(state_D)[None, None]
        return self.run_blocks(x_BND, self.turn_NK2[begin : begin + N], cache.layers)

    def _no_history(self, input_BN: Tensor) -> Tensor:
        history = self.ngrams.history if self.ngrams else 0
        return input_BN.new_full((len(input_BN), history), self.start)

    def run_blocks(
        self,
        x_BND: Tensor,
        turn_NK2: Tensor,
        layers: list[LayerCache] | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """The trunk after its embeddings, for sparse gradients do not go through torch.compile."""
        c = self.config
        if c.reversible:
            return self.final_norm(reversible.run(cast(Sequence[Block], self.blocks), x_BND, turn_NK2, layers, maps))
        again = c.use_checkpoint and torch.is_grad_enabled() and layers is None and maps is None
        for i, block in enumerate(self.blocks):
            if again and i % c.checkpoint_every == 0:
                x_BND = checkpoint(block, x_BND, turn_NK2, use_reentrant=False)
            else:
                x_BND = block(x_BND, turn_NK2, layers[i] if layers else None, maps)
        return self.final_norm(x_BND)

    @contextmanager
    def compiled_trunk(self) -> Iterator[None]:
        """Within: the trunk goes through torch.compile, of a reversible one each branch, for both runs of it."""
        if not self.config.reversible:
            self.run_blocks = torch.compile(self.run_blocks)  # type: ignore[method-assign]
            try:
                yield
            finally:
                del self.run_blocks
            return
        branches = [branch for block in self.blocks for branch in block.children()]
        before = [branch._compiled_call_impl for branch in branches]
        for branch in branches:
            branch.compile()
        try:
            yield
        finally:
            for branch, call in zip(branches, before, strict=True):
                branch._compiled_call_impl = call

    # ---- step by step ----

    def new_cache(self, batch: int = 1) -> DecodeCache:
        """The state of `batch` streams before their first bit.

        Raises:
            ConfigError: a diffusion model.
        """
        self._check_causal()
        c = self.config
        capacity = c.max_patches + 1
        kind, slots = (RollingCache, c.attention_window) if c.attention_window else (LayerCache, capacity)
        shape = (batch, c.nhead, slots, c.d_model // c.nhead)
        like = self.head.weight
        layers = [kind(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.blocks]
        start_B1 = torch.full((batch, 1), self.start, device=like.device)
        alone = batch == 1 and like.device.type == "cpu" and like.dtype == torch.float32
        single = None
        if alone:
            single = SingleStream(self.blocks, self.head, self.turn_NK2, layers, reversible=c.reversible)
        cache = DecodeCache(layers, capacity, self._no_history(start_B1), like.new_zeros(batch, c.d_model), single)
        if self.mixer:
            cache.experts = self._new_streams(batch)
        cache.state_BD = self.trunk(start_B1, cache)[:, -1]
        return cache

    def step(self, bits_BT: Tensor, cache: DecodeCache) -> Tensor:
        """Continue the streams of a cache by any number of bits.

        Returns:
            (B, T, 2): `[:, t]` are the log-odds of what follows bit t; the same as one `forward` over all bits gives.

        Raises:
            BitStreamError: the bits are not bits, or do not fit the window any more (see `slide`).
        """
        self._check_bits(bits_BT)
        P, T = self.config.patch_bits, bits_BT.shape[1]
        old = cache.prefix_BR.shape[1]
        open_BR = torch.cat((cache.prefix_BR, bits_BT.to(torch.uint8)), dim=1)
        whole = open_BR.shape[1] // P * P
        patch_BN = pack_patches(open_BR[:, :whole], P) if whole else cache.recent_BN[:, :0]
        padded_BP = F.pad(open_BR[:, whole:], (0, P - (open_BR.shape[1] - whole)))
        features_BTF = None
        if cache.experts is not None:
            features_BTF = self._features(torch.cat((open_BR[:, :whole], padded_BP), dim=1), cache.experts)
        state_BND = cache.state_BD[:, None]
        if whole:
            state_BND = torch.cat((state_BND, self.advance(patch_BN, cache)), dim=1)
        cache.prefix_BR = open_BR[:, whole:]
        known_BN = torch.cat((patch_BN, pack_patches(padded_BP, P)), dim=1)
        z_BNP = self.path_logits(state_BND, known_BN, features_BTF)
        return as_pair(z_BNP.flatten(1)[:, old + 1 : old + 1 + T])

    def advance(self, patch_BN: Tensor, cache: DecodeCache) -> Tensor:
        """Continue by complete patches, at a patch boundary: the states that predict what follows each, h_BND.

        Raises:
            BitStreamError: the window has no room for them.
        """
        room = cache.capacity - cache.length
        if patch_BN.shape[1] > room:
            raise BitStreamError(
                f"{patch_BN.shape[1]} more patches do not fit the window: {room} of {cache.capacity - 1} are free. "
                f"Try a model with a larger max_seq_len, or infer_long, which slides the window"
            )
        h_BND = self.trunk(patch_BN, cache)
        cache.state_BD = h_BND[:, -1]
        if cache.experts is not None:
            cache.experts.advance(patch_BN.cpu().numpy())
        return h_BND

    def node_logits(self, cache: DecodeCache) -> NDArray[np.float32]:
        """Logits at every node of the patch that comes next, for each stream: (B, V)."""
        state_BD = cache.state_BD.detach()
        if cache.single is not None:
            z_BV = cache.single.node_logits(state_BD[0].numpy())[None]
        else:
            z_BV = self.head(state_BD).detach().float().cpu().numpy()
        if self.mixer is not None and cache.experts is not None:
            z_BV = z_BV + self.mixer.node_logits(state_BD.float().cpu().numpy(), cache.experts.nodes())
        return z_BV

    def slide(self, cache: DecodeCache, count: int) -> None:
        """Forget the `count` oldest patches of a cache to make room; what is left is re-used, not computed again."""
        cache.forget(count, torch.stack((self.turn_NK2[count, :, 0], -self.turn_NK2[count, :, 1]), dim=-1))

    # ---- what it costs ----

    def num_parameters(self) -> ParameterCount:
        """All parameters, and those that one position reads: of a table, one row an order; of an embedding, one row."""
        total = sum(p.numel() for p in self.parameters())
        tables = [m for m in self.modules() if isinstance(m, nn.Embedding)]
        rows_read = {id(m): 1 for m in tables}
        if self.ngrams is not None:
            rows_read[id(self.ngrams.table)] = self.ngrams.contexts
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

    def _check_bits(self, bits_BT: Tensor) -> None:
        if bits_BT.ndim != 2 or bits_BT.shape[1] == 0 or bits_BT.is_floating_point() or bits_BT.is_complex():
            raise BitStreamError(
                f"got a tensor of shape {tuple(bits_BT.shape)} and {bits_BT.dtype}; bits must be (batch, length >= 1) of "
                f"an integer type. Try bits.long().unsqueeze(0)"
            )
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


def _nats(z_BNP: Tensor, bits_BT: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z_BNP.flatten(1), bits_BT.to(z_BNP.dtype), reduction="none")


def as_pair(z: Tensor) -> Tensor:
    """Logit of P(bit = 1) to a pair of logits whose softmax is (P(0), P(1))."""
    return torch.stack((torch.zeros_like(z), z), dim=-1)


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the chance of every dropout layer of a model; n-gram row dropout stays as configured."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
