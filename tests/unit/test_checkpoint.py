from __future__ import annotations

import json

import pytest
import torch

from bit_transformer.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_tensors
from bit_transformer.config import ModelConfig
from bit_transformer.errors import CheckpointError
from tests.conftest import random_bits, random_model


def test_a_model_comes_back_bit_for_bit(tmp_path):
    model = random_model(max_seq_len=64, ngram_orders=(2,), ngram_rows=16)
    path = save_checkpoint(tmp_path, model, about={"step": 3})
    assert path == tmp_path / "model.safetensors"
    again = load_checkpoint(tmp_path)
    bits_BT = random_bits(2, 64)
    assert torch.equal(again(bits_BT).logits, model(bits_BT).logits)
    assert again.config == model.config
    assert read_tensors(path)[1]["about"] == {"step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_every_damaged_byte_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path / "m.safetensors", random_model(max_seq_len=64, num_layers=1))
    good = path.read_bytes()
    for place in (0, 9, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 0x10
        path.write_bytes(bytes(bad))
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert len(str(caught.value).splitlines()) == 1
    path.write_bytes(good[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_other_files_and_other_shapes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_bytes(b"hello, this is no checkpoint at all")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(tmp_path / "text.safetensors")
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match="contains no model"):
        load_checkpoint(tmp_path / "t.safetensors")
    path = save_checkpoint(tmp_path, random_model(max_seq_len=64))
    with pytest.raises(CheckpointError, match="got d_model=24; d_model=128 is needed"):
        load_checkpoint(path, config=ModelConfig(d_model=128))


def test_nothing_in_a_file_is_executed(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "x.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "x.safetensors")


def test_a_config_of_another_version_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    config = {**ModelConfig().model_dump(mode="json"), "flux": 1}
    write_tensors(path, {"a": torch.ones(1)}, {"model": config})
    with pytest.raises(CheckpointError, match="another version"):
        load_checkpoint(path)
    assert json.dumps(config)
