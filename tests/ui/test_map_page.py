"""The page of a map, opened from disk in a headless browser: it draws, jumps, filters and searches, and asks no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bit_transformer.service.maps.marks import Mark, ranges_above
from bit_transformer.service.maps.overview import edges_of
from bit_transformer.service.maps.page import write_page
from bit_transformer.service.maps.scale import in_steps
from bit_transformer.surprisal.records import Segment, SurpriseMap
from tests.ui.conftest import sync_api

Open = Callable[..., Any]
Shot = Callable[[Any, str], None]
expect = sync_api.expect

SIZE, CUT = 300_000, 131_060  # the cut is near the end of a block
NEEDLE = 196_600  # over the end of a block
DEAR = (40_000, 90_000, 250_000)


def made() -> SurpriseMap:
    rng = np.random.default_rng(7)
    data = np.resize(np.frombuffer(b"a calm text, line by line.\n", np.uint8), SIZE).copy()
    data[CUT:] = rng.integers(0, 256, SIZE - CUT)
    data[NEEDLE : NEEDLE + 12] = np.frombuffer(b"needle in it", np.uint8)
    costs = np.where(np.arange(SIZE) < CUT, rng.gamma(1, 0.3, SIZE), np.clip(rng.normal(8, 0.1, SIZE), 7, 9))
    for at in DEAR:
        costs[at : at + 5] = 18
    return SurpriseMap(
        "sample.bin",
        data,
        costs.astype(np.float16),
        (costs[:, None] * rng.dirichlet(np.ones(8), SIZE)).astype(np.float16),
        (Segment(0, CUT, "text", 0.3, True), Segment(CUT, SIZE, "compressed", 8.0, False)),
        "a test",
    )


@pytest.fixture(scope="module")
def surprise() -> SurpriseMap:
    return made()


@pytest.fixture(scope="module")
def file(surprise: SurpriseMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.html"
    write_page(surprise, path, marks=[Mark(90_000, 90_005, "overwritten", 90.0)])
    return path


@pytest.fixture
def open_map(browser: Any, file: Path) -> Iterator[Open]:
    """Opens the page. At the end of a test it may have asked for nothing else, and have met no error."""
    contexts: list[Any] = []
    asked: set[str] = set()
    faults: list[str] = []

    def open_(*, width: int = 1440, height: int = 900, dark: bool = False, at: str = "") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: asked.add(request.url.split("#")[0]))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(file.as_uri() + at)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert asked == {file.as_uri()}
    assert not faults, faults


def cursor(page: Any) -> int:
    return int(page.evaluate("btlm.cursor"))


def byte_text(page: Any, expected: str) -> None:
    expect(page.locator("#facts-of-byte")).to_contain_text(re.compile(expected, re.DOTALL))


def wide(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


def test_shows_numbers_and_jumps(surprise: SurpriseMap, open_map: Open, shot: Shot):
    page = open_map()
    expect(page.locator("#name")).to_have_text("sample.bin")
    expect(page.locator("#stats")).to_contain_text(f"{surprise.bpb:.3f}")
    byte_text(page, r"0x000000.*0x61.*'a'.*01100001")
    expect(page.locator("#bits > div")).to_have_count(8)
    shot(page, "map-light")

    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert abs(cursor(page) - SIZE / 2) < SIZE / 40
    first, last = page.evaluate("btlm.seen")
    assert first <= cursor(page) < last
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.2)
    expect(page.locator("#tip")).to_contain_text(re.compile(r"mean \d.*peak \d.*text", re.DOTALL))

    page.locator("#go").fill("0x1f00")
    page.locator("#go").press("Enter")
    assert cursor(page) == 0x1F00
    byte_text(page, "0x001f00.*7,936")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert cursor(page) == 0x1F11
    page.keyboard.press("Control+End")
    assert cursor(page) == SIZE - 1
    page.keyboard.press("Home")
    assert cursor(page) == (SIZE - 1) // 16 * 16
    page.keyboard.press("Control+Home")
    page.keyboard.press("PageDown")
    assert cursor(page) > 16

    rows = page.locator("#rows").bounding_box()
    page.mouse.move(rows["x"] + 180, rows["y"] + 200)
    expect(page.locator("#byte-title")).to_have_text("Byte under the pointer")
    byte_text(page, r"\d\.\d bits.*above")
    page.mouse.wheel(0, 2000)
    page.wait_for_timeout(50)
    assert page.evaluate("btlm.seen[0]") > 1000

    page.locator("#tab-marks").click()
    page.locator(".item.mark").first.click()
    assert cursor(page) == 90_000
    byte_text(page, "overwritten")
    page.locator("#tab-segments").click()
    page.locator(".item").nth(1).click()
    assert cursor(page) == CUT
    byte_text(page, "compressed.*not like the reference")


def test_threshold_ranges_and_edges(surprise: SurpriseMap, open_map: Open, shot: Shot):
    page, steps = open_map(), in_steps(surprise.costs)
    above = page.locator("#above")
    expect(above).to_contain_text(f"{int((steps >= 80).sum()):,} bytes")
    page.locator("#threshold-number").fill("12")
    expect(above).to_contain_text("15 bytes")
    expect(above).to_contain_text("3 ranges")
    assert len(list(ranges_above(surprise, 12))) == 3
    page.locator("#rows").focus()
    page.keyboard.press("n")
    byte_text(page, "0x009c40.*5 bytes")
    for at in DEAR[1:]:
        page.locator("#next").click()
        byte_text(page, f"{at:,}")
    page.keyboard.press("n")
    expect(page.locator("#status")).to_contain_text("no range")
    page.keyboard.press("p")
    byte_text(page, f"{DEAR[1]:,}")

    page.keyboard.press("Control+Home")
    page.locator("#edges").check()
    page.locator("#threshold-number").fill("7")
    edges = np.concatenate([edges_of(surprise.costs, at, min(at + 65_536, SIZE)) for at in range(0, SIZE, 65_536)])
    strong = np.flatnonzero(edges >= 70)
    assert len(strong) == 1 and abs(int(strong[0]) - CUT) < 5
    expect(above).to_contain_text("1 edge")
    page.locator("#next").click()
    byte_text(page, f"{int(strong[0]):,}")
    page.keyboard.press("h")
    shot(page, "map-edges")
    for number in range(5):  # the browser finds the same edges
        page.evaluate(f"btlm.jump({number} * 65536 + 1000)")
        found = page.evaluate(f"btlm.block({number}).then((block) => Array.from(block.edges))")
        assert found == edges[number * 65_536 : (number + 1) * 65_536].tolist()


def test_search(open_map: Open):
    page = open_map()
    page.keyboard.press("/")
    page.keyboard.type("needle in it")
    page.keyboard.press("Enter")
    byte_text(page, f"{NEEDLE:,}.*12 bytes")
    page.locator("#find-as").select_option("hex")
    page.locator("#find").fill("6e 65 65 64 6c 65")
    page.locator("#find").press("Enter")  # wraps around, to the same place
    byte_text(page, f"{NEEDLE:,}.*6 bytes")
    page.locator("#find").fill("00 01 02 03 04 05 06 07")
    page.locator("#find").press("Enter")
    expect(page.locator("#status")).to_contain_text("Not found")
    page.locator("#find").fill("xyz")
    page.locator("#find").press("Enter")
    expect(page.locator("#status")).to_contain_text("in hex")


def test_dark_zoomed_and_on_a_phone(open_map: Open, shot: Shot):
    page = open_map(dark=True, at="#0x9c40")
    assert cursor(page) == 40_000
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 17, 22)"
    box = page.locator("#curve").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.15, box["y"] + 60)
    page.mouse.wheel(0, -3000)
    expect(page.locator("#curve-range")).to_contain_text("0x")
    begin, end = page.evaluate("btlm.range")
    assert end - begin < SIZE / 4
    expect(page.locator("#curve")).to_have_attribute("data-exact", "true")  # by bytes, not by cells
    page.locator("#zoom-all").click()
    assert page.evaluate("btlm.range") == [0, SIZE]
    page.locator("#peak").click()
    shot(page, "map-dark")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"
    page.locator("#grey").click()
    expect(page.locator("#grey")).to_have_attribute("aria-pressed", "true")

    phone = open_map(width=390, height=844)
    assert not wide(phone)
    shot(phone, "map-phone")
