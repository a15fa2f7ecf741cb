"""A map as one HTML file, which needs nothing else: every byte with its bits, a picture of the whole file, a curve, segments."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bit_transformer.service.files import new_file
from bit_transformer.service.maps.marks import Mark
from bit_transformer.service.maps.overview import BLOCK, GAPS, MILLI, REACH, Overview, look
from bit_transformer.service.maps.scale import LEVELS, STEPS, colours, in_levels, in_steps, number_of
from bit_transformer.surprisal.records import SurpriseMap

HERE = Path(__file__).parent
SCALES = ("light", "dark", "grey-light", "grey-dark")
THREADS = 2  # zlib lets go of Python's lock
FAST_FROM = 32 << 20  # bytes of a file that is packed quickly rather than well


def write_page(
    surprise: SurpriseMap,
    path: Path,
    *,
    marks: Sequence[Mark] = (),
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the page of a map. Memory does not grow with the file.

    Args:
        marks: ranges that stand out, such as damage. They are listed, and outlined among the bytes.
        tell: called with how much is done, of how much.

    Raises:
        OSError: writing failed; an old file stays.
    """
    size = len(surprise.costs)
    overview = None
    for said in look(surprise):
        if isinstance(said, Overview):
            overview = said
        else:
            tell(said // 2, size)
    assert overview is not None
    parts = {
        "title": html.escape(surprise.name),
        "style": _text("page.css"),
        "script": _text("page.js"),
        "facts": json.dumps(_facts(surprise, marks, overview), allow_nan=False).replace("<", "\\u003c"),
        "overview": base64.b64encode(_overview(overview)).decode(),
    }
    head, foot = re.sub(r"<!--(\w+)-->", lambda found: parts.get(found[1], found[0]), _text("page.html")).split(
        "<!--blocks-->"
    )
    with new_file(path) as file:
        file.write(head.encode())
        for number, packed in enumerate(_packed(surprise)):
            file.write(b'<script type="application/octet-stream" data-block="%d" id="block-%d">' % (number, number))
            file.write(packed)
            file.write(b"</script>\n")
            tell((size + min((number + 1) * BLOCK, size)) // 2, size)
        file.write(foot.encode())


def pack_block(surprise: SurpriseMap, number: int, level: int = 6) -> bytes:
    """A block as the page has it: base64 of deflated bytes, costs in tenths of bits, and costs of single bits as levels, where they are kept."""
    here = slice(number * BLOCK, (number + 1) * BLOCK)
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    packed = [packer.compress(surprise.data[here].tobytes()), packer.compress(in_steps(surprise.costs[here]).tobytes())]
    if surprise.bit_costs is not None:
        packed.append(packer.compress(in_levels(surprise.bit_costs[here]).tobytes()))
    return base64.b64encode(b"".join([*packed, packer.flush()]))


def _packed(surprise: SurpriseMap) -> Iterator[bytes]:
    """All blocks in order, a few of them packed ahead."""
    blocks = -(-len(surprise.costs) // BLOCK)
    level = 1 if len(surprise.costs) >= FAST_FROM else 6
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future[bytes]] = deque()
        for number in range(blocks):
            ahead.append(pool.submit(pack_block, surprise, number, level))
            if len(ahead) > 4 * THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _facts(surprise: SurpriseMap, marks: Sequence[Mark], overview: Overview) -> dict[str, object]:
    return {
        "name": surprise.name,
        "begin": surprise.begin,
        "bytes": len(surprise.costs),
        "bpb": number_of(overview.bits / max(len(surprise.costs), 1)),
        "reader": surprise.reader,
        "block": BLOCK,
        "cells": len(overview.means),
        "steps": STEPS,
        "milli": MILLI,
        "reach": REACH,
        "gaps": GAPS,
        "levels": LEVELS if surprise.bit_costs is not None else None,
        "counts": overview.counts.tolist(),
        "edgeCounts": overview.edge_counts.tolist(),
        "starts": [found.tolist() for found in overview.starts],
        "scales": {name: base64.b64encode(colours(name).tobytes()).decode() for name in SCALES},
        "segments": [[s.begin, s.end, s.kind, number_of(s.bpb), s.like] for s in surprise.segments],
        "marks": [[m.begin, m.end, m.label, number_of(m.bits)] for m in marks],
    }


def _overview(overview: Overview) -> bytes:
    arrays = (overview.means.astype("<u2"), overview.peaks, overview.edges, overview.highest, overview.highest_edge)
    return b"".join(array.tobytes() for array in (*arrays, *overview.lowest))
