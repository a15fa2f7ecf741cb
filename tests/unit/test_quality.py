"""What clean text is like, and how odd other text is beside it."""

from __future__ import annotations

import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch

from bit_transformer import score_texts
from bit_transformer.adapters.rows import row_scorer
from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.quality.documents import read_line, with_columns
from bit_transformer.quality.measuring import MOST, Meter
from bit_transformer.quality.model import COLUMNS, QualityModel
from bit_transformer.quality.normal import Normal, Side, rows_of
from bit_transformer.safety.reference import Reference
from bit_transformer.surprisal.reading import read_costs
from bit_transformer.telemetry.measures import bit_negentropy, lz_complexity, symbiosis
from tests.conftest import at_most, prose


def documents(seed: int, count: int) -> list[bytes]:
    """Clean documents of 60 to 840 bytes."""
    words = np.random.default_rng(seed).integers(9, 120, count)
    return [prose(1000 * seed + i, int(n)) for i, n in enumerate(words)]


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return QualityModel.fit(documents(1, 260), jobs=1)


@pytest.fixture(scope="module")
def fresh(model) -> list[bytes]:
    return documents(2, 400)


def check_even(percentiles: np.ndarray, known: int) -> None:
    """Even, as far as so many clean documents can tell: three standard deviations of both samples, and 2 % for a bank that has read more than those of the folds."""
    for limit in (25, 50, 75, 90, 95):
        share = limit / 100
        deviation = math.sqrt(share * (1 - share) * (1 / len(percentiles) + 1 / known))
        assert abs((percentiles < limit).mean() - share) <= 3 * deviation + 0.02, limit


def test_percentiles_of_fresh_clean_documents_are_even(model, fresh):
    found = np.array([score.percentile for score in score_texts(fresh, model, jobs=1)])
    check_even(found, 260)
    blocked = sum(model.score(text).gate == "block" for text in fresh)
    assert blocked <= at_most(0.02, len(fresh))


def test_percentiles_are_even_for_passages_of_one_long_text():
    long = QualityModel.fit([prose(5, 20_000)], jobs=1)
    assert long.normal.lengths[0] == 16 and long.normal.lengths[-1] >= 1024
    check_even(np.array([long.score(text).percentile for text in documents(6, 200)]), 130)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (prose(7, 60)[:120] * 9, {"repeats", "loops"}),
        (b"again and again " * 60, {"repeats", "loops", "dear"}),
        (np.random.default_rng(0).integers(33, 127, 900, dtype=np.uint8).tobytes(), {"dear"}),
        ("Größer als andere: der Wörterbuchartikel wiederholt manches, doch nicht alles. ".encode(), {"dear"}),
        (b"for i in range(10):\n    print(i, end=', ')\n" * 2, {"dear", "repeats"}),
    ],
)
def test_loops_noise_and_foreign_text_are_odd(model, text, kinds):
    score = model.score(text)
    assert score.percentile > 99 and score.kind in kinds and score.gate == "block"
    assert score.reason.startswith(f"{score.kind}: ") and "gate: " in score.reason


def test_a_document_that_was_read_is_cheap(model):
    read = max(documents(1, 260), key=len)
    score = model.score(read)
    assert score.percentile > 95 and score.kind == "cheap"


def test_what_is_odder_than_everything_clean_is_still_in_order(model, fresh):
    random = np.random.default_rng(3)
    clean = np.frombuffer(max(fresh, key=len), np.uint8)
    last = -1.0
    for share in (0.0, 0.02, 0.05, 0.08):
        noisy = np.where(random.random(len(clean)) < share, random.integers(33, 127, len(clean)), clean)
        score = model.score(noisy.astype(np.uint8).tobytes())
        assert score.oddness > last
        last = score.oddness
    assert last > 60 and score.percentile == 100


def test_measures_are_those_of_the_rest_of_the_package(model):
    text = np.frombuffer(prose(9, 400), np.uint8)
    found = Meter(model.bank).measure(text)
    costs, _ = read_costs(text, model.bank, learn=False)
    assert found.bpb == pytest.approx(float(costs.mean()), rel=1e-5) and found.size == len(text)
    first = bytes_to_bits(text[:2048])[None]
    assert pytest.approx(float(bit_negentropy(first)[0]), abs=1e-9) == found.K
    assert pytest.approx(float(lz_complexity(first)[0]), abs=1e-9) == found.C
    one = model.bank.probabilities(text[:2048], model.bank.stream(), learn=False).reshape(1, -1)
    expected = symbiosis(torch.from_numpy(first), torch.from_numpy(one / 65536.0))
    assert pytest.approx(float(expected[0]), abs=1e-9) == found.S
    (vitals,) = Reference(model.bank, 8).measure(first)
    assert pytest.approx(vitals.S, abs=2e-3) == found.S  # which reads logits in twelfths
    several = Meter(model.bank).prefixes(text, [50, 700, len(text)])
    assert several[-1] == found
    for size, each in zip((50, 700), several, strict=False):
        assert each == Meter(model.bank).measure(text[:size])


def test_saving_and_loading_changes_no_score(model, fresh, tmp_path):
    model.save(tmp_path / "q.btlm")
    again = QualityModel.load(tmp_path / "q.btlm")
    assert list(score_texts(fresh[:40], again, jobs=1)) == [model.score(text) for text in fresh[:40]]
    assert again.digest == model.digest and again.facts == model.facts
    assert (tmp_path / "q.btlm").stat().st_size < 4e6
    again.save(tmp_path / "r.btlm")
    assert (tmp_path / "q.btlm").read_bytes() == (tmp_path / "r.btlm").read_bytes()


def test_files_that_are_no_quality_model_are_refused(model, tmp_path):
    path = tmp_path / "q.btlm"
    with pytest.raises(CheckpointError, match="no such file"):
        QualityModel.load(path)
    model.save(path)
    whole = path.read_bytes()
    for changed in (whole[:-5], whole[: len(whole) // 2] + b"\x01" + whole[len(whole) // 2 + 1 :], b"", b"{}\n"):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError) as refused:
            QualityModel.load(path)
        assert len(str(refused.value).splitlines()) == 1
    from bit_transformer.tensor_file import write_tensors

    write_tensors(path, {"a": torch.zeros(3)}, {"kind": "other"})
    with pytest.raises(CheckpointError, match="no quality model"):
        QualityModel.load(path)
    write_tensors(path, {"a": torch.zeros(3)}, {"kind": "quality", "version": 1, "experts": {}, "text_bits": 0})
    with pytest.raises(CheckpointError) as incomplete:
        QualityModel.load(path)
    assert len(str(incomplete.value).splitlines()) == 1


def test_fits_do_not_depend_on_threads_and_need_some_text(model):
    assert QualityModel.fit(documents(1, 260), jobs=2).digest == model.digest
    for few in ([], [b"too little"], [prose(1, 100)]):
        with pytest.raises(BitStreamError, match="bytes of clean text"):
            QualityModel.fit(few)
    with pytest.raises(ConfigError, match="units of 9 bits"):
        QualityModel.of_bank(ExpertBank(model.bank.config, 9, 1), documents(1, 5))


def test_a_bank_and_documents_that_it_has_not_read_are_enough(model, fresh):
    made = QualityModel.of_bank(model.bank, documents(3, 260))
    check_even(np.array([made.score(text).percentile for text in fresh]), 260)
    assert made.score(b"again and again " * 60).percentile > 99


def test_scores_come_in_order_and_lazily(model, fresh):
    seen = 0

    def endless():
        nonlocal seen
        for text in itertools.cycle(fresh):
            seen += 1
            yield text

    for jobs in (1, 2):
        seen = 0
        found = score_texts(endless(), model, jobs=jobs)
        assert not seen
        assert list(itertools.islice(found, 70)) == [model.score(text) for text in fresh[:70]]
        assert seen < 400
        found.close()


def test_texts_are_strings_or_bytes(model):
    text = "wörter und mehr " * 8
    assert model.score(text) == model.score(text.encode())
    with pytest.raises(BitStreamError, match="got int as a text"):
        next(score_texts([3], model, jobs=2))  # type: ignore[list-item]
    with pytest.raises(BitStreamError, match="half of a surrogate pair"):
        model.score("a\ud800")
    empty, short = model.score(""), model.score("Hello")
    assert empty.bpb is None and empty.percentile is None and empty.gate == "" and empty.reason == "empty"
    assert short.percentile is None and short.bpb > 0 and short.gate == "block" and short.kind == "short"
    very_long = model.score(prose(3, 10) * (MOST // 50))
    assert very_long.size > MOST and very_long.kind in ("loops", "repeats")


def test_rows_get_columns(model, fresh, tmp_path):
    model.save(tmp_path / "q.btlm")
    scorer = pickle.loads(pickle.dumps(row_scorer(tmp_path / "q.btlm", "body")))
    found = scorer({"body": [fresh[0].decode(), None, ""], "id": [1, 2, 3]})
    assert list(found) == list(COLUMNS) and found["percentile"][1:] == [None, None]
    assert found["percentile"][0] == round(model.score(fresh[0]).percentile, 4)
    assert found["reason"][1] == "no text" and scorer({"body": []}) == {name: [] for name in COLUMNS}
    with pytest.raises(ConfigError, match="got rows without 'body'"):
        scorer({"text": ["a"]})


def test_rows_of_the_library_datasets(model):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": [prose(i, 40).decode() for i in range(5)]})
    scored = made.map(row_scorer(model), batched=True, load_from_cache_file=False, new_fingerprint="x")
    assert scored["percentile"] == [round(model.score(prose(i, 40)).percentile, 4) for i in range(5)]


def test_a_side_counts_within_and_extrapolates_beyond():
    values = list(range(1000))
    side = Side(values, 0.1)
    assert side.surprise(500) == pytest.approx(np.log(2)) and side.surprise(-5) == 0
    assert side.surprise(900) == pytest.approx(np.log(10)) and side.surprise(2000) > side.surprise(1000) > 2.3
    ties = Side([0.0] * 990 + [1.0] * 10, 0.3)
    assert ties.surprise(0.0) == 0 and ties.surprise(1.0) > 4


def test_tables_are_checked(model):
    state = model.normal.state()
    assert Normal.of(state, "x").lengths == model.normal.lengths
    for wrong in ({}, {"a": np.zeros((3, 4))}, {"16": np.zeros((3, 3))}, {"16": np.full((3, 4), np.nan)}):
        with pytest.raises(CheckpointError):
            Normal.of(wrong, "x")
    assert rows_of([]).size == 0


@pytest.mark.parametrize(
    "line",
    [
        r'{"text": "a ü,}", "x": 1.10, "y": 1e400, "z": {"bpb": [1, "}"]}}',
        ' { "id" : 12345678901234567890123, "text":"é\u2028" } ',
        '{"bpb": {"a": [1, "}"]}, "text": "t", "K": null, "last": -0.0}',
        '{"text": "t"}',
        '{"K": 1, "text": "x", "reason":"before"}',
    ],
)
def test_columns_are_added_and_nothing_else_changes(line):
    columns = {"bpb": 1.5, "percentile": 3.0, "K": 0.1, "C": 0.2, "S": 0.3, "gate": "allow", "reason": 'a "b" é'}
    found, row = read_line(line.encode(), "text")
    made = with_columns(line.encode(), row, columns).decode()
    expected = {k: v for k, v in row.items() if k not in columns} | columns
    assert json.loads(made) == expected and list(json.loads(made)) == list(expected)
    if not set(columns) & set(row):
        assert made.startswith(line.strip()[:-1].rstrip())
    assert found.text == row["text"]
