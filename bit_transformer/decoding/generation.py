"""Generation from a cache: in batches, or byte by byte as a stream."""

# Shapes: B streams, T bits, N patches, P bits of a patch, V = 2^P symbols.
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bit_transformer.bit_io import Bits, ParityPolicy, as_bits, bits_to_bytes, bytes_to_bits
from bit_transformer.config import Sampling
from bit_transformer.decoding.bit_loop import DRAWN
from bit_transformer.decoding.sampling import Sampler
from bit_transformer.decoding.session import Session
from bit_transformer.errors import ConfigError
from bit_transformer.experts.bank import unpack_units
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import pack_patches

BLOCK = 32  # units sampled before their bytes are given


@torch.inference_mode()
def generate(
    model: BitTransformerLM,
    prompt_BT: Tensor | Bits,
    max_new_bits: int,
    sampling: Sampling | None = None,
    *,
    long: bool = False,
    engine: str = "auto",
) -> Tensor:
    """Continue B prompts of the same length.

    Args:
        prompt_BT: zeros and ones; T may be 0 or end inside a patch.
        long: slide the window when it is full. Otherwise prompt and continuation must fit into `max_seq_len`.
        engine: what computes the steps; see `Session`.

    Returns:
        (B, max_new_bits) of dtype uint8: only the continuation.

    Raises:
        BitStreamError: invalid bits, or more than the window holds.
    """
    prompts = [as_bits(row) for row in prompt_BT]
    T, P = prompt_BT.shape[1], model.config.patch_bits
    wanted, made = (-(-(T + max_new_bits) // P) - T // P) * P, 0
    pieces = [np.empty((len(prompts), 0), dtype=np.uint8)]
    for piece in _patches(model, prompts, sampling, long, engine, wanted) if wanted else ():
        pieces.append(piece)
        made += piece.shape[1]
        if made >= wanted:
            break
    return torch.from_numpy(np.concatenate(pieces, axis=1)[:, T % P :][:, :max_new_bits])


def infer_long(
    model: BitTransformerLM, prompt_BT: Tensor | Bits, max_new_bits: int, sampling: Sampling | None = None
) -> Tensor:
    """`generate` beyond `max_seq_len`: when the window is full, the older half is dropped and the rest of the cache is kept as it is."""
    return generate(model, prompt_BT, max_new_bits, sampling, long=True)


def generate_bytes(
    model: BitTransformerLM,
    prompts: Sequence[bytes],
    max_bytes: int,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[bytes] = (),
    engine: str = "auto",
) -> list[bytes]:
    """Continue several prompts of any lengths as one batch; the window slides when it is full.

    Args:
        stop: a stream ends before the first of these strings.

    Returns:
        the continuations, at most `max_bytes` each.
    """
    outputs = [bytearray() for _ in prompts]
    longest = max(map(len, stop), default=1)
    running = set(range(len(prompts))) if max_bytes else set()
    for row in stream_rows(model, prompts, sampling, engine=engine) if running else ():
        for index in running.copy():
            begin = max(0, len(outputs[index]) - longest + 1)
            outputs[index] += row[index]
            del outputs[index][max_bytes:]
            end = _end(outputs[index], begin, stop)
            if end is not None:
                del outputs[index][end:]
            if end is not None or len(outputs[index]) >= max_bytes:
                running.discard(index)
        if not running:
            break
    return [bytes(output[:max_bytes]) for output in outputs]


def stream_bytes(
    model: BitTransformerLM,
    prompt: bytes,
    max_bytes: int,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[bytes] = (),
    engine: str = "auto",
) -> Iterator[bytes]:
    """Continue one prompt. Yields bytes, one or a few at a time, once they are complete and cannot be part of a stop string."""
    longest = max(map(len, stop), default=1)
    text, given = b"", 0
    for (piece,) in stream_rows(model, [prompt], sampling, engine=engine) if max_bytes else ():
        text = (text + piece)[:max_bytes]
        end = _end(text, given, stop)
        done = end is not None or len(text) >= max_bytes
        safe = min(max_bytes, len(text) if end is None else end) if done else len(text) - (longest - 1)
        if safe > given:
            yield text[given:safe]
            given = safe
        if done:
            return


def _end(text: bytes | bytearray, begin: int, stop: Sequence[bytes]) -> int | None:
    """Start of the first stop string at or after `begin`."""
    return min((at for s in stop if (at := text.find(s, begin)) >= 0), default=None)


def stream_rows(
    model: BitTransformerLM, prompts: Sequence[bytes], sampling: Sampling | None = None, *, engine: str = "auto"
) -> Iterator[list[bytes]]:
    """Continue several prompts endlessly. Yields the complete new bytes of every stream, after each patch."""
    c = model.config
    bits = [bytes_to_bits(prompt, parity=c.parity) for prompt in prompts]
    shortest = min(len(b) for b in bits)
    pending = [np.empty(0, dtype=np.uint8) for _ in prompts]
    # A stream's first bits, after the last whole patch of the shortest prompt, belong to its prompt.
    skip = [len(b) - shortest // c.patch_bits * c.patch_bits for b in bits]
    policy: ParityPolicy = "raise" if sampling is None or sampling.force_parity else "keep"
    for bit_BP in _patches(model, bits, sampling, True, engine, None):
        row: list[bytes] = []
        for index, fresh in enumerate(bit_BP):
            used = min(skip[index], len(fresh))
            skip[index] -= used
            have = np.concatenate((pending[index], fresh[used:]))
            whole = len(have) // c.byte_bits * c.byte_bits
            row.append(bits_to_bytes(have[:whole], parity=c.parity, on_error=policy) if whole else b"")
            pending[index] = have[whole:]
        yield row


def check_learning(model: BitTransformerLM, how: Sampling) -> None:
    """Refuse learning if the model has nothing that learns.

    Raises:
        ConfigError: the model has no experts.
    """
    if how.learn != "nothing" and model.config.experts is None:
        raise ConfigError(f"got learn={how.learn!r}, which needs experts; the model has none. Try learn='nothing'")


# ---- patch by patch ----


def _patches(
    model: BitTransformerLM,
    prompts: Sequence[Bits],
    sampling: Sampling | None,
    long: bool,
    engine: str,
    most: int | None,
) -> Iterator[Bits]:
    """Sample endlessly: the bits of one or more patches (B, bits), starting at the first patch that is not fully given in all prompts.

    Args:
        most: bits after which the caller stops; what would go beyond the window is not computed then.
    """
    was_training = model.training
    model.eval()
    try:
        yield from _drawn(model, prompts, sampling or Sampling(), long, engine, most)
    finally:
        model.train(was_training)


@torch.inference_mode()
def _drawn(
    model: BitTransformerLM, prompts: Sequence[Bits], how: Sampling, long: bool, engine: str, most: int | None
) -> Iterator[Bits]:
    c = model.config
    with np.errstate(over="ignore", invalid="ignore"):
        session = Session(model, len(prompts), engine=engine)
        session.node_logits()  # raises for weights that are not finite; a reversible trunk's integers can mask them later
    known = min(len(bits) for bits in prompts) // c.patch_bits
    device = model.head.weight.device
    head = torch.from_numpy(np.stack([bits[: known * c.patch_bits] for bits in prompts])).to(device)
    history_BN = pack_patches(head, c.patch_bits)
    check_learning(model, how)
    if session.experts is not None and how.learn != "nothing":
        session.experts.learn()
    session.feed(history_BN, long=long)
    draw = Sampler(c, prompts, how, history_BN.tolist())
    shift_P = np.arange(c.patch_bits - 1, -1, -1)
    first, block = known, 1
    while True:
        # Prompts longer than the shortest still have bits to learn.
        if session.experts is not None and how.learn == "prompt":
            session.experts.learning = [(known + 1) * c.patch_bits <= len(bits) for bits in prompts]
        each = session.unit_bits // c.patch_bits
        fits = long or session.room >= each
        if fits and draw.is_free(known) and session.runs_whole_units:
            units = block if long else min(block, session.room // each)
            if most is not None:
                units = max(1, min(units, (most // c.patch_bits - (known - first)) // each))
            unit_NB = np.zeros((units, len(prompts)), dtype=np.int64)
            session.run(unit_NB, DRAWN, draws=draw.draws(units, session.unit_bits))
            yield unpack_units(unit_NB.T, session.unit_bits)
            known += units * each
            block = min(2 * block, BLOCK)
            continue
        patch_B1 = draw(session.node_logits(), known)[:, None]
        yield (patch_B1 >> shift_P & 1).astype(np.uint8)
        known += 1
        session.feed(torch.from_numpy(patch_B1).to(device), long=long)
