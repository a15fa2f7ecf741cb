"""Maps of surprise as tables, pictures, bookmarks and pages: what is written is what was known."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from bit_transformer.service.maps import overview
from bit_transformer.service.maps.formats import write_csv, write_imhex, write_json, write_png
from bit_transformer.service.maps.marks import Mark, ranges_above
from bit_transformer.service.maps.overview import BLOCK, GAPS, Overview, edges_of, hilbert, look
from bit_transformer.service.maps.page import pack_block, write_page
from bit_transformer.service.maps.scale import LEVELS, colours, in_levels, in_steps
from bit_transformer.surprisal.records import Segment, SurpriseMap


def made(size: int, *, bits: bool = True, name: str = "file.bin") -> SurpriseMap:
    """A calm first half, a dear second half, and three bytes that stand out."""
    rng = np.random.default_rng(size)
    costs = np.where(np.arange(size) < size // 2, rng.gamma(1, 0.6, size), rng.normal(8, 0.3, size))
    costs[size // 4 : size // 4 + 3] = 20
    single = np.maximum(costs, 0)[:, None] * rng.dirichlet(np.ones(8) / 3, size)
    return SurpriseMap(
        name,
        rng.integers(0, 256, size).astype(np.uint8),
        np.maximum(costs, 0).astype(np.float16),
        single.astype(np.float16) if bits else None,
        (Segment(0, size // 2, "code", 0.7, True), Segment(size // 2, size, "compressed", 8.0, False)),
        "a test",
    )


def seen(surprise: SurpriseMap) -> Overview:
    return next(said for said in look(surprise) if isinstance(said, Overview))


@pytest.mark.parametrize("bits", [True, False])
def test_csv_has_every_byte(bits: bool):
    surprise, out = made(20_000, bits=bits), io.StringIO()
    write_csv(surprise, out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [int(row["offset"]) for row in rows] == list(range(20_000))
    assert np.array_equal([int(row["value"]) for row in rows], surprise.data)
    assert np.allclose([float(row["bits"]) for row in rows], surprise.costs, rtol=1e-3, atol=1e-4)
    assert ("bit7" in rows[0]) == bits
    if bits:
        single = [[float(row[f"bit{bit}"]) for bit in range(7, -1, -1)] for row in rows]
        assert np.allclose(single, surprise.bit_costs, rtol=1e-3, atol=1e-4)


def test_csv_of_windows():
    surprise, out = made(1_000), io.StringIO()
    write_csv(surprise, out, window=300)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [(int(row["offset"]), int(row["bytes"])) for row in rows] == [(0, 300), (300, 300), (600, 300), (900, 100)]
    assert float(rows[3]["bits_per_byte"]) == pytest.approx(surprise.costs[900:].astype(float).mean(), abs=1e-3)
    assert float(rows[0]["peak"]) == 20


def test_json_lines_have_every_byte():
    surprise, out = made(3_000), io.StringIO()
    write_json(surprise, out)
    head, *rows = map(json.loads, out.getvalue().splitlines())
    assert head["bytes"] == len(rows) == 3_000 and head["bits_per_byte"] == pytest.approx(surprise.bpb, abs=1e-3)
    assert head["segments"][1] == {
        "begin": 1500,
        "end": 3000,
        "kind": "compressed",
        "bits_per_byte": 8.0,
        "like": False,
    }
    assert np.array_equal([row["value"] for row in rows], surprise.data)
    assert np.allclose([row["bit_costs"] for row in rows], surprise.bit_costs, rtol=1e-3, atol=1e-4)
    out = io.StringIO()
    write_json(surprise, out, window=1024)
    assert [json.loads(line)["bytes"] for line in out.getvalue().splitlines()[1:]] == [1024, 1024, 952]


@pytest.mark.parametrize("along_hilbert", [False, True])
@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_png_opens(tmp_path: Path, size: int, along_hilbert: bool):
    from matplotlib.image import imread

    write_png(made(size), tmp_path / "map.png", hilbert=along_hilbert)
    assert imread(tmp_path / "map.png").shape[:2] == (840, 1440)


def test_imhex_bookmarks(tmp_path: Path):
    surprise = made(4_000)
    write_imhex(surprise, tmp_path / "map.hexbm", threshold=15)
    found = json.loads((tmp_path / "map.hexbm").read_text())["bookmarks"]
    assert found[0]["region"] == {"address": 1000, "size": 3} and "60.0 bits" in found[0]["comment"]
    assert [each["name"] for each in found[1:]] == ["compressed", "code"]
    for each in found:
        assert set(each) == {"name", "comment", "color", "region", "locked", "highlightVisible", "id"}
        assert 0 < each["color"] < 1 << 32
    marks = [Mark(at * 9, at * 9 + 4, f"damage {at}", float(at)) for at in range(1000)]
    write_imhex(surprise, tmp_path / "map.hexbm", marks)
    found = json.loads((tmp_path / "map.hexbm").read_text())["bookmarks"]
    assert len(found) == 400 and found[0]["name"] == "damage 999"
    assert {"code", "compressed"} < {each["name"] for each in found}


def test_ranges_above_a_threshold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bit_transformer.service.maps.marks.PIECE", 4)
    costs = np.array([9, 0, 9, 9, 9, 0, 0, 9, 0, 0, 0, 9], np.float16)
    surprise = SurpriseMap("x", np.zeros(12, np.uint8), costs, None, (), "")
    assert list(ranges_above(surprise, 8)) == [(0, 1), (2, 5), (7, 8), (11, 12)]
    assert list(ranges_above(surprise, 8, gap=1)) == [(0, 5), (7, 8), (11, 12)]
    assert list(ranges_above(surprise, 8, gap=2)) == [(0, 8), (11, 12)]
    assert list(ranges_above(surprise, 10)) == []


@pytest.mark.parametrize("size", [1, 63, 64, 200, 3_000, 200_001])
def test_counts_of_the_overview_are_exact(monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(overview, "PIECE", BLOCK)
    surprise = made(size, bits=False)
    found, steps = seen(surprise), in_steps(surprise.costs)
    assert found.bits == pytest.approx(surprise.costs.astype(float).sum(), rel=1e-6)
    assert np.array_equal(found.counts, np.bincount(steps, minlength=256))
    assert found.peaks.max() == steps.max()
    for threshold in (1, 5, 40, 80, 199, 200, 201):
        rounded = dataclasses.replace(surprise, costs=steps.astype(np.float16))
        for gap, starts in zip(GAPS, found.starts, strict=True):
            assert starts[threshold] == len(list(ranges_above(rounded, threshold, gap=gap)))
    assert np.array_equal(found.edge_counts[1:], np.bincount(edges_of(surprise.costs, 0, size), minlength=256)[1:])


def test_an_edge_is_where_the_means_differ_most():
    costs = np.where(np.arange(200_000) < 131_000, 1.0, 7.0).astype(np.float16)  # near the end of a block
    edges = np.concatenate([edges_of(costs, at, min(at + BLOCK, 200_000)) for at in range(0, 200_000, BLOCK)])
    assert np.flatnonzero(edges).tolist() == [131_000] and edges[131_000] == 60


def test_hilbert_curves_go_from_cell_to_cell():
    x, y = hilbert(4)
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) == 256
    assert (np.abs(np.diff(x)) + np.abs(np.diff(y)) == 1).all()
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 15, 0)


@pytest.mark.parametrize("name", ["light", "dark", "grey-light", "grey-dark"])
def test_colours_get_lighter_or_darker_one_way_and_carry_text(name: str):
    shades = colours(name).astype(float) / 255
    linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    change = np.diff(light[:161]) * (-1 if "light" in name else 1)
    assert (change > -2e-3).all() and change.sum() > 0.7
    assert np.maximum((light + 0.05) / 0.05, 1.05 / (light + 0.05)).min() >= 4.5  # black or white text, WCAG AA


def test_costs_that_are_no_numbers_are_written_as_numbers(tmp_path: Path):
    costs = np.array([np.nan, np.inf, -1, 3], np.float16)
    surprise = SurpriseMap("x", np.arange(4, dtype=np.uint8), costs, None, (Segment(0, 4, "text", np.nan),), "")
    assert in_steps(costs).tolist() == [0, 255, 0, 30]
    write_page(surprise, tmp_path / "x.html", marks=[Mark(0, 1, "a", float("inf"))])
    assert not re.search(r"\bNaN\b|Infinity", facts(tmp_path / "x.html"))
    out = io.StringIO()
    write_json(surprise, out)
    assert "NaN" not in out.getvalue() and "nan" not in out.getvalue()


def facts(path: Path) -> str:
    found = re.search(r'id="facts">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_page_is_one_file_with_everything(tmp_path: Path):
    surprise, told = made(3 * BLOCK - 7, name="</script><b>&.bin"), []
    marks = [Mark(5, 9, "<!--blocks--> \N{SNOWMAN}", 12.0)]
    write_page(surprise, tmp_path / "map.html", marks=marks, tell=lambda done, total: told.append((done, total)))
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
    assert told == sorted(told) and told[-1] == (len(surprise.data), len(surprise.data))
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|\bsrc=|<link[^>]*href=\"(?!data:)|@import|url\(", text)
    assert "<b>" not in text and "<!--style-->" not in text
    known = json.loads(facts(tmp_path / "map.html"))
    assert known["name"] == surprise.name and known["marks"] == [[5, 9, marks[0].label, 12.0]]
    assert known["bpb"] == pytest.approx(surprise.bpb, abs=1e-3)
    blocks = re.findall(r'data-block="(\d+)" id="block-\d+">([^<]*)</script>', text)
    assert [int(number) for number, _ in blocks] == [0, 1, 2]
    read = [zlib.decompress(base64.b64decode(packed), wbits=-15) for _, packed in blocks]
    lengths = [BLOCK, BLOCK, BLOCK - 7]
    assert b"".join(raw[:n] for raw, n in zip(read, lengths, strict=True)) == surprise.data.tobytes()
    costs = np.concatenate([np.frombuffer(raw[n : 2 * n], np.uint8) for raw, n in zip(read, lengths, strict=True)])
    assert np.abs(costs / 10 - surprise.costs.astype(float)).max() <= 0.051
    assert surprise.bit_costs is not None
    pairs = np.concatenate(
        [np.frombuffer(raw[2 * n :], np.uint8).reshape(n, 4) for raw, n in zip(read, lengths, strict=True)]
    )
    levels = np.stack((pairs >> 4, pairs & 15), axis=2).reshape(-1, 8)
    nearest = np.abs(surprise.bit_costs.astype(float)[..., None] - np.array(LEVELS)).min(axis=2)
    assert np.allclose(np.abs(np.array(LEVELS)[levels] - surprise.bit_costs.astype(float)), nearest, atol=1e-3)
    assert np.array_equal(pairs, in_levels(surprise.bit_costs))


def test_block_without_costs_of_single_bits():
    surprise = made(100, bits=False)
    raw = zlib.decompress(base64.b64decode(pack_block(surprise, 0)), wbits=-15)
    assert raw == surprise.data.tobytes() + in_steps(surprise.costs).tobytes()
