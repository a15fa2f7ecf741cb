"""Plans of comparisons, and what is found in their results: paired tests, intervals, and what must not be claimed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bit_transformer.config import ComparisonConfig, Contender, DataConfig
from bit_transformer.config.comparison import KNOWN
from bit_transformer.errors import ConfigError, NonFiniteLoss
from bit_transformer.evaluation.significance import holm, paired_test
from bit_transformer.service.comparing.cells import (
    Cell,
    CellResult,
    Scored,
    cells_of,
    model_config,
    read_result,
    run_cell,
)
from bit_transformer.service.comparing.findings import findings_of
from bit_transformer.service.comparing.plan_file import quick_plan, read_plan, with_changes
from bit_transformer.service.comparing.report import write_report
from tests.conftest import ROOT


def plan_of(**fields: object) -> ComparisonConfig:
    return ComparisonConfig.of({"models": ["patches-8", "byte-softmax"], **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"models": ["patches-7"]}, "got model 'patches-7', which is not known; one of btlm, patches-8"),
        ({"models": []}, "models"),
        ({"models": ["patches-8", "patches-8"]}, "got model 'patches-8' twice"),
        ({"models": [{"name": "a", "kind": "bits", "train": {"seconds": 9}}]}, "all share one budget"),
        ({"models": [{"name": "a", "kind": "bits", "train": {"seed": 9}}]}, "seeds are paired"),
        ({"models": [{"name": "a", "kind": "counts", "train": {"batch_size": 9}}]}, "not trained by updates"),
        ({"models": [{"name": "a", "kind": "gpt2-bytes", "model": {"d_model": 9}}]}, "which has none"),
        ({"models": [{"name": "a/b", "kind": "bits"}]}, "name"),
        ({"train": {"seconds": 1, "bytes": 5}}, "got bytes and seconds in train"),
        ({"train": {"batch_size": 4}}, "got no budget in train"),
        ({"train": {"seconds": 1, "seed": 3}}, "got train.seed"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "got seed '1' twice"),
        ({"reference": "gpt2"}, "a trained model of the plan that is scored frozen is needed: patches-8, byte-softmax"),
        ({"model": []}, "Did you mean 'models'?"),
        ({"corpora": ["a/x.txt", "b/x.txt"]}, "got corpus 'x.txt' twice"),
        ({"corpora": [{"corpora": ["a"], "validation": "held-out"}]}, "must select nothing"),
        ({"corpora": ["-"]}, "standard input"),
        ({"seeds": [-1]}, "got seed -1"),
        ({"models": [{"name": "patchs-9", "model": {"num_layers": 3}}]}, "which is not known"),
        ({"models": [{"name": "a", "kind": "counts", "vocabulary": 300}]}, "it is of gpt2-bpe"),
        ({"models": [{"name": "a", "preset": "tiny", "learning": ["online"]}], "reference": "a"}, "scored frozen"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(fields, said):
    with pytest.raises(ConfigError) as refused:
        plan_of(**fields)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_known_names_stand_for_models_and_can_be_changed():
    plan = plan_of(models=list(KNOWN), corpora=["a", {"corpora": ["b"], "holdout": 0.2}], seeds=3)
    assert [model.label for model in plan.models] == list(KNOWN)
    assert plan.seeds == (0, 1, 2) and plan.corpora[1].holdout == 0.2 and plan.budget == ("seconds", 60.0)
    changed = plan_of(models=[{"name": "patches-8", "model": {"num_layers": 3}}])
    assert changed.models[0].model == {"patch_bits": 8, "num_layers": 3}
    assert (
        ComparisonConfig.of(plan.model_dump()) == plan == ComparisonConfig.model_validate_json(plan.model_dump_json())
    )
    for name in ("comparison.yaml", "comparison-bytes.yaml"):
        assert read_plan(ROOT / "recipes" / name).reference in ("btlm", "patches-8")
    assert read_plan(Path("comparison")) == read_plan(ROOT / "recipes/comparison.yaml")


def test_models_have_one_shape_unless_a_preset_says_otherwise():
    plan = plan_of(models=["btlm", "patches-8", "patches-9-parity", "flat-bits", "byte-softmax"])
    shapes = {model.label: model_config(plan, model) for model in plan.models}
    assert {(s.d_model, s.nhead, s.num_layers) for s in shapes.values()} == {(128, 2, 2)}
    assert [s.max_seq_len // s.byte_bits for s in shapes.values()] == [256] * 5
    assert shapes["btlm"].experts and not any(shapes[name].experts for name in shapes if name != "btlm")
    assert shapes["flat-bits"].patch_bits == 1 and shapes["patches-9-parity"].parity


def test_models_take_turns_and_a_changed_plan_has_other_cells():
    plan = plan_of(models=["patches-8", "byte-softmax", "counts-2"], corpora=["a", "b"], seeds=2)
    order = [(cell.model.label, cell.data.corpora[0], cell.seed) for cell in cells_of(plan)]
    assert order[:2] == [("counts-2", "a", None), ("counts-2", "b", None)]
    assert order[2:6] == [
        ("patches-8", "a", 0),
        ("byte-softmax", "a", 0),
        ("patches-8", "b", 0),
        ("byte-softmax", "b", 0),
    ]
    keys = {cell.key(plan) for cell in cells_of(plan)}
    assert len(keys) == len(order)
    more = {cell.key(with_changes(plan, seeds=3)) for cell in cells_of(with_changes(plan, seeds=3))}
    assert keys < more  # more seeds keep what is done
    other = with_changes(plan, budget={"bytes": 5000})
    assert other.budget == ("bytes", 5000.0)
    kept = keys & {cell.key(other) for cell in cells_of(other)}
    assert all(key.startswith("counts") for key in kept) and len(kept) == 2
    cell = Cell(Contender(name="x"), DataConfig(corpora=("/home/a b/c.txt",)), 1)
    assert cell.key(plan).startswith("x-c.txt-s1-")


def result(model: str, corpus: str, seed: int, bpb: float, blocks: np.ndarray) -> CellResult:
    cost = (blocks - blocks.mean() + bpb) * 1024
    score = Scored(False, float(cost.sum()), 1024 * len(cost), 0.1, "static", cost.tolist(), [bpb / 8] * 8)
    machine = {"cpu": "x", "threads": 1}
    curve = [(1.0, 10.0, 100.0, bpb + 1), (2.0, 20.0, 200.0, bpb)]
    return CellResult(
        f"{model}{corpus}{seed}",
        model,
        "bits",
        corpus,
        seed,
        {model: score},
        machine,
        ("d", "e"),
        curve,
        2.0,
        20.0,
        200.0,
        2,
        5,
    )


def made(seeds: int, corpora: tuple[str, ...] = ("a", "b"), gap: float = 0.05):
    random = np.random.default_rng(5)
    plan = plan_of(models=["patches-8", "byte-softmax", "flat-bits"], corpora=list(corpora), seeds=seeds)
    cells = []
    for corpus in corpora:
        text = random.normal(0, 0.3, 64)
        for seed in range(seeds):
            luck = random.normal(0, 0.1)
            for model, mean in (("patches-8", 2.0), ("byte-softmax", 2.0 + gap), ("flat-bits", 2.0)):
                noise = random.normal(0, 0.01)
                cells.append(result(model, corpus, seed, mean + luck + noise, text + random.normal(0, 0.01, 64)))
    return plan, cells


def test_differences_are_paired_and_corrected_by_table():
    plan, cells = made(6)
    found = findings_of(plan, cells, {})
    assert found.reference == "patches-8" and [c.other for c in found.joint] == ["byte-softmax", "flat-bits"]
    by = {(c.other, c.corpus): c for c in (*found.claims, *found.joint)}
    mine = [c.scores["patches-8"].bpb for c in cells if c.model == "patches-8" and c.corpus == "a"]
    theirs = [c.scores["byte-softmax"].bpb for c in cells if c.model == "byte-softmax" and c.corpus == "a"]
    assert by["byte-softmax", "a"].test == paired_test(mine, theirs)
    together = [*found.claims, *found.joint]
    assert [c.p_holm for c in together] == holm([c.test.p for c in together])
    whole = by["byte-softmax", None]
    assert whole.test.n == 12 and whole.shown and "better than byte-softmax by 0.0" in whole.says
    assert by["byte-softmax", "a"].test.p == 2 / 2**6 and not by["byte-softmax", "a"].shown  # 4 claims: 4 * 0.031
    assert not by["flat-bits", None].shown and by["flat-bits", "a"].seeds_needed >= 8
    assert by["flat-bits", None].spread is None and by["flat-bits", None].seeds_needed is None
    low, high = by["byte-softmax", "a"].window_low, by["byte-softmax", "a"].window_high
    assert low < by["byte-softmax", "a"].test.difference < high < 0
    assert any("With 6 pairs and 6 claims in all" in line and "8 seeds would do" in line for line in found.limits)
    assert any("flat-bits, over all corpora together: no difference shown" in line for line in found.limits)
    rows = {(row.corpus, row.name): row for row in found.rows}
    assert rows["a", "patches-8"].low < rows["a", "patches-8"].mean < rows["a", "patches-8"].high


def test_frozen_and_adaptive_figures_are_kept_apart():
    plan, cells = made(6, ("a",))
    plan = ComparisonConfig.of(
        {**plan.model_dump(), "models": [*plan.model_dump()["models"], {"name": "z", "kind": "compressor"}]}
    )
    learns = Scored(True, 8.0, 64 * 1024, 0.1, "online")
    cells = [
        replace(c, scores={**c.scores, "patches-8, online": learns}) if c.model == "patches-8" else c for c in cells
    ]
    squeezed = CellResult(
        "z", "z", "compressor", "a", None, {"xz -9e, primed": replace(learns, bits=9.0)}, {}, ("d", "e")
    )
    found = findings_of(plan, [*cells, squeezed], {})
    assert [row.name for row in found.rows if row.adaptive] == ["patches-8, online", "xz -9e, primed"]
    assert not found.rows[0].adaptive and found.rows[-1].adaptive
    assert abs(found.claims[0].test.difference) < 0.1  # of the frozen scores
    assert {claim.other for claim in found.claims} == {"byte-softmax", "flat-bits"}


def test_a_result_that_is_no_number_is_no_result(monkeypatch, tmp_path):
    (tmp_path / "t").write_bytes(bytes(range(256)) * 40)
    plan = plan_of(models=["counts-1"], corpora=[str(tmp_path / "t")])
    bad = {"scores": {"counts-1": Scored(False, float("nan"), 10, 0.1, "")}}
    monkeypatch.setattr("bit_transformer.service.comparing.cells._counts", lambda *_: bad)
    with pytest.raises(NonFiniteLoss, match="counts-1 that is not finite"):
        run_cell(plan, cells_of(plan)[0], tmp_path / "made")


def test_with_few_seeds_it_says_what_cannot_be_said():
    plan, cells = made(2, ("a",))
    found = findings_of(plan, cells, {"x": "no space"})
    assert not any(claim.shown for claim in found.claims) and found.joint == []
    assert any("With 2 pairs" in line and "no claim" in line for line in found.limits)
    assert "x failed: no space" in found.limits
    alone = findings_of(*made(1, ("a",)), {})
    assert all(claim.test is None and claim.says.endswith("nothing can be said") for claim in alone.claims)
    half = findings_of(plan, [c for c in cells if (c.model, c.seed) != ("flat-bits", 1)], {})
    assert any("flat-bits on a has 1 of 2 seeds" in line for line in half.limits)


@pytest.mark.slow
def test_false_claims_are_as_rare_as_promised():
    """2,000 comparisons of equal models: a false claim in at most 5 % of the tables, and intervals over blocks that hold the truth."""
    random = np.random.default_rng(1)
    tables = claims = 0
    for _ in range(2000):
        plan = plan_of(models=["patches-8", "byte-softmax", "flat-bits"], corpora=["a"], seeds=8)
        cells = [
            result(model, "a", seed, 2 + random.normal(0, 0.02), random.normal(0, 0.1, 4))
            for seed in range(8)
            for model in ("patches-8", "byte-softmax", "flat-bits")
        ]
        shown = [claim.shown for claim in findings_of(plan, cells, {}).claims]
        claims, tables = claims + sum(shown), tables + any(shown)
    assert tables / 2000 <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    assert claims > 0


def test_the_report_says_all_in_files_of_its_own(tmp_path):
    plan, cells = made(6)
    write_report(tmp_path, plan, findings_of(plan, cells, {"k": "<b>failed</b>"}))
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert page.count("<svg") == 4 and "&lt;b&gt;failed" in page and "<b>failed" not in page
    assert not any(word in page for word in ("<script", "<link", "src=", "@import", "url(http"))
    assert text.count("![") == 4 and "| **patches-8** | " in text and "SHA-256" in text
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".html", ".json", ".md", *[".svg"] * 4]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(tmp_path, plan, findings_of(plan, cells, {"k": "<b>failed</b>"}))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "models: [", "is not valid YAML"),
        ("a.yaml", "- patches-8", "got list; a mapping with models is needed"),
        ("a.toml", "models = ", "is not valid TOML"),
        ("a.json", "{", "is not valid JSON"),
        ("a.yaml", "models: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("a.yaml", "seeds: 3", "got no models; it is needed"),
        ("missing.yaml", None, "cannot be read (No such file or directory)"),
    ],
)
def test_files_that_are_no_plans(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_plan(tmp_path / name)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_the_quick_plan_and_damaged_results(tmp_path):
    assert len(cells_of(quick_plan())) == 6
    (tmp_path / "a.json").write_text('{"key": 1}')
    assert read_result(tmp_path / "a.json") is None and read_result(tmp_path / "none.json") is None
