"""Compressed files, run lengths, filters and the arithmetic coder."""

import hashlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from bit_transformer.checkpoint import load_checkpoint
from bit_transformer.coding import container
from bit_transformer.coding.arithmetic import begin_code, decode_bit, encode_bit, end_code, new_coder
from bit_transformer.coding.filters import absolute_jumps, has_jumps, has_markup, relative_jumps, row_width
from bit_transformer.compression import (
    compress_bits,
    compress_bytes,
    decompress_bits,
    decompress_bytes,
    forward_compressed,
)
from bit_transformer.compression.codec import BankCoder, ModelCoder, coder_for
from bit_transformer.compression.files import Unpacking, compress_stream, decompress_stream
from bit_transformer.compression.profiles import plan, planned
from bit_transformer.errors import BitStreamError, CompressedFileError, ConfigError
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.model import BitTransformerLM
from tests.conftest import prose
from tests.reference import compressed

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT = (
    b"Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse, " * 12
)[:1000]
RANDOM = np.random.default_rng(0).integers(0, 256, size=3000, dtype=np.uint8).tobytes()


# ---- the coder ----


@njit
def _written(bits, ones, payload, coder):
    for i in range(len(bits)):
        encode_bit(coder, payload, ones[i], bits[i])
    end_code(coder, payload)


@njit
def _read(bits, ones, payload, coder):
    begin_code(coder, payload)
    for i in range(len(bits)):
        bits[i] = decode_bit(coder, payload, ones[i])


@pytest.mark.parametrize("sharpness", [0.1, 1, 4, 12])
def test_bits_come_back_and_cost_what_their_probabilities_say(sharpness):
    random = np.random.default_rng(int(10 * sharpness))
    p = 1 / (1 + np.exp(-sharpness * random.standard_normal(50_000)))
    ones = np.clip((p * 65536).astype(np.int64), 1, 65535)
    bits = (random.random(len(p)) < ones / 65536).astype(np.int64)
    payload, coder = np.zeros(20_000, dtype=np.uint8), new_coder()[0]
    _written(bits, ones, payload, coder)
    size = int(coder[3])
    cost = -np.log2(np.where(bits, ones, 65536 - ones) / 65536).sum() / 8
    assert cost - 1 <= size < cost + 3
    again = np.zeros_like(bits)
    _read(again, ones, payload[:size], new_coder()[0])
    assert np.array_equal(again, bits)


def test_improbable_bits_are_coded_too():
    bits = np.array([0, 1] * 500)
    ones = np.where(bits, 1, 65535)
    payload, coder = np.zeros(4000, dtype=np.uint8), new_coder()[0]
    _written(bits, ones, payload, coder)
    assert int(coder[3]) <= 2000 + 9
    again = np.zeros_like(bits)
    _read(again, ones, payload[: int(coder[3])], new_coder()[0])
    assert np.array_equal(again, bits)


# ---- files without a model ----

KINDS = {
    "nothing": b"",
    "one byte": b"x",
    "text": TEXT,
    "noise": RANDOM,
    "zeros": bytes(5000),
    "all bytes": bytes(range(256)) * 3,
}


def program(size, seed=0, linked=True):
    """x86 code of made-up functions, which call each other; before a linker has seen it, all calls are of 0."""
    random = np.random.default_rng(seed)
    pieces = (
        "8B450x", "8945Fx", "83C00x", "8B4DFx", "85C0", "7x0x", "0FB6450x", "C745Fx0000000x", "6A0x", "50", "51", "FF7508", "3B450x", "E8",
    )  # fmt: skip
    starts, code = [0], bytearray()
    while len(code) < size:
        starts.append(len(code))
        code += bytes.fromhex("5589E583EC10")
        for _ in range(random.integers(5, 30)):
            piece = pieces[min(int(random.integers(len(pieces) + 3)), len(pieces) - 1)]
            code += bytes.fromhex("".join("048C"[random.integers(4)] if c == "x" else c for c in piece))
            if piece == "E8":
                target = starts[int(random.integers(len(starts)) ** 2 // len(starts))]
                code += ((target - len(code) - 4 if linked else 0) & 0xFFFFFFFF).to_bytes(4, "little")
        code += bytes.fromhex("89EC5DC3")
    return bytes(code[:size])


@pytest.mark.parametrize("name", KINDS)
def test_bytes_come_back(name):
    data = KINDS[name]
    packed = compress_bytes(data)
    assert decompress_bytes(packed) == data
    frame = container.FRAME_SIZE if data else 0
    overhead = container.HEADER_SIZE + frame + container.END_SIZE + 1 + container.CHECK + (24 if data else 0)
    assert len(packed) <= len(data) + overhead


@pytest.mark.parametrize("name", KINDS)
def test_bytes_come_back_from_rich_experts(name):
    data = KINDS[name]
    for experts in ("rich", "auto"):
        assert decompress_bytes(compress_bytes(data, experts=experts)) == data


def test_rich_experts_are_smaller_and_auto_takes_them_where_it_pays():
    data = prose(0, 4000)
    light, rich = (len(compress_bytes(data, experts=experts)) for experts in ("light", "rich"))
    assert rich < 0.97 * light
    assert len(compress_bytes(data, experts="auto")) == rich
    assert planned(np.frombuffer(RANDOM, np.uint8), "auto")[0] == 1


def test_rows_go_to_the_rich_experts_of_records():
    random = np.random.default_rng(3)
    cells = random.integers(0, 256, (120, 300))
    for row in range(1, 120):  # most cells are as in the row before
        cells[row] = np.where(random.random(300) < 0.8, cells[row - 1], cells[row])
    rows = cells.astype(np.uint8).reshape(-1)
    profile, _, columns = planned(rows, "rich")
    assert (profile, columns) == (3, 300)
    assert decompress_bytes(compress_bytes(rows.tobytes(), experts="rich")) == rows.tobytes()


def test_code_goes_to_the_rich_experts_of_instructions():
    data = program(9000)
    code = np.frombuffer(data, np.uint8)
    assert planned(code, "rich") == (4, 1, 0)
    assert planned(code, "light")[1:] == (1, 0)
    packed = compress_bytes(data, experts="rich")
    assert decompress_bytes(packed) == data
    assert len(packed) < len(compress_bytes(data))
    unlinked = np.frombuffer(program(9000, linked=False), np.uint8)  # as in object files
    assert planned(unlinked, "rich") == (4, 0, 0)


def tree(size: int) -> bytes:
    """XML of nested elements, of which one follows another without a rule, and a little JSON."""
    drawn, names = np.random.default_rng(4), ["abbey", "brook", "coast", "dale", "east", "fen"]
    open_names, parts = ["all"], ["<all>"]
    while sum(map(len, parts)) < size:
        if len(open_names) == 1 or (len(open_names) < 7 and drawn.random() < 0.5):
            name = str(drawn.choice(names))
            open_names.append(name)
            parts.append(f'<{name} height="{drawn.integers(1000)}">')
        else:
            parts.append(f"</{open_names.pop()}>\n")
    parts += [f"</{name}>" for name in reversed(open_names)]
    return ("".join(parts) + '\n{"all": {"height": 17}}\n').encode()


def test_markup_goes_to_the_rich_experts_of_markup():
    data = tree(20_000)
    document = np.frombuffer(data, np.uint8)
    assert planned(document, "rich") == (5, *planned(document, "light")[1:])
    assert decompress_bytes(compress_bytes(data, experts="rich")) == data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tree(3000), True),
        (b"<p>" + TEXT, False),
        (json.dumps({"names": [{"name": i, "next": i + 1} for i in range(60)]}).encode(), True),
        (b"".join(b"%d,%d,x\n" % (i, i * i) for i in range(20)), True),
        (b"".join(b"%d %d x\n" % (i, i * i) for i in range(20)), False),
        (b"a,b\n" * 15, False),  # too few rows to tell
        (b"".join(b'%d,"%s"\n' % (i, b"x, " * (i % 3)) for i in range(20)), True),
        (
            b"".join(b"%d,5,x\n" % i for i in range(20))
            + b'6,5" pipe,x\n'
            + b"".join(b"%d,5,x\n" % i for i in range(60)),
            True,
        ),
        (b"".join(b"%d;%d\n" % (i, i * i) for i in range(20)), True),
        (b"".join(b"%d\t%d\n" % (i, i * i) for i in range(20)), True),
        (b"".join(b'"key" : %d\n' % i for i in range(20)), True),
        (prose(0, 4000), False),
        (RANDOM, False),
        (b"<", False),
        (b"", False),
    ],
)
def test_markup_is_recognised(data, expected):
    assert has_markup(np.frombuffer(data, np.uint8)) is expected


def test_it_is_known_what_coded_the_frames():
    def coded_by(data, frame_bytes, experts):
        return compress_stream(io.BytesIO(data), io.BytesIO(), BankCoder(experts), frame_bytes=frame_bytes).coded_by

    assert coded_by(program(9000), 4500, "rich") == {"rich experts of x86 code": 2}
    assert coded_by(prose(0, 2000)[:2000] + RANDOM[:2000], 2000, "auto") == {
        "rich experts of text": 1,
        "nothing: stored as it is": 1,
    }
    assert coded_by(b"", 2000, "light") == {}


def test_experts_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="got experts='Rich'; one of light, rich, auto"):
        compress_bytes(b"x", experts="Rich")


def test_a_reader_of_rich_frames_counts_their_memory():
    for packed, least in ((compress_bytes(TEXT, experts="rich"), 30e6), (compress_bytes(TEXT), 30e6)):
        header, _ = container.read_header(io.BytesIO(packed))
        assert coder_for(header, None).memory(1000) > least


def test_a_model_has_experts_of_its_own():
    with pytest.raises(ConfigError, match="got experts=rich and a model"):
        compress_bytes(b"x", _model(experts=SMALL), experts="rich")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=600), st.integers(1, 200), st.integers(1, 3))
def test_any_bytes_come_back_in_frames_of_any_size(data, frame_bytes, jobs):
    packed = compress_bytes(data, frame_bytes=frame_bytes, jobs=jobs)
    assert decompress_bytes(packed, jobs=jobs) == data
    assert packed == compress_bytes(data, frame_bytes=frame_bytes)


def test_pipes_that_give_little_at_a_time():
    class Trickle(io.RawIOBase):
        def __init__(self, data):
            self.data = data

        def readable(self):
            return True

        def read(self, size=-1):
            taken, self.data = self.data[: min(size, 7)], self.data[min(size, 7) :]
            return taken

    packed, plain = io.BytesIO(), io.BytesIO()
    done = []
    compress_stream(Trickle(TEXT), packed, BankCoder(), frame_bytes=300, tell=done.append)
    assert done[-1] == len(TEXT)
    made = decompress_stream(io.BytesIO(packed.getvalue()), plain, lambda header: coder_for(header, None))
    assert plain.getvalue() == TEXT
    assert (made.size, made.lost, made.cut) == (len(TEXT), [], False)


@pytest.mark.parametrize(
    ("file", "experts", "frame_bytes"),
    [
        ("bank", "light", 1500),
        ("rich", "rich", 1500),
        ("code", "rich", 4500),
        ("markup", "rich", 3000),
        ("numbers", "rich", 6000),
    ],
)
def test_files_of_this_format_stay_readable(file, experts, frame_bytes):
    packed = (GOLDEN / f"compressed-1-{file}.btlm").read_bytes()
    plain = decompress_bytes(packed)
    sums = dict(line.split() for line in (GOLDEN / "compressed-1.sha256").read_text().splitlines())
    assert hashlib.sha256(plain).hexdigest() == sums[file]
    again = compress_bytes(plain, frame_bytes=frame_bytes, experts=experts)
    assert again[container.HEADER_SIZE :] == packed[container.HEADER_SIZE :]  # the header names the release


@pytest.mark.parametrize(("file", "frames"), [("bank", 3), ("rich", 3), ("code", 2), ("markup", 2), ("numbers", 2)])
def test_a_decoder_written_from_the_description_reads_the_same(file, frames):
    packed = (GOLDEN / f"compressed-1-{file}.btlm").read_bytes()
    plain, seen = decompress_bytes(packed), 0
    for offset, data in compressed.frames(packed, 150):
        assert len(data) == 150
        assert data == plain[offset : offset + 150]
        seen += 1
    assert seen == frames


def test_no_torch_is_needed_without_a_model():
    code = (
        "import sys; from bit_transformer.compression import compress_bytes, decompress_bytes;"
        "assert decompress_bytes(compress_bytes(b'abc' * 50)) == b'abc' * 50; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what the data's structure says ----


def test_x86_jumps_there_and_back():
    random = np.random.default_rng(1)
    data = random.integers(0, 256, size=20_000, dtype=np.uint8)
    data[random.integers(0, len(data), 3000)] = 0xE8
    data[random.integers(0, len(data), 6000)] = 0
    made = absolute_jumps(data)
    assert (made != data).any()
    assert np.array_equal(relative_jumps(made), data)
    for size in range(8):
        assert np.array_equal(relative_jumps(absolute_jumps(data[:size])), data[:size])


def test_calls_of_the_same_functions_are_found_and_cost_less():
    random = np.random.default_rng(2)
    targets, code = random.integers(0, 1 << 16, 20), bytearray()
    for _ in range(4000):
        code += bytes(random.integers(0x40, 0x60, 6, dtype=np.uint8)) + b"\xe8"
        distance = int(targets[random.integers(20)]) - len(code)
        code += (distance & 0xFFFFFFFF).to_bytes(4, "little")
    data = np.frombuffer(bytes(code), dtype=np.uint8)
    assert has_jumps(data)
    assert plan(data)[1] == 1
    assert decompress_bytes(compress_bytes(bytes(code))) == bytes(code)


def test_the_width_of_rows_is_found_and_used():
    random = np.random.default_rng(3)
    rows = np.cumsum(random.integers(-3, 4, size=(120, 300)), axis=0) + 128
    data = rows.astype(np.uint8).reshape(-1)
    assert row_width(data) == 300
    assert plan(data)[2] == 300
    assert row_width(np.frombuffer(RANDOM * 4, dtype=np.uint8)[:9000]) != 300


# ---- damage ----


def _packed() -> bytes:
    return compress_bytes(TEXT[:400] + RANDOM[:100], frame_bytes=200)


def test_a_flipped_bit_is_noticed_wherever_it_is():
    packed, random = _packed(), np.random.default_rng(4)
    for place in random.permutation(8 * len(packed))[:1000].tolist():
        damaged = bytearray(packed)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(CompressedFileError):
            decompress_bytes(bytes(damaged))


def test_a_file_that_ends_early_is_noticed_at_every_length():
    packed = _packed()
    for size in range(len(packed)):
        with pytest.raises(CompressedFileError):
            decompress_bytes(packed[:size])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda packed: b"", "empty"),
        (lambda packed: packed + b"\0", "more bytes after the end"),
        (lambda packed: packed + packed, "more bytes after the end"),
        (lambda packed: b"PK" + packed[2:], "does not begin"),
        (lambda packed: packed[:8] + b"\x09" + packed[9:], "version 9"),
        (lambda packed: packed[:30], "header"),
    ],
)
def test_other_files_are_refused(change, said):
    with pytest.raises(CompressedFileError, match=said) as refused:
        decompress_bytes(change(_packed()))
    assert "Try" in str(refused.value)
    assert "\n" not in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_bytes_break_the_parser(data):
    packed = bytearray(_PACKED)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(packed)))
        kind = data.draw(st.sampled_from(["cut", "write", "insert"]))
        if kind == "cut":
            del packed[place : place + data.draw(st.integers(1, 40))]
        elif kind == "write":
            fresh = data.draw(st.binary(min_size=1, max_size=20))
            packed[place : place + len(fresh)] = fresh
        else:
            packed[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    if bytes(packed) == _PACKED:
        return
    for keep_going in (False, True):
        out = io.BytesIO()
        try:
            made = decompress_stream(
                io.BytesIO(bytes(packed)), out, lambda header: coder_for(header, None), keep_going=keep_going, jobs=1
            )
        except CompressedFileError:
            continue
        assert keep_going
        assert made.lost or made.cut or out.getvalue() == TEXT[:400] + RANDOM[:100]


_PACKED = _packed()


def _kept(packed: bytes):
    out = io.BytesIO()
    made = decompress_stream(io.BytesIO(packed), out, lambda header: coder_for(header, None), keep_going=True)
    return out.getvalue(), made


def test_damage_to_a_frame_leaves_the_others():
    data, packed = TEXT[:400] + RANDOM[:100], bytearray(_PACKED)
    first = container.HEADER_SIZE
    header = io.BytesIO(bytes(packed))
    _, seal = container.read_header(header)
    frame = container.read_frame(header, 0, seal)
    in_payload = first + container.FRAME_SIZE + 5
    second = first + container.FRAME_SIZE + frame.coded
    for place, lost in ((in_payload, (0, 200)), (first + 3, (0, 200)), (second + 20, (200, 400))):
        damaged = bytearray(packed)
        damaged[place] ^= 16
        out, made = _kept(bytes(damaged))
        begin, end = lost
        assert made.lost == [lost]
        assert not made.cut
        assert out == data[:begin] + bytes(end - begin) + data[end:]


def test_frames_are_tied_to_their_file_and_their_place():
    size = 64
    data, other = RANDOM[:256], RANDOM[256:512]
    packed, foreign = (compress_bytes(part, frame_bytes=size) for part in (data, other))
    whole, first = container.FRAME_SIZE + size, container.HEADER_SIZE
    parts = [packed[first + whole * i : first + whole * (i + 1)] for i in range(4)]
    end = packed[first + 4 * whole :]
    swapped = packed[:first] + parts[1] + parts[0] + parts[2] + parts[3] + end
    from_another = packed[:first] + foreign[first : first + whole] + b"".join(parts[1:]) + end
    for damaged, lost in ((swapped, [(0, 64), (64, 128)]), (from_another, [(0, 64)])):
        with pytest.raises(CompressedFileError, match="frame"):
            decompress_bytes(damaged)
        assert _kept(damaged)[1].lost == lost
    without = packed[:first] + parts[0] + parts[2] + parts[3] + end
    more = packed[:first] + parts[0] + b"noise" + b"".join(parts[1:]) + end
    out, made = _kept(without)
    assert out == data[:64] + bytes(64) + data[128:] and made.lost == [(64, 128)] and not made.cut
    out, made = _kept(more)
    assert out == data and made.lost == []


def test_what_is_missing_at_the_end_is_said():
    cut = _PACKED[: container.HEADER_SIZE + 10]
    assert _kept(cut)[1] == Unpacking(0, [], True)
    trailing = _kept(_PACKED + b"x")
    assert trailing == (TEXT[:400] + RANDOM[:100], Unpacking(500, [], True))


def test_a_frame_of_a_model_that_cannot_be_decoded_costs_no_other():
    model = _model()
    packed = bytearray(compress_bytes(TEXT[:400], model, frame_bytes=100))
    stream = io.BytesIO(bytes(packed))
    _, seal = container.read_header(stream)
    frame = container.read_frame(stream, 0, seal)
    assert frame is not None
    wrong = container.pack_frame(frame._replace(check=bytes(8)), 0, seal)
    packed[container.HEADER_SIZE : container.HEADER_SIZE + len(wrong)] = wrong
    out = io.BytesIO()
    made = decompress_stream(io.BytesIO(bytes(packed)), out, lambda header: coder_for(header, model), keep_going=True)
    assert made.lost == [(0, 100)] and out.getvalue() == bytes(100) + TEXT[100:400]


def test_streams_that_take_little_at_a_time_get_all():
    class Slow(io.RawIOBase):
        def __init__(self):
            self.taken = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.taken += bytes(data[:5])
            return min(5, len(data))

    slow = Slow()
    compress_stream(io.BytesIO(TEXT), slow, BankCoder(), size=len(TEXT))
    assert bytes(slow.taken) == compress_bytes(TEXT)


def test_of_a_file_that_ends_early_the_beginning_is_read():
    out, made = _kept(_PACKED[: len(_PACKED) // 2])
    assert made.cut
    whole = out[: made.lost[0][0]] if made.lost else out
    assert len(whole) >= 200
    assert (TEXT[:400] + RANDOM[:100]).startswith(whole)


# ---- files with a model ----


def _model(**fields) -> BitTransformerLM:
    shape = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 72 * 8, "ngram_rows": 1024, **fields}
    torch.manual_seed(0)
    model = BitTransformerLM(**shape).eval()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.from_numpy(random.integers(-64, 65, parameter.shape).astype(np.float32) / 1024))
    return model


SMALL = {"buckets": 1024, "history": 1024}


@pytest.mark.parametrize(
    "fields",
    [
        {"experts": SMALL},
        {"experts": SMALL, "reversible": True},
        {"experts": {**SMALL, "rich": True}},
        {"ngram_orders": (2,), "ngram_words": True},
        {"patch_bits": 9, "parity": True, "experts": SMALL},
        {"patch_bits": 4, "parity": True},
        {"patch_bits": 1, "experts": SMALL},
        {"patch_bits": 12},
        {"patch_bits": 3, "chunk_size": 24},
    ],
)
@pytest.mark.parametrize("adapt", [0.0, 0.02])
def test_bytes_come_back_through_a_model(fields, adapt):
    model = _model(**fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for data, frame_bytes in ((TEXT[:500], 150), (b"", 100), (b"y", 100), (TEXT[:200] + RANDOM[:200], 100)):
        packed = compress_bytes(data, model, adapt=adapt, frame_bytes=frame_bytes, jobs=2)
        assert decompress_bytes(packed, model, jobs=2) == data
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_file_is_as_long_as_the_bits_per_byte_say():
    model = _model(experts=SMALL, max_seq_len=8 * 512)
    data = TEXT[:480]  # one window
    packed = compress_bytes(data, model)
    payload = len(packed) - len(compress_bytes(b"", model)) - container.FRAME_SIZE - 24
    assert abs(payload / (bits_per_byte(model, data).bits / 8) - 1) < 0.01


def test_files_of_this_format_with_a_model_stay_readable():
    model = load_checkpoint(GOLDEN / "format-2-plain.safetensors")
    packed = (GOLDEN / "compressed-1-model.btlm").read_bytes()
    plain = (b"The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 4)[:300]
    assert decompress_bytes(packed, model) == plain
    again = compress_bytes(plain, model, frame_bytes=160)
    assert again[container.HEADER_SIZE :] == packed[container.HEADER_SIZE :]  # the header names the release


def test_another_model_is_refused():
    model = _model(experts=SMALL)
    packed = compress_bytes(TEXT, model)
    with pytest.raises(CompressedFileError, match="the same model is needed"):
        decompress_bytes(packed)
    for other in (_model(experts=SMALL, d_model=32), _model(experts={**SMALL, "buckets": 2048})):
        with pytest.raises(CompressedFileError, match="another model"):
            decompress_bytes(packed, other)
    with torch.no_grad():
        model.head.bias[5] += 1e-6
    with pytest.raises(CompressedFileError, match="another model"):
        decompress_bytes(packed, model)


def test_adapting_helps_where_the_data_is_not_what_was_trained_on():
    model = _model()
    plain, adapted = (len(compress_bytes(TEXT, model, adapt=rate)) for rate in (0.0, 0.05))
    assert adapted < 0.9 * plain


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adapt": 0.6}, "adapt"),
        ({"adapt": 1e-6}, "adapt"),
        ({"adapt": 0.01}, "without a model"),
        ({"frame_bytes": 0}, "frame_bytes"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        compress_bytes(TEXT, **given)


def test_models_that_cannot_code_are_refused():
    with pytest.raises(ConfigError, match="diffusion"):
        ModelCoder(BitTransformerLM(d_model=16, nhead=2, num_layers=1, causal=False))
    with pytest.raises(ConfigError, match="float32"):
        ModelCoder(_model().double())


# ---- run lengths ----


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 600)), max_size=30))
def test_runs_come_back_and_never_take_much_more_than_the_bits(runs):
    bits = np.concatenate(
        [np.full(length, value, dtype=np.uint8) for value, length in runs] or [np.empty(0, dtype=np.uint8)]
    )
    (code,) = compress_bits(bits[None])
    assert np.array_equal(decompress_bits([code])[0], bits)
    assert len(code) <= math.ceil(len(bits) / 8) + 16


def test_long_runs_are_short_and_noise_is_packed():
    bits = np.repeat(np.arange(100) % 2, 1000).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, len(bits), dtype=np.uint8)
    codes = compress_bits(np.stack([bits, noise]))
    assert len(codes[0]) < 500
    assert len(codes[1]) == len(bits) // 8 + 9
    assert np.array_equal(decompress_bits(codes), np.stack([bits, noise]))
    assert compress_bits(torch.from_numpy(np.stack([bits, noise])).bool()) == codes


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x07" + bytes(8),
        b"\x00" + bytes(7),
        b"\x01\x09" + bytes(7) + b"\xff",
        b"\x01\x09" + bytes(7) + b"\x00",
        b"\x00\x09" + bytes(7) + b"\x00",
    ],
)
def test_damaged_runs_are_refused(code):
    with pytest.raises(BitStreamError, match="damaged"):
        decompress_bits([code])


def test_a_model_reads_compressed_bits():
    model = _model()
    bits = np.unpackbits(np.frombuffer(TEXT[:64], dtype=np.uint8)).reshape(2, -1)
    codes = compress_bits(bits)
    assert torch.equal(forward_compressed(model, codes).logits, model(bits).logits)
    with pytest.raises(BitStreamError, match="one length"):
        decompress_bits(compress_bits(bits[:1]) + compress_bits(bits[:1, :8]))
