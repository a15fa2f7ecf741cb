"""Models in Hugging Face transformers: the same bytes, the same costs and the same files as here."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bit_transformer.adapters.folder import code_files, config_entries, has_text
from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
from bit_transformer.config import ModelConfig
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError, MissingExtra, ParityError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import leaf_log_probs, pack_patches, tree_nodes, unpack_patches
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import random_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what transformers imports
    transformers = pytest.importorskip("transformers")
from bit_transformer.adapters.bit_tokenizer import BitTokenizer
from bit_transformer.adapters.huggingface import (
    BitTransformerConfig,
    BitTransformerForCausalLM,
    leaf_log_softmax,
)
from bit_transformer.adapters.patch_cache import PatchCache, in_order

BANK = {"buckets": 1024, "history": 1024}
SHAPES: dict[str, dict[str, Any]] = {
    "bytes": {"max_seq_len": 256},
    "parity": {"max_seq_len": 288, "patch_bits": 9, "parity": True},
    "bits": {"max_seq_len": 128, "patch_bits": 1},
    "thirds of bytes with parity": {"max_seq_len": 288, "patch_bits": 3, "parity": True},
    "experts": {"max_seq_len": 256, "experts": BANK},
    "bits with experts": {"max_seq_len": 128, "patch_bits": 1, "experts": BANK},
    "reversible with n-grams": {"max_seq_len": 256, "reversible": True, "ngram_orders": (1, 2), "ngram_rows": 256},
    "local": {"max_seq_len": 256, "chunk_size": 64},
}
TEXTS = ["abra", "hello w\xf6rld", "x"]


def made(name: str, **more: Any) -> BitTransformerLM:
    """A model of a shape; experts have read something."""
    model = random_model(**{**SHAPES[name], **more})
    if model.config.experts is not None:
        model.learn(torch.from_numpy(bytes_to_bits(b"abracadabra", parity=model.config.parity)[None]))
    return model


def tokenizer_of(model: BitTransformerLM) -> Any:
    return BitTokenizer(model.config.patch_bits, model.config.parity)


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> BitTransformerLM:
    return made(request.param)


# ---- generation ----


def test_greedy_decoding_gives_the_bytes_of_generate(model, tmp_path):
    """Also far beyond the window, which slides, and for prompts of different lengths."""
    save_checkpoint(tmp_path / "run", model)
    count = model.config.max_seq_len // 8 + 4
    asked = {"run": str(tmp_path / "run"), "max_bytes": count, "sampling": {"temperature": 0}}
    wanted = call("generate", {**asked, "prompts": [text.encode() for text in TEXTS]}, Workspace(tmp_path / "s.sqlite"))
    theirs, tokenizer = BitTransformerForCausalLM.of(model), tokenizer_of(model)
    given = tokenizer(TEXTS, return_tensors="pt", padding=True)
    new = count * model.config.byte_bits // model.config.patch_bits
    ids_BL = theirs.generate(**given, max_new_tokens=new, do_sample=False)
    assert [tokenizer.decode_bytes(ids_L[given.input_ids.shape[1] :]) for ids_L in ids_BL] == wanted.data
    plain = theirs.generate(**given, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(plain, ids_BL[:, : plain.shape[1]])


def test_an_empty_prompt_begins_with_the_start_symbol():
    model = made("bytes")
    wanted = call_generate(model, b"", 12)
    ids_BL = BitTransformerForCausalLM.of(model).generate(max_new_tokens=12, do_sample=False)
    assert ids_BL[0, 0] == 256 and tokenizer_of(model).decode_bytes(ids_BL[0]) == wanted


def call_generate(model: BitTransformerLM, prompt: bytes, count: int) -> bytes:
    from bit_transformer.config import Sampling
    from bit_transformer.decoding.generation import generate_bytes

    return generate_bytes(model, [prompt], count, Sampling(temperature=0))[0]


def test_where_nothing_is_more_probable_the_first_is_taken_here_and_there():
    model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, max_seq_len=128).eval()  # its head is zero
    ids_BL = BitTransformerForCausalLM.of(model).generate(torch.tensor([[7]]), max_new_tokens=3, do_sample=False)
    assert tokenizer_of(model).decode_bytes(ids_BL[0, 1:]) == call_generate(model, b"\x07", 3) == bytes(3)


def test_rounding_keeps_what_differs_different():
    random = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 100.0):
        score_BV = -np.abs(random.normal(size=(8, 64))) * scale
        near = random.integers(0, 32, (8, 32))
        score_BV[:, 32:] = np.take_along_axis(score_BV, near, 1) * (1 + random.integers(-2, 3, (8, 32)) * 1e-12)
        rounded_BV = in_order(score_BV)
        assert rounded_BV.dtype == np.float32
        assert_close(rounded_BV.astype(float), score_BV, rtol=1e-5, atol=0)
        for exact_V, rounded_V in zip(score_BV, rounded_BV, strict=True):
            assert (
                np.sign(np.subtract.outer(exact_V, exact_V)) == np.sign(np.subtract.outer(rounded_V, rounded_V))
            ).all()
    assert (
        in_order(np.array([[0.0, -1e-60, -1e-50]])) == np.array([[0.0, -1.4e-45, -2.8e-45]], dtype=np.float32)
    ).all()


def test_a_search_with_enough_beams_finds_the_most_probable_of_all():
    model = made("bits")
    theirs, tokenizer = BitTransformerForCausalLM.of(model), tokenizer_of(model)
    given = tokenizer(["a", "abc"], return_tensors="pt", padding=True)
    found = theirs.generate(**given, max_new_tokens=4, num_beams=16, do_sample=False)
    for text, ids_L in zip(("a", "abc"), found, strict=True):
        prompt = tokenizer(text, return_tensors="pt").input_ids
        ends = [torch.tensor([end]) for end in itertools.product((0, 1), repeat=4)]
        with torch.no_grad():
            cost = [float(model.nll(torch.cat((prompt, end), 1))[0, -4:].sum()) for end in ends]
        assert ids_L[-4:].tolist() == ends[int(np.argmin(cost))][0].tolist()


def test_sampling_streaming_and_stopping_work_as_in_transformers():
    theirs, tokenizer = BitTransformerForCausalLM.of(made("bytes")), BitTokenizer()
    given = tokenizer(["ab", "abcd"], return_tensors="pt", padding=True)
    how = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
    torch.manual_seed(1)
    first = theirs.generate(**given, **how, num_return_sequences=2)
    torch.manual_seed(1)
    assert torch.equal(first, theirs.generate(**given, **how, num_return_sequences=2)) and first.shape == (4, 10)
    one = tokenizer("ab", return_tensors="pt")
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True)
    whole = theirs.generate(**one, max_new_tokens=9, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(whole[0, 2:])
    stop = tokenizer.decode_bytes(whole[0, 4:5]).decode("latin-1")
    if stop.isascii():
        ended = theirs.generate(**one, max_new_tokens=9, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)
        assert ended.shape[1] <= 5
    theirs.generate(**given, max_new_tokens=4, repetition_penalty=1.3, no_repeat_ngram_size=2, do_sample=False)


def test_sampled_frequencies_are_the_probabilities():
    theirs = BitTransformerForCausalLM.of(made("bits"))
    ids_BL = torch.zeros(2000, 1, dtype=torch.long)
    torch.manual_seed(0)
    drawn = theirs.generate(ids_BL, max_new_tokens=1, do_sample=True, top_k=0)[:, 1]
    with torch.no_grad():
        one = float(theirs(ids_BL[:1]).logits[0, -1, 1].exp())
    assert abs(float(drawn.float().mean()) - one) < 4 * (one * (1 - one) / len(drawn)) ** 0.5


def test_with_parity_only_even_bytes_are_made_unless_told_otherwise():
    for name in ("parity", "thirds of bytes with parity"):
        model = made(name)
        theirs, tokenizer = BitTransformerForCausalLM.of(model), tokenizer_of(model)
        given = tokenizer("abc", return_tensors="pt")
        per_byte = 9 // model.config.patch_bits
        how = {"max_new_tokens": 40 * per_byte, "do_sample": True, "top_k": 0}
        torch.manual_seed(0)
        odd = [int(odd_bytes(theirs.generate(**given, **how, force_parity=force)[0], model)) for force in (True, False)]
        assert odd[0] == 0 < odd[1]
        wrong = given.input_ids.clone()
        wrong[0, per_byte] ^= 1
        with pytest.raises(ParityError, match="odd parity at byte offset 1"):
            theirs.generate(wrong, max_new_tokens=1)


def odd_bytes(ids_L: torch.Tensor, model: BitTransformerLM) -> torch.Tensor:
    return (unpack_patches(ids_L, model.config.patch_bits).view(-1, 9).sum(1) & 1).sum()


# ---- logits, loss, gradients ----


def test_logits_with_a_cache_are_those_without_and_sum_to_one(model):
    theirs, tokenizer = BitTransformerForCausalLM.of(model), tokenizer_of(model)
    given = tokenizer(TEXTS, return_tensors="pt", padding=True)
    if given.input_ids.shape[1] > model.config.max_patches:
        given = tokenizer(TEXTS[::2], return_tensors="pt", padding=True)
    with torch.no_grad():
        whole = theirs(**given)
        cached = theirs(**given, use_cache=True)
    real = given.attention_mask.bool()
    assert whole.logits.shape == (*real.shape, theirs.config.vocab_size) and whole.past_key_values is None
    assert_close(cached.logits[real], whole.logits[real], rtol=1e-4, atol=1e-4)
    assert_close(whole.logits.exp().sum(-1), torch.ones(real.shape), rtol=1e-5, atol=1e-5)
    ids = given.input_ids[:1][:, given.attention_mask[0].bool()]
    alone = theirs(ids)
    assert_close(alone.logits[0], whole.logits[0, real[0]], rtol=1e-4, atol=1e-4)
    first = theirs(ids[:, :2], use_cache=True)
    rest = theirs(ids[:, 2:], past_key_values=first.past_key_values)
    assert isinstance(rest.past_key_values, PatchCache) and rest.past_key_values.get_seq_length() == ids.shape[1]
    assert_close(torch.cat((first.logits, rest.logits), 1), alone.logits, rtol=1e-4, atol=1e-4)
    assert_close(theirs(ids, logits_to_keep=1).logits, alone.logits[:, -1:])


def test_the_loss_is_the_mean_cost_of_the_patches_and_its_gradients_are_ours(model):
    model = model.double()
    theirs = BitTransformerForCausalLM.of(model)
    P = model.config.patch_bits
    bits_BT = torch.from_numpy(
        np.stack([bytes_to_bits(text, parity=model.config.parity) for text in (b"abcab", b"hello")])
    )
    ids_BL = pack_patches(bits_BT, P)
    found = theirs(ids_BL, labels=ids_BL)
    wanted = model.nll(bits_BT).sum() / ids_BL.numel()
    assert_close(found.loss, wanted, rtol=1e-10, atol=0)
    ours = gradients(model, wanted)
    for name, gradient in gradients(model, found.loss).items():
        assert_close(gradient, ours[name], rtol=1e-8, atol=1e-12)
    # And from the logits: the first patch of a row is predicted from the start symbol.
    start = torch.full((2, 1), theirs.start)
    logits = theirs(torch.cat((start, ids_BL), 1)).logits[:, :-1]
    from_logits = F.cross_entropy(logits.flatten(0, 1), ids_BL.flatten())
    assert_close(from_logits, wanted.float(), rtol=1e-5, atol=0)
    for name, gradient in gradients(model, from_logits).items():
        assert_close(gradient, ours[name], rtol=1e-4, atol=1e-6)


def gradients(model: BitTransformerLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad.to_dense().clone().double() for name, p in model.named_parameters() if p.grad is not None}


def test_leaf_log_softmax_is_the_reference_in_float64():
    z_BV = torch.randn(3, 64, dtype=torch.float64) * 5
    assert_close(leaf_log_softmax(z_BV).numpy(), leaf_log_probs(z_BV.numpy()), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(leaf_log_softmax, z_BV[:1, :8].clone().requires_grad_())


def test_the_mixer_at_all_nodes_is_the_mixer_along_each_path():
    mixer = made("experts").mixer
    assert mixer is not None
    h_ND, features_NVF = torch.randn(2, 24), torch.randint(-127, 128, (2, 256, mixer.features), dtype=torch.int8)
    z_NV = mixer.at_nodes(h_ND, features_NVF)
    assert_close(z_NV.detach().numpy(), mixer.node_logits(h_ND.numpy(), features_NVF.numpy()), rtol=1e-4, atol=1e-4)
    node_1NP = tree_nodes(torch.tensor([[65, 200]]), 8)
    features_1NPF = features_NVF.gather(1, node_1NP[0, ..., None].expand(-1, -1, mixer.features))[None]
    assert_close(mixer(h_ND[None], features_1NPF, node_1NP)[0], z_NV.gather(1, node_1NP[0]), rtol=1e-4, atol=1e-4)


def test_what_fills_a_row_up_changes_nothing():
    theirs = BitTransformerForCausalLM.of(made("experts"))
    ids = torch.tensor([[104, 105, 33]])
    loss = theirs(ids, labels=ids).loss
    S = theirs.start
    left, right = torch.tensor([[S, S, 104, 105, 33]]), torch.tensor([[104, 105, 33, S, S]])
    ignored = [torch.where(filled == S, -100, filled) for filled in (left, right)]
    assert_close(theirs(left, labels=ignored[0]).loss, loss)
    assert_close(theirs(right, labels=ignored[1]).loss, loss)
    assert_close(theirs(right).logits[:, :3], theirs(ids).logits)
    part = torch.tensor([[-100, 105, 33]])
    assert_close(theirs(ids, labels=part).loss * 2, loss * 3 - theirs(ids[:, :1], labels=ids[:, :1]).loss)
    assert theirs(ids, labels=torch.full_like(ids, -100)).loss == 0
    assert theirs.train()(ids, labels=ids).logits is None  # with experts, training makes only what it needs
    assert isinstance(theirs(ids, return_dict=False), tuple)


# ---- files ----


def test_a_saved_folder_is_read_back_to_the_bit_here_and_there(model, tmp_path):
    theirs = BitTransformerForCausalLM.of(model)
    theirs.generation_config.max_new_tokens = 7
    theirs.save_pretrained(tmp_path)
    tokenizer_of(model).save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".tmp")]
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not back.training and back.generation_config.max_new_tokens == 7 and back.config.shape == model.config
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    for name, tensor in load_checkpoint(tmp_path, config=model.config).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    ids = torch.tensor([[1, 0, 1]])
    assert torch.equal(theirs(ids).logits, back(ids).logits)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again("<start>\xe4").input_ids == tokenizer_of(model)("<start>\xe4").input_ids


FRESH = """
import json, sys
assert "bit_transformer" not in sys.modules
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
folder, prompt = sys.argv[1:]
how = {"max_new_tokens": 12, "do_sample": False}
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
given = tokenizer(prompt, return_tensors="pt")
made = model.generate(**given, **how)[0, given.input_ids.shape[1]:]
pipe = pipeline("text-generation", model=folder, trust_remote_code=True)
(tensors,) = pipe(prompt, **how, return_tensors=True)
(text,) = pipe(prompt, **how, return_full_text=False)
ids = tensors["generated_token_ids"][given.input_ids.shape[1]:]
print(json.dumps({
    "model": tokenizer.decode_bytes(made).hex(),
    "pipeline": pipe.tokenizer.decode_bytes(ids).hex(),
    "text": text["generated_text"],
    "home": type(model).__module__,
    "learned": int(model.model.bank.count),
    "window": tokenizer.model_max_length,
}))
"""


def test_what_is_exported_works_in_a_fresh_process(btlm, tmp_path):
    model = made("experts")
    save_checkpoint(tmp_path / "run", model)
    assert btlm("export", "run", "run.zip").returncode == 0
    with zipfile.ZipFile("run.zip") as archive:
        archive.extractall("folder")
    wanted = btlm("generate", "folder", "--prompt", "abra", "--bytes", 12, "--temperature", 0, "--json")
    assert wanted.returncode == 0, wanted.stderr
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", FRESH, "folder", "abra"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    data = call_generate(model, b"abra", 12)
    assert bytes.fromhex(found["model"]) == bytes.fromhex(found["pipeline"]) == data
    assert found["text"] == data.decode("utf-8", "replace") and found["window"] == 32
    assert found["home"] == "bit_transformer.adapters.huggingface" and found["learned"] == model.bank.count > 0


def test_the_package_does_not_load_transformers_unasked():
    asked = (
        "import sys, bit_transformer.service.hub, bit_transformer.checkpoint; sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def test_only_safetensors_are_read_and_written(tmp_path):
    theirs = BitTransformerForCausalLM.of(made("bytes"))
    theirs.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(os.getcwd))
    for read in (BitTransformerForCausalLM.from_pretrained, transformers.AutoModelForCausalLM.from_pretrained):
        with pytest.raises(
            CheckpointError, match=r"got pytorch_model.bin, a pickle, which could run any code"
        ) as refused:
            read(tmp_path)
        assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(CheckpointError, match=r"got only pytorch_model.bin, a pickle, which is never read"):
        load_checkpoint(tmp_path)
    for data in (pickle.dumps([1]), pickle.dumps([1], protocol=4), b"PK\x03\x04" + bytes(40)):
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match="got a pickle, which could run any code") as refused:
            BitTransformerForCausalLM.from_pretrained(tmp_path)
        assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="only safetensors are written"):
        theirs.save_pretrained(tmp_path / "new", safe_serialization=False)
    with pytest.raises(ConfigError, match="pickles are never read"):
        BitTransformerForCausalLM.from_pretrained(tmp_path, use_safetensors=False)
    assert not (tmp_path / "new").exists()


def test_what_is_written_without_transformers_is_what_it_would_write(tmp_path):
    for name in ("bytes", "parity", "experts"):
        model = made(name)
        BitTransformerForCausalLM.of(model).save_pretrained(tmp_path)
        tokenizer_of(model).save_pretrained(tmp_path)
        theirs = json.loads((tmp_path / "config.json").read_text())
        assert config_entries(model.config) == {
            key: value for key, value in theirs.items() if key != "transformers_version"
        }
        files = code_files(model.config)
        assert (tmp_path / "modeling_bit_transformer.py").read_bytes() == files["modeling_bit_transformer.py"]
        saved, ours = (
            json.loads((tmp_path / "tokenizer_config.json").read_text()),
            json.loads(files["tokenizer_config.json"]),
        )
        assert {key: saved[key] for key in ours if key != "model_max_length"} == {
            key: value for key, value in ours.items() if key != "model_max_length"
        }
    assert code_files(ModelConfig(causal=False)) == {} and not has_text(ModelConfig(patch_bits=12, max_seq_len=1200))


def test_weights_in_other_dtypes_and_names_are_taken(tmp_path):
    theirs = BitTransformerForCausalLM.of(made("experts"))
    theirs.save_pretrained(tmp_path)
    half = BitTransformerForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert half.dtype == torch.bfloat16 and half.generate(torch.tensor([[65]]), max_new_tokens=3).shape == (1, 4)
    other = BitTransformerForCausalLM(theirs.config)
    other.load_state_dict(load_checkpoint(tmp_path).state_dict())  # names as they are in the file
    assert all(
        torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), other.state_dict().values(), strict=True)
    )
    state = {name: tensor * 2 for name, tensor in theirs.state_dict().items() if tensor.is_floating_point()}
    theirs.save_pretrained(tmp_path / "twice", state_dict=state)
    assert_close(load_checkpoint(tmp_path / "twice").head.weight, 2 * theirs.model.head.weight)
    model, info = BitTransformerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert model.name_or_path == str(tmp_path) and not any(info.values())


# ---- the tokenizer ----


@pytest.mark.parametrize(
    ("patch_bits", "parity"), [(8, False), (4, False), (1, False), (9, True), (3, True), (1, True)]
)
def test_every_byte_becomes_tokens_and_comes_back(patch_bits, parity, tmp_path):
    tokenizer = BitTokenizer(patch_bits, parity)
    data = bytes(range(256)) + b"\xff\xfe\x80<start>\x00"
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data and max(ids) < tokenizer.vocab_size == 1 << patch_bits
    text = data.decode("utf-8", "surrogateescape")
    assert tokenizer(text).input_ids == ids and tokenizer.decode(ids, errors="surrogateescape") == text
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")
    bits = "".join(map(str, bytes_to_bits(data, parity=parity)))
    assert "".join(tokenizer.tokenize(text)) == bits  # a token is written as its bits
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize("hi")) == "hi"
    assert tokenizer("").input_ids == [] and tokenizer.decode([]) == ""
    assert len(tokenizer.get_vocab()) == len(tokenizer) == tokenizer.vocab_size + 1
    tokenizer.save_pretrained(tmp_path)
    again = BitTokenizer.from_pretrained(tmp_path)
    assert (again.patch_bits, again.parity) == (patch_bits, parity) and again(text).input_ids == ids


def test_short_rows_are_filled_up_on_the_left_and_the_start_symbol_is_no_text():
    tokenizer = BitTokenizer()
    batch = tokenizer(["a", "abc"], return_tensors="pt", padding=True)
    assert batch.input_ids.tolist() == [[256, 256, 97], [97, 98, 99]]
    assert batch.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["a", "abc"]
    assert tokenizer.decode([256, 97, 256]) == "<start>a<start>" and tokenizer("<start>").input_ids == [*b"<start>"]
    assert tokenizer("ab", "cd").input_ids == [97, 98, 99, 100]
    assert tokenizer("abcd", truncation=True, max_length=2).input_ids == [97, 98]
    assert BitTokenizer(1).decode([0, 1, 1, 0, 0, 0, 0, 1, 0, 1]) == "a"  # bits of an incomplete byte are left out
    assert BitTokenizer(9, True).decode_bytes([97 << 1]) == b"a"  # with wrong parity: the data bits


# ---- refusals ----


@contextlib.contextmanager
def one_line(error: type[Exception], says: str) -> Iterator[None]:
    with pytest.raises(error, match=says) as refused:
        yield
    assert len(str(refused.value).splitlines()) == 1 and "Try" in str(refused.value)


def test_what_cannot_be_is_one_line(tmp_path):
    theirs = BitTransformerForCausalLM.of(made("bytes"))
    ids = torch.tensor([[65, 66]])
    with one_line(BitStreamError, "got the id 257; a model of patches of 8 bits has ids from 0 to 256"):
        theirs(torch.tensor([[257]]))
    with one_line(BitStreamError, "got the id -1"):
        theirs.generate(torch.tensor([[-1]]), max_new_tokens=1)
    with one_line(BitStreamError, r"input_ids of shape \(2,\)"):
        theirs(ids[0])
    with one_line(BitStreamError, "rows with gaps"):
        theirs(torch.tensor([[65, 256, 66]]))
    with one_line(BitStreamError, "an attention_mask of shape"):
        theirs(ids, attention_mask=torch.ones(1, 3))
    with one_line(BitStreamError, "must be filled up on the left"):
        theirs(torch.tensor([[65, 256]]), use_cache=True)
    with one_line(BitStreamError, "rows of 33 patches; a window holds at most 32"):
        theirs(torch.full((1, 33), 65))
    with one_line(BitStreamError, "got the label 256"):
        theirs(torch.tensor([[256, 65]]), labels=torch.tensor([[-100, 256]]))
    with one_line(BitStreamError, "a label before a row begins"):
        theirs(torch.tensor([[256, 65]]), labels=torch.tensor([[65, 65]]))
    with one_line(ConfigError, "labels and a cache"):
        theirs(ids, labels=ids, use_cache=True)
    with one_line(BitStreamError, "labels that differ from input_ids"):
        BitTransformerForCausalLM.of(made("experts"))(ids, labels=ids + 1)
    for name, value in {
        "assistant_model": theirs,
        "prompt_lookup_num_tokens": 2,
        "cache_implementation": "static",
    }.items():
        with one_line(ConfigError, f"got {name}; this model cannot do that"):
            theirs.generate(ids, max_new_tokens=1, **{name: value})
    with one_line(ConfigError, "got other embeddings"):
        theirs.set_input_embeddings(None)
    with one_line(ConfigError, "another number of tokens"):
        theirs.resize_token_embeddings(300)
    assert theirs.get_input_embeddings().weight.shape[0] == theirs.config.vocab_size == 257
    with one_line(BitStreamError, "cannot be taken back"):
        theirs(ids, use_cache=True).past_key_values.crop(1)
    cache = transformers.DynamicCache()
    cache.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), 0)
    with one_line(ConfigError, "got a DynamicCache as past_key_values"):
        theirs(ids, past_key_values=cache)
    with one_line(ConfigError, "got a diffusion model"):
        BitTransformerConfig(causal=False)
    with one_line(ConfigError, "d_model=23 must be a multiple of"):
        BitTransformerConfig(d_model=23)
    with one_line(ConfigError, "a model of another shape"):
        BitTransformerForCausalLM(BitTransformerConfig(), theirs.model)
    theirs.save_pretrained(tmp_path)
    with one_line(ConfigError, "got quantization_config"):
        BitTransformerForCausalLM.from_pretrained(tmp_path, quantization_config={"bits": 4})
    with one_line(ConfigError, "a device_map of several devices"):
        BitTransformerForCausalLM.from_pretrained(tmp_path, device_map={"a": 0, "b": 1})
    with one_line(CheckpointError, "d_model=32 is needed"):
        BitTransformerForCausalLM.from_pretrained(tmp_path, config=BitTransformerConfig(d_model=32))
    with one_line(CheckpointError, "got no model.safetensors"):
        BitTransformerForCausalLM.from_pretrained(tmp_path.parent)
    with one_line(ConfigError, "push_to_hub=True"):
        theirs.save_pretrained(tmp_path, push_to_hub=True)


def test_a_tokenizer_refuses_what_it_has_no_tokens_for():
    with one_line(ConfigError, "got patch_bits=5; for text, patches must divide the 8 bits of a byte: 1, 2, 4, 8"):
        BitTokenizer(5)
    with one_line(ConfigError, "got errors='lose'"):
        BitTokenizer(errors="lose")
    tokenizer = BitTokenizer()
    with one_line(BitStreamError, "got the id 300"):
        tokenizer.decode_bytes([300])
    with one_line(BitStreamError, "got the id 300"):
        tokenizer.convert_ids_to_tokens([300])
    with one_line(BitStreamError, "got the token 'the'; a token is 8 bits, such as 01010101"):
        tokenizer.convert_tokens_to_ids(["the"])
    with one_line(BitStreamError, "not UTF-8 at offset 0"):
        tokenizer.decode([255], errors="strict")
    with one_line(BitStreamError, "lone surrogate"):
        tokenizer("\ud800")


def test_without_transformers_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("bit_tokenizer", "huggingface"):
        monkeypatch.delitem(sys.modules, f"bit_transformer.adapters.{name}")
    with one_line(MissingExtra, r"pip install 'bit-transformer\[hf\]'"):
        import bit_transformer.adapters.huggingface  # noqa: F401


# ---- training ----


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_trainer_trains_saves_and_goes_on(tmp_path):
    pytest.importorskip("accelerate")
    tokenizer = BitTokenizer()
    rows = [dict(tokenizer(text)) for text in ("hello world", "hello", "hello there", "world") * 4]
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def trainer(model: Any) -> Any:
        how = transformers.TrainingArguments(
            str(tmp_path), max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
            report_to=[], disable_tqdm=True,
        )  # fmt: skip
        return transformers.Trainer(
            model=model,
            args=how,
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collate,
            processing_class=tokenizer,
        )

    first = trainer(BitTransformerForCausalLM.of(made("experts", ngram_orders=(1,), ngram_rows=256)))
    before = first.evaluate()["eval_loss"]
    first.train()
    assert first.evaluate()["eval_loss"] < before
    half = tmp_path / "checkpoint-2"
    again = trainer(BitTransformerForCausalLM.from_pretrained(half))
    again.train(resume_from_checkpoint=str(half))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert load_checkpoint(tmp_path / "checkpoint-4").bank.count == first.model.model.bank.count
