"""What a filter found, as one HTML file: counts, distributions beside the reference's, examples, what was left out and why."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bit_transformer.quality.model import MENTIONED, QualityModel
from bit_transformer.quality.normal import COLUMNS
from bit_transformer.service.files import write_file
from bit_transformer.service.filtered.tally import BPB_BINS, BPB_STEP, PERCENTILE_BINS, PICKED, Example, Tally

HERE = Path(__file__).parent
WIDTH, HEIGHT, LEFT, BELOW = 460, 190, 34, 34  # of a histogram, and the room for its axes
SAYS = {
    "dear": "more bits per byte than clean texts: another language, code, noise, misread or misspelt words",
    "cheap": "fewer bits per byte than clean texts: text that the clean texts have too, such as licences and menus",
    "repeats": "the beginning repeats itself: few different phrases",
    "loops": "a stretch that copies itself again and again",
    "unlike": "the beginning is unlike the clean texts, bit by bit",
    "short": "too short to be judged",
    "empty": "no text",
}


def write_report(
    path: Path, tally: Tally, model: QualityModel, inputs: Sequence[str], keep_below: float | None
) -> None:
    """Write the page.

    Raises:
        OSError: writing failed; an old file stays.
    """
    names = [Path(name).name or name for name in inputs]
    title = f"Quality of {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{(HERE / 'report.css').read_text()}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1><p>{_about(model, keep_below)}</p></header>",
        _figures(tally, keep_below),
        '<div class="pair">',
        *_costs(tally, model),
        *_percentiles(tally, keep_below),
        "</div>",
        *_odd(tally),
        *_examples(tally),
        *_left_out(tally, keep_below),
        *_unreadable(tally),
        "</body></html>\n",
    ]
    write_file(path, "\n".join(parts).encode(errors="replace"))


def _about(model: QualityModel, keep_below: float | None) -> str:
    read = f"{model.facts['bytes']:,} bytes in {model.facts['documents']:,} documents" if "bytes" in model.facts else ""
    kept = (
        "Nothing was left out for its percentile."
        if keep_below is None
        else f"Texts with a percentile below {keep_below:g} were kept."
    )
    return (
        f"Compared with clean text{f' of {read}' if read else ''}. The percentile of a text is the percentage of clean texts of about its length "
        f"that are less odd: dear or cheap in bits per byte, repeating themselves, in loops, or unlike the others. {kept}"
    )


def _figures(tally: Tally, keep_below: float | None) -> str:
    bpb = f"{tally.bits / tally.measured:.3f}" if tally.measured else "-"
    odd = sum(tally.percentile[int(MENTIONED * PERCENTILE_BINS / 100) :])
    rows = [
        ("texts", f"{tally.documents:,}"),
        ("bytes", _size(tally.size)),
        ("bits per byte", bpb),
        (f"at {MENTIONED:g} or above", _share(odd, tally.documents)),
        ("blocked by the gate", _share(tally.blocked, tally.documents)),
    ]
    if keep_below is not None:
        rows.append(("left out", _share(tally.dropped, tally.documents)))
    if tally.lost:
        rows.append(("could not be read", f"{tally.lost:,}"))
    if tally.empty:
        rows.append(("empty", f"{tally.empty:,}"))
    return f'<dl class="figures">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)}</dl>'


def _costs(tally: Tally, model: QualityModel) -> Iterator[str]:
    """Bits per byte, with what clean texts of the same lengths have."""
    reference = np.zeros(BPB_BINS)
    for length, count in tally.lengths.items():
        rows = model.normal.tables[model.normal.lengths.index(int(length))].rows[:, COLUMNS.index("bpb")]
        bins = np.minimum(BPB_BINS - 1, (rows / BPB_STEP).astype(int))
        reference += np.bincount(bins, minlength=BPB_BINS) * (count / len(rows))
    counts = np.array(tally.bpb, dtype=float)
    there = np.flatnonzero(counts + (reference > 0.5))
    first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 10)
    first, last = max(0, first - 1), min(BPB_BINS, max(last + 1, first + 12))
    yield "<section><h2>Bits per byte</h2>"
    values = [(i * BPB_STEP, counts[i], "bar") for i in range(first, last)]
    step = 0.5 if (last - first) * BPB_STEP <= 4 else 1.0
    ticks = [t for t in np.arange(0, BPB_BINS * BPB_STEP, step) if first * BPB_STEP <= t <= last * BPB_STEP + 1e-9]
    yield _histogram(values, BPB_STEP, reference[first:last].tolist(), [(t, f"{t:g}") for t in ticks])
    yield '<p class="legend"><span><i></i>these texts</span><span><i class="line"></i>clean texts of the same lengths</span></p></section>'


def _percentiles(tally: Tally, keep_below: float | None) -> Iterator[str]:
    """Percentiles, which are even for clean texts."""
    width = 100 / PERCENTILE_BINS
    scored = sum(tally.percentile)
    limit = MENTIONED if keep_below is None else keep_below
    colour = "warn" if keep_below is None else "out"
    values = [
        (i * width, float(count), f"bar {colour}" if i * width >= limit - 1e-9 else "bar")
        for i, count in enumerate(tally.percentile)
    ]
    yield "<section><h2>Percentile</h2>"
    ticks = [(float(t), str(t)) for t in (0, 25, 50, 75, 100)]
    yield _histogram(values, width, [scored / PERCENTILE_BINS] * PERCENTILE_BINS, ticks)
    what = f"{limit:g} or above" + ("" if keep_below is None else ", left out")
    yield (
        f'<p class="legend"><span><i></i>these texts</span><span><i class="{colour}"></i>{what}</span>'
        '<span><i class="line"></i>clean texts, which are even</span></p></section>'
    )


def _histogram(
    values: Sequence[tuple[float, float, str]],
    width: float,
    reference: Sequence[float],
    ticks: Sequence[tuple[float, str]],
) -> str:
    """Bars, and the reference as steps; the vertical axis is cut where a single bar would flatten all others."""
    low, high = values[0][0], values[-1][0] + width
    counts = sorted([count for _, count, _ in values] + list(reference))
    top = max(counts[-1], 1.0)
    second = max(max(reference), *[count for _, count, _ in values if count < top], 1.0)
    cut = second * 1.6 if top > 3 * second else top
    inner, tall = WIDTH - LEFT - 6, HEIGHT - BELOW - 14

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * inner

    def y(count: float) -> float:
        return 14 + tall * (1 - min(count, cut) / cut)

    made = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for count in _nice(cut):
        made.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 6}" y1="{y(count):.1f}" y2="{y(count):.1f}"/>')
        made.append(f'<text x="{LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{_short(count)}</text>')
    for begin, count, kind in values:
        if count:
            bar = max(1.0, x(begin + width) - x(begin) - 1)
            made.append(
                f'<rect class="{kind}" x="{x(begin):.1f}" y="{min(y(count), y(0) - 1):.1f}" width="{bar:.1f}" height="{max(1.0, y(0) - y(count)):.1f}"><title>'
                f"{begin:.3g} to {begin + width:.3g}: {count:,.0f}</title></rect>"
            )
            if count > cut:
                end = x(begin + width)
                made.append(f'<text x="{min(end, WIDTH - 6):.1f}" y="10" text-anchor="end">{count:,.0f} ↑</text>')
    there = [i for i, count in enumerate(reference) if count]
    if there:
        steps = [(values[i][0], reference[i]) for i in range(there[0], there[-1] + 1)]
        path = "L".join(f"{x(at):.1f} {y(count):.1f}L{x(at + width):.1f} {y(count):.1f}" for at, count in steps)
        made.append(f'<path class="reference" d="M{path}"/>')
    made.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 6}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    for value, label in ticks:
        made.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BELOW + 18}" text-anchor="middle">{label}</text>')
    return "".join([*made, "</svg>"])


def _nice(top: float) -> list[float]:
    step = 10 ** np.floor(np.log10(max(top, 1) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= 4.5)
    return [float(value) for value in np.arange(0, top + 1e-9, max(1.0, step))]


def _odd(tally: Tally) -> Iterator[str]:
    if not tally.odd:
        return
    yield f"<section><h2>In what texts are odd</h2><p>Those at a percentile of {MENTIONED:g} or above, or blocked by the gate.</p>"
    yield _counts("kind", tally.odd, SAYS)
    yield "</section>"


def _counts(what: str, counts: dict[str, int], says: dict[str, str]) -> str:
    most, rows = max(counts.values()), []
    for kind, count in sorted(counts.items(), key=lambda item: -item[1]):
        share = f'<span class="share" style="width:{100 * count / most:.1f}%"></span>'
        means = f"<td>{html.escape(says.get(kind, ''))}</td>" if says else ""
        rows.append(
            f'<tr><td class="tight">{html.escape(kind)}</td><td class="num">{count:,}</td><td style="width:22%">{share}</td>{means}</tr>'
        )
    head = f'<th>{what}</th><th class="num">count</th><th></th>' + ("<th></th>" if says else "")
    return (
        f"<table{'' if says else ' class=narrow'}><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _examples(tally: Tally) -> Iterator[str]:
    if not tally.picked:
        return
    yield "<section><h2>Texts at some percentiles</h2>"
    shown: set[str] = set()
    for wanted in PICKED:
        example = tally.picked[str(wanted)]
        key = _place(example)
        if key not in shown:  # of few texts, one may be the nearest to several
            yield _text(example)
        shown.add(key)
    yield "</section><section><h2>The oddest</h2>"
    yield from map(_text, tally.most_odd)
    yield "</section>"


def _left_out(tally: Tally, keep_below: float | None) -> Iterator[str]:
    if keep_below is None:
        return
    yield "<section><h2>What was left out</h2>"
    if not tally.reasons:
        yield f"<p>Nothing: all texts are below {keep_below:g}.</p></section>"
        return
    yield _counts("kind", tally.reasons, SAYS)
    for kind in sorted(tally.reasons, key=lambda kind: -tally.reasons[kind]):
        yield f"<h3>{html.escape(kind)}</h3>"
        yield from map(_text, tally.dropped_texts[kind])
    yield "</section>"


def _unreadable(tally: Tally) -> Iterator[str]:
    if not tally.lost and not tally.blank:
        return
    yield "<section><h2>What could not be read</h2>"
    if tally.blank:
        yield f"<p>{tally.blank:,} {'line is' if tally.blank == 1 else 'lines are'} blank.</p>"
    if tally.lost:
        yield _counts("why", tally.unreadable, {})
        for why, examples in tally.unreadable_texts.items():
            yield f"<h3>{html.escape(why)}</h3>"
            yield from map(_text, examples)
    yield "</section>"


def _text(example: Example) -> str:
    told = []
    if example.get("percentile") is not None:
        told.append(f"<strong>{example['percentile']:.4g}</strong>")
    told.append(f"<span>{html.escape(_place(example))}</span>")
    if example.get("bpb") is not None:
        told.append(f"<span>{example['bpb']:.2f} bits per byte</span>")
    if example.get("gate") == "block":
        told.append('<span class="tag block">blocked</span>')
    why = (
        f'<div class="why">{html.escape(example["reason"])}</div>'
        if example.get("reason") not in (None, "", "empty")
        else ""
    )
    begins = html.escape(_visible(example["begins"])) or '<span class="muted">nothing</span>'
    return f'<div class="text"><div>{"".join(told)}</div><pre>{begins}</pre>{why}</div>'


def _place(example: Example) -> str:
    name = Path(str(example["input"])).name or str(example["input"])
    if "file" in example:
        return str(example["file"])
    unit = "row" if "row" in example else "line"
    return f"{name}, {unit} {example[unit]:,}"


def _visible(text: str) -> str:
    """Control characters as pictures of them."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text.replace("\r\n", "\n"))


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"


def _short(count: float) -> str:
    return f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}k" if count >= 1e4 else f"{count:,.0f}"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
