"""One thread, one precision, one seed, small models; whoever needs more says so.

Nothing here may depend on the processor. Trainings compute in float32 wherever the tests run, although by default they take
bfloat16 where the processor has it. `make test-processors` runs the same tests under other settings: `BTLM_TEST_AMP=1` lets
trainings that do not fix their precision compute in bfloat16 everywhere, `BTLM_TEST_THREADS` sets PyTorch's threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bit_transformer.model import BitTransformerLM

ROOT = Path(__file__).resolve().parents[1]
TEXT = ("It is a truth universally acknowledged, that bits are enough. " * 400).encode()


THREADS = int(os.environ.get("BTLM_TEST_THREADS", "1"))
BFLOAT16 = os.environ.get("BTLM_TEST_AMP") == "1"


@pytest.fixture(autouse=True)
def same_settings_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("bit_transformer.training.precision.cpu_has_bfloat16", lambda: BFLOAT16)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def no_data_folder_by_accident() -> Iterator[None]:
    """Tests name the data folder where they want it."""
    kept = os.environ.pop("BTLM_DATA_DIR", None)
    if kept:
        os.environ["BTLM_TEST_DATA_DIR"] = str(Path(kept).resolve())
    yield


@pytest.fixture(scope="session", autouse=True)
def features_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing from the user's cache, nothing into it."""
    os.environ["BTLM_CACHE_DIR"] = str(tmp_path_factory.mktemp("features"))


def random_model(**fields: object) -> BitTransformerLM:
    """A small model with random weights everywhere, the zero-initialised ones included."""
    shape = {"d_model": 24, "nhead": 2, "num_layers": 2, "dim_feedforward": 40, **fields}
    model = BitTransformerLM(**shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


WORDS = np.random.default_rng(3).integers(97, 123, (400, 6), dtype=np.uint8)


def prose(seed: int, words: int) -> bytes:
    """Text of one vocabulary, drawn anew for each seed."""
    drawn = np.random.default_rng(seed).zipf(1.3, words) % len(WORDS)
    return b" ".join(WORDS[i].tobytes() for i in drawn)


def at_most(fraction: float, count: float) -> float:
    """Events among so many independent ones of a probability; more than this come once in 700 times (three standard deviations)."""
    return count * fraction + 3 * math.sqrt(count * fraction * (1 - fraction))


def random_bits(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (batch, length), generator=generator)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def btlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command, in an empty folder; in this process, since importing torch takes seconds."""
    from bit_transformer.cli.main import app

    monkeypatch.chdir(tmp_path)

    def call(*args: object, stdin: bytes | None = None) -> Done:
        done = CliRunner().invoke(app, [*map(str, args)], input=stdin, env={"COLUMNS": "160"}, catch_exceptions=False)
        return Done(done.exit_code, done.stdout_bytes.decode("utf-8", "replace"), done.stderr)

    return call
