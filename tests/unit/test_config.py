from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
from typing import Any

import pytest
from pydantic import BaseModel, Field

from bit_transformer import config as configs
from bit_transformer.config import (
    Config,
    DataConfig,
    ExpertConfig,
    GrowthConfig,
    ModelConfig,
    OptimConfig,
    Sampling,
    TrainConfig,
)
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
        ({"ngram_rows": 1000}, "Try ngram_rows=1024"),
        ({"ngram_orders": (3, 2)}, r"Try ngram_orders=\(2, 3\)"),
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
        with pytest.raises(ConfigError, match="got preset="):
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


# ---- made directly, shown, explained ----

KINDS = (DataConfig, ExpertConfig, GrowthConfig, ModelConfig, OptimConfig, Sampling, TrainConfig)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sampling(temprature=0.7), "unknown key 'temprature' in Sampling. Did you mean 'temperature'?"),
        (lambda: Sampling(temperature=-1), "got temperature=-1; float >= 0 is needed. Try temperature=0.0"),
        (lambda: Sampling(top_p=0), "got top_p=0; float in (0, 1] is needed. Try top_p=1.0"),
        (lambda: Sampling(learn="x"), "got learn='x'; 'nothing', 'prompt' or 'all' is needed. Try learn='nothing'"),
        (lambda: Sampling(seed=-1), "got seed=-1; int >= 0 or None is needed. Try seed=0"),
        (lambda: ModelConfig(patch_bits=13), "got patch_bits=13; int in [1, 12] is needed. Try patch_bits=12"),
        (lambda: ModelConfig(d_model="wide"), "got d_model='wide'; int > 0 is needed. Try d_model=128"),
        (lambda: ModelConfig(num_layers=0), "got num_layers=0; int > 0 is needed. Try num_layers=1"),
        (lambda: ModelConfig(hidden_size=64), "unknown key 'hidden_size' in ModelConfig. Did you mean 'd_model'?"),
        (lambda: ModelConfig(ngram_orders=(2, "x")), "got ngram_orders[1]='x'; int > 0 is needed. Try ngram_orders=()"),
        (lambda: ModelConfig(experts=3), "got experts=3; ExpertConfig, a mapping of its fields or None is needed. Try "
                                         "leaving it out"),
        (lambda: ModelConfig(experts={"buckets": 1000}), "experts.buckets=1000 must be a power of two, 1,024 or more. "
                                                         "Try experts.buckets=1024"),
        (lambda: ModelConfig(experts={"order": 1}), "unknown key 'experts.order' in ExpertConfig. Did you mean 'orders'?"),
        (lambda: ExpertConfig(sparse=((1, -2),)), "got sparse[0][1]=-2; int > 0 is needed. Try sparse[0][1]=1"),
        (lambda: OptimConfig(betas=[0.1]), "got betas=[0.1]; (float in [0, 1), float in [0, 1)) is needed. Try "
                                           "betas=(0.9, 0.95)"),
        (lambda: OptimConfig(betas=(0.1, 1)), "got betas[1]=1; float in [0, 1) is needed. Try betas=(0.9, 0.95)"),
        (lambda: TrainConfig(steps=1, lr=1), "unknown key 'lr' in TrainConfig. Did you mean 'optim.lr'?"),
        (lambda: TrainConfig(steps=1, learning_rate=1), "unknown key 'learning_rate' in TrainConfig. Did you mean "
                                                        "'optim.lr'?"),
        (lambda: TrainConfig(steps=1, optim=3), "got optim=3; OptimConfig or a mapping of its fields is needed. Try "
                                         "leaving it out"),
        (lambda: TrainConfig(steps=1, seed=1 << 32), "got seed=4294967296; int in [0, 2,147,483,648) is needed. Try seed=0"),
        (lambda: DataConfig(corpora="a"), "got corpora='a'; tuple of str is needed. Try corpora=('stdlib',)"),
        (lambda: Sampling(0.7), "got 0.7 without a name; Sampling takes its fields by name. Try "
                                "Sampling(temperature=...), or Sampling.of(mapping)"),
    ],
)  # fmt: skip
def test_a_config_made_directly_fails_in_one_line(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == text


def test_an_error_names_its_field():
    for make, field in (
        (lambda: Sampling(temprature=1), "temprature"),
        (lambda: Sampling(temperature=-1), "temperature"),
        (lambda: TrainConfig.of({"steps": 1, "optim": {"betas": (1, 1)}}), "optim.betas[0]"),
        (lambda: ModelConfig(experts={"order": 1}), "experts.order"),
        (lambda: ModelConfig(experts={"buckets": 3}), "experts"),
        (lambda: TrainConfig(), None),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.field == field


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_refuses_another_type_by_its_name_and_keeps_the_line_short(kind):
    class Unfit:
        def __repr__(self) -> str:
            return "many\nlines " * 100

    for name in kind.model_fields:
        for make in (lambda fields: kind(**fields), kind.of):
            with pytest.raises(ConfigError) as caught:
                make({name: Unfit()})
            text = str(caught.value)
            assert text.startswith(f"got {name}=many lines") and " is needed. Try " in text
            assert len(text.splitlines()) == 1 and len(text) < 300


def test_keys_that_are_no_names_are_unknown_keys():
    with pytest.raises(ConfigError, match="unknown key '1' in Sampling"):
        Sampling.of({1: 2})


def test_a_config_cannot_be_changed_and_says_how_to_make_another():
    sampling = Sampling(seed=1)
    with pytest.raises(ConfigError, match=r"Try Sampling\.of\(config\.model_dump\(\) \| {'seed': 2}\)"):
        sampling.seed = 2
    assert Sampling.of(sampling.model_dump() | {"seed": 2}).seed == 2 and sampling.seed == 1


CHANGED = [
    (Sampling(), "Sampling()"),
    (Sampling(temperature=0.7, seed=1), "Sampling(temperature=0.7, seed=1)"),
    (ModelConfig(d_model=64, nhead=2, experts=True), "ModelConfig(d_model=64, nhead=2, experts=ExpertConfig())"),
    (
        TrainConfig(steps=3, optim={"lr": 0.1}, progressive={"rate": 0.5}),
        "TrainConfig(steps=3, progressive=GrowthConfig(rate=0.5), optim=OptimConfig(lr=0.1))",
    ),
    (DataConfig(corpora=("a", "b")), "DataConfig(corpora=('a', 'b'))"),
]


@pytest.mark.parametrize(("config", "text"), CHANGED)
def test_a_repr_shows_what_is_not_the_default_and_is_python(config, text):
    assert repr(config) == str(config) == f"{config}" == text
    assert eval(text, vars(configs)) == config


@pytest.mark.parametrize("name", NAMED)
def test_the_repr_of_a_preset_makes_it_again(name):
    for config in (preset(name), preset(name, causal=False), preset(name, parity=True, patch_bits=9)):
        assert eval(repr(config), vars(configs)) == config


@pytest.mark.parametrize("kind", KINDS)
def test_help_lists_the_fields_and_nothing_of_pydantic(kind):
    text = pydoc.plain(pydoc.render_doc(kind))
    fields = " ".join(text.split("Method resolution order")[0].replace("|", " ").split())
    for name, field in kind.model_fields.items():
        assert field.description
        assert f"default {field.default!r}): {' '.join(field.description.replace('|', ' ').split())}" in fields
        assert f" {name} (" in fields
    inherited = [name for name in vars(BaseModel) if name not in vars(kind) and name not in vars(Config)]
    assert len(inherited) > 30 and not [name for name in inherited if f"\n |  {name}" in text]
    assert "\n |  of(values" in text


def test_what_help_hides_still_works():
    config = ModelConfig(d_model=64, nhead=2, experts=True)
    assert ModelConfig.model_validate(config.model_dump()) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == copy.copy(config) == config
    assert config.model_copy(update={"num_layers": 7}).num_layers == 7
    assert ModelConfig.model_json_schema()["properties"]["patch_bits"]["maximum"] == 12
    assert hash(config) == hash(ModelConfig.of(config.model_dump()))


class Asked(Config):
    """Fields that must be given, and fields with a default of their own each."""

    run: str = Field(description="Which run.")
    steps: int
    more: dict[str, Any] = Field(default_factory=dict, description="More.")


def test_fields_that_must_be_given_say_so():
    assert str(inspect.signature(Asked)) == "(*, run, steps, more={})"
    assert Asked.__doc__ is not None and Asked.__doc__.splitlines()[2:] == [
        "Args:",
        "    run (str, required): Which run.",
        "    steps (int, required):",
        "    more (dict, default {}): More.",
    ]
    made = Asked(run="a", steps=1)
    assert repr(made) == "Asked(run='a', steps=1)" and repr(Asked(run="a", steps=1, more={"b": 2})).endswith(
        "more={'b': 2})"
    )
    for fields, text in (
        ({"run": 3, "steps": 1}, "got run=3; str is needed. Try another value"),
        ({"steps": 1}, "got no run; it is needed: Which run."),
        ({"rnu": "a", "steps": 1}, "unknown key 'rnu' in Asked. Did you mean 'run'?"),
        ({"run": "a", "steps": 1, "more": 3}, "got more=3; dict is needed. Try more={}"),
    ):
        with pytest.raises(ConfigError) as caught:
            Asked.of(fields)
        assert str(caught.value) == text


def test_every_alias_leads_to_a_field():
    for kind in KINDS:
        for name, meant in kind.aliases.items():
            holder, _, field = meant.rpartition(".")
            assert name not in kind.model_fields
            assert field in (OptimConfig if holder == "optim" else kind).model_fields
