"""Models for Hugging Face transformers: a config and a causal language model whose tokens are patches of bits.

    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    pipeline("text-generation", model=FOLDER, trust_remote_code=True)("Once", max_new_tokens=40)

FOLDER is what `btlm export` packs, what `btlm hub push` sends, or what `save_pretrained` writes. Ids 0 .. V-1 are the patches of P bits. Id V is
the model's start symbol; it may stand before the first patch, and fills up short rows on the left. Generation runs in the sessions that
`btlm generate` uses. Greedy decoding therefore gives the same bytes.
"""

# Shapes: B rows, L ids of a row, K ids of a row of which logits are wanted, N patches, P bits of a patch, D model width, V = 2^P patches,
# F features of a bit.
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bit_transformer.adapters.bit_tokenizer import BitTokenizer
from bit_transformer.adapters.folder import AUTO_MAP, CODE, CODE_FILE, MODEL_TYPE, derived, start_token
from bit_transformer.adapters.patch_cache import PatchCache
from bit_transformer.checkpoint import MODEL_FILE, load_checkpoint, save_checkpoint
from bit_transformer.config import ModelConfig
from bit_transformer.decoding.expert_streams import ExpertStreams
from bit_transformer.decoding.sampling import even_bytes
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError, ParityError
from bit_transformer.extras import require
from bit_transformer.model import BitTransformerLM, set_sparse
from bit_transformer.nn.patching import tree_nodes, unpack_patches
from bit_transformer.tensor_file import pickles_in

transformers = require("transformers", extra="hf", purpose="the Hugging Face adapter")
outputs = require("transformers.modeling_outputs", extra="hf", purpose="the Hugging Face adapter")
cached_file = require("transformers.utils.hub", extra="hf", purpose="the Hugging Face adapter").cached_file

# The library has no types.
PretrainedConfig: Any = transformers.PretrainedConfig
PreTrainedModel: Any = transformers.PreTrainedModel
GenerationMixin: Any = transformers.GenerationMixin
LogitsProcessor: Any = transformers.LogitsProcessor

GENERATION_FILE = "generation_config.json"
IGNORED = -100  # a label that does not count
# What `generate` cannot do here, and why.
CANNOT = {
    "assistant_model": "a model's reading cannot be taken back",
    "prompt_lookup_num_tokens": "a model's reading cannot be taken back",
    "assistant_early_exit": "a model's reading cannot be taken back",
    "inputs_embeds": "the experts and n-grams read patches, not embeddings",
    "cache_implementation": "the cache is this package's own session",
    "prefill_chunk_size": "a prompt of any length is read at once",
    "custom_generate": "decoding has one order of operations",
    "dola_layers": "only the last layer has a head",
    "penalty_alpha": "states are not compared",
    "guidance_scale": "one prompt is read, not two",
    "token_healing": "a token is no part of a longer one",
}
# Arguments of `from_pretrained` that say where files are; that change nothing here.
PLACES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
NOTHING = (
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "adapter_kwargs",
    "attn_implementation",
    "code_revision",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "weights_only",
)


class BitTransformerConfig(PretrainedConfig):  # type: ignore[misc]
    """The shape of a model, for transformers.

    Args:
        model: fields of `bit_transformer.config.ModelConfig`. They can also be given as keywords: `BitTransformerConfig(d_model=128)`.
        more: what any config of transformers takes.

    Raises:
        ConfigError: fields that are unknown, do not go together, or are of a diffusion model.
    """

    model_type = MODEL_TYPE

    def __init__(self, model: Mapping[str, Any] | None = None, **more: Any) -> None:
        fields = {name: more.pop(name) for name in tuple(more) if name in ModelConfig.model_fields}
        shape = ModelConfig.of({**(model or {}), **fields})
        if not shape.causal:
            raise ConfigError(
                "got a diffusion model; transformers can use only models with causal=True. Try btlm infill"
            )
        found = derived(shape)
        more |= {"bos_token_id": found["bos_token_id"], "pad_token_id": found["pad_token_id"]}
        super().__init__(**{name: value for name, value in more.items() if name not in found or name.endswith("_id")})
        self.model = shape.model_dump(mode="json")
        for name, value in found.items():
            setattr(self, name, value)
        self.auto_map = AUTO_MAP

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: folders name the classes of the installed package, and hold no copy of them."""

    @property
    def shape(self) -> ModelConfig:
        """The same as this package's own config."""
        return ModelConfig.of(self.model)


class BitTransformerForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A `BitTransformerLM` as a causal language model of transformers.

    Args:
        config: the shape.
        model: a model to use as it is; it is shared, not copied. Its n-gram tables get dense gradients, because the optimizers of
            transformers take no others. Default: a new one.

    Attributes:
        model: the `BitTransformerLM`.

    Raises:
        ConfigError: a diffusion model, or a model of another shape than the config.
    """

    config_class = BitTransformerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # the loss is a mean; the trainer divides it by the number of batches
    _supports_sdpa = True  # attention is this package's own; transformers asks before it builds anything
    _no_split_modules = ["Block"]  # noqa: RUF012 - of the base class

    def __init__(self, config: BitTransformerConfig, model: BitTransformerLM | None = None) -> None:
        super().__init__(config)
        if model is not None and model.config != config.shape:
            raise ConfigError("got a model of another shape than the config. Try BitTransformerForCausalLM.of(model)")
        self.model = BitTransformerLM(config.shape) if model is None else model
        set_sparse(self.model, False)
        self.start = start_token(self.model.config)
        self.post_init()

    @classmethod
    def of(cls, model: BitTransformerLM) -> BitTransformerForCausalLM:
        """A model of this package, for transformers. It is shared, not copied.

        Raises:
            ConfigError: a diffusion model.
        """
        made = cls(BitTransformerConfig(model=model.config.model_dump(mode="json")), model)
        return made.train(model.training)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: folders name the classes of the installed package, and hold no copy of them."""

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: the model has begun its weights itself."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embeddings of the patches and of the start symbol."""
        return self.model.trunk.embed

    def set_input_embeddings(self, value: Any) -> None:
        """Refuse other embeddings.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("got other embeddings; the patches of a model are fixed by its bits. Try another patch_bits")

    def resize_token_embeddings(self, *given: Any, **more: Any) -> torch.nn.Module:
        """Refuse another number of tokens.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("got another number of tokens; patches of P bits have 2^P values. Try another patch_bits")

    # ---- forward ----

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> Any:
        """Log-probabilities of the patch after each id, and the loss.

        Without a cache everything has gradients. With one (`use_cache=True`) nothing has, and a window that is full slides.

        Args:
            input_ids: (B, L), patches. The start symbol may stand before them, any number of times.
            attention_mask: (B, L), 0 for ids that are no part of a row: those before it begins, and with no cache also those after its end.
            past_key_values: a `PatchCache` that an earlier call returned.
            labels: (B, L), usually `input_ids` themselves; -100 does not count. The first patch of a row counts too, because it is
                predicted from the start symbol. The start symbol itself must not count.
            logits_to_keep: logits of only so many of the last ids; 0: all.
            return_dict: False: a tuple.

        Returns:
            `logits`: (B, K, V + 1), in float32, log-probabilities: their exponentials sum to 1, and the start symbol's is 0. None in training mode with
            labels if the model has experts, where they would cost more than the training; `model.eval()` gives both.
            `loss`: mean negative log-likelihood of the labels, in nats per patch. `past_key_values`: with `use_cache`.

        Raises:
            BitStreamError: ids or labels that are none, gaps in a row, or, without a cache, more patches than a window has.
        """
        if isinstance(past_key_values, PatchCache) or use_cache:
            if labels is not None:
                raise ConfigError("got labels and a cache; a loss needs gradients. Try use_cache=False")
            logits, cache = self._cached(input_ids, attention_mask, past_key_values, logits_to_keep)
            made = outputs.CausalLMOutputWithPast(logits=logits, past_key_values=cache)
        else:
            if past_key_values is not None and past_key_values.get_seq_length():
                raise _foreign(past_key_values)
            scores, loss = self._whole(input_ids, attention_mask, labels, logits_to_keep)
            made = outputs.CausalLMOutputWithPast(loss=loss, logits=scores)
        return made.to_tuple() if return_dict is False else made

    def _whole(
        self, ids_BL: Tensor, mask_BL: Tensor | None, labels_BL: Tensor | None, keep: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Whole windows at once: logits and loss."""
        c, lm = self.model.config, self.model
        ids_BL = ids_BL.to(lm.head.weight.device)
        begin_B, real_BL = self._rows(ids_BL, mask_BL)
        L = ids_BL.shape[1]
        # Rows are moved to the left, so that every row begins right after the start symbol.
        column_L = torch.arange(L, device=ids_BL.device)
        source_BL = (begin_B[:, None] + column_L).clamp(max=L - 1)
        moved_BL = torch.where(real_BL, ids_BL, 0).gather(1, source_BL)
        patch_BN = moved_BL[:, : max(1, L - int(begin_B.min()))]
        if patch_BN.shape[1] > c.max_patches:
            raise BitStreamError(
                f"got rows of {patch_BN.shape[1]} patches; a window holds at most {c.max_patches}. Try shorter rows, or generate, whose window slides"
            )
        h_BND = lm.trunk(lm.shift(patch_BN, last=True))
        node_logit_BNV = lm.head(h_BND)
        loss = None
        if labels_BL is not None:
            loss = self._loss(node_logit_BNV, h_BND, patch_BN, begin_B, labels_BL.to(ids_BL.device))
            if lm.mixer is not None and self.training:
                return None, loss
        if lm.mixer is not None:
            node_logit_BNV = node_logit_BNV + self._expert_logits(h_BND, patch_BN)
        # After the id in column c the patch at place c - begin + 1 is predicted.
        column_K = column_L[-keep:] if keep else column_L
        place_BK = (column_K - begin_B[:, None] + 1).clamp(min=0, max=patch_BN.shape[1])
        score_BNV = leaf_log_softmax(node_logit_BNV.float())
        score_BKV = score_BNV.gather(1, place_BK[..., None].expand(-1, -1, score_BNV.shape[-1]))
        return _with_start(score_BKV), loss

    def _rows(self, ids_BL: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where each row begins, and which ids belong to it.

        Raises:
            BitStreamError: wrong shapes, ids that are none, or gaps.
        """
        if ids_BL.ndim != 2 or not ids_BL.shape[1] or ids_BL.is_floating_point():
            raise BitStreamError(
                f"got input_ids of shape {tuple(ids_BL.shape)} and {ids_BL.dtype}; integers of (batch, length >= 1) are needed. Try unsqueeze(0)"
            )
        if mask_BL is not None and mask_BL.shape != ids_BL.shape:
            raise BitStreamError(
                f"got an attention_mask of shape {tuple(mask_BL.shape)} for input_ids of shape {tuple(ids_BL.shape)}; equal ones are needed. "
                "Try the tokenizer's"
            )
        self._check_ids(ids_BL)
        real_BL = ids_BL != self.start
        if mask_BL is not None:
            real_BL = real_BL & (mask_BL.to(ids_BL.device) != 0)
        changes_BL = F.pad(real_BL.int(), (1, 0)).diff(dim=1)
        if int((changes_BL == 1).sum(1).max()) > 1:
            raise BitStreamError(
                "got rows with gaps; the ids of a row must stand together. Try the start symbol and mask 0 only before or after them"
            )
        any_B = real_BL.any(1)
        begin_B = torch.where(any_B, real_BL.int().argmax(1), real_BL.shape[1])
        return begin_B, real_BL

    def _check_ids(self, ids_BL: Tensor) -> None:
        wrong = ids_BL[(ids_BL < 0) | (ids_BL > self.start)]
        if wrong.numel():
            raise BitStreamError(
                f"got the id {int(wrong[0])}; a model of patches of {self.model.config.patch_bits} bits has ids from 0 to {self.start}. "
                "Try the model's own tokenizer"
            )

    def _loss(
        self, node_logit_BNV: Tensor, h_BND: Tensor, patch_BN: Tensor, begin_B: Tensor, labels_BL: Tensor
    ) -> Tensor:
        """Mean nats of the labels that count, along their paths in the tree."""
        P, N = self.model.config.patch_bits, patch_BN.shape[1]
        L = labels_BL.shape[1]
        column_N = torch.arange(N, device=labels_BL.device)
        source_BN = begin_B[:, None] + column_N
        label_BN = labels_BL.gather(1, source_BN.clamp(max=L - 1)).where(source_BN < L, IGNORED)
        counts_BN = label_BN != IGNORED
        wrong = label_BN[counts_BN & ((label_BN < 0) | (label_BN >= self.start))]
        before_BL = torch.arange(L, device=labels_BL.device) < begin_B[:, None]
        if wrong.numel() or bool((before_BL & (labels_BL != IGNORED)).any()):
            got = f"the label {int(wrong[0])}" if wrong.numel() else "a label before a row begins"
            raise BitStreamError(
                f"got {got}; labels are patches from 0 to {self.start - 1}, and {IGNORED} where nothing counts. Try labels of input_ids, "
                f"with {IGNORED} for the start symbol"
            )
        label_BN = label_BN.where(counts_BN, 0)
        z_BNP = node_logit_BNV[:, :N].gather(-1, tree_nodes(label_BN, P))
        if self.model.mixer is not None:
            if not bool((label_BN == patch_BN)[counts_BN].all()):
                raise BitStreamError(
                    "got labels that differ from input_ids; the experts' features are those of the ids. Try labels of input_ids, or -100"
                )
            bits_BT = unpack_patches(patch_BN, P).flatten(1)
            features_BTF = torch.from_numpy(self.model.bank.peek(bits_BT.cpu().numpy())).to(bits_BT.device)
            features_BNPF = features_BTF.view(*z_BNP.shape, -1)
            z_BNP = z_BNP + self.model.mixer(h_BND[:, :N], features_BNPF, tree_nodes(label_BN, P))
        z_BNP = z_BNP.to(torch.promote_types(z_BNP.dtype, torch.float32))  # half precision is too coarse for sums
        bit_BNP = unpack_patches(label_BN, P).to(z_BNP.dtype)
        nats_BN = F.binary_cross_entropy_with_logits(z_BNP, bit_BNP, reduction="none").sum(-1)
        return (nats_BN * counts_BN).sum() / counts_BN.sum().clamp(min=1)

    def _expert_logits(self, h_BND: Tensor, patch_BN: Tensor) -> Tensor:
        """The experts' part of the logits at all nodes of every patch, and of the one after the last."""
        c, mixer = self.model.config, self.model.mixer
        assert mixer is not None
        made = []
        for h_ND, patch_N in zip(h_BND, patch_BN.cpu().numpy(), strict=True):
            stream = ExpertStreams(self.model.bank, 1, c.patch_bits)
            features = []
            for place in range(len(h_ND)):
                features.append(stream.nodes()[0])
                stream.advance(patch_N[None, place : place + 1])
            features_NVF = torch.from_numpy(np.stack(features)).to(h_BND.device)
            made.append(mixer.at_nodes(h_ND, features_NVF))
        return torch.stack(made)

    @torch.no_grad()
    def _cached(self, ids_BN: Tensor, mask_BL: Tensor | None, cache: Any, keep: int) -> tuple[Tensor, PatchCache]:
        device = self.model.head.weight.device
        ids_BN = ids_BN.to(device)
        if isinstance(cache, PatchCache) and cache.groups:
            self._check_ids(ids_BN)
            # Rows that are done are filled up with the start symbol; what is made of them is not looked at.
            begins, ids_BN = [0] * len(ids_BN), torch.where(ids_BN == self.start, 0, ids_BN)
        else:
            if cache is not None and cache.get_seq_length():
                raise _foreign(cache)
            begin_B, real_BN = self._rows(ids_BN, mask_BL)
            begins = begin_B.tolist()
            if not bool((real_BN | (torch.arange(real_BN.shape[1], device=device) < begin_B[:, None])).all()):
                raise BitStreamError(
                    "got rows that are filled up on the right; for generation they must be filled up on the left. Try padding_side='left'"
                )
            cache = cache if isinstance(cache, PatchCache) else PatchCache()
            cache.begin(self.model, begins)
        score_BKV = cache.advance(begins, ids_BN, keep or ids_BN.shape[1])
        return _with_start(score_BKV).to(device), cache

    # ---- generation ----

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, *, force_parity: bool = True, **more: Any
    ) -> Any:
        """Continue prompts, with what `generate` of transformers offers: greedy, sampling, beams, streamers, criteria to stop.

        A token is a patch, so `max_new_tokens` counts patches. There is no end-of-text; without criteria to stop, all tokens are made.

        Args:
            inputs: (B, L) ids, filled up on the left; None: from nothing.
            force_parity: for models with parity: only bytes with even parity, as in `btlm generate`.

        Returns:
            as in transformers: prompts and continuations.

        Raises:
            ConfigError: something that these models cannot do.
            ParityError: a prompt with odd parity, if parity is enforced.
            BitStreamError: invalid ids, or rows that are filled up on the right.
        """
        for name, why in CANNOT.items():
            given = more.get(name, getattr(generation_config, name, None))
            if given is not None and given is not False:
                raise ConfigError(f"got {name}; this model cannot do that: {why}. Try without {name}", field=name)
        if self.model.config.parity and force_parity:
            ids = inputs if inputs is not None else more.get("input_ids")
            even = EvenParity(self.model.config.patch_bits)
            if ids is not None and ids.ndim == 2:
                even.check(ids)
            more["logits_processor"] = transformers.LogitsProcessorList([even, *(more.get("logits_processor") or [])])
        return super().generate(inputs, generation_config, **more)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
        logits_to_keep: int = 1,
        **more: Any,
    ) -> dict[str, Any]:
        """What `forward` reads in the next step: the ids that the cache has not seen."""
        cache = past_key_values if isinstance(past_key_values, PatchCache) else None
        seen = cache.length if cache is not None else 0
        if seen and seen >= input_ids.shape[1]:
            raise BitStreamError(
                f"got {input_ids.shape[1]} ids and a cache that has read {seen}; at least one more is needed. Try without past_key_values"
            )
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": None if seen else attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }

    # ---- files ----

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *inputs: Any,
        config: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        output_loading_info: bool = False,
        use_safetensors: bool | None = None,
        generation_config: Any = None,
        **more: Any,
    ) -> Any:
        """Read a model from a folder, or from a repository of the hub, in evaluation mode. Only safetensors are read, and checked by their sum.

        Args:
            pretrained_model_name_or_path: the folder, also a run folder; or OWNER/NAME.
            config: the shape that is expected, if any.
            dtype: of the weights. Default and "auto": as they are stored.
            device_map: a device, or "auto" for a GPU where there is one.
            more: where files are, as in transformers (`revision`, `token`, `cache_dir` ...).

        Raises:
            CheckpointError: no `model.safetensors`, or a damaged one; another shape.
            ConfigError: something that these models cannot do.
        """
        if use_safetensors is False:
            raise ConfigError(
                "got use_safetensors=False; pickles are never read. Try without it", field="use_safetensors"
            )
        places = {name: more.pop(name) for name in PLACES if name in more}
        asked = [
            name for name, value in more.items() if name not in NOTHING and value is not None and value is not False
        ]
        if asked or inputs:
            what = asked[0] if asked else "positional arguments"
            raise ConfigError(
                f"got {what}; a model of this package is read without. Try btlm quantize, grow or train for other models"
            )
        path = _model_file(str(pretrained_model_name_or_path), places)
        expected = config.shape if isinstance(config, BitTransformerConfig) else None
        inner = load_checkpoint(path, device=_device(device_map), config=expected)
        given = dtype if dtype is not None else torch_dtype
        if given is not None and given != "auto":
            inner = inner.to(getattr(torch, given) if isinstance(given, str) else given)
        shape = BitTransformerConfig(model=inner.config.model_dump(mode="json"))
        model = cls(config if expected is not None else shape, inner)
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        model.config.dtype = inner.head.weight.dtype
        model.generation_config = generation_config or _generation_config(path, model.config)
        model.eval()
        if output_loading_info:
            return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **more: Any,
    ) -> None:
        """Write a folder that transformers and `btlm` load: weights and experts in `model.safetensors`, the config, and the names of the classes.

        Args:
            state_dict: weights to write instead of the model's own.
            more: what transformers gives other models; sizes of shards mean nothing here, because there is one file.

        Raises:
            ConfigError: a pickle, or `push_to_hub`, was asked for.
            CheckpointError: the files could not be written.
        """
        if not safe_serialization:
            raise ConfigError(
                "got safe_serialization=False, a pickle; only safetensors are written. Try without it",
                field="safe_serialization",
            )
        if push_to_hub:
            raise ConfigError(
                "got push_to_hub=True; the folder is written first. Try model.push_to_hub(repo), or btlm hub push",
                field="push_to_hub",
            )
        if not is_main_process:
            return
        folder = Path(save_directory)
        if _is_run(folder):
            raise ConfigError(
                f"got {folder}, the folder of a run, whose settings would be lost. Try another folder",
                field="save_directory",
            )
        weights = {name.removeprefix("model."): tensor for name, tensor in (state_dict or {}).items()}
        save_checkpoint(folder, self.model, weights=weights)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = self.model.head.weight.dtype
        self.config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        (folder / CODE_FILE).write_text(CODE, encoding="utf-8")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As for any module. Names may be those of this class or, as in `model.safetensors`, those of the model in it."""
        named = {name if name.startswith("model.") else f"model.{name}": value for name, value in state_dict.items()}
        return super().load_state_dict(named, strict=strict, assign=assign)


def _is_run(folder: Path) -> bool:
    """Whether a folder is of a run, that can be resumed."""
    try:
        return "store" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


class EvenParity(LogitsProcessor):  # type: ignore[misc]
    """Excludes patches that would end a byte with odd parity.

    Args:
        patch_bits: P.
    """

    def __init__(self, patch_bits: int) -> None:
        self.patch_bits, self.start = patch_bits, 1 << patch_bits

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with minus infinity for these patches."""
        allowed_BV = np.ones(scores.shape, dtype=bool)
        for row_V, id_L in zip(allowed_BV, input_ids.cpu().numpy(), strict=True):
            phase, odd, _ = self._open_byte(id_L)
            row_V[: self.start] = even_bytes(self.patch_bits, phase, odd)[0]
        return scores.masked_fill(~torch.from_numpy(allowed_BV).to(scores.device), -torch.inf)

    def check(self, ids_BL: Tensor) -> None:
        """Refuse prompts with odd parity.

        Raises:
            ParityError: a whole byte with an odd number of ones.
        """
        for id_L in ids_BL.cpu().numpy():
            whole_T = self._open_byte(id_L)[2]
            odd = np.flatnonzero(whole_T.reshape(-1, 9).sum(1) & 1)
            if len(odd):
                raise ParityError(
                    f"got a prompt with odd parity at byte offset {odd[0]}; a prompt must have even parity because it is enforced. "
                    "Try the model's tokenizer, or force_parity=False",
                    odd.tolist(),
                )

    def _open_byte(self, id_L: Any) -> tuple[int, int, Any]:
        """Bits of the incomplete byte, whether they hold an odd number of ones, and the bits of the whole bytes."""
        patch_N = id_L[id_L < self.start]
        bits_T = (patch_N[:, None] >> np.arange(self.patch_bits - 1, -1, -1) & 1).reshape(-1)
        phase = len(bits_T) % 9
        return phase, int(bits_T[len(bits_T) - phase :].sum() & 1), bits_T[: len(bits_T) - phase]


def leaf_log_softmax(node_logit_BNV: Tensor) -> Tensor:
    """Log-probabilities of all V patches, in nats, from the logits of all V nodes; with gradients. See `nn/patching.py`."""
    score_BNV = torch.zeros_like(node_logit_BNV[..., :1])
    for j in range(node_logit_BNV.shape[-1].bit_length() - 1):
        z_BNV = node_logit_BNV[..., 1 << j : 2 << j]
        score_BNV = torch.stack((score_BNV + F.logsigmoid(-z_BNV), score_BNV + F.logsigmoid(z_BNV)), dim=-1).flatten(-2)
    return score_BNV


def _with_start(score_BKV: Tensor) -> Tensor:
    """With a column for the start symbol, which is never predicted."""
    return F.pad(score_BKV, (0, 1), value=-torch.inf)


def _foreign(cache: Any) -> ConfigError:
    return ConfigError(
        f"got a {type(cache).__name__} as past_key_values; a PatchCache is needed. Try what forward returned"
    )


def _model_file(name: str, places: Mapping[str, Any]) -> Path:
    """The file of the weights, in a folder or from the hub.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(name)
    if folder.is_dir():
        folder = folder / (places.get("subfolder") or "")
        path = folder / MODEL_FILE
        if path.is_file():
            return path
        others = pickles_in(folder)
    else:
        found = cached_file(name, MODEL_FILE, _raise_exceptions_for_missing_entries=False, **places)
        if found is not None:
            return Path(found)
        others = []
    there = f"{others[0]}, a pickle, which could run any code" if others else f"no {MODEL_FILE}"
    raise CheckpointError(
        f"{name}: got {there}; {MODEL_FILE} is needed, and nothing else is read. Try a folder of btlm export"
    )


def _generation_config(path: Path, config: BitTransformerConfig) -> Any:
    if (beside := path.with_name(GENERATION_FILE)).is_file():
        return transformers.GenerationConfig.from_pretrained(beside.parent)
    return transformers.GenerationConfig(bos_token_id=config.bos_token_id, pad_token_id=config.pad_token_id)


def _device(device_map: Any) -> torch.device | str:
    if isinstance(device_map, Mapping):
        if len(set(device_map.values())) != 1:
            raise ConfigError(
                "got a device_map of several devices; a model of this package is on one. Try device_map='auto'",
                field="device_map",
            )
        device_map = next(iter(device_map.values()))
    if device_map in (None, "cpu"):
        return "cpu"
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device_map)


transformers.AutoConfig.register(MODEL_TYPE, BitTransformerConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(BitTransformerConfig, BitTransformerForCausalLM, exist_ok=True)
transformers.AutoTokenizer.register(BitTransformerConfig, slow_tokenizer_class=BitTokenizer, exist_ok=True)
