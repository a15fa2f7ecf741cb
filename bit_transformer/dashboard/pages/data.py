"""Data: what the server has to train and score on, and what is in it."""

from __future__ import annotations

from typing import Any

from nicegui import ui
from nicegui.events import UploadEventArguments

from bit_transformer.dashboard import formats, sources
from bit_transformer.dashboard.bytecells import byte_name
from bit_transformer.dashboard.charts import Chart, curve, send
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.parts import (
    Progress,
    Trouble,
    asking,
    badge,
    box,
    button,
    card,
    empty,
    heading,
    stat,
    table,
    text,
)

LARGEST = 1 << 30  # bytes; the server's own limit is often lower, and it says so
PASTED = 500_000  # characters
WORDS = {"corpus": "named corpus", "registry": "named corpus", "upload": "upload", "data": "folder of the server"}


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/data")
    async def page(source: str = "") -> None:
        frame = Frame(desk, "Data", "/data")
        view = DataView(frame, source)
        await frame.show(view.build)


class DataView:
    """The list of data, and a closer look at one."""

    def __init__(self, frame: Frame, source: str) -> None:
        self.frame, self.source = frame, source

    async def build(self) -> None:
        """Read what there is."""
        with box("head"):
            heading("Data", 1)
            text("Anything is data: a model reads bits. Upload a file, or paste text.", "p", "lead")
        with box("grid two top"):
            with card("Corpora"):
                self.trouble = Trouble()
                self.list = (
                    ui.element("div").classes("sideways long").props('tabindex=0 role=group aria-label="Corpora"')
                )
            self._adding()
        self.looks = ui.element("div").classes("grid")
        await self._read()
        if self.source:
            await self._look(self.source)

    async def _read(self) -> None:
        found = await self.frame.server.get("corpora")
        self.names = {one["id"]: str(one.get("name") or one["id"]) for one in found}
        self.list.clear()
        with self.list:
            if not found:
                empty("folder_open", "No data yet", "Upload a file, or paste text.")
            for one in found:
                with box("bar").style("padding: 6px 0; border-bottom: 1px solid var(--grid)"):
                    with box("grow"):
                        text(str(one.get("name") or one["id"])).style("font-weight: 600; overflow-wrap: anywhere")
                        text(
                            f"{WORDS.get(one['kind'], one['kind'])} · {formats.size(one.get('bytes'))}",
                            "div",
                            "muted small",
                        )
                    button("Look", lambda name=one["id"]: self._look(name), kinds="bare")
                    if one["kind"] == "upload":
                        button("Delete", lambda one=one: self._delete(one), kinds="bare risk")

    def _adding(self) -> None:
        with card("Add data"):
            self.adding = Trouble()
            taken = ui.upload(
                label="A file, of any kind", on_upload=self._upload, auto_upload=True, max_file_size=LARGEST,
                on_rejected=lambda: self.adding.show(f"got a file of more than {formats.size(LARGEST)}. Try a part of it"),
            )  # fmt: skip
            taken.props("flat bordered").classes("w-full")
            text("or", kinds="muted small")
            self.name = ui.input("Name", value="notes.txt").props("outlined dense")
            self.pasted = ui.textarea("Text").classes("w-full")
            self.pasted.props(
                f"outlined input-style='min-height: 96px' maxlength={PASTED} hint='Longer than {PASTED:,} characters: as a file'"
            )
            button("Add this text", self._paste, icon="add")
            self.progress = Progress()

    async def _upload(self, event: UploadEventArguments) -> None:
        self.progress.show(None, f"passing {event.file.name} on to the server")
        with self.adding.guard():
            made = await self.frame.server.upload(event.file.name, event.file.iterate())
            await self._read()
            await self._look(made["id"])
        self.progress.hide()

    async def _paste(self) -> None:
        content = str(self.pasted.value or "").encode("utf-8", "surrogatepass")
        if not content:
            self.pasted.error = "got no text; at least one character is needed. Try to paste some"
            return
        self.pasted.error = None
        with self.adding.guard():
            made = await self.frame.server.upload(str(self.name.value or "text"), content)
            self.pasted.set_value("")
            await self._read()
            await self._look(made["id"])

    def _delete(self, one: dict[str, Any]) -> None:
        with asking(f"Delete {one.get('name') or one['id']}?") as dialog:
            text("Runs that were trained on it stay as they are.", "p", "muted")
            trouble = Trouble()

            async def remove() -> None:
                with trouble.guard():
                    await self.frame.server.delete(f"uploads/{one['id'].removeprefix('upload:')}")
                    dialog.close()
                    self.looks.clear()
                    await self._read()

            with box("bar end"):
                button("Cancel", dialog.close)
                button("Delete", remove, icon="delete", kinds="risk")

    # ---- a closer look ----

    async def _look(self, source: str) -> None:
        replace_query(source=source)
        self.looks.clear()
        with self.looks:
            heading(self.names.get(source, source))
            with card("Byte values"):
                await self._histogram(source)
            models = await sources.models(self.frame)
            with box("grid two"):
                with card("K, C and S by window"):
                    self._telemetry(source, models)
                with card("Bits per byte under a model"):
                    self._score(source, models)
            with card("Surprise and damage, byte by byte"):
                self._damage(source, models)

    async def _histogram(self, source: str) -> None:
        trouble, progress = Trouble(), Progress()
        progress.show(None, "counting")
        with trouble.guard():
            found = await self.frame.server.call("histogram", name=source)
            with box("stats"):
                stat("Size", formats.size(found["bytes"]))
                stat(
                    "Entropy, bits per byte",
                    formats.figure(found["entropy"]),
                    "If bytes were drawn independently (order 0)",
                )
                stat("Different bytes", formats.count(sum(n > 0 for n in found["counts"])))
                top = max(range(256), key=found["counts"].__getitem__)
                stat("Most frequent", byte_name(top).partition(" · ")[0])
            names = [byte_name(value) for value in range(256)]
            Chart(
                "How often each byte value occurs",
                categories=[str(v) for v in range(256)],
                values=found["counts"],
                names=names,
                unit="short",
            )
            if ones := found.get("ones"):
                shown = ", ".join(f"{one:.0%}" for one in ones)
                text(f"Ones at each bit, the most significant first: {shown}", "p", "muted small")
        progress.hide()

    def _telemetry(self, source: str, models: dict[str, str]) -> None:
        with box("bar"):
            run = (
                ui.select({"": "no model (K and C only)", **models}, label="Against", value="")
                .props("outlined dense")
                .style("flex: 2; min-width: 160px")
            )
            window = (
                ui.number("Window, bytes", value=512, min=1, precision=0)
                .props("outlined dense")
                .style("flex: 1; min-width: 100px")
            )
            go = button("Measure", lambda: show(), kinds="main")
        trouble = Trouble()
        place = ui.element("div").classes("grid")

        async def show() -> None:
            go.props("loading")
            with trouble.guard():
                found = await self.frame.server.call(
                    "telemetry", name=source, run=run.value or None, window=int(window.value or 512)
                )
                place.clear()
                with place:
                    draw_windows(
                        found["windows"], [key for key in ("K", "C", "S") if found["windows"][0].get(key) is not None]
                    )
                    kinds = [one["kind"] for one in found["windows"] if one.get("kind")]
                    with box("bar"):
                        for kind in dict.fromkeys(kinds):
                            badge(kind)
                            text(f"{kinds.count(kind):,} windows", kinds="muted small")
            go.props(remove="loading")

    def _damage(self, source: str, models: dict[str, str]) -> None:
        text(
            "Experts alone, or a model, read the data from both ends. What fits neither side stands out.", "p", "muted"
        )
        with box("bar"):
            run = (
                ui.select({"": "experts alone", **models}, label="Read by", value="")
                .props("outlined dense")
                .style("flex: 2; min-width: 160px")
            )
            find = button("Find damage", lambda: show(), kinds="main")
            button("Make a map", lambda: make(), icon="grid_on")
        trouble, progress = Trouble(), Progress()
        place = ui.element("div").classes("grid")

        async def show() -> None:
            find.props("loading")
            progress.show(None, "reading")
            with trouble.guard():
                async for kind, piece in self.frame.server.pieces("locate", path=source, run=run.value or None):
                    if kind == "progress":
                        progress.show(piece)
                    elif kind == "result":
                        place.clear()
                        with place:
                            show_damage(piece)
            progress.hide()
            find.props(remove="loading")

        async def make() -> None:
            with trouble.guard():
                job = await self.frame.server.start("map", path=source, run=run.value or None)
                place.clear()
                with place:
                    text(
                        f"Job {job['id']} makes the page. It is listed here as data when it is done, to be downloaded and opened."
                    )

    def _score(self, source: str, models: dict[str, str]) -> None:
        if not models:
            empty("speed", "No model yet", "Scores need a trained model.")
            return
        with box("bar"):
            run = (
                ui.select(models, label="Model", value=next(iter(models)), with_input=True)
                .props("outlined dense")
                .style("flex: 2; min-width: 160px")
            )
            window = (
                ui.number("Window, bytes", value=256, min=1, precision=0)
                .props("outlined dense")
                .style("flex: 1; min-width: 100px")
            )
            go = button("Score", lambda: show(), kinds="main")
        trouble, progress = Trouble(), Progress()
        place = ui.element("div").classes("grid")

        async def show() -> None:
            go.props("loading")
            progress.show(None, "loading the model")
            with trouble.guard():
                asked = {"run": run.value, "name": source, "window": int(window.value or 256)}
                found = None
                async for kind, piece in self.frame.server.pieces("score", **asked):
                    if kind == "progress":
                        progress.show(piece)
                    elif kind == "result":
                        found = piece
                if found:
                    place.clear()
                    with place:
                        show_score(found)
            progress.hide()
            go.props(remove="loading")


def draw_windows(windows: list[dict[str, Any]], keys: list[str]) -> None:
    """A chart for each measure, by offset in the data."""
    steps = [one["offset"] for one in windows]
    found = {f"window:{key}": {"step": steps, "mean": [one[key] for one in windows]} for key in keys}
    for key in keys:
        text(key, "h3")
        Chart(f"{key} by offset", [curve(f"window:{key}", key, "c1")], kinds="low", x="offset")
    send(found, whole=True)


def show_score(found: dict[str, Any]) -> None:
    """The cost of data under a model, by window."""
    with box("stats"):
        stat("Bits per byte", formats.figure(found["bpb"]))
        stat("Windows", formats.count(len(found["windows"])))
    Chart("Bits per byte by offset", [curve("window:score", "bits per byte", "c2")], x="offset")
    points = {"step": [one["offset"] for one in found["windows"]], "mean": [one["bpb"] for one in found["windows"]]}
    send({"window:score": points}, whole=True)
    worst = sorted(found["windows"], key=lambda one: -one["bpb"])[:5]
    rows = [[f"{one['offset']:,}", formats.count(one["bytes"]), formats.figure(one["bpb"])] for one in worst]
    text("Most surprising windows", "h3")
    table([("Offset", "num"), ("Bytes", "num"), ("Bits per byte", "num")], rows, "Most surprising windows")
    text(str(found.get("protocol", "")), "p", "muted small")


def show_damage(found: dict[str, Any]) -> None:
    """Damaged ranges of data, the clearest first."""
    rows = [
        [f"{one['begin']:#x}", formats.count(one["length"]), f"{one['bits']:.0f}", one["kind"], one["text"]]
        for one in found["ranges"][:20]
    ]
    with box("stats"):
        stat("Ranges", formats.count(found["found"]))
        known = found["false_alarms"]
        stat(
            "False alarms, per megabyte",
            "not known" if known is None else formats.figure(known),
            "Counted in clean data",
        )
    if rows:
        columns = [("Offset", "num"), ("Bytes", "num"), ("Bits of evidence", "num"), ("Kind", ""), ("What", "")]
        table(columns, rows, "Damaged ranges")
    else:
        empty("check_circle", "No damage found", "Nothing stands out.")
    if found["blind"]:
        text(f"{found['blind']:,} bytes are compressed or encrypted: damage leaves no mark there.", "p", "muted small")
    text(found["reader"], "p", "muted small")
