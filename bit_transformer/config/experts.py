"""Which adaptive predictors stand beside the trunk."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from bit_transformer.config.base import Config


class ExpertConfig(Config):
    """Which adaptive bit predictors stand beside the trunk, and how much they may remember.

    Every context below is an expert. Before the start of a stream there are zeros, so a stream may be shorter than the
    longest context.
    """

    orders: tuple[PositiveInt, ...] = Field(
        (1, 2, 3, 4, 5, 6, 8), description="Contexts of the last n units (bytes, or words of unit_bits); ascending."
    )
    words: bool | None = Field(
        None, description="Three contexts of words of a text; not given: where a unit is a byte."
    )
    bit_orders: tuple[PositiveInt, ...] = Field(
        (), description="Contexts of the last n bits before the unit; up to 63."
    )
    sparse: tuple[tuple[PositiveInt, ...], ...] = Field(
        (), description="Contexts of up to four single units, by their distances back: ((2,), (2, 3))."
    )
    columns: tuple[PositiveInt, ...] = Field(
        (), description="Row widths of tables and images, in units: the unit above, alone and with the one before."
    )

    @model_validator(mode="after")
    def _contexts_fit(self) -> Self:
        if list(self.orders) != sorted(set(self.orders)) or max(self.orders, default=1) > 32:
            tidy = tuple(sorted({order for order in self.orders if order <= 32}))
            raise ValueError(f"orders={self.orders} must ascend without repeats, up to 32. Try {tidy}")
        if max(self.bit_orders, default=1) > 63:
            raise ValueError(f"bit_orders={self.bit_orders} must not exceed 63. Try (12, 16, 24)")
        if any(not 1 <= len(ages) <= 4 or max(ages) > 65_536 for ages in self.sparse):
            raise ValueError(
                f"sparse={self.sparse} must be groups of one to four distances up to 65536. Try ((2,), (2, 3))"
            )
        if max(self.columns, default=1) > 65_536:
            raise ValueError(f"columns={self.columns} must not exceed 65536. Try (512,)")
        if not (self.orders or self.bit_orders or self.sparse or self.columns):
            raise ValueError("orders=() leaves no contexts; at least one is needed. Try orders=(1, 2, 3)")
        return self

    match_order: PositiveInt = Field(7, description="Shortest repeat that is followed, in units; up to 31.")
    buckets: PositiveInt = Field(1 << 18, description="Buckets of 16 bytes for each context's memory; a power of two.")
    history: PositiveInt = Field(1 << 22, description="Units back in which repeats are looked for; a power of two.")

    @model_validator(mode="after")
    def _memory_fits(self) -> Self:
        for name in ("buckets", "history"):
            size = getattr(self, name)
            if size & (size - 1) or size < 1024:
                near = max(1024, 1 << (size.bit_length() - 1))
                raise ValueError(f"{name}={size} must be a power of two, 1,024 or more. Try {near}")
        if self.match_order > 31:
            raise ValueError(f"match_order={self.match_order} must not exceed 31. Try 7")
        return self

    unit_bits: int | None = Field(
        None, ge=1, le=12, description="Bits of a unit; not given: a byte where patches divide it, else a patch."
    )
