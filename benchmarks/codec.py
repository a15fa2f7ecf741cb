"""How small and how fast is `btlm compress` without a model, beside other compressors, on five files?

Other programs are run with one thread as they are installed; those that are not there are left out.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np

from bit_transformer.compression.codec import BankCoder, coder_for
from bit_transformer.compression.files import compress_stream, decompress_stream
from bit_transformer.compression.profiles import LIGHT, Experts
from bit_transformer.data.sources import named_file
from bit_transformer.errors import BitTransformerError
from bit_transformer.machine import cores

FILES = ("tinyshakespeare", "dickens", "xml", "ooffice", "mr")
QUICK_BYTES = 300_000
RICH: Experts = "rich"
OURS_RICH = "btlm compress --experts rich"
GENERIC = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
DIGEST = (
    "import sys, hashlib; from bit_transformer.compression import compress_bytes;"
    "print(hashlib.sha256(compress_bytes(open(sys.argv[1], 'rb').read(), experts=sys.argv[2])).hexdigest())"
)


class Peer(NamedTuple):
    """Another program: commands to compress FILE to OUT and OUT back to BACK."""

    name: str
    needs: str
    pack: str
    unpack: str


PEERS = (
    Peer("xz -9e", "xz", "xz -9e -k -c FILE > OUT", "xz -d -c OUT > BACK"),
    Peer("zstd --ultra -22", "zstd", "zstd --ultra -22 -q -c FILE > OUT", "zstd -d -q -c --memory=2048MB OUT > BACK"),
    Peer("brotli -11", "brotli", "brotli -q 11 -w 24 -c FILE > OUT", "brotli -d -c OUT > BACK"),
    Peer("bzip3", "bzip3", "bzip3 -e -b 64 -c FILE > OUT", "bzip3 -d -c OUT > BACK"),
    Peer("PPMd -o8", "7z", "7z a -m0=PPMd:o8:mem=256m -mmt=1 -bd OUT FILE > /dev/null", "7z x -so OUT > BACK"),
    Peer(
        "zpaq -m5", "zpaq", "zpaq a OUT FILE -m5 -t1 > /dev/null 2>&1", "zpaq x OUT FILE -to BACK -t1 > /dev/null 2>&1"
    ),
    Peer("paq8px -7", "paq8px", "paq8px -7 FILE OUT > /dev/null", "paq8px -d OUT BACK > /dev/null"),  # hours
)


SUFFIX = {"zpaq": ".zpaq", "7z": ".7z", "paq8px": ".paq8px"}


class Result(NamedTuple):
    """One file through one compressor."""

    size: int
    pack_s: float
    unpack_s: float


def corpora(quick: bool) -> dict[str, bytes]:
    """The files that can be had; else Python's standard library."""
    found = {}
    for name in FILES:
        try:
            found[name] = named_file(name).read_bytes()
        except BitTransformerError:
            continue
    if not found:
        name, training, _ = harness.text_corpus()
        found[name] = np.asarray(training.read(0, 4_000_000)).tobytes()
    return {name: data[:QUICK_BYTES] for name, data in found.items()} if quick else found


def held_out() -> dict[str, bytes]:
    """Kinds of data that nothing was picked on, from what is installed with Python and torch: code, headers, machine code, a font."""
    import matplotlib
    import torch

    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    headers = sorted((Path(torch.__file__).parent / "include/ATen").glob("*.h"))
    fonts = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf"
    library = Path(np.__file__).parent / "_core"
    found = {
        "Python": b"".join(path.read_bytes() for path in sources),
        "C++ headers": b"".join(path.read_bytes() for path in headers),
        "ELF": b"".join(path.read_bytes() for path in sorted(library.glob("_multiarray_umath*.so"))),
        "font": (fonts / "DejaVuSans.ttf").read_bytes(),
    }
    return {name: data[:1_000_000] for name, data in found.items() if data}


def through(peer: Peer, data: bytes, folder: Path) -> Result:
    """Run a peer both ways."""
    names = {"FILE": "plain", "OUT": "packed" + SUFFIX.get(peer.needs, ""), "BACK": "back"}
    for name in names.values():
        (folder / name).unlink(missing_ok=True)
    (folder / "plain").write_bytes(data)

    def shell(command: str) -> float:
        for word, name in names.items():
            command = command.replace(word, name)
        began = time.perf_counter()
        subprocess.run(command, shell=True, cwd=folder, check=True)
        return time.perf_counter() - began

    seconds = shell(peer.pack), shell(peer.unpack)
    assert (folder / "back").read_bytes() == data, peer.name
    return Result((folder / names["OUT"]).stat().st_size, *seconds)


def ours(data: bytes, *, experts: Experts = LIGHT, jobs: int = 1, frame_bytes: int | None = None) -> Result:
    """`btlm compress` both ways, in this process, without reading back while compressing."""
    packed, plain = io.BytesIO(), io.BytesIO()
    began = time.perf_counter()
    compress_stream(
        io.BytesIO(data), packed, BankCoder(experts), size=len(data), jobs=jobs, frame_bytes=frame_bytes, verify=False
    )
    middle = time.perf_counter()
    decompress_stream(io.BytesIO(packed.getvalue()), plain, lambda header: coder_for(header, None), jobs=jobs)
    end = time.perf_counter()
    assert plain.getvalue() == data
    return Result(len(packed.getvalue()), middle - began, end - middle)


def digest(path: Path, environment: dict[str, str], experts: Experts) -> str:
    """The digest of a compressed file, from a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", DIGEST, str(path), experts],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def main(quick: bool) -> int:
    """Measure."""
    files = corpora(quick)
    total = sum(map(len, files.values()))
    report = harness.Report(
        "codec",
        f"{', '.join(f'{name} {len(data):,}' for name, data in files.items())} bytes; every compressor from nothing, one thread, both ways, "
        "each once; ours in this process, compiled before",
        {
            "bank_over_zpaq": "<= 1",
            "bank_over_zpaq_mean": "<= 0.97",
            "bank_speed_over_zpaq": ">= 1",
            "rich_over_zpaq": "<= 1",
            "rich_over_zpaq_mean": "<= 0.94",
            "rich_bytes_per_s": ">= 60000",
            "held_out_over_zpaq": "<= 1",
            "parallel_bytes_per_s": ">= 500000",
            "roundtrips": f">= {len(files)}",
            "same_everywhere": ">= 1",
        },
    )
    for experts in (LIGHT, RICH):
        ours(b"compile" * 500, experts=experts)
    peers = [peer for peer in PEERS if shutil.which(peer.needs)]
    contenders: dict[str, Callable[[bytes, Path], Result]] = {
        peer.name: (lambda data, folder, peer=peer: through(peer, data, folder)) for peer in peers
    }
    contenders["btlm compress"] = lambda data, folder: ours(data)
    contenders[OURS_RICH] = lambda data, folder: ours(data, experts=RICH)
    results: dict[str, dict[str, Result]] = {name: {} for name in contenders}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for file, data in files.items():
            for name, call in contenders.items():
                results[name][file] = call(data, folder)
        for name, by_file in results.items():
            sizes = "  ".join(f"{by_file[file].size:>10,}" for file in files)
            pack, unpack = (sum(result[i] for result in by_file.values()) for i in (1, 2))
            bpb = statistics.mean(8 * by_file[file].size / len(data) for file, data in files.items())
            report.row(
                name,
                f"{sizes}   {bpb:.3f} bpb in the mean, {total / pack / 1e3:>8,.0f} kB/s in, {total / unpack / 1e3:>8,.0f} kB/s back",
            )
        one, two = results["btlm compress"], {}
        half = {file: -(-len(data) // 2) for file, data in files.items()}
        for file, data in files.items():
            two[file] = ours(data, jobs=cores(), frame_bytes=half[file])
        if "zpaq -m5" in contenders and not quick:
            ratios = []
            for name, data in held_out().items():
                rich, zpaq = ours(data, experts=RICH).size, contenders["zpaq -m5"](data, folder).size
                ratios.append(rich / zpaq)
                report.row(
                    f"held out: {name}, {len(data):,} bytes", f"rich {rich:,}, zpaq -m5 {zpaq:,}: {ratios[-1]:.4f}"
                )
            report.figures["held_out_over_zpaq"] = max(ratios)
        (folder / "sample").write_bytes(next(iter(files.values()))[:QUICK_BYTES])
        same = all(
            digest(folder / "sample", {}, experts) == digest(folder / "sample", GENERIC, experts)
            for experts in (LIGHT, RICH)
        )
    spent = sum(result.pack_s for result in one.values()), sum(result.unpack_s for result in one.values())
    both = sum(result.pack_s for result in two.values()), sum(result.unpack_s for result in two.values())
    larger = sum(result.size for result in two.values()) / sum(result.size for result in one.values())
    report.row(f"in two frames, {cores()} threads", f"{larger:.4f} times as large")
    if "zpaq -m5" in results:
        zpaq = results["zpaq -m5"]
        sizes = [one[file].size / zpaq[file].size for file in files]
        rich = [results[OURS_RICH][file].size / zpaq[file].size for file in files]
        report.row("size over zpaq -m5", "  ".join(f"{value:.4f}" for value in sizes))
        report.row("size over zpaq -m5, rich", "  ".join(f"{value:.4f}" for value in rich))
        report.figures |= {
            "bank_over_zpaq": max(sizes),
            "bank_over_zpaq_mean": statistics.mean(sizes),
            "rich_over_zpaq": max(rich),
            "rich_over_zpaq_mean": statistics.mean(rich),
            "bank_speed_over_zpaq": min(
                sum(result[i] for result in zpaq.values()) / sum(result[i] for result in one.values()) for i in (1, 2)
            ),
        }
    else:
        for key in (
            "bank_over_zpaq",
            "bank_over_zpaq_mean",
            "bank_speed_over_zpaq",
            "rich_over_zpaq",
            "rich_over_zpaq_mean",
        ):
            report.goals.pop(key)
    slowest = max(sum(result[i] for result in results[OURS_RICH].values()) for i in (1, 2))
    report.figures |= {
        "rich_bytes_per_s": total / slowest,
        "encode_bytes_per_s": total / spent[0],
        "decode_bytes_per_s": total / spent[1],
        "parallel_bytes_per_s": total / max(both),
        "roundtrips": len(one),
        "same_everywhere": float(same),
    }
    if quick:
        report.leave_out(
            "bank_over_zpaq",
            "bank_over_zpaq_mean",
            "bank_speed_over_zpaq",
            "rich_over_zpaq",
            "rich_over_zpaq_mean",
            "rich_bytes_per_s",
            "held_out_over_zpaq",
            "parallel_bytes_per_s",
        )
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
