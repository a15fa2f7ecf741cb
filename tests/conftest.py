"""One thread, one seed, small models; whoever needs more says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bit_transformer.model import BitTransformerLM

ROOT = Path(__file__).resolve().parents[1]
TEXT = ("It is a truth universally acknowledged, that bits are enough. " * 400).encode()


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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


def random_model(**fields: object) -> BitTransformerLM:
    """A small model with random weights everywhere, the zero-initialised ones included."""
    shape = {"d_model": 24, "nhead": 2, "num_layers": 2, "dim_feedforward": 40, **fields}
    model = BitTransformerLM(**shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def random_bits(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (batch, length), generator=generator)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path


@pytest.fixture
def btlm(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, in a process of its own and an empty folder."""

    def call(
        *args: object, env: dict[str, str] | None = None, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "bit_transformer.cli", *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", **(env or {})},
            input=stdin,
            capture_output=True,
            timeout=240,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode()
        )

    return call
