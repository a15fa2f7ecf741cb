"""What a checkpoint takes in use, measured in a process of its own: peak memory, and the speed of sampling.

python -m bit_transformer.service.measured CHECKPOINT BYTES      prints one line of JSON
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.errors import CheckpointError


@dataclass(frozen=True)
class InUse:
    """What a model takes in use.

    Attributes:
        peak_bytes: most memory of the process; None where the system does not tell.
        base_bytes: of that, before the checkpoint was loaded: Python and PyTorch.
        bytes_per_s: of sampling one stream, after what is compiled was.
    """

    peak_bytes: int | None
    base_bytes: int | None
    bytes_per_s: float


def measure(checkpoint: Path, count: int = 1024) -> InUse:
    """Load a checkpoint and sample bytes, in another process on the processor.

    Raises:
        CheckpointError: it failed.
    """
    asked = [sys.executable, "-m", "bit_transformer.service.measured", str(checkpoint), str(count)]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CheckpointError(f"{checkpoint}: could not be measured ({last[0]}). Try btlm generate with it")
    return InUse(**json.loads(done.stdout.splitlines()[-1]))


def _peak() -> int | None:
    """Most memory of this process so far, in bytes."""
    with suppress(OSError):  # Linux counts a parent's memory in what `getrusage` tells a child
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _main(checkpoint: str, count: int) -> None:
    from bit_transformer.checkpoint import load_checkpoint
    from bit_transformer.config import Sampling
    from bit_transformer.decoding import generate_bytes
    from bit_transformer.model import BitTransformerLM

    small = BitTransformerLM(
        d_model=32, nhead=1, num_layers=1, max_seq_len=256, experts={"buckets": 1024, "history": 1024}
    )
    generate_bytes(small.eval(), [b""], 16, Sampling(seed=0))  # compiles, or loads what was compiled
    base = _peak()
    model = load_checkpoint(checkpoint)
    generate_bytes(model, [b""], 16, Sampling(seed=0))
    began = time.perf_counter()
    generate_bytes(model, [b""], count, Sampling(seed=0))
    rate = count / (time.perf_counter() - began)
    sys.stdout.write(json.dumps({"peak_bytes": _peak(), "base_bytes": base, "bytes_per_s": rate}) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
