"""What every page has: the top bar, the list of pages, the banner when the server is away, the skip link, and light or dark."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nicegui import app, ui

from bit_transformer.dashboard.client import Server, ServerDown, ServerError
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.parts import Trouble, box, button, empty, icon_button, text


@dataclass(frozen=True)
class Place:
    """A page in the list of pages."""

    target: str
    label: str
    icon: str


PLACES = (
    Place("/", "Runs", "show_chart"),
    Place("/new", "New run", "add_circle_outline"),
    Place("/playground", "Playground", "edit_note"),
    Place("/diffusion", "Diffusion", "blur_on"),
    Place("/data", "Data", "folder_open"),
    Place("/checkpoints", "Checkpoints", "inventory_2"),
    Place("/settings", "Settings", "tune"),
)
MARK = (
    '<svg viewBox="0 0 26 26" aria-hidden="true"><rect width="26" height="26" rx="7" style="fill:var(--accent)"/>'
    '<g style="fill:var(--on-accent)"><rect x="6" y="7" width="3" height="12" rx="1.5"/><rect x="11.5" y="11" width="3" height="8" rx="1.5"/>'
    '<rect x="17" y="14" width="3" height="5" rx="1.5"/></g></svg>'
)
Build = Callable[[], Awaitable[None] | None]


class Frame:
    """One page in one browser.

    Args:
        desk: what pages share.
        title: of the page.
        here: the page's target in the list of pages.

    Attributes:
        main: the element that the page's content goes into.
        server: the server as this browser may use it.
    """

    def __init__(self, desk: Desk, title: str, here: str = "") -> None:
        self.desk = desk
        self.browser = str(app.storage.browser["id"])
        self.server: Server = desk.for_browser(self.browser)
        self._build: Build | None = None
        self._on_back: list[Build] = []
        self._failed = self._stale = False
        self._was_up = desk.feed.up
        ui.page_title(f"{title} · BitTransformerLM")
        self.dark = ui.dark_mode(app.storage.user.get("dark"))
        self._top()
        self._side(here)
        with ui.element("div").classes("banner hidden").props("role=alert") as self.banner:
            ui.icon("cloud_off").props("aria-hidden=true")
            self.banner_text = ui.label("")
        self.main = ui.element("div").classes("sheet")
        ui.skip_link("Skip to the content", target=self.main)
        with self.main:
            self.content = ui.element("div").style("display: contents")
        self._show_state()
        ui.timer(0.4, self._watch)

    def _top(self) -> None:
        with ui.header().classes("top"):
            self.menu = icon_button("Pages", "menu", lambda: self.drawer.toggle()).classes("menu")
            with ui.link(target="/").classes("brand").props('aria-label="BitTransformerLM, all runs"'):
                ui.html(MARK, sanitize=False)
                text("BitTransformerLM", kinds="wide-only")
            ui.element("div").classes("grow")
            self.state = text("", kinds="state").props("role=status")
            icon_button("Light or dark", "contrast", self._toggle_dark)

    def _side(self, here: str) -> None:
        self.drawer = ui.left_drawer(value=None, bordered=False).classes("side").props("width=212 breakpoint=1023")
        with self.drawer, ui.element("nav").classes("pages").props('aria-label="Pages"'):
            for place in PLACES:
                with ui.link(target=place.target) as link:
                    ui.icon(place.icon).props("aria-hidden=true")
                    text(place.label)
                if place.target == here:
                    link.props("aria-current=page")

    async def _toggle_dark(self) -> None:
        now = await ui.run_javascript("btlm.dark()")
        self.set_dark(not now)

    def set_dark(self, dark: bool | None) -> None:
        """Show the page dark, light, or as the system is (None), from now on."""
        app.storage.user["dark"] = dark
        self.dark.set_value(dark)

    async def show(self, build: Build) -> None:
        """Build the content, now or as soon as the server is there; and once more if it failed for want of the server."""
        self._build = build
        await ui.context.client.connected(timeout=20)
        await self._attempt()

    def again(self) -> None:
        """Build the content anew, soon: not from within, since whoever calls this may be part of it."""
        self._stale = True

    async def _attempt(self) -> None:
        assert self._build is not None
        self.content.clear()
        self._failed = False
        with self.content:
            if not self.desk.access.may_read(self.browser):
                self._locked()
                return
            try:
                made = self._build()
                if made is not None:
                    await made
            except ServerDown as down:
                self._failed = True
                self.content.clear()
                with self.content:
                    empty(
                        "cloud_off",
                        "The server does not answer",
                        f"{down}. This page goes on by itself when it is back.",
                    )
            except ServerError as refused:
                self.content.clear()
                with self.content:
                    Trouble().show(refused)
                    button("Try again", self.again, icon="refresh")

    def _locked(self) -> None:
        with box("card"):
            text("This dashboard asks for the server's token", "h1")
            text(
                "It is in the file `token` of the server's folder, and was printed when the server started first.",
                "p",
                "muted",
            )
            token_form(self, self.again)

    def on_back(self, again: Build) -> None:
        """Call `again` whenever the connection to the server was made anew."""
        self._on_back.append(again)

    def listen(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Pass the feed's events on to `listener` as long as this page is open. It must be quick and must not touch the page."""
        end = self.desk.feed.listen(listener)
        ui.context.client.on_delete(end)

    def every(self, seconds: float, act: Callable[[], Any]) -> ui.timer:
        """Call `act` again and again while the page is open."""
        with self.content:
            return ui.timer(seconds, act, immediate=False)

    def _show_state(self) -> None:
        up = self.desk.feed.up
        words = "connecting" if up is None else "connected" if up else "server away"
        if isinstance(self.state, ui.label) and self.state.text != words:
            self.state.set_text(words)
            self.state.classes(add="up" if up else "down" if up is False else "", remove="down" if up else "up")
        self.banner_text.set_text(f"{self.desk.feed.trouble}. Trying again every few seconds.")
        self.banner.classes(add="hidden" if up is not False else "", remove="hidden" if up is False else "")

    async def _watch(self) -> None:
        if self._stale:
            self._stale = False
            await self._attempt()
        up = self.desk.feed.up
        if up == self._was_up and up is not False:
            return
        came_back = bool(up) and self._was_up is not True
        self._was_up = up
        self._show_state()
        if came_back and self._build is not None:
            if self._failed:
                await self._attempt()
            else:
                for again in self._on_back:
                    made = again()
                    if made is not None:
                        await made


def token_form(frame: Frame, then: Callable[[], Any]) -> None:
    """An input for the token; it is checked with the server before it is kept."""
    trouble = Trouble()

    async def keep() -> None:
        token = str(given.value or "").strip()
        if not token:
            trouble.show("got no token; the text in the server's file `token` is needed. Try to paste it here")
            return
        wrong = "" if frame.desk.access.is_own(token) else await frame.desk.check(token)
        if wrong:
            trouble.show(wrong)
            return
        frame.desk.access.keep(frame.browser, token)
        given.set_value("")
        trouble.hide()
        made = then()
        if made is not None:
            await made

    with box("bar"):
        given = (
            ui.input("Token")
            .props("outlined dense type=password autocomplete=off")
            .classes("grow")
            .on("keydown.enter", keep)
        )
        button("Use this token", keep, kinds="main")


def replace_query(**values: Any) -> None:
    """Keep what is chosen on this page in its address, so that it survives a reload and can be sent to somebody."""
    ui.run_javascript(
        "{const q=new URLSearchParams(location.search);"
        f"for(const [k,v] of Object.entries({json.dumps(values)}))v===''||v==null?q.delete(k):q.set(k,v);"
        "const s=q.toString();history.replaceState(history.state,'',location.pathname+(s?'?'+s:''));}"
    )
