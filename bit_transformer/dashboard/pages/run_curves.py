"""The curves of a run: which charts there are, and how they are kept up to date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.charts import TONES, Chart, curve, joined, latest_marks, mark_of, send
from bit_transformer.dashboard.client import ServerError
from bit_transformer.dashboard.layout import Frame
from bit_transformer.dashboard.parts import Trouble, box, card, empty, text

BITS = tuple(f"bit_{i}" for i in range(9))
MEASURES = {
    "K": ("K, order of predictions", "1 is certain, 0 is a coin"),
    "C": ("C, complexity of sampled text", "phrases of a Lempel-Ziv parse"),
    "S": ("S, symbiosis with the experts", "1 is full agreement"),
}
PLAIN = {
    "lr": ("Learning rate", "of AdamW; the others move with it", "number", "c6"),
    "rate": ("Schedule", "learning rates as a fraction of their peaks", "number", "c7"),
    "grad_norm": ("Gradient norm", "before clipping", "number", "c4"),
    "bytes_per_s": ("Speed", "data bytes per second", "speed", "c3"),
    "parity_errors": ("Parity errors", "in sampled bytes", "number", "c2"),
    "memory": ("Memory of the process", "", "bytes", "c5"),
    "cpu_percent": ("Processor", "100 % is one core", "percent", "c8"),
}
KEYS = ("train_bpb", "val_bpb", *PLAIN, *MEASURES, *BITS)
POINTS = 600


class Curves:
    """The charts of a run.

    Attributes:
        rewound: whether points that are shown may be void, so that all are read again.
    """

    def __init__(self, frame: Frame, name: str) -> None:
        self.frame, self.name = frame, name
        self.waiting: dict[str, dict[str, list[float]]] = {}
        self.marks: list[dict[str, Any]] = []
        self.fresh_marks = False
        self.rewound = False
        self.loading = True
        self.keys: tuple[str, ...] = KEYS
        self.cards: dict[str, ui.element] = {}
        self.latest: dict[str, ui.label] = {}
        self.last_bits: dict[str, float] = {}

    def build(self, detail: Mapping[str, Any]) -> None:
        """Lay out the charts; those without data stay out of sight."""
        gate = detail.get("gate") or {}
        rate = "lr" if "lr" in (detail.get("keys") or ["lr"]) else "rate"  # older runs recorded the schedule only
        self.keys = tuple(key for key in KEYS if key not in ("lr", "rate") or key == rate)
        self.trouble = Trouble()
        self.nothing = ui.element("div").classes("card")
        with self.nothing:
            empty(
                "show_chart",
                "No points yet",
                "They appear here by themselves as soon as the training has made updates.",
            )
        with box("grid two"):
            with self._card(
                "bpb", "Bits per byte", "lower is better; the band is from the lowest to the highest", "wide"
            ):
                series = [curve("train_bpb", "train", "c1", band=True), curve("val_bpb", "validation", "c2", dots=True)]
                self.bpb = Chart("Bits per byte of training and validation by step", series, kinds="tall")
            for key, (title, note) in MEASURES.items():
                with self._card(key, title, note):
                    areas = normal_range(gate, key)
                    Chart(f"{title} by step", [curve(key, key, "c1", band=True)], areas=areas)
            for key, (title, note, unit, tone) in ((key, PLAIN[key]) for key in PLAIN if key in self.keys):
                with self._card(key, title, note):
                    Chart(f"{title} by step", [curve(key, title, tone, band=key == "grad_norm")], unit=unit, min=0)
            with self._card("bits", "Cost by position of the bit in its byte", "bits, over time", "wide"):
                Chart(
                    "Cost of each bit position by step",
                    [curve(bit, bit[4:], TONES[i % 8], dash=i == 8) for i, bit in enumerate(BITS)],
                )
            with self._card("bits_now", "Cost by position, now", "first the most significant bit; 8 is parity", "wide"):
                self.bits_now = Chart(
                    "Cost of each bit position now", categories=[], values=[], tone="c1", kinds="low", min=0
                )
            self._machine()

    @contextmanager
    def _card(self, key: str, title: str, note: str, kinds: str = "") -> Iterator[None]:
        with card(title, f"{kinds} hidden", note=note) as section:
            self.cards[key] = section
            with section.default_slot.children[0]:
                self.latest[key] = ui.label("").classes("latest")
            yield

    def _machine(self) -> None:
        with card("Machine", "wide", note="of the server, now"), box("stats") as self.machine:
            pass
        ui.timer(0.1, self._read_machine, once=True)
        self.frame.every(3.0, self._read_machine)

    async def _read_machine(self) -> None:
        if not self.frame.desk.feed.up:
            return
        try:
            found = await self.frame.server.get("system")
        except ServerError:
            return  # the banner says it
        self.machine.clear()
        with self.machine:
            for key, value in machine_figures(found):
                with box("stat"):
                    text(key, kinds="key")
                    text(value, kinds="value")

    async def load(self) -> None:
        """Read all curves, down-sampled by the server; points that come meanwhile are added after them."""
        self.loading = True
        try:
            with self.trouble.guard():
                found = await self.frame.server.get(
                    f"runs/{self.name}/metrics", keys=",".join(self.keys), points=POINTS
                )
                send(found, whole=True)
                self._seen(found)
        finally:
            self.loading = False
        self.nothing.set_visibility("hidden" in self.cards["bpb"].classes)

    def hear(self, series: Mapping[str, Any]) -> None:
        """New points; they are shown at the next flush."""
        joined(self.waiting, {key: points for key, points in series.items() if key in self.keys})

    def mark(self, happenings: Sequence[Mapping[str, Any]]) -> None:
        """Show events on the curve."""
        self.marks = [made for made in map(mark_of, happenings) if made]
        self.bpb.change(marks=latest_marks(self.marks))

    def hear_mark(self, happening: Mapping[str, Any]) -> None:
        """An event that just happened."""
        if made := mark_of(happening):
            self.marks.append(made)
            self.fresh_marks = True

    async def flush(self) -> None:
        """Send what came since the last time."""
        if self.rewound:
            self.rewound = False
            self.waiting.clear()
            await self.load()
        if self.waiting and not self.loading:
            found, self.waiting = self.waiting, {}
            send(found)
            self._seen(found)
        if self.fresh_marks:
            self.fresh_marks = False
            self.bpb.change(marks=latest_marks(self.marks))

    def _seen(self, found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Bring charts with data into sight, and say the latest values."""
        for key, points in found.items():
            if not points.get("mean"):
                continue
            place = "bpb" if key in ("train_bpb", "val_bpb") else "bits" if key in BITS else key
            section = self.cards.get(place)
            if section is None:  # of a metric that came after the page was built
                continue
            if "hidden" in section.classes:
                section.classes(remove="hidden")
                self.nothing.set_visibility(False)
            if place == "bits":
                self.last_bits[key] = points["mean"][-1]
            elif key != "val_bpb":
                self.latest[place].set_text(latest(key, points["mean"][-1]))
        if any(key in BITS for key in found) and self.last_bits:
            self.cards["bits_now"].classes(remove="hidden")
            shown = [bit for bit in BITS if bit in self.last_bits]
            self.bits_now.change(
                categories=[bit[4:] for bit in shown], values=[round(self.last_bits[bit], 4) for bit in shown]
            )


def normal_range(gate: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """What the run's gate calls normal, as an area of a chart. K of predictions is another quantity than the gate's K of bytes, so it has none."""
    if not gate.get(key) or key == "K":
        return []
    low, high = gate[key]
    words = f"normal in {gate['bytes']} bytes of text" if gate.get("bytes") else "normal"
    return [{"low": low, "high": high, "label": words, "tone": "good"}]


def latest(key: str, value: float) -> str:
    """The latest value of a curve, in its unit."""
    unit = PLAIN[key][2] if key in PLAIN else "number"
    if unit == "bytes":
        return formats.size(value)
    if unit == "speed":
        return formats.speed(value)
    return f"{formats.short(value)} %" if unit == "percent" else formats.short(value)


def machine_figures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The server's machine in a few figures."""
    total, free = found.get("memory_total"), found.get("memory_free")
    rows = [
        ("Processor", f"{formats.short(found.get('cpu_percent'))} % of {found.get('cpus', '?')} cores"),
        ("Memory free", f"{formats.size(free)} of {formats.size(total)}"),
        ("Disk free", formats.size(found.get("disk_free"))),
    ]
    for gpu in found.get("gpus") or []:
        used = f"{formats.size(gpu.get('memory_used'))} of {formats.size(gpu.get('memory_total'))}"
        rows.append((str(gpu.get("name", "GPU")), f"{formats.short(gpu.get('percent'))} %, {used}"))
    return rows
