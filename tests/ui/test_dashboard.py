"""The dashboard in a headless browser, on the real server: start, watch, steer and test a model, and what happens when the server is away."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.ui.conftest import Site, sync_api

Open = Callable[..., Any]
Shot = Callable[[Any, str], None]
expect = sync_api.expect
expect.set_options(timeout=90_000)  # the first use of a page may compile loops


def step_of(page: Any) -> int:
    shown = page.locator(".stat", has_text="Step").locator(".value")
    expect(shown).to_have_text(re.compile(r"\d"))
    return int(shown.inner_text().replace(",", ""))


def status(page: Any, *words: str) -> None:
    expect(page.locator(".head .badge").first).to_have_text(re.compile("|".join(words)))


def wide(page: Any) -> bool:
    """Whether the page scrolls to the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


def test_start_watch_and_steer_a_run_and_outlive_the_server(site: Site, open_page: Open, shot: Shot):
    page = open_page("/new")
    page.get_by_role("textbox", name="Name of the run").fill("live")
    expect(page.locator(".stat", has_text="Parameters").locator(".value")).not_to_have_text("\N{EN DASH}")
    page.get_by_label("Budget in").click()
    page.get_by_role("option", name="Updates").click()
    page.get_by_role("textbox", name="Budget", exact=True).fill("none")
    expect(page.get_by_text("got a budget of 'none'").first).to_be_visible()  # at the field, before anything is sent
    page.get_by_role("textbox", name="Budget", exact=True).fill("200000")
    for name, value in (("d model", "32"), ("max seq len", "256"), ("batch size", "2")):
        page.get_by_role("textbox", name=name, exact=True).fill(value)
    page.get_by_text("Experts", exact=True).click()
    page.get_by_role("switch", name="Use experts").click()
    page.get_by_label("Data to train on").click()
    page.get_by_role("option", name="stdlib").click()
    page.get_by_role("option", name=re.compile("text.txt")).click()
    page.keyboard.press("Escape")
    expect(page.locator(".command code")).to_have_text(
        re.compile("btlm train upload:.*--steps 200000 --no-experts.*d_model=32")
    )
    shot(page, "new-run")
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/runs/live")
    status(page, "running")
    page.wait_for_function("btlm.size('train_bpb') > 20")
    before = page.evaluate("[btlm.updates, btlm.points]")
    page.wait_for_timeout(3000)
    updates, points = (
        now - then for now, then in zip(page.evaluate("[btlm.updates, btlm.points]"), before, strict=True)
    )
    assert updates >= 2 and points >= 15
    shot(page, "run-live")

    page.get_by_role("button", name="Pause").click()
    status(page, "paused")
    page.wait_for_timeout(700)
    paused = step_of(page)
    page.get_by_role("button", name="Step once").click()
    expect(page.locator(".stat", has_text="Step").locator(".value")).to_have_text(f"{paused + 1:,}")
    page.get_by_role("button", name="Continue").click()
    status(page, "running")
    page.get_by_role("tab", name="Control").click()
    page.get_by_role("textbox", name="Learning rate of AdamW, at its peak").fill("0.001")
    page.get_by_role("button", name="Change").click()
    page.get_by_role("tab", name="Events").click()
    expect(page.get_by_text("Settings changed").first).to_be_visible()
    assert page.url.endswith("tab=events")
    shot(page, "run-events")
    page.get_by_role("button", name="Stop").click()
    status(page, "stopped")
    page.reload()  # the tab is kept
    expect(page.get_by_role("tab", name="Events")).to_have_attribute("aria-selected", "true")
    stopped = step_of(page)
    page.get_by_role("button", name="Resume").click()
    status(page, "running")
    expect(page.locator(".head .badge").first).to_have_text("running")
    outlive(site, open_page, page, shot)
    page.get_by_role("button", name="Stop").click()
    status(page, "stopped")
    assert step_of(page) > stopped


def outlive(site: Site, open_page: Open, page: Any, shot: Shot) -> None:
    """The server is killed and comes back; the training goes on meanwhile, and so do the pages, by themselves."""
    page.get_by_role("tab", name="Curves").click()
    site.server.kill()
    expect(page.locator(".banner")).to_contain_text("no answer from the server")
    shot(page, "server-away")
    away = open_page("/settings")
    expect(away.get_by_text("The server does not answer")).to_be_visible()
    before = step_of(page)
    site.server.start()
    expect(page.locator(".banner")).to_be_hidden()
    expect(away.get_by_text("Running since")).to_be_visible()
    page.wait_for_function("before => btlm.last('train_bpb') > before", arg=before)
    status(page, "running")


def test_runs_compare_and_delete(site: Site, open_page: Open, shot: Shot):
    site.wait("first", "finished")
    site.post("runs/first/branch", {"out": "second", "train": {"optim": {"lr": 0.001}}})
    page = open_page("/")
    for name in ("first", "second"):
        page.locator("tr", has_text=name).get_by_role("checkbox").click()
    shot(page, "runs")
    page.get_by_role("link", name="Compare 2").click()
    expect(page.get_by_text("train.optim.lr")).to_be_visible()
    page.wait_for_function("btlm.size('first:train_bpb') > 5 && btlm.size('second:train_bpb') > 5")
    shot(page, "compare")

    page.goto("/?q=second")
    expect(page.get_by_role("link", name="second")).to_be_visible()
    expect(page.get_by_role("link", name="first", exact=True)).to_have_count(0)
    page.get_by_role("link", name="second").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("textbox", name="Type second to confirm").fill("secon")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("got 'secon'; the run's name is needed")).to_be_visible()
    page.get_by_role("textbox", name="Type second to confirm").fill("second")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("link", name="first", exact=True)).to_be_visible()
    assert [row["id"] for row in site.ask("GET", "runs") if row["id"] == "second"] == []


def test_playground_down_to_the_bits(site: Site, open_page: Open, shot: Shot):
    site.wait("first", "finished")
    page = open_page("/playground?a=first&b=first")
    prompt = page.get_by_role("textbox", name="Prompt")
    prompt.fill("It is")
    page.get_by_role("button", name="Hexadecimal").click()
    expect(prompt).to_have_value("49 74 20 69 73")
    prompt.fill("49 7")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("two hexadecimal digits a byte are needed")).to_be_visible()
    prompt.fill("49 74")
    page.get_by_label("Bytes").fill("40")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".bytes[data-pick]")).to_have_count(2)
    first = page.locator(".bytes[data-pick]").first
    expect(first.locator("[data-at]")).to_have_count(42)
    first.locator("[data-at]").nth(5).click()
    expect(page.locator(".byte .bits .one")).to_have_count(8)
    expect(page.locator(".byte")).to_contain_text("byte 5")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".byte")).to_contain_text("byte 6")
    shot(page, "playground")
    page.get_by_role("switch", name="Behind the gate").click()
    page.get_by_role("button", name="Generate").click()
    expect(
        page.locator(".trouble", has_text="not calibrated").first
    ).to_be_visible()  # in the server's words, where it happened


def test_data_is_looked_at(site: Site, open_page: Open, shot: Shot):
    site.wait("first", "finished")
    page = open_page("/data")
    page.get_by_role("textbox", name="Text").fill("pasted text, again and again. " * 200)
    page.get_by_role("button", name="Add this text").click()
    expect(page.locator(".stat", has_text="Size").locator(".value")).to_have_text("6.0 kB")
    page.get_by_role("button", name="Measure").click()
    page.wait_for_function("btlm.size('window:K') > 5")
    page.get_by_role("button", name="Score").click()
    expect(page.locator(".stat", has_text=re.compile("^Bits per byte")).locator(".value")).to_be_visible()
    page.get_by_role("button", name="Find damage").click()
    expect(page.get_by_text("experts alone, from nothing").first).to_be_visible()
    page.get_by_role("button", name="Make a map").click()
    expect(page.get_by_text("makes the page")).to_be_visible()
    shot(page, "data")


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_all_pages_in_both_modes_and_on_a_phone(site: Site, open_page: Open, shot: Shot, width: int, dark: bool):
    site.wait("first", "finished")
    page = open_page("/", width=width, dark=dark)
    for name in ("", "runs/first", "new", "playground", "diffusion", "data", "checkpoints", "settings"):
        page.goto(f"/{name}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert not wide(page), name
        assert page.evaluate("btlm.dark()") is dark
        shot(page, f"{name.replace('/', '-') or 'home'}-{width}-{'dark' if dark else 'light'}")
    if width == 390:
        page.get_by_role("button", name="Pages").click()
        page.get_by_role("link", name="Checkpoints").click()
        page.wait_for_url("**/checkpoints")


def test_light_or_dark_is_kept_and_the_keyboard_gets_everywhere(site: Site, open_page: Open):
    page = open_page("/settings")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_function("btlm.dark()")
    page.reload()
    page.wait_for_function("window.btlm && btlm.dark()")
    page.get_by_role("button", name="As the system").click()
    page.wait_for_function("!btlm.dark()")
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.classList.contains('sheet')")
    seen = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || '').trim()"
            )
        )
    assert {"Filter by name or note", "Status"} <= seen and any("New run" in one for one in seen)
