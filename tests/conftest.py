"""One thread, one seed, small models; whoever needs more says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

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
