"""Settings, log and command of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.command import train_command
from bit_transformer.dashboard.fields import differing, groups_of, nested
from bit_transformer.dashboard.layout import Frame
from bit_transformer.dashboard.parts import Trouble, button, card, command, empty, table, text


async def show_config(frame: Frame, detail: Mapping[str, Any]) -> None:
    """Everything the run was asked for, and the command that asks for the same."""
    config = detail.get("config") or {}
    line = str(detail.get("command") or "")
    if not line.startswith("btlm"):  # it was started otherwise
        schemas, presets = await frame.server.get("schema"), await frame.server.get("presets")
        line = command_of(str(detail["id"]), config, schemas, presets)
    with card("The same from the command line"):
        command(line)
    for section in ("model", "train", "data", "provenance"):
        if values := config.get(section):
            with card(section.capitalize()):
                rows = [[key, formats.plain(value)] for key, value in formats.flattened(values).items()]
                table([("Setting", ""), ("Value", "")], rows, section)
    if result := detail.get("result"):
        with card("Result of the last evaluation"):
            rows = [[key, formats.plain(value)] for key, value in formats.flattened(result).items()]
            table([("Figure", ""), ("Value", "")], rows, "result")


def command_of(name: str, config: Mapping[str, Any], schemas: Mapping[str, Any], presets: Mapping[str, Any]) -> str:
    """The command that trains with a run's settings: those that differ from the defaults."""
    sections = {section: config.get(section) or {} for section in ("model", "train", "data")}
    fields = [one for section in sections for group in groups_of(section, schemas[section]) for one in group.fields]
    known = {field.path for field in fields}
    given = {path: v for path, v in formats.flattened(sections).items() if path in known and v is not None}
    asked = nested(differing(given, fields))
    data = {**asked.get("data", {}), "corpora": sections["data"].get("corpora", ())}
    train = asked.get("train", {})
    train |= {name: {} for name in ("progressive",) if sections["train"].get(name) and name not in train}
    return train_command({"out": name, "model": sections["model"], "train": train, "data": data}, schemas, presets)


def show_log(frame: Frame, row: Callable[[], Mapping[str, Any]]) -> None:
    """The end of the job's log, read again while it runs."""
    with card("Log", note="the last 64 kB of the job's output"):
        trouble = Trouble()
        nothing = empty("subject", "No log", "This run was not started by the server, so the server has no log of it.")
        shown = text("", "pre", "log")
        button("Read again", lambda: read(True), icon="refresh")
    seen = ""

    async def read(always: bool = False) -> None:
        nonlocal seen
        job = row().get("job")
        nothing.set_visibility(job is None)
        shown.set_visibility(job is not None)
        if job is None or not frame.desk.feed.up or (seen and not always and row().get("status") != "running"):
            return
        with trouble.guard():
            found = (await frame.server.get(f"jobs/{job}/log")).get("text", "")
            if found != seen and isinstance(shown, ui.label):
                seen = found
                shown.set_text(found or "It has said nothing so far.")

    ui.timer(0.1, read, once=True)
    ui.timer(4.0, read)
