"""Files that cannot lie: one bit that changed is noticed, wherever it is; equal contents are equal files; older files are read."""

from __future__ import annotations

import gzip
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
from bit_transformer.errors import CheckpointError
from bit_transformer.tensor_file import read_tensors, write_tensors
from tests.conftest import ROOT, random_model

GOLDEN = ROOT / "tests" / "golden"


def header_bytes(good: bytes) -> int:
    """The length field, and the header that it counts."""
    return 8 + int.from_bytes(good[:8], "little")


def accepted(path: Path, good: bytes, places: Iterator[int]) -> list[int]:
    """Of bits that are flipped one at a time: those with which the file is read as another than it was."""
    tensors, document = read_tensors(path)
    wrong = []
    with path.open("r+b", buffering=0) as file:
        for place in places:
            at, bit = place // 8, 1 << place % 8
            os.pwrite(file.fileno(), bytes([good[at] ^ bit]), at)
            try:
                found, said = read_tensors(path)
                same = found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)
                if not same or said != document:
                    wrong.append(place)
            except CheckpointError as refused:
                assert len(str(refused).splitlines()) == 1
            os.pwrite(file.fileno(), good[at : at + 1], at)
    return wrong


def test_every_bit_of_a_header_and_any_of_the_body_is_protected(tmp_path: Path) -> None:
    model = random_model(d_model=8, num_layers=1, dim_feedforward=8, patch_bits=4, max_seq_len=64)
    path = save_checkpoint(tmp_path / "m.safetensors", model, about={"step": 12_345, "val_bpb": 1.75})
    good = path.read_bytes()
    header = header_bytes(good)
    assert 8 * header > 10_000
    assert accepted(path, good, iter(range(8 * header))) == []
    body = np.random.default_rng(0).integers(8 * header, 8 * len(good), 2000)
    assert accepted(path, good, iter(body.tolist())) == []


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(0), "b": torch.tensor(1, dtype=torch.int8), "é": torch.zeros(2, dtype=torch.uint8)},
        {"x": torch.ones(2, dtype=torch.bfloat16), "y": torch.ones(1, dtype=torch.bool), "z": torch.ones(1).double()},
    ],
)
def test_every_bit_of_small_files_is_protected(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, tensors, {"progress": {"step": 7, "best_bpb": math.inf}, "text": 'é "quoted" \\ \n'})
    good = path.read_bytes()
    assert accepted(path, good, iter(range(8 * len(good)))) == []


WRITE = """
import sys, torch
from pathlib import Path
from bit_transformer.tensor_file import write_tensors
names = [f"layer.{i}" for i in range(9)]
write_tensors(Path(sys.argv[1]), {n: torch.ones(3) for n in names}, {"a": 1, "b": {"c": [2], "d": None}, "e": 0.5})
"""


def test_equal_contents_are_equal_files(tmp_path: Path) -> None:
    for index in range(2):  # the order of safetensors' own metadata is another in every process, and at every call
        subprocess.run(
            [sys.executable, "-c", WRITE, str(tmp_path / f"{index}")],
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": str(index), "PATH": ""},
        )
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(files) == 2 and len(set(files)) == 1
    model = random_model(max_seq_len=64)
    saved = {save_checkpoint(tmp_path / f"m{i}.safetensors", model).read_bytes() for i in range(8)}
    assert len(saved) == 1


@pytest.mark.parametrize("name", ["format-1-plain.safetensors", "format-1-experts.safetensors.gz"])
def test_a_file_of_the_older_format_is_read_with_a_note(tmp_path: Path, caplog, name: str) -> None:
    """Written by the version before documents were protected; logits beside them, to rounding: sums may be in another order."""
    data = (GOLDEN / name).read_bytes()
    path = tmp_path / "old.safetensors"
    path.write_bytes(gzip.decompress(data) if name.endswith(".gz") else data)
    with caplog.at_level(logging.WARNING):
        model = load_checkpoint(path)
    (note,) = caplog.records
    assert "older format" in note.getMessage() and str(path) in note.getMessage()
    about = read_tensors(path)[1]["about"]
    bits_BT = torch.from_numpy(bytes_to_bits(about["text"].encode()))[None]
    with torch.no_grad():
        logits = model(bits_BT).logits.flatten()
    # Logits below 16, some hundred additions each: 100 x 2^-24 x 16 = 1e-4.
    assert float(logits.abs().max()) < 16
    assert torch.allclose(logits, torch.tensor(about["logits"]), rtol=0, atol=1e-4)
    caplog.clear()
    again = save_checkpoint(tmp_path / "new.safetensors", model)
    assert load_checkpoint(again).config == model.config and not caplog.records


def test_neither_format_can_pass_for_the_other(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    old = {"format": "bit-transformer/1", "sha256": "0" * 64, "document": "{}"}
    path = tmp_path / "t.safetensors"
    for metadata in (
        {**old, "bit-transformer, sealed": f"{'0' * 64} {{}}"},
        {**old, "format": "bit-transformer/2"},
        {"format": "bit-transformer/1", "document": "{}"},
        {"bit-transformer, sealed": ""},
        {"bit-transformer, sealed": "0" * 64},
        {},
    ):
        save_file({"a": torch.ones(1)}, path, metadata=metadata)
        with pytest.raises(CheckpointError):
            read_tensors(path)
