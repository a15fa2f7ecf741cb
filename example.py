"""Text to bits, a small model, a sample, what it is worth and whether it is sane: one minute from nothing.

Run: python example.py
"""

from os import urandom

from bit_transformer import (
    BitTransformerLM,
    Sampling,
    bits_per_byte,
    bits_to_text,
    bytes_to_bits,
    stream_bytes,
    text_to_bits,
    train_loop,
)
from bit_transformer.data.sources import bytes_corpus, split, stdlib_files
from bit_transformer.evaluation.baselines import compressors_bpb
from bit_transformer.safety import Reference

# 1. A text is bits, eight to a byte, and nothing else.
bits = text_to_bits("Hi")
print("Hi =", "".join(map(str, bits.tolist())), "=", bits_to_text(bits))

# 2. A model that sees eight of them as one position and predicts them one by one, with adaptive predictors beside it.
model = BitTransformerLM(d_model=128, nhead=2, num_layers=2, max_seq_len=1024, ngram_orders=(2, 3, 4), experts={})
print(f"{model.num_parameters().total:,} parameters, {model.num_parameters().active:,} of them active")

# 3. Real bytes: the source of Python's own standard library, some files held out.
train, held_out = split(stdlib_files(), "file", 0.1)
held_out = held_out.thinned(32_768, 4_096)


def say(trainer, record):  # an observer is any function of these two
    if record["step"] % 20 == 0:
        print(f"  {record['seconds']:4.0f} s  step {record['step']:4}  {record['train_bpb']:.2f} bits per byte")


train_loop(model, train, seconds=25, batch_size=16, observers=[say])

# 4. What is it worth? Prediction is compression, so compressors are the measure.
score = bits_per_byte(model, held_out)
print(f"\nmodel {score.bpb:.3f} bits per byte ({score.protocol})")
for name, bpb in compressors_bpb(bytes_corpus(held_out.read(0, len(held_out)).tobytes())).items():
    print(f"{name} {bpb:.3f}")

# 5. And what does it think code looks like?
print("\ndef ", end="")
sample = b""
for piece in stream_bytes(model, b"def ", 256, Sampling(temperature=0.7, seed=1)):
    sample += piece
    print(piece.decode("utf-8", errors="replace"), end="", flush=True)

# 6. Is that sane? Order, complexity and likeness to what was read, beside real code and noise; a gate would go by these.
reference = Reference(model.bank, byte_bits=8)
print("\n\n             K order  C complexity  S likeness")
for name, data in {"the sample": sample, "real code": held_out.read(0, 256).tobytes(), "noise": urandom(256)}.items():
    (vitals,) = reference.measure(bytes_to_bits(data)[None])
    print(f"{name:12}{vitals.K:8.2f}{vitals.C:14.2f}{vitals.S:12.2f}")
