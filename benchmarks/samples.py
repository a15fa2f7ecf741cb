"""What do the experts of numbers save on sound, pictures and rasters, beside zpaq, FLAC and PNG?

The data is what is installed: Matplotlib's samples; pictures of scikit-image, sounds of the Debian packages alsa-utils and sound-icons, flac and zpaq where
they are there. Every file comes back and is compared.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import shutil
import statistics
import tempfile
import wave
from pathlib import Path

import harness
import numpy as np
from codec import PEERS, Peer, ours, through
from PIL import Image

from bit_transformer.compression.profiles import LIGHT, RICH_TEXT, bank_of, planned, sizes_for

SOUNDS = Path("/usr/share/sounds")
PICTURES = ("astronaut", "coffee", "camera", "grass")
QUICK_BYTES = 60_000
ZPAQ, FLAC = "zpaq -m5", Peer("FLAC -8", "flac", "flac -8 -s -f -o OUT FILE", "flac -d -s -f -o BACK OUT")


def files(quick: bool) -> dict[str, bytes]:
    """What there is, by name."""
    import matplotlib

    samples = Path(matplotlib.__file__).parent / "mpl-data/sample_data"
    found = {"portrait, 512 x 600 in colour, PPM": _ppm(samples / "grace_hopper.jpg")}
    found["MRI slice, 256 x 256, 16 bits"] = gzip.decompress((samples / "s1045.ima.gz").read_bytes())
    found["heights, 344 x 403, 16 bits"] = np.load(samples / "jacksboro_fault_dem.npz")["elevation"].tobytes()
    package = importlib.util.find_spec("skimage")
    for name in PICTURES if package and package.origin else ():
        path = Path(package.origin).parent / f"data/{name}.png"
        if path.exists():
            found[f"{name}, PNM"] = _ppm(path)
    for folder in ("alsa", "sound-icons"):
        sound = _sound(SOUNDS / folder)
        if sound:
            found[f"sounds of {folder}, WAV"] = sound
    return {name: data[:QUICK_BYTES] for name, data in found.items()} if quick else found


def _ppm(path: Path) -> bytes:
    made = io.BytesIO()
    image = Image.open(path)
    (image if image.mode == "L" else image.convert("RGB")).save(made, "ppm")
    return made.getvalue()


def _sound(folder: Path) -> bytes:
    """The WAV files of a folder that are of its most frequent form, one after the other."""
    by_form: dict[tuple[int, int, int], list[bytes]] = {}
    for path in sorted(folder.glob("*.wav")):
        with wave.open(str(path)) as sound:
            form = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            by_form.setdefault(form, []).append(sound.readframes(sound.getnframes()))
    if not by_form:
        return b""
    form = max(by_form, key=lambda form: sum(map(len, by_form[form])))
    made = io.BytesIO()
    with wave.open(made, "wb") as sound:
        sound.setnchannels(form[0])
        sound.setsampwidth(form[1])
        sound.setframerate(form[2])
        sound.writeframes(b"".join(by_form[form]))
    return made.getvalue()


def without_numbers(data: bytes) -> int:
    """Bytes of code of the rich experts that data would have if it were not made of numbers."""
    bytes_N = np.frombuffer(data, np.uint8)
    profile, _, columns = planned(bytes_N, LIGHT)
    bank = bank_of(profile + RICH_TEXT, columns, *sizes_for(len(data), rich=True))
    code = bank.encode(bytes_N, bank.stream())
    return len(data) if code is None else len(code)


def others(name: str, data: bytes, folder: Path) -> dict[str, int]:
    """Bytes of other programs' files."""
    peers = [peer for peer in PEERS if peer.name == ZPAQ] + ([FLAC] if name.endswith("WAV") else [])
    found = {peer.name: through(peer, data, folder).size for peer in peers if shutil.which(peer.needs)}
    if name.endswith(("PPM", "PNM")):
        Image.open(io.BytesIO(data)).save(folder / "out.png", optimize=True)
        found["PNG"] = (folder / "out.png").stat().st_size
    return found


def main(quick: bool) -> int:
    """Measure."""
    found = files(quick)
    report = harness.Report(
        "samples",
        "`--experts rich` with the experts of numbers and without; every compressor from nothing, each file once; kB/s on one thread, both ways",
        {"over_without": "<= 1", "over_without_mean": "<= 0.92", "over_zpaq": "<= 1", "over_made_for_it": "<= 1"},
    )
    ours(b"compile" * 500, experts="rich")
    without, zpaq, made_for_it = [], [], []
    with tempfile.TemporaryDirectory() as made:
        for name, data in found.items():
            packed, plain = ours(data, experts="rich"), without_numbers(data)
            beside = {} if quick else others(name, data, Path(made))
            without.append(packed.size / plain)
            zpaq += [packed.size / size for peer, size in beside.items() if peer == ZPAQ]
            made_for_it += [packed.size / size for peer, size in beside.items() if peer != ZPAQ]
            peers = "".join(f", {peer} {size:,}" for peer, size in beside.items())
            speeds = f"{len(data) / packed.pack_s / 1e3:.0f} kB/s in, {len(data) / packed.unpack_s / 1e3:.0f} back"
            report.row(f"{name}, {len(data):,} bytes", f"{packed.size:,}; without numbers {plain:,}{peers}; {speeds}")
    report.figures |= {"over_without": max(without), "over_without_mean": statistics.mean(without)}
    for key, ratios in (("over_zpaq", zpaq), ("over_made_for_it", made_for_it)):
        if ratios:
            report.figures[key] = max(ratios)
        else:
            report.goals.pop(key)
    if quick:
        report.leave_out("over_without", "over_without_mean")
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
