"""Models, compressors and what others bring are scored through one interface."""

from __future__ import annotations

import bz2
import itertools
import lzma
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.errors import BitStreamError
from bit_transformer.evaluation.baselines import Compressor, compressors, compressors_bpb
from bit_transformer.evaluation.metrics import ModelScorer, bits_per_byte, byte_costs, default_protocol
from bit_transformer.evaluation.scorer import Score, Scorer, cost_of
from bit_transformer.service.evaluation import compare_on
from bit_transformer.service.jobs import Job, Reading
from tests.conftest import prose, random_model


@dataclass(frozen=True)
class Counts:
    """Somebody else's model: bytes by how often they came before (add one), scored in stretches."""

    name: str = "counts"
    stretch: int = 100

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        seen, bits = np.ones(256), 0.0
        for begin in range(0, len(corpus), self.stretch):
            data = corpus.read(begin, self.stretch)
            for byte in data:
                bits -= math.log2(seen[byte] / seen.sum())
                seen[byte] += 1
            yield Score(bits, begin + len(data), "order 0, adaptive")


def order_0_bits(data: bytes) -> float:
    """The same in closed form: the cost of a text under add-one counts does not depend on its order."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    nats = math.lgamma(256 + len(data)) - math.lgamma(256) - sum(math.lgamma(1 + c) for c in counts)
    return nats / math.log(2)


def test_three_kinds_of_scorers_meet_on_the_same_bytes():
    data = prose(1, 300)
    corpus = bytes_corpus(data)
    model = random_model(max_seq_len=256)
    protocol = default_protocol(model)
    scorers: list[Scorer] = [ModelScorer(model, protocol), Counts(), *compressors()]
    rows = {scorer.name: cost_of(scorer, corpus) for scorer in scorers}
    assert list(rows) == ["this model", "counts", "zlib -9", "bz2 -9", "xz -9e"]
    assert {row.bytes for row in rows.values()} == {len(data)}
    assert rows["this model"].bits == pytest.approx(sum(c.sum() for c in byte_costs(model, corpus, protocol)), rel=1e-6)
    assert rows["counts"].bits == pytest.approx(order_0_bits(data), rel=1e-9)
    assert rows["bz2 -9"].bits == 8 * len(bz2.compress(data))
    assert all(str(row.protocol) for row in rows.values())


def test_scores_are_cumulative_and_the_last_is_of_everything():
    data = prose(2, 400)
    model = random_model(max_seq_len=256)
    for scorer in (ModelScorer(model, default_protocol(model), batch=4), Counts()):
        scores = list(scorer.scores(bytes_corpus(data)))
        assert len(scores) > 3 and scores[-1].bytes == len(data)
        assert all(a.bytes < b.bytes and a.bits < b.bits for a, b in itertools.pairwise(scores))
        told: list[Score] = []
        assert cost_of(scorer, bytes_corpus(data), told.append) == scores[-1] and told == scores


def test_a_diffusion_model_is_a_scorer_by_its_bound():
    model = random_model(max_seq_len=128, causal=False)
    corpus = bytes_corpus(prose(3, 10))
    scores = list(ModelScorer(model, default_protocol(model)).scores(corpus))
    assert scores[-1] == bits_per_byte(model, corpus) and scores[-1].standard_error > 0
    assert [s.bytes for s in scores] == [*range(16, len(corpus), 16), len(corpus)]


@pytest.mark.parametrize("size", [0, 1, 3000])
def test_a_primed_compressor_costs_what_the_second_part_adds(size):
    before, after = prose(4, 500)[:size], prose(5, 300)
    whole = {
        "zlib -9": lambda data: len(zlib.compress(data, 9)),
        "bz2 -9": lambda data: len(bz2.compress(data)),
        "xz -9e": lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    got = compressors_bpb(bytes_corpus(after), bytes_corpus(before))
    for name, count in whole.items():
        assert got[name] == pytest.approx(
            8 * (count(before + after) - count(before)) / len(after), abs=8 * 4 / len(after)
        )
    if size == 3000:  # one vocabulary: what was read before saves something
        assert all(got[name] < alone for name, alone in compressors_bpb(bytes_corpus(after)).items())


def test_a_compressor_says_what_it_read_before():
    data = bytes_corpus(b"abc")
    assert str(cost_of(Compressor("zlib -9", lambda: zlib.compressobj(9)), data).protocol) == "starts empty"
    primed = Compressor("zlib -9", lambda: zlib.compressobj(9), bytes_corpus(bytes(5000)))
    assert "5,000 bytes" in str(cost_of(primed, data).protocol)


def test_nothing_to_score_is_refused_by_all():
    for scorer in (Counts(), *compressors(), *compressors(bytes_corpus(b"before"))):
        with pytest.raises(BitStreamError, match="no bytes"):
            cost_of(scorer, Corpus([]))


def test_the_table_of_an_evaluation_comes_from_scorers():
    data = prose(6, 200)
    model = random_model(max_seq_len=256)
    told: list[Reading] = []
    found = compare_on(model, bytes_corpus(data), Job(told.append))
    assert told[-1].done == told[-1].total == len(data)
    assert found.bpb == bits_per_byte(model, data).bpb and found.bytes == len(data)
    assert found.compressors == compressors_bpb(bytes_corpus(data))
