"""Bytes to tokens for models of tokens: one token a byte, or byte pairs learned from the training data, with any bytes allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bit_transformer.data.sources import Corpus
from bit_transformer.extras import require

# Words with the space before them, numbers, signs, white space; on Latin-1, where a letter outside ASCII may be part of a UTF-8 letter.
WORDS = r" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^\sA-Za-z0-9\x80-\xff]+|\s+(?!\S)|\s+"
LEARNED_FROM = 4 << 20  # bytes of the training data that pairs are learned from, at most
PIECE = 1 << 16  # bytes that are encoded at a time


class Vocabulary(Protocol):
    """Turns bytes into tokens and back."""

    @property
    def size(self) -> int:
        """Number of tokens: they are 0 .. size - 1."""

    def encode(self, data: bytes) -> NDArray[np.int32]:
        """The tokens of some bytes."""

    def lengths(self, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """Bytes of each token."""

    def decode(self, tokens: NDArray[np.int32]) -> bytes:
        """The bytes of some tokens."""


class ByteVocabulary:
    """A token for each byte."""

    @property
    def size(self) -> int:
        """256."""
        return 256

    def encode(self, data: bytes) -> NDArray[np.int32]:
        """The bytes as numbers."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32)

    def lengths(self, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """One each."""
        return np.ones(len(tokens), dtype=np.int64)

    def decode(self, tokens: NDArray[np.int32]) -> bytes:
        """The numbers as bytes."""
        return tokens.astype(np.uint8).tobytes()


@dataclass(frozen=True)
class PairVocabulary:
    """Byte-pair encoding by the library `tokenizers`. Bytes are taken as Latin-1 characters, so every file can be encoded and comes back as it was.

    Attributes:
        tokenizer: the library's.
        words: the bytes of each token.
    """

    tokenizer: Any
    words: tuple[bytes, ...]

    @classmethod
    def learned(cls, training: Corpus, size: int) -> PairVocabulary:
        """Learn `size` tokens from the training data.

        Source: Sennrich et al. 2016, arXiv:1508.07909.

        Raises:
            MissingExtra: the library is not installed.
        """
        tokenizers = require("tokenizers", extra="compare", purpose="byte-pair encoding")
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=[chr(value) for value in range(256)], show_progress=False
        )
        sample = training.thinned(LEARNED_FROM, PIECE)
        made.train_from_iterator(_texts(sample), trainer)
        words = {number: word.encode("latin-1") for word, number in made.get_vocab().items()}
        return cls(made, tuple(words[number] for number in range(len(words))))

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.words)

    def encode(self, data: bytes) -> NDArray[np.int32]:
        """The tokens of some bytes, in pieces, so that no long text is in memory twice."""
        texts = [data[at : at + PIECE].decode("latin-1") for at in range(0, len(data), PIECE)]
        found = [np.array(made.ids, dtype=np.int32) for made in self.tokenizer.encode_batch_fast(texts)]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int32)

    def lengths(self, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """Bytes of each token."""
        return np.array([len(word) for word in self.words], dtype=np.int64)[tokens]

    def decode(self, tokens: NDArray[np.int32]) -> bytes:
        """The bytes of some tokens."""
        return b"".join(self.words[token] for token in tokens.tolist())


def _texts(corpus: Corpus) -> Any:
    for start, stop in corpus.spans_at():
        for at in range(start, stop, PIECE):
            yield corpus.read(at, min(PIECE, stop - at)).tobytes().decode("latin-1")
