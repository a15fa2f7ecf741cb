from __future__ import annotations

import pytest

from bit_transformer.config import DataConfig, ModelConfig, TrainConfig
from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.presets import NAMED, of_depth, optim_for, preset


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"d_modle": 64}, "Did you mean 'd_model'"),
        ({"zzz": 1}, "Known: d_model"),
        ({"d_model": 100, "nhead": 8}, "Try d_model=112"),
        ({"patch_bits": 13}, "patch_bits=13"),
        ({"patch_bits": 9}, "Try max_seq_len=1026"),
        ({"ngram_rows": 1000}, "Try 1024"),
        ({"ngram_orders": (3, 2)}, r"Try \(2, 3\)"),
        ({"ngram_orders": (2, 3), "ngram_dropout": (0.5,)}, "one for each"),
        ({"ngram_orders": (2,), "ngram_dropout": (1.0,)}, r"\[0, 1\)"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"d_model": "wide"}, "d_model='wide'"),
        ({"causal": False, "ngram_words": True}, r"goes with causal=True.*Try ngram_words=False"),
        ({"lambda_K": -0.1}, "lambda_K=-0.1"),
        ({"lambda_S": 0.1}, "needs experts.*Try experts=True"),
        ({"reversible": True, "use_checkpoint": True}, "reversible=True and use_checkpoint=True"),
        ({"checkpoint_every": 2}, "goes with use_checkpoint=True"),
        ({"checkpoint_every": 9, "use_checkpoint": True}, "Try checkpoint_every=4"),
        ({"chunk_size": 100}, "multiple of patch_bits=8.*Try chunk_size=96"),
        ({"chunk_size": 4096}, "up to max_seq_len=1024. Try chunk_size=1024"),
    ],
)
def test_a_shape_that_cannot_be_is_one_line_with_a_way_out(fields, text):
    with pytest.raises(ConfigError, match=text) as caught:
        BitTransformerLM(**fields)
    assert len(str(caught.value).splitlines()) == 1


def test_keywords_of_later_machinery_are_taken_when_off():
    assert ModelConfig.of({"lambda_S": 0, "experts": None, "lambda_K": 0, "causal": True}) == ModelConfig()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "no budget"),
        ({"steps": 1, "seconds": 1}, "steps and seconds"),
        ({"steps": 1, "batch_size": 6, "accum_steps": 4}, "Try batch_size=8"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1, "optim": {"learning_rate": 1}}, "optim.learning_rate"),
    ],
)
def test_a_training_that_cannot_be_is_one_line(fields, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig.of(fields)


def test_configs_survive_json():
    for config in (preset("tiny"), TrainConfig(steps=3), DataConfig(corpora=("a", "b"))):
        assert type(config).of(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("patch_bits", range(1, 13))
@pytest.mark.parametrize("parity", [False, True])
def test_every_preset_is_a_legal_shape(patch_bits, parity):
    for depth in NAMED.values():
        config = of_depth(depth, patch_bits=patch_bits, parity=parity)
        assert config.num_layers == depth
        assert optim_for(config).lr > 0


def test_presets_by_name_by_depth_and_with_overrides():
    assert preset("small") == preset("4")
    assert preset("tiny", patch_bits=1).ngram_orders == ()
    assert preset("tiny", ngram_orders=(2, 3)).ngram_dropout == ()
    for name in ("huge", "0", "65"):
        with pytest.raises(ConfigError, match="preset="):
            preset(name)


@pytest.mark.parametrize(
    ("patch_bits", "parity", "phases", "align"),
    [
        (8, False, 1, 1),
        (9, True, 1, 1),
        (1, False, 8, 1),
        (1, True, 9, 1),
        (12, False, 2, 3),
        (4, False, 2, 1),
        (3, True, 3, 1),
        (5, False, 8, 5),
    ],
)
def test_where_patches_and_bytes_meet(patch_bits, parity, phases, align):
    config = ModelConfig(patch_bits=patch_bits, parity=parity, max_seq_len=patch_bits * 72)
    assert (config.phases, config.align_bytes) == (phases, align)
