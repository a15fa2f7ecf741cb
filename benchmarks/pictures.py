"""The pictures of the README, drawn from docs/results/*.json into docs/pictures/, for light and dark pages.

`--measure` first makes the data that no benchmark prints: seconds of compressors, and the bits per byte of a damaged file. It
takes five minutes. The other data are the last lines of `btlm bench tinyshakespeare` and `btlm bench experts`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
RESULTS, PICTURES = ROOT / "docs" / "results", ROOT / "docs" / "pictures"
RECIPE = ROOT / "recipes" / "tinyshakespeare-experts-cpu.toml"
CORPUS = "tinyshakespeare"
NANOGPT = (180.0, 2.120)  # its README: 1.4697 nats a character after about 3 minutes on an A100
LENGTH, WINDOW = 24_576, 64  # bytes of the damaged file, and of a point in its picture
# Where the file is damaged, and how.
DAMAGE = {"flips": (4_096, 6_144), "noise": (10_240, 11_264), "repeat": (16_384, 18_432)}
FLIPPED = 0.01
TOP = 16  # bits per byte
LABELS = {"flips": "1 % of bits flipped", "noise": "replaced by noise", "repeat": "the 2 KiB before, repeated"}


# ---- drawing ----


@dataclass(frozen=True)
class Theme:
    """Colours of a page; those of data are Okabe and Ito's, which colour-blind people can tell apart."""

    name: str
    ink: str
    faint: str
    ours: str
    trunk: str
    compressor: str
    other: str


THEMES = (
    Theme("light", "#24292f", "#d0d7de", "#0072b2", "#4a8fc4", "#d55e00", "#009e73"),
    Theme("dark", "#e6edf3", "#3d444d", "#56b4e9", "#9ecbe8", "#e69f00", "#3fc79a"),
)


def draw(folder: Path, kind: str) -> None:
    """Both pictures in both themes."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"font.size": 11, "svg.hashsalt": "pictures"}  # equal data are equal files
    for theme in THEMES:
        for name, size, paint in (
            ("bits-against-seconds", (8.6, 4.6), bits_against_seconds),
            ("damaged-file", (8.6, 3.4), damaged_file),
        ):
            figure = Figure(figsize=size, layout="constrained")
            paint(figure.subplots(), theme)
            path = folder / f"{name}-{theme.name}.{kind}"
            figure.savefig(path, transparent=True, metadata={"Date": None} if kind == "svg" else None, dpi=120)


def bits_against_seconds(axes: Axes, theme: Theme) -> None:
    """Bits per byte of Tiny Shakespeare's held-out part, against the seconds it took."""
    experts = budgets("experts", r"tinyshakespeare: model, online \((\d+) s")
    trunk = budgets("tinyshakespeare", r"(\d+) s$")
    axes.plot(*zip(*experts, strict=True), "o-", color=theme.ours, markersize=8, linewidth=2)
    axes.plot(*zip(*trunk, strict=True), "o-", color=theme.trunk, markersize=6, linewidth=1.5)
    note(axes, experts[-1], "BitTransformerLM", theme.ours, (10, 0), weight="bold", va="center")
    note(axes, trunk[-1], "without experts", theme.trunk, (10, 0), va="center")
    for row in read("compressors")["rows"]:
        if row["name"] in ("zpaq -m5", "PPMd order 6", "xz -9e"):
            point = row["seconds"], row["bits_per_byte"]
            axes.plot(*point, "s", color=theme.compressor, markersize=8)
            note(axes, point, f"{row['name']}, primed", theme.compressor, (10, 0), va="center")
    axes.plot(*NANOGPT, "D", color=theme.other, markersize=8, markerfacecolor="none", markeredgewidth=2)
    note(axes, NANOGPT, "nanoGPT on an A100 GPU,\nits published figure", theme.other, (10, 2), va="bottom")
    axes.set_xscale("log")
    axes.set_xlim(0.2, 4_000)
    axes.set_ylim(1.7, 2.6)
    axes.set_xticks([1, 10, 100, 1_000], ["1", "10", "100", "1,000"])
    finish(axes, theme, "seconds (log scale), on 2 CPU cores unless noted", "bits per byte (lower is better)")
    axes.set_title("Tiny Shakespeare: the last 10 %, after training on the first 90 %", loc="left", color=theme.ink)


def damaged_file(axes: Axes, theme: Theme) -> None:
    """Bits per byte by position, with the damaged stretches shaded."""
    found = read("damaged-file")
    bpb, window = np.array(found["bits_per_byte"]), found["window"]
    edges = np.arange(len(bpb) + 1) * window / 1024
    damaged = np.zeros(len(bpb), bool)
    for kind, (first, last) in found["damage"].items():
        damaged[first // window : last // window] = True
        axes.axvspan(first / 1024, last / 1024, color=theme.compressor, alpha=0.16, linewidth=0)
        note(axes, ((first + last) / 2048, TOP), LABELS[kind], theme.compressor, (0, 4), ha="center", va="bottom")
    axes.stairs(bpb, edges, baseline=None, color=theme.ours, linewidth=1.1)
    usual = float(np.median(bpb[~damaged]))
    axes.axhline(usual, color=theme.ink, linewidth=0.8, linestyle=":")
    note(axes, (edges[-1], usual), f"median of the\nrest: {usual:.2f}", theme.ink, (6, 0), va="center", fontsize=9)
    axes.set_xlim(0, edges[-1])
    axes.set_xticks(range(0, int(edges[-1]) + 1, 4))
    axes.set_ylim(0, TOP)
    axes.set_yticks(range(0, TOP + 1, 4))
    finish(axes, theme, "position in the file, KiB", f"bits per byte ({window}-byte windows)")
    axes.set_title("A damaged text file, scored by a model trained for 3 minutes", loc="left", color=theme.ink, pad=24)


def note(axes: Axes, point: tuple[float, float], text: str, color: str, offset: tuple[int, int], **style: Any) -> None:
    """A label beside a point."""
    axes.annotate(text, point, offset, textcoords="offset points", color=color, annotation_clip=False, **style)


def finish(axes: Axes, theme: Theme, x: str, y: str) -> None:
    """Labels, a light grid, no box."""
    axes.set_xlabel(x, color=theme.ink)
    axes.set_ylabel(y, color=theme.ink)
    axes.tick_params(which="both", colors=theme.ink)
    axes.tick_params(which="minor", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)


def read(name: str) -> Any:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def budgets(name: str, row: str) -> list[tuple[float, float]]:
    """Seconds and bits per byte of a benchmark's trainings, by seconds.

    Args:
        row: a pattern of the rows' names, whose group is the seconds.
    """
    rows = [(re.match(row, what), value) for what, value in read(name)["rows"]]
    return sorted((float(match[1]), float(value.split()[0])) for match, value in rows if match)


# ---- measuring ----


def measure() -> None:
    """Make `compressors.json` and `damaged-file.json`."""
    import experts  # the benchmark; it loads torch
    import harness

    from bit_transformer.data.sources import bytes_corpus
    from bit_transformer.evaluation.scorer import cost_of

    training, held_out = experts.training_and_held_out(CORPUS)
    bpb = experts.primed(CORPUS)
    rows = []
    whole = bytes_corpus(training + held_out)
    for one in experts.compressors():
        seconds = min(timed(lambda one=one: cost_of(one, whole)) for _ in range(5))
        rows.append({"name": one.name, "bits_per_byte": bpb[f"{one.name}, primed"], "seconds": seconds})
    how = (
        "primed: C(training + held-out) - C(training) over the held-out bytes; seconds: compressing training and held-out bytes once, "
        "one thread, the fastest of five; zpaq's with the start of its process and its files"
    )
    write("compressors", {"corpus": CORPUS, "how": how, "rows": rows, "machine": harness.machine()})

    text, damage = held_out[:LENGTH], np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "damaged.txt").write_bytes(damaged(text, damage))
        (Path(folder) / "held-out.txt").write_bytes(held_out)
        run = str(Path(folder) / "run")
        btlm("train", "--recipe", str(RECIPE), "--out", run, "--store", f"{folder}/runs.sqlite")
        scored = btlm("score", run, f"{folder}/damaged.txt", "--window", str(WINDOW))
        whole = timed(lambda: btlm("score", run, f"{folder}/held-out.txt"))
    found = {
        "corpus": CORPUS,
        "how": f"recipes/{RECIPE.name}; btlm score of the first {LENGTH:,} held-out bytes, damaged; {scored['protocol']}",
        "window": WINDOW,
        "damage": DAMAGE,
        "flipped": FLIPPED,
        "bits_per_byte": [round(w["bpb"], 4) for w in scored["windows"]],
        "seconds_to_score_all_held_out_bytes": whole,
        "machine": harness.machine(),
    }
    write("damaged-file", found)


def damaged(text: bytes, random: np.random.Generator) -> bytes:
    """Text with a stretch of flipped bits, one of noise, and one that repeats what is before it."""
    data = np.frombuffer(text, np.uint8).copy()
    first, last = DAMAGE["flips"]
    data[first:last] ^= np.packbits(random.random(8 * (last - first)) < FLIPPED)
    first, last = DAMAGE["noise"]
    data[first:last] = random.integers(0, 256, last - first)
    first, last = DAMAGE["repeat"]
    data[first:last] = data[2 * first - last : first]
    return data.tobytes()


def btlm(*args: str) -> Any:
    """The result of a command."""
    command = [sys.executable, "-m", "bit_transformer.cli", *args, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def timed(call: Any) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return round(time.perf_counter() - began, 3)


def write(name: str, found: dict[str, Any]) -> None:
    """A result, one line of JSON, as benchmarks print them."""
    (RESULTS / f"{name}.json").write_text(json.dumps(found) + "\n")


def main() -> None:
    """Draw, or measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="first make the data that no benchmark prints")
    parser.add_argument("--out", type=Path, default=PICTURES, help="another folder for the pictures")
    parser.add_argument("--png", action="store_true", help="PNG instead of SVG")
    asked = parser.parse_args()
    if asked.measure:
        measure()
    asked.out.mkdir(parents=True, exist_ok=True)
    draw(asked.out, "png" if asked.png else "svg")


if __name__ == "__main__":
    main()
