"""The experts: adaptive bit predictors beside the trunk."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from bit_transformer.config.base import Config, Unfit

NumberKind = Literal[
    "", "u1", "i1", "<u2", "<i2", ">u2", ">i2", "<u3", "<i3", ">u3", ">i3", "<u4", "<i4", ">u4", ">i4"
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(NumberKind)[1:]  # in this order in the headers of compressed files
# Fields that came later: digests of models and keys of caches leave them out where they are the default.
NEWER = ("rich", "instructions", "markup", "numbers", "channels", "numbers_begin")


class ExpertConfig(Config):
    """The experts' contexts and the size of their memory.

    Each context below is one expert. Experts see zeros before the start of a stream, so a stream may be shorter than the
    longest context.
    """

    orders: tuple[PositiveInt, ...] = Field(
        (1, 2, 3, 4, 5, 6, 8),
        description="Contexts of the last n units (bytes, or words of unit_bits bits); ascending.",
    )
    words: bool | None = Field(None, description="Three contexts of the words of a text. Default: if a unit is a byte.")
    bit_orders: tuple[PositiveInt, ...] = Field(
        (), description="Contexts of the last n bits before the unit; n up to 63."
    )
    sparse: tuple[tuple[PositiveInt, ...], ...] = Field(
        (), description="Contexts of up to four single units, given by their distances back: ((2,), (2, 3))."
    )
    columns: tuple[PositiveInt, ...] = Field(
        (),
        description="Row widths of tables and images, in units. Contexts: the unit above, alone and with the previous unit.",
    )

    rich: bool = Field(
        False,
        description="Some sixty contexts of words, phrases and lines, four inputs of each, ten mixers: 6 to 15 % fewer bits at an eighth of the speed, "
        "with eight times the memory.",
    )

    instructions: bool = Field(
        False,
        description="Rich contexts of x86 machine code, 32 or 64 bits, in place of words: 6 to 10 % fewer bits of programs.",
    )

    markup: bool = Field(
        False,
        description="Rich contexts of XML, HTML, JSON and CSV beside those of words: what is open, and what stands there so far. 1 to 10 % fewer bits of those, a tenth slower.",
    )

    numbers: NumberKind = Field(
        "",
        description="Data made of numbers, such as sound, images and readings: their type as NumPy writes it, of one to four bytes. `<i2`: two bytes, "
        "low byte first, with a sign; `u1`: one byte. Rich experts predict each number from those around it, in place of words: 2 to 27 % fewer bits of "
        "such data. Where there are rows, give `columns` too.",
    )
    channels: int = Field(
        1, ge=1, le=4, description="How many numbers come in turn, as left and right, or red, green and blue."
    )
    numbers_begin: int = Field(0, ge=0, le=3, description="Bytes before the first whole number.")

    @model_validator(mode="after")
    def _contexts_fit(self) -> Self:
        if list(self.orders) != sorted(set(self.orders)) or max(self.orders, default=1) > 32:
            tidy = tuple(sorted({order for order in self.orders if order <= 32}))
            raise Unfit(f"orders={self.orders} must ascend without repeats, up to 32", orders=tidy or (1, 2, 3))
        if max(self.bit_orders, default=1) > 63:
            raise Unfit(f"bit_orders={self.bit_orders} must not exceed 63", bit_orders=(12, 16, 24))
        if any(not 1 <= len(ages) <= 4 or max(ages) > 65_536 for ages in self.sparse):
            raise Unfit(
                f"sparse={self.sparse} must contain groups of one to four distances up to 65536", sparse=((2,), (2, 3))
            )
        if max(self.columns, default=1) > 65_536:
            raise Unfit(f"columns={self.columns} must not exceed 65536", columns=(512,))
        if self.instructions and not self.rich:
            raise Unfit("instructions=True needs rich experts", rich=True)
        if self.markup and not self.rich:
            raise Unfit("markup=True needs rich experts", rich=True)
        if self.markup and (self.instructions or self.words is False):
            wrong = "instructions" if self.instructions else "words"
            raise Unfit(
                f"markup=True stands beside words=True; got {wrong}={getattr(self, wrong)}", **{wrong: wrong == "words"}
            )
        if self.numbers and not self.rich:
            raise Unfit(f"numbers={self.numbers!r} needs rich experts", rich=True)
        if self.numbers and (self.words or self.instructions or self.markup):
            taken = next(name for name in ("words", "instructions", "markup") if getattr(self, name))
            raise Unfit(f"numbers={self.numbers!r} takes the place of {taken}=True", **{taken: False})
        if not self.numbers and (self.channels > 1 or self.numbers_begin):
            field = "channels" if self.channels > 1 else "numbers_begin"
            raise Unfit(f"{field}={getattr(self, field)} needs numbers", numbers="<i2")
        if self.numbers_begin >= self.number_bytes:
            raise Unfit(
                f"numbers_begin={self.numbers_begin} must be less than the {self.number_bytes} bytes of a number",
                numbers_begin=0,
            )
        if any(width % self.number_bytes for width in self.columns[:1]):
            raise Unfit(
                f"columns={self.columns} must begin with a width of whole numbers={self.numbers!r}, in bytes",
                columns=(self.columns[0] * self.number_bytes,),
            )
        if self.instructions and self.words:
            raise Unfit("instructions=True takes the place of words=True", words=False)
        if not (self.orders or self.bit_orders or self.sparse or self.columns or self.rich):
            raise Unfit("orders=() leaves no contexts; at least one is needed", orders=(1, 2, 3))
        return self

    @property
    def number_bytes(self) -> int:
        """Bytes of a number; 1 where data is not made of numbers."""
        return int(self.numbers[-1:] or 1)

    @property
    def group_bytes(self) -> int:
        """Bytes of a number of each channel."""
        return self.number_bytes * self.channels

    def newer(self) -> list[str]:
        """Which of the fields that came later are not the default."""
        return [name for name in NEWER if getattr(self, name) != ExpertConfig.model_fields[name].default]

    match_order: PositiveInt = Field(7, description="Length of the shortest match, in units; up to 31.")
    buckets: PositiveInt = Field(1 << 18, description="Memory of each context, in buckets of 16 bytes; a power of two.")
    history: PositiveInt = Field(1 << 22, description="How many units back matches are searched; a power of two.")

    @model_validator(mode="after")
    def _memory_fits(self) -> Self:
        for name in ("buckets", "history"):
            size = getattr(self, name)
            if size & (size - 1) or size < 1024:
                near = max(1024, 1 << (size.bit_length() - 1))
                raise Unfit(f"{name}={size} must be a power of two, 1,024 or more", **{name: near})
        if self.match_order > 31:
            raise Unfit(f"match_order={self.match_order} must not exceed 31", match_order=7)
        return self

    unit_bits: int | None = Field(
        None, ge=1, le=12, description="Bits of a unit. Default: a byte if patches divide it, else a patch."
    )
