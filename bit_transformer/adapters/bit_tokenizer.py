"""A tokenizer for transformers: text and bytes to the patches of bits that a model reads, and back, without loss.

    tokenizer = BitTokenizer(patch_bits=8)
    tokenizer("hi").input_ids             # [104, 105]
    tokenizer.tokenize("hi")              # ["01101000", "01101001"]
    tokenizer.encode_bytes(b"\\xff\\x00")   # [255, 0]

A token is a patch: P bits, first bit most significant. With P = 8 it is a byte, with P = 9 and parity a byte with its parity bit, with P = 1 a bit.
Nothing is learned or looked up. The one special token is the model's start symbol. It also fills short rows of a batch, on the left.
"""

# Shapes: N tokens, T bits.
from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bit_transformer.adapters.folder import CODE, CODE_FILE, TOKENIZER_MAP
from bit_transformer.bit_io import bits_to_bytes, bytes_to_bits
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.extras import require

transformers = require("transformers", extra="hf", purpose="the Hugging Face adapter")
PreTrainedTokenizer: Any = transformers.PreTrainedTokenizer  # the library has no types
START = "<start>"
ERRORS = ("replace", "strict", "ignore", "backslashreplace", "surrogateescape")


class BitTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """Text to patches of bits and back.

    Args:
        patch_bits: P. A byte must be a whole number of patches.
        parity: each byte has a ninth bit, for even parity.
        errors: for bytes that are not UTF-8, when ids become text. `replace` is for reading. With `surrogateescape` no byte is lost: such text
            becomes the same ids again.

    Raises:
        ConfigError: patches that are no part of a byte, or an unknown `errors`.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - of the base class
    vocab_files_names: dict[str, str] = {}  # noqa: RUF012 - of the base class
    padding_side = "left"

    def __init__(self, patch_bits: int = 8, parity: bool = False, errors: str = "replace", **more: Any) -> None:
        width = 9 if parity else 8
        if not 0 < patch_bits <= width or width % patch_bits:
            fit = ", ".join(str(p) for p in range(1, width + 1) if width % p == 0)
            raise ConfigError(
                f"got patch_bits={patch_bits}; for text, patches must divide the {width} bits of a byte: {fit}. Try ids of patches instead",
                field="patch_bits",
            )
        if errors not in ERRORS:
            raise ConfigError(
                f"got errors={errors!r}; it must be one of {', '.join(ERRORS)}. Try replace", field="errors"
            )
        self.patch_bits, self.parity, self.errors = patch_bits, parity, errors
        self.start = 1 << patch_bits
        self._added_tokens_decoder = {self.start: transformers.AddedToken(START, special=True)}
        for name in ("bos_token", "pad_token"):
            more[name] = START
        more["split_special_tokens"] = True  # "<start>" in a text is text
        more.pop("added_tokens_decoder", None)
        super().__init__(patch_bits=patch_bits, parity=parity, errors=errors, **more)
        self._auto_map = TOKENIZER_MAP

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoTokenizer") -> None:
        """Do nothing: folders name the classes of the installed package, and hold no copy of them."""

    @property
    def vocab_size(self) -> int:
        """Number of patches, 2^P; the start symbol comes after them."""
        return self.start

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id: the bits of each patch, and the start symbol."""
        return {**{self._convert_id_to_token(i): i for i in range(self.start)}, START: self.start}

    # ---- bytes ----

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes."""
        bits_T = bytes_to_bits(data, parity=self.parity)
        weights = 1 << np.arange(self.patch_bits - 1, -1, -1)
        ids: list[int] = (bits_T.reshape(-1, self.patch_bits) @ weights).tolist()
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; the start symbol is left out, and so are the bits of an incomplete last byte.

        Raises:
            BitStreamError: an id that is none.
        """
        return self._bytes([int(index) for index in ids if int(index) != self.start])

    def _bytes(self, ids: Sequence[int]) -> bytes:
        patch_N = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = patch_N[(patch_N < 0) | (patch_N >= self.start)]
        if len(wrong):
            raise BitStreamError(
                f"got the id {wrong[0]}; patches of {self.patch_bits} bits have ids from 0 to {self.start - 1}. Try the tokenizer of the model"
            )
        bits_T = (patch_N[:, None] >> np.arange(self.patch_bits - 1, -1, -1) & 1).astype(np.uint8).reshape(-1)
        width = 9 if self.parity else 8
        return bits_to_bytes(bits_T[: len(bits_T) // width * width], parity=self.parity, on_error="keep")

    # ---- text, as the base class asks for it ----

    def _tokenize(self, text: str, **more: Any) -> list[str]:
        return [self._convert_id_to_token(index) for index in self.encode_bytes(_utf8(text))]

    def _convert_token_to_id(self, token: str) -> int:
        if len(token) != self.patch_bits or set(token) - {"0", "1"}:
            raise BitStreamError(
                f"got the token {token[:40]!r}; a token is {self.patch_bits} bits, such as {'01' * 6:.{self.patch_bits}}. Try tokenizer(text)"
            )
        return int(token, 2)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.start:
            raise BitStreamError(
                f"got the id {index}; tokens have ids from 0 to {self.start}. Try the tokenizer of the model"
            )
        return f"{index:0{self.patch_bits}b}"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return self._decode([self.start if token == START else self._convert_token_to_id(token) for token in tokens])

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: str | None = None,
        **more: Any,
    ) -> str:
        """The text of ids. Spaces are never touched.

        Args:
            errors: instead of the tokenizer's own.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        data, rest = b"", ids
        while not skip_special_tokens and self.start in rest:
            at = rest.index(self.start)
            data, rest = data + self._bytes(rest[:at]) + START.encode(), rest[at + 1 :]
        data += self.decode_bytes(rest)
        try:
            return data.decode("utf-8", errors or self.errors)
        except UnicodeDecodeError as invalid:
            raise BitStreamError(
                f"got bytes that are not UTF-8 at offset {invalid.start}. Try errors='replace', or decode_bytes"
            ) from None

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids as they are: the model puts the start symbol before them itself."""
        return token_ids_0 + (token_ids_1 or [])

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for the start symbol, 0 for patches."""
        return [int(index == self.start) for index in self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """There is no vocabulary; written is the file that names this class, so that the folder can be loaded alone."""
        path = Path(save_directory) / CODE_FILE
        path.write_text(CODE, encoding="utf-8")
        return (str(path),)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as wrong:
        raise BitStreamError(
            f"got the lone surrogate {text[wrong.start]!r} at offset {wrong.start}, which UTF-8 has no bytes for. Try encode_bytes"
        ) from None
