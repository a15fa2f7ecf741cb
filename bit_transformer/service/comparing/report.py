"""The report of a comparison: Markdown with plots beside it, one HTML file with everything in it, and the findings as JSON."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.config import ComparisonConfig
from bit_transformer.config.base import flat
from bit_transformer.service.comparing.cells import file_name
from bit_transformer.service.comparing.findings import ALPHA, Claim, Findings, Row
from bit_transformer.service.files import write_file
from bit_transformer.service.plots import Line, lines_svg

HTML_FILE, MARKDOWN_FILE, JSON_FILE = "report.html", "report.md", "report.json"
AXES = (("seconds of training", 0, 1.0), ("MB of data seen", 1, 1e6), ("10^12 operations", 2, 1e12))
UNITS = {"seconds": "seconds", "bytes": "bytes", "flops": "operations", "steps": "updates", "epochs": "epochs"}


@dataclass(frozen=True)
class Table:
    """A table with a caption. The first column is aligned left, the others right or, of `words`, left; `strong`: rows that stand out."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    strong: frozenset[int] = frozenset()
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """A plot: its file name, what it shows, and the SVG itself."""

    name: str
    caption: str
    svg: str


Part = str | Table | Picture | list[str]


def write_report(folder: Path, plan: ComparisonConfig, found: Findings) -> None:
    """Write the report into the folder of a comparison."""
    parts = list(_parts(plan, found))
    for _, body in parts:
        for part in body:
            if isinstance(part, Picture):
                write_file(folder / part.name, part.svg.encode())
    write_file(folder / MARKDOWN_FILE, _markdown(found.title, parts).encode())
    write_file(folder / HTML_FILE, _html(found.title, parts).encode())
    write_file(folder / JSON_FILE, f"{json.dumps(dataclasses.asdict(found), indent=1)}\n".encode())


# ---- what it says ----


def _parts(plan: ComparisonConfig, found: Findings) -> Iterator[tuple[str, list[Part]]]:
    """Sections: heading and what is under it."""
    yield "Protocol", [*_protocol(plan, found)]
    for corpus in dict.fromkeys(row.corpus for row in found.rows):
        rows = [row for row in found.rows if row.corpus == corpus]
        yield f"Results on {corpus}", [*_results(found, corpus, rows, [model.label for model in plan.models])]
    if found.claims:
        yield "Tests", [*_tests(found)]
    if found.limits:
        yield "What was not shown", [found.limits]
    yield "Plan", ["The same plan gives the same comparison: `btlm compare plan.json`, with", _plan(plan)]


def _protocol(plan: ComparisonConfig, found: Findings) -> Iterator[Part]:
    name, amount = found.budget
    seeds = len(plan.seeds)
    at = "one after the other" if plan.at_once == 1 else f"{plan.at_once} at once"
    threads = f"{plan.threads} thread{'s' if plan.threads != 1 else ''} each" if plan.threads else "all cores"
    yield (
        f"Every trained model has a budget of {amount:,.0f} {UNITS[name]}, {seeds} {'seed' if seeds == 1 else 'seeds'}, and trains {at} on {threads}, in a "
        "process of its own; models take turns within a seed. Whatever a model needs of the training data counts: the pass of the experts, learning a "
        "vocabulary, validations. Seeds are paired: the same seed of two models, trained at about the same time; models of the same blocks also draw the "
        "same windows. Models of these blocks keep the weights of their best validation, or their average over the last tenth; GPT-2 keeps its last, with "
        "rates that have fallen to zero, and what it loads for its first update does not count."
    )
    yield (
        f"Bits per byte are of {plan.eval_bytes:,} held-out bytes at most, the same for all: pieces that are evenly spread over the held-out part. "
        "Frozen models do not learn from what they are scored on. Adaptive ones do, as compressors do; compressors are primed with the training bytes "
        "where it says so, with what trained models validate on included. The two kinds are in tables of their own, and are not compared with each other."
    )
    if found.reference:
        yield (
            "Intervals of means are over seeds, by Student's t. Differences are paired by seed; p is exact, by flipping signs, and corrected by Holm over "
            "all claims below. Intervals over blocks of 1,024 held-out bytes are by the BCa bootstrap, of the trainings as they are."
        )
    yield [
        f"{corpus}: SHA-256 of the training bytes {training[:16]}..., of the scored bytes {held[:16]}..."
        for corpus, (training, held) in found.digests.items()
    ]
    yield [
        "Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items() if value != "none")
        for machine in found.machines
    ]


def _results(found: Findings, corpus: str, rows: Sequence[Row], models: Sequence[str]) -> Iterator[Part]:
    frozen = [row for row in rows if not row.adaptive]
    adaptive = [row for row in rows if row.adaptive]
    if frozen:
        columns = (
            "frozen model",
            "bits per byte",
            "95 % interval",
            "seeds",
            "parameters",
            "MB seen",
            "kB/s",
            "seconds",
        )
        strong = frozenset(at for at, row in enumerate(frozen) if row.model == found.reference)
        yield Table(f"Frozen models on {corpus}, best first", columns, [_frozen(row) for row in frozen], strong)
    if adaptive:
        heads = ("adaptive", "bits per byte", "95 % interval", "seeds", "seconds to score", "protocol")
        strong = frozenset(at for at, row in enumerate(adaptive) if row.trained)
        yield Table(
            f"Models that learn from what they score, on {corpus}, best first",
            heads,
            [_adaptive(row) for row in adaptive],
            strong,
        )
    curves = [curve for curve in found.curves if curve.corpus == corpus]
    if curves:
        panels = [
            (
                label,
                [
                    Line(
                        f"{c.model} (adaptive)" if c.adaptive else c.model,
                        [(p[at] / unit, p[3]) for p in c.points],
                        models.index(c.model),
                        c.model == found.reference,
                    )
                    for c in curves
                ],
            )
            for label, at, unit in AXES
        ]
        caption = f"Validation on {corpus} during training, the mean over seeds"
        svg = lines_svg(panels, y="bits per byte", title=caption, log=True)
        yield Picture(f"curves-{file_name(corpus)}.svg", caption, svg)
    with_bits = [row for row in frozen if row.bit_costs]
    if with_bits:
        lines = [
            Line(
                row.name,
                [(float(at), cost) for at, cost in enumerate(row.bit_costs)],
                models.index(row.model),
                row.model == found.reference,
            )
            for row in sorted(with_bits, key=lambda row: models.index(row.model))
        ]
        caption = f"Cost of a bit on {corpus} by its place in the byte, most significant first"
        svg = lines_svg([("bit of the byte", lines)], y="bits", title=caption)
        yield Picture(f"bits-{file_name(corpus)}.svg", caption, svg)


def _interval(low: float | None, high: float | None, sign: bool = False) -> str:
    if low is None or high is None:
        return "-"
    return f"{low:+.4f} to {high:+.4f}" if sign else f"{low:.4f} to {high:.4f}"


def _frozen(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.mean:.4f}",
        _interval(row.low, row.high),
        str(len(row.bpb)) if row.trained else "-",
        f"{row.parameters:,}" if row.parameters else "-",
        f"{row.bytes / 1e6:.2f}",
        f"{row.speed / 1e3:,.1f}" if row.trained else "-",
        f"{row.seconds:.1f}",
    )


def _adaptive(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.mean:.4f}",
        _interval(row.low, row.high),
        str(len(row.bpb)) if row.trained else "-",
        f"{row.score_seconds:.1f}",
        row.protocol.partition(" (")[0] if row.trained else row.protocol,
    )


def _tests(found: Findings) -> Iterator[Part]:
    yield f"Differences are {found.reference} minus the other: below 0, {found.reference} needs fewer bits."
    if found.joint:
        yield _claims("Over all corpora together: a pair for each corpus and seed", found.joint)
    yield _claims("On each corpus by itself", found.claims)
    shown = [claim.says for claim in (*found.joint, *found.claims) if claim.shown]
    if shown:
        yield f"Shown, with p after Holm at most {ALPHA}:"
        yield shown


def _claims(caption: str, claims: Sequence[Claim]) -> Table:
    columns = (
        "other", "corpus", "difference", "95 % over seeds", "95 % over blocks", "p", "p, Holm", "effect size", "pairs", "seeds for 0.01", "shown",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for claim in claims:
        test = claim.test
        rows.append(
            (
                claim.other,
                claim.corpus or "all",
                "-" if test is None else f"{test.difference:+.4f}",
                "-" if test is None or claim.corpus is None else _interval(test.low, test.high, sign=True),
                _interval(claim.window_low, claim.window_high, sign=True),
                "-" if test is None else f"{test.p:.2g}",
                "-" if test is None else f"{claim.p_holm:.2g}",
                "-" if test is None or test.effect is None or claim.corpus is None else f"{test.effect:+.2f}",
                "-" if test is None else str(test.n),
                "-" if claim.seeds_needed is None else f"{claim.seeds_needed:,}",
                "yes" if claim.shown else "no",
            )
        )
    return Table(caption, columns, rows, frozenset(at for at, claim in enumerate(claims) if claim.shown))


def _plan(plan: ComparisonConfig) -> Table:
    rows: list[tuple[str, ...]] = [
        (key, json.dumps(value, default=str))
        for key, value in flat("", plan.model_dump(mode="json", exclude={"models"}, exclude_defaults=True))
    ]
    for model in plan.models:
        own = model.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
        rows.append((f"model {model.label}", json.dumps(own)))
    return Table("Settings that differ from their defaults", ("setting", "value"), rows, words=True)


# ---- how it looks ----


def _markdown(title: str, parts: Sequence[tuple[str, list[Part]]]) -> str:
    lines = [f"# {title}", ""]
    for heading, body in parts:
        lines += [f"## {heading}", ""]
        for part in body:
            if isinstance(part, str):
                lines += [part, ""]
            elif isinstance(part, list):
                lines += [*(f"- {item}" for item in part), ""]
            elif isinstance(part, Picture):
                lines += [f"![{part.caption}]({part.name})", ""]
            else:
                lines += [f"{part.caption}:", ""]
                lines.append(f"| {' | '.join(part.columns)} |")
                lines.append(f"|{'|'.join(['---', *['---' if part.words else '---:'] * (len(part.columns) - 1)])}|")
                for at, row in enumerate(part.rows):
                    cells = [cell.replace("|", "\\|") for cell in row]
                    if at in part.strong:
                        cells[0] = f"**{cells[0]}**"
                    lines.append(f"| {' | '.join(cells)} |")
                lines.append("")
    return "\n".join(lines)


STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --page: #ffffff; --strong: #eef4fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --page: #0d1117; --strong: #16263a; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1.5rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
p { max-width: 46rem; } li { margin: .2rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0 1.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
caption { text-align: left; color: var(--soft); padding: 0 0 .4rem; }
th, td { padding: .32rem .8rem .32rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
.words th, .words td { white-space: normal; text-align: left; overflow-wrap: anywhere; vertical-align: top; }
.words td:first-child { white-space: nowrap; }
tr.strong td { background: var(--strong); font-weight: 600; }
figure { margin: 1.2rem 0 1.8rem; } figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .87rem; }
"""


def _html(title: str, parts: Sequence[tuple[str, list[Part]]]) -> str:
    made = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    for heading, body in parts:
        made.append(f"<section><h2>{html.escape(heading)}</h2>")
        for part in body:
            if isinstance(part, str):
                made.append(f"<p>{_inline(part)}</p>")
            elif isinstance(part, list):
                made.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in part) + "</ul>")
            elif isinstance(part, Picture):
                svg = part.svg[part.svg.index("<svg") :]
                made.append(f"<figure>{svg}<figcaption>{html.escape(part.caption)}</figcaption></figure>")
            else:
                made.append(_html_table(part))
        made.append("</section>")
    return "\n".join([*made, "</body></html>", ""])


def _html_table(table: Table) -> str:
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in table.columns)
    rows = []
    for at, row in enumerate(table.rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        rows.append(f"<tr{' class=strong' if at in table.strong else ''}>{cells}</tr>")
    return (
        f"<div class=scroll><table{' class=words' if table.words else ''}><caption>{html.escape(table.caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _inline(text: str) -> str:
    """A line of text; what is between backticks is code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))
