"""What K, C and S are for kinds of data: quantiles over windows of 512 bytes. `service/advisor/kinds.py` has the table that this prints."""

from __future__ import annotations

import bz2
import random
import sys
import sysconfig
from pathlib import Path

import harness
import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ModelConfig
from bit_transformer.data.sources import Corpus, bytes_corpus, stdlib_files, whole_files
from bit_transformer.safety.reference import Reference, as_array

SIZE, WINDOWS = 512, 400
AT = (0.05, 0.5, 0.95)


def main(quick: bool) -> int:
    """Measure."""
    count = 50 if quick else WINDOWS
    report = harness.Report("bands", f"{count} windows of {SIZE} bytes of each kind; quantiles 5, 50, 95 %", {})
    code = whole_files(stdlib_files())
    reference = Reference.fit(code.part(0, 1 << 20), ModelConfig())
    for name, windows_NL in kinds(code, count).items():
        values_NM = as_array(reference.measure(bytes_to_bits(windows_NL)))
        quantiles_MQ = np.quantile(values_NM, AT, axis=0).T
        shown = ["(" + ", ".join(f"{value:.3f}" for value in row) + ")" for row in quantiles_MQ]
        report.row(name, f"K {shown[0]}  C {shown[1]}  S {shown[2]}")
        report.figures |= {f"{name} {metric}": float(row[1]) for metric, row in zip("KCS", quantiles_MQ, strict=True)}
    return report.finish()


def kinds(code: Corpus, count: int) -> dict[str, NDArray[np.uint8]]:
    """Windows by kind; S is against a reference of source code."""
    draw = random.Random(0)
    prose = b"\n\n".join(_docstrings(stdlib_files()))
    found = {
        "source code": _spread(code.part(2 << 20, len(code)), count),
        "English prose": _spread(bytes_corpus(prose), count),
        "an executable": _spread(whole_files([_executable()]), count),
        "a table of numbers": _spread(bytes_corpus(_table(count)), count),
        "compressed data": _spread(bytes_corpus(bz2.compress(code.read(0, 4 << 20).tobytes())), count),
        "noise": np.frombuffer(draw.randbytes(SIZE * count), np.uint8).reshape(count, SIZE),
        "a phrase, repeated": np.stack([_repeated(prose, draw, draw.randint(4, 40)) for _ in range(count)]),
        "one byte, repeated": np.stack([np.full(SIZE, draw.randrange(256), np.uint8) for _ in range(count)]),
    }
    return found


def _spread(corpus: Corpus, count: int) -> NDArray[np.uint8]:
    step = (len(corpus) - SIZE) // count
    return np.stack([corpus.read(i * step, SIZE) for i in range(count)])


def _docstrings(files: list[Path]) -> list[bytes]:
    """Paragraphs of prose: long docstrings of the standard library."""
    import ast

    found = []
    for path in files:
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found += [part.encode() for part in text.split("\n\n") if len(part) > 200 and part.count(" ") > 30]
    return found


def _executable() -> Path:
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("LDLIBRARY"))
    python = Path(sys.executable).resolve()
    return library if library.is_file() and library.stat().st_size > python.stat().st_size else python


def _table(count: int) -> bytes:
    """Lines of a random walk, as a program would log them."""
    random_ = np.random.default_rng(0)
    rows = np.cumsum(random_.normal(size=(count * 20, 3)), axis=0)
    return "\n".join(f"{i},{a:.4f},{b:.4f},{c:.4f}" for i, (a, b, c) in enumerate(rows)).encode()


def _repeated(text: bytes, draw: random.Random, period: int) -> NDArray[np.uint8]:
    start = draw.randrange(len(text) - period)
    return np.resize(np.frombuffer(text[start : start + period], np.uint8), SIZE)


if __name__ == "__main__":
    harness.run(main, __doc__)
