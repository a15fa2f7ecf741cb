"""Coders of frames: one with the experts alone, one with a whole model. Each frame can be decoded without the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from bit_transformer.coding import container
from bit_transformer.coding.container import BANK, CODED, MODEL, STORED, Frame, checksum
from bit_transformer.coding.filters import absolute_jumps, relative_jumps
from bit_transformer.compression.profiles import (
    AUTO,
    LIGHT,
    RICH_TEXT,
    Experts,
    bank_memory,
    bank_of,
    has_filter,
    is_known,
    planned,
    sizes_for,
)
from bit_transformer.errors import CompressedFileError, ConfigError, Give
from bit_transformer.experts.bank import Tell, ignore, pack_units, unpack_units

if TYPE_CHECKING:
    from bit_transformer.decoding.session import Codes, Session
    from bit_transformer.model import BitTransformerLM

Bytes = NDArray[np.uint8]
Packed = tuple[Frame, bytes]  # a frame's header and its payload

NO_MODEL = bytes(32)
RATE_UNIT = 1 << 16
BLOCK = 1 << 12  # units between two looks at whether to stop


class Coder(Protocol):
    """Codes frames.

    Attributes:
        predictor, rate, digest: as in `container.Header`.
        frame_bytes: data of a frame, if nothing else is asked for.
        together: frames that are coded at once.
    """

    predictor: int
    rate: int
    digest: bytes
    frame_bytes: int
    together: int

    def encode(self, pieces: Sequence[Bytes], tell: Tell = ignore) -> list[Packed]:
        """Code up to `together` pieces, each as its own frame. `tell` is called with the bytes done since its last call."""

    def memory(self, size: int) -> int:
        """Bytes of memory for a group of frames of so many bytes, about."""

    def decode(self, frames: Sequence[Packed], tell: Tell = ignore) -> list[Bytes]:
        """The inverse. A damaged payload gives other bytes, not an error; `checked` tells."""


def checked(frame: Frame, data: Bytes) -> bytes:
    """Decoded data as bytes.

    Raises:
        CompressedFileError: it does not match its checksum.
    """
    made = data.tobytes()
    if checksum(made) != frame.check:
        raise CompressedFileError(
            "got a frame that was decoded into other data than was compressed, though its payload is intact: it was written by "
            "another version of the program, or this machine computed something else",
            tries=("the release that wrote the file",),
        )
    return made


class BankCoder:
    """Codes with the experts alone, which begin empty and learn as they go.

    Args:
        experts: which of them; `auto` tries both on a part of every frame.
    """

    predictor, rate, digest = BANK, 0, NO_MODEL
    frame_bytes, together = 1 << 24, 1

    def __init__(self, experts: Experts = LIGHT) -> None:
        self.experts = experts

    def encode(self, pieces: Sequence[Bytes], tell: Tell = ignore) -> list[Packed]:
        """As in `Coder`."""
        return [self._encode(piece, tell) for piece in pieces]

    def decode(self, frames: Sequence[Packed], tell: Tell = ignore) -> list[Bytes]:
        """As in `Coder`."""
        return [self._decode(*packed, tell) for packed in frames]

    def memory(self, size: int) -> int:
        """As in `Coder`."""
        rich = self.experts != LIGHT
        return bank_memory(*sizes_for(size, rich=rich), rich=rich) + 8 * size

    def _encode(self, data: Bytes, tell: Tell) -> Packed:
        profile, filtered, columns = planned(data, self.experts)
        buckets, history = sizes_for(len(data), rich=profile >= RICH_TEXT)
        bank = bank_of(profile, columns, buckets, history, filtered)
        code = bank.encode(absolute_jumps(data) if has_filter(profile, filtered) else data, bank.stream(), tell)
        if code is None or len(code) >= len(data):
            return _stored(data)
        return _packed(CODED, data, code.tobytes(), profile, filtered, columns, buckets, history)

    def _decode(self, frame: Frame, payload: bytes, tell: Tell) -> Bytes:
        given = np.frombuffer(payload, dtype=np.uint8)
        if frame.method == STORED:
            return given
        known = (
            10 <= frame.buckets <= 26
            and 10 <= frame.history <= 28
            and is_known(frame.profile, frame.filter, frame.columns)
        )
        if not known:
            raise CompressedFileError(
                "got a frame with contexts that this release does not know", tries=("the release that wrote the file",)
            )
        bank = bank_of(frame.profile, frame.columns, frame.buckets, frame.history, frame.filter)
        data = bank.decode(given, frame.size, bank.stream(), tell).astype(np.uint8)
        return relative_jumps(data) if has_filter(frame.profile, frame.filter) else data


class ModelCoder:
    """Codes with a model: the experts begin as trained and learn on; the weights stay, except with `rate`.

    Args:
        rate: step size by which head and mixer learn from each bit, in 1/65536; 0: they do not.

    Raises:
        ConfigError: a diffusion model, or one that is not in float32 on a CPU.
    """

    predictor, frame_bytes = MODEL, 1 << 19

    def __init__(self, model: BitTransformerLM, rate: int = 0) -> None:
        from bit_transformer.decoding.session import check_engine
        from bit_transformer.model import in_use

        model.check_causal()
        with in_use(model):
            check_engine(model, "portable")
        self.model, self.rate, self.digest = model, rate, model_digest(model)
        self.together = 1 if rate else 4
        self.frame_bytes = ModelCoder.frame_bytes // model.config.align_bytes * model.config.align_bytes

    def encode(self, pieces: Sequence[Bytes], tell: Tell = ignore) -> list[Packed]:
        """As in `Coder`."""
        from bit_transformer.bit_io import bytes_to_bits
        from bit_transformer.decoding.bit_loop import ENCODED
        from bit_transformer.decoding.session import Codes

        c = self.model.config
        session = self._session(len(pieces))
        rows = [pack_units(bytes_to_bits(piece, parity=c.parity), session.unit_bits) for piece in pieces]
        count_B = np.array([len(row) for row in rows])
        unit_NB = np.zeros((int(count_B.max()), len(rows)), dtype=np.int64)
        for b, row in enumerate(rows):
            unit_NB[: len(row), b] = row
        codes = Codes.to_write([len(piece) for piece in pieces], parity=c.parity)
        self._run(session, unit_NB, count_B, ENCODED, codes, tell)
        return [
            _stored(piece) if code is None or len(code) >= len(piece) else _packed(CODED, piece, code)
            for piece, code in zip(pieces, codes.written(), strict=True)
        ]

    def decode(self, frames: Sequence[Packed], tell: Tell = ignore) -> list[Bytes]:
        """As in `Coder`."""
        from bit_transformer.decoding.bit_loop import DECODED
        from bit_transformer.decoding.session import Codes

        c = self.model.config
        coded = [index for index, (frame, _) in enumerate(frames) if frame.method == CODED]
        made = [np.frombuffer(payload, dtype=np.uint8) for _, payload in frames]
        if not coded:
            return made
        session = self._session(len(coded))
        bits_B = np.array([frames[index][0].size * c.byte_bits for index in coded])
        count_B = -(-bits_B // session.unit_bits)
        unit_NB = np.zeros((int(count_B.max()), len(coded)), dtype=np.int64)
        codes = Codes.to_read([frames[index][1] for index in coded], parity=c.parity)
        self._run(session, unit_NB, count_B, DECODED, codes, tell)
        for b, index in enumerate(coded):
            bits_T = unpack_units(unit_NB[: count_B[b], b][None], session.unit_bits)[0, : bits_B[b]]
            made[index] = np.packbits(bits_T.reshape(-1, c.byte_bits)[:, :8])
        return made

    def memory(self, size: int) -> int:
        """As in `Coder`."""
        experts = self.model.bank.memory if self.model.config.experts is not None else 0
        return self.together * (experts + 100 * size)

    def _session(self, batch: int) -> Session:
        from bit_transformer.decoding.session import Session
        from bit_transformer.model import in_use

        with in_use(self.model):
            session = Session(self.model, batch, engine="portable")
        if session.experts is not None:
            session.experts.learn()
        return session

    def _run(
        self,
        session: Session,
        unit_NB: NDArray[np.int64],
        count_B: NDArray[np.int64],
        what: int,
        codes: Codes,
        tell: Tell,
    ) -> None:
        for begin in range(0, len(unit_NB), BLOCK):
            left_B = np.clip(count_B - begin, 0, BLOCK)
            session.run(unit_NB[begin : begin + BLOCK], what, counts=left_B, codes=codes, rate=self.rate / RATE_UNIT)
            tell(int(left_B.sum()) * session.unit_bits // self.model.config.byte_bits)


def model_digest(model: BitTransformerLM) -> bytes:
    """SHA-256 of what a model computes with: the fields of its config that matter to that, its weights and its experts' tables."""
    from bit_transformer.quantization import flattened

    c = model.config
    shape: dict[str, object] = {
        "d_model": c.d_model,
        "nhead": c.nhead,
        "num_layers": c.num_layers,
        "feedforward": c.feedforward_width,
        "window": c.max_patches,
        "attention_window": c.attention_window,
        "patch_bits": c.patch_bits,
        "parity": c.parity,
        "reversible": c.reversible,
        "ngram_orders": c.ngram_orders,
        "ngram_rows": c.ngram_rows,
        "ngram_words": c.ngram_words,
    }
    if c.experts is not None:
        e = c.experts
        experts: dict[str, object] = {
            "unit_bits": c.unit_bits,
            "orders": e.orders,
            "words": c.expert_words,
            "bit_orders": e.bit_orders,
            "sparse": e.sparse,
            "columns": e.columns,
            "match_order": e.match_order,
            "buckets": e.buckets,
            "history": e.history,
        }
        shape["experts"] = experts | {name: getattr(e, name) for name in e.newer()}
    if model.rounding is not None:
        shape["rounding"] = asdict(model.rounding)
    found = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, tensor in sorted(flattened(model.weights()).items()):
        found.update(name.encode())
        array = tensor.detach().numpy()
        found.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).data)
    if c.experts is not None:
        found.update(model.bank.digest().encode())
    return found.digest()


def coder_for(header: container.Header, model: BitTransformerLM | None) -> Coder:
    """The coder that reads a file.

    Raises:
        CompressedFileError: another model is needed, or none was given.
    """
    if header.predictor == BANK:
        return BankCoder(AUTO)  # as much memory as frames may need
    if model is None:
        raise CompressedFileError(
            f"got a file that was compressed with a model ({header.digest.hex()[:12]}); the same model is needed",
            field="run",
            tries=("the model that it was compressed with",),
        )
    coder = ModelCoder(model, header.rate)
    if coder.digest != header.digest:
        raise CompressedFileError(
            f"got a file that was compressed with another model: its digest is {header.digest.hex()[:12]}, this model's "
            f"{coder.digest.hex()[:12]}",
            field="run",
            tries=("the model that it was compressed with",),
        )
    return coder


def check_rate(rate: float) -> int:
    """A step size in 1/65536.

    Raises:
        ConfigError: neither 0 nor from 0.0001 to 0.5.
    """
    if rate != 0 and not 0.0001 <= rate <= 0.5:
        raise ConfigError(
            f"got adapt={rate:g}; 0, or 0.0001 to 0.5 is needed", field="adapt", tries=(Give("adapt", 0.002),)
        )
    return round(rate * RATE_UNIT)


def _stored(data: Bytes) -> Packed:
    return _packed(STORED, data, data.tobytes())


def _packed(
    method: int,
    data: Bytes,
    payload: bytes,
    profile: int = 0,
    filtered: int = 0,
    columns: int = 0,
    buckets: int = 0,
    history: int = 0,
) -> Packed:
    frame = Frame(
        method=method,
        profile=profile,
        filter=filtered,
        columns=columns,
        buckets=buckets,
        history=history,
        size=len(data),
        coded=len(payload),
        check=checksum(data.tobytes()),
        payload_check=checksum(payload),
    )
    return frame, payload
