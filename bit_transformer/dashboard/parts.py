"""Small pieces that pages are built from: cards, figures, buttons, messages. They know no server."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nicegui import ui
from nicegui.element import Element

from bit_transformer.dashboard.client import ServerError
from bit_transformer.dashboard.formats import UNKNOWN
from bit_transformer.errors import BitTransformerError

SEGMENTED = "no-caps dense unelevated toggle-color=chosen toggle-text-color=chosen"  # props of a toggle


def text(content: str, tag: str = "span", kinds: str = "") -> ui.label:
    """Plain text in an element of HTML."""
    made = ui.label(content)
    made.tag = tag
    return made.classes(kinds) if kinds else made


def heading(content: str, level: int = 2) -> ui.label:
    """A heading."""
    return text(content, f"h{level}")


@contextmanager
def card(title: str = "", kinds: str = "", *, note: str = "") -> Iterator[Element]:
    """A section with a border; what is made within goes into it."""
    with ui.element("section").classes(f"card {kinds}") as section:
        if title:
            with ui.element("header"):
                heading(title)
                if note:
                    text(note, kinds="muted small")
        yield section


def box(kinds: str = "", tag: str = "div") -> Element:
    """A plain element with classes."""
    return ui.element(tag).classes(kinds)


def button(
    label: str, on_click: Callable[..., Any] | None = None, *, icon: str = "", kinds: str = "", tip: str = ""
) -> ui.button:
    """A button of the dashboard's own look: `main`, `risk`, `bare` or plain."""
    made = (
        ui.button(label, on_click=on_click, icon=icon or None, color=None)
        .classes(f"btn {kinds}")
        .props("no-caps unelevated")
    )
    return made.tooltip(tip) if tip else made


def icon_button(label: str, icon: str, on_click: Callable[..., Any] | None = None, kinds: str = "bare") -> ui.button:
    """A button that shows only a picture; its label is for screen readers and the tooltip."""
    made = ui.button(on_click=on_click, icon=icon, color=None).classes(f"btn icon {kinds}")
    return made.props(f'unelevated aria-label="{attribute(label)}"').tooltip(label)


def link_button(label: str, target: str, *, icon: str = "", kinds: str = "") -> ui.button:
    """A link that looks like a button."""
    made = ui.button(label, icon=icon or None, color=None).classes(f"btn {kinds}").props("no-caps unelevated")
    return made.props(f'href="{attribute(target)}"')


def badge(status: str) -> ui.label:
    """A status as a coloured word."""
    return text(status, kinds=f"badge {status}")


def set_badge(made: ui.label, status: str) -> None:
    """Show another status in a badge."""
    if made.text != status:
        made.classes(replace=f"badge {status}")
        made.set_text(status)


def stat(key: str, value: str = UNKNOWN, tip: str = "") -> ui.label:
    """A figure under its name; the result is the figure's label."""
    with box("stat") as made:
        text(key, kinds="key")
        shown = ui.label(value).classes("value")
    if tip:
        made.tooltip(tip)
    return shown


def empty(icon: str, title: str, what: str) -> Element:
    """What is shown where there is nothing yet: what it would be, and what to do."""
    with ui.element("div").classes("empty") as made:
        ui.icon(icon).props("aria-hidden=true")
        heading(title)
        text(what, "p")
    return made


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], label: str) -> ui.html:
    """A table of text. Columns are (title, class), where the class is `num`, `slim` or nothing; without titles there is no head."""
    head = "".join(f'<th scope="col" class="{kind}">{html.escape(title)}</th>' for title, kind in columns)
    head = f"<thead><tr>{head}</tr></thead>" if any(title for title, _ in columns) else ""
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{html.escape(cell)}</td>' for cell, (_, kind) in zip(row, columns, strict=True))
        + "</tr>"
        for row in rows
    )
    whole = f'<table class="plain" aria-label="{html.escape(label)}">{head}<tbody>{body}</tbody></table>'
    return ui.html(whole, sanitize=False).classes("sideways")


def command(line: str) -> ui.label:
    """A command line with a button that copies it; the result is the line's label."""

    def copy() -> None:
        ui.clipboard.write(shown.text)
        say("Copied")

    with box("command"):
        shown = text(line, "code")
        icon_button("Copy the command", "content_copy", copy)
    return shown


@contextmanager
def asking(title: str) -> Iterator[ui.dialog]:
    """A dialog, which opens when all that is made within is in it."""
    with ui.dialog() as made, ui.element("div").classes("card dialog").props(f'aria-label="{attribute(title)}"'):
        heading(title)
        yield made
    made.open()


class Trouble:
    """A place for an error, where it happened. It takes no room while there is none."""

    def __init__(self) -> None:
        self.box = ui.element("div").classes("trouble hidden").props("role=alert")

    def show(self, error: BitTransformerError | str) -> None:
        """Show an error in the server's words."""
        self.box.clear()
        with self.box:
            text(str(error), "p")
            if isinstance(error, ServerError) and error.status == 401:
                ui.link("Go to Settings", "/settings")
        self.box.classes(remove="hidden")

    def hide(self) -> None:
        """Nothing is wrong any more."""
        self.box.classes(add="hidden")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Within: errors of the server and of input are shown here."""
        self.hide()
        try:
            yield
        except BitTransformerError as error:
            self.show(error)


class Progress:
    """How far long work is."""

    def __init__(self) -> None:
        with ui.element("div").classes("progress hidden").props("role=status") as self.box:
            with ui.element("div").classes("meter") as self.meter:
                self.fill = ui.element("div")
            self.words = ui.label("")

    def show(self, found: Mapping[str, Any] | None, words: str = "") -> None:
        """Show progress as the server gives it; without a total, only that something goes on."""
        done, total = (found or {}).get("done") or 0, (found or {}).get("total") or 0
        self.meter.classes(add="" if total else "busy", remove="busy" if total else "")
        self.fill.style(f"width: {min(100, 100 * done / total):.1f}%" if total else "width: 30%")
        doing = (found or {}).get("doing", "")
        counted = f"{done:,.0f} of {total:,.0f} {(found or {}).get('unit', '')}" if total else ""
        self.words.set_text(words or f"{doing} {counted}".strip() or "working")
        self.box.classes(remove="hidden")

    def hide(self) -> None:
        """The work is done."""
        self.box.classes(add="hidden")


def say(words: str) -> None:
    """Confirm something in passing."""
    ui.notify(words, classes="said", position="bottom", timeout=2500)


def attribute(value: str) -> str:
    """Text as it may stand between the quotes of a property."""
    return value.replace("\\", "").replace('"', "'").replace("\n", " ")
