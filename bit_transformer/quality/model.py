"""A quality model: a bank that has read clean text, what is normal, and a gate's limits; in one file of a few megabytes.

model = QualityModel.fit([b"a clean text", ...])
model.save("quality.btlm")
QualityModel.load("quality.btlm").score("another text").percentile
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.config import ExpertConfig
from bit_transformer.errors import Ask, BitStreamError, CheckpointError, ConfigError
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.quality.measuring import Meter
from bit_transformer.quality.normal import Normal
from bit_transformer.quality.reference import measured_only, read_and_measure
from bit_transformer.safety.calibration import Calibration
from bit_transformer.safety.gate import SafetyGate
from bit_transformer.tensor_file import prefixed, read_tensors, under, write_tensors

Bytes = NDArray[np.uint8]

KIND = "quality"
VERSION = 1
MENTIONED = 95.0  # percentile from which a score says why
_ARRAYS = ("lengths", "windows", "limits", "medians", "quantiles", "noise", "shares")
_OF_GATE = {"C below": "repeats", "S below": "unlike", "repeats": "loops", "judged": "short"}


@dataclass(frozen=True)
class TextScore:
    """What a text scored.

    Attributes:
        size: bytes.
        bpb: bits per byte, to a reader that knows clean text; None for an empty text.
        percentile: percentage of clean texts of about this length that are less odd, in [0, 100]; None for texts that are too short.
        oddness: the same to sort by: minus log2 of the fraction that are at least as odd. It goes on where the percentile is 100.
        K, C, S: of the first 2 KiB; see `telemetry/measures.py`.
        gate: `allow` or `block`; empty for an empty text.
        reason: why, from a percentile of 95 on or if the gate blocks; else empty. The part before a colon is `kind`.
        kind: dear, cheap, repeats, loops or unlike: in what it is most odd; or short, or empty.
    """

    size: int
    bpb: float | None
    percentile: float | None
    oddness: float | None
    K: float | None
    C: float | None
    S: float | None
    gate: str
    reason: str
    kind: str

    def columns(self) -> dict[str, float | str | None]:
        """What is written beside the text; numbers to four places."""
        numbers = {name: getattr(self, name) for name in ("bpb", "percentile", "K", "C", "S")}
        rounded = {name: None if value is None else round(value, 4) for name, value in numbers.items()}
        return {**rounded, "gate": self.gate, "reason": self.reason}


COLUMNS = ("bpb", "percentile", "K", "C", "S", "gate", "reason")
EMPTY = TextScore(0, None, None, None, None, None, None, "", "empty", "empty")


class QualityModel:
    """Scores texts by how much they are like clean ones. It does not change, so threads may share it.

    Args:
        bank: has read clean text, in units of bytes.
        normal: how clean texts measure.
        calibration: limits of the gate.
        facts: what it was made from, for people.
    """

    def __init__(self, bank: ExpertBank, normal: Normal, calibration: Calibration, facts: dict[str, Any]) -> None:
        if bank.unit_bits != 8:
            raise ConfigError(
                f"got experts with units of {bank.unit_bits} bits; units of 8 are needed", tries=(Ask("fit"),)
            )
        self.bank, self.normal, self.calibration, self.facts = bank, normal, calibration, facts
        self._meter = Meter(bank, calibration.longest)

    def __repr__(self) -> str:
        return f"QualityModel({self.bank.count:,} bytes read, {self.normal!r})"

    @classmethod
    def fit(
        cls,
        documents: Iterable[str | bytes],
        *,
        tell: Callable[[int, int], None] = lambda done, total: None,
        jobs: int | None = None,
    ) -> QualityModel:
        """Learn what clean text is like. Takes about ten seconds a megabyte.

        Args:
            documents: clean texts; a long one is measured in passages.
            tell: called with the bytes read so far, and their total.
            jobs: threads; default: one per core.

        Raises:
            BitStreamError: too little text, or something else than text.
        """
        arrays = _as_arrays(documents)
        bank, normal, calibration = read_and_measure(arrays, tell, jobs or os.cpu_count() or 1)
        facts = {"documents": len(arrays), "bytes": sum(map(len, arrays))}
        return cls(bank, normal, calibration, facts)

    @classmethod
    def of_bank(cls, bank: ExpertBank, documents: Iterable[str | bytes]) -> QualityModel:
        """A bank that knows clean text, and clean documents that it has not read.

        Raises:
            ConfigError: units of other sizes than bytes.
            BitStreamError: too little text.
        """
        if bank.unit_bits != 8:
            raise ConfigError(
                f"got experts with units of {bank.unit_bits} bits; units of 8 are needed", tries=(Ask("fit"),)
            )
        arrays = _as_arrays(documents)
        facts = {"documents": len(arrays), "bytes": sum(map(len, arrays))}
        return cls(bank, *measured_only(bank, arrays), facts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that scores depend on."""
        found = hashlib.sha256(self.bank.digest().encode())
        for arrays in (self.normal.state(), {name: getattr(self.calibration, name) for name in _ARRAYS}):
            for name in sorted(arrays):
                found.update(f"{name} {arrays[name].shape}".encode())
                found.update(np.ascontiguousarray(arrays[name]).data)
        return found.hexdigest()

    # ---- scores ----

    def score(self, text: str | bytes) -> TextScore:
        """Score a text.

        Raises:
            BitStreamError: something else than text, or a string with half of a surrogate pair.
        """
        data = _as_array(text)
        if not len(data):
            return EMPTY
        found = self._meter.measure(data)
        decision = SafetyGate.calibrated(self.calibration).update(found.vitals(self.calibration.longest))
        gate = "allow" if decision.allow else "block"
        if len(data) < self.normal.shortest:
            reason = f"short: {len(data)} bytes; at least {self.normal.shortest} are needed"
            return TextScore(len(data), found.bpb, None, None, found.K, found.C, found.S, gate, reason, "short")
        odd = self.normal.judge(found)
        mentioned = odd.percentile >= MENTIONED
        kind = odd.way if mentioned or decision.allow else _OF_GATE.get(decision.reasons[0].kind, "unlike")
        told = [f"{kind}: {self.normal.words(found, odd.way)}"] if mentioned else []
        blocked = "; ".join(each.text for each in decision.reasons)
        if blocked:
            told.append(f"gate: {blocked}" if told else f"{kind}: {blocked}")
        reason = "; ".join(told)
        return TextScore(
            len(data), found.bpb, odd.percentile, odd.oddness, found.K, found.C, found.S, gate, reason, kind
        )

    # ---- files ----

    def save(self, path: str | Path) -> None:
        """Write the model, all or nothing.

        Raises:
            CheckpointError: the file could not be written.
        """
        tensors = prefixed("bank.", self.bank.packed()) | prefixed("normal.", self.normal.state())
        tensors |= {f"gate.{name}": torch.from_numpy(np.array(getattr(self.calibration, name))) for name in _ARRAYS}
        document = {
            "kind": KIND,
            "version": VERSION,
            "experts": self.bank.config.model_dump(mode="json"),
            "text_bits": self.bank.text_bits,
            "alpha": self.calibration.alpha,
            "facts": self.facts,
        }
        write_tensors(Path(path), tensors, document)

    @classmethod
    def load(cls, path: str | Path) -> QualityModel:
        """Read a model that `save` wrote.

        Raises:
            CheckpointError: no such file, damaged, or of another kind.
        """
        path = Path(path)
        tensors, document = read_tensors(path)
        if document.get("kind") != KIND or document.get("version") != VERSION:
            raise CheckpointError(f"{path}: is no quality model of version {VERSION}", tries=(Ask("fit"),))
        try:
            bank = ExpertBank(ExpertConfig.of(document["experts"]), 8, document["text_bits"])
            bank.load_state_dict({name: table.numpy() for name, table in under("bank.", tensors).items()})
            normal = Normal.of({name: table.numpy() for name, table in under("normal.", tensors).items()}, path)
            parts: dict[str, Any] = {name: tensors[f"gate.{name}"].numpy() for name in _ARRAYS}
            calibration = Calibration(document["alpha"], **parts, patch_bits=8, byte_bits=8, unit_bits=8)
            return cls(bank, normal, calibration, _facts(document["facts"]))
        except (KeyError, TypeError, ConfigError) as wrong:
            raise CheckpointError(f"{path}: is no complete quality model ({wrong})", tries=(Ask("fit"),)) from None


def is_quality_file(path: Path) -> bool:
    """Whether a file says of itself that it is a quality model, be it damaged or not."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    return f'\\"kind\\": \\"{KIND}\\"'.encode() in head


def _facts(facts: Any) -> dict[str, Any]:
    """What a file says of its text, if it says anything."""
    return dict(facts) if isinstance(facts, dict) else {}


def _as_arrays(documents: Iterable[str | bytes]) -> list[Bytes]:
    return [array for document in documents if len(array := _as_array(document))]


def _as_array(text: str | bytes) -> Bytes:
    if isinstance(text, str):
        try:
            text = text.encode()
        except UnicodeEncodeError as wrong:
            raise BitStreamError(
                f"got a string with half of a surrogate pair at {wrong.start}, which is no Unicode text. Try errors='replace' where it was read"
            ) from None
    if not isinstance(text, bytes | bytearray | memoryview):
        raise BitStreamError(f"got {type(text).__name__} as a text; str or bytes is needed. Try str(text)")
    return np.frombuffer(text, dtype=np.uint8)
