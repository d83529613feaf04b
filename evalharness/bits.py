"""Bit widths of a cell, as a user writes them and as folders and tables name them."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ALLOWED_BITS", "FULL_PRECISION", "FULL_PRECISION_BITS", "Bits"]

FULL_PRECISION_BITS = 16
ALLOWED_BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, slots=True, order=True)
class Bits:
    """Bit widths of one cell: weights and activations; 16/16 means full precision."""

    w: int
    a: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read ``3`` (= W3A3), ``w4a6`` or ``W4A6``.

        Raises:
            ValueError: naming the text and what is allowed.
        """
        match = re.fullmatch(r"(\d+)|w(\d+)a(\d+)", text.strip().lower())
        if match:
            one, w, a = match.groups()
            bits = cls(int(one or w), int(one or a))
            if bits.w in ALLOWED_BITS and bits.a in ALLOWED_BITS:
                return bits
        raise ValueError(
            f"bits {text!r}: expected a whole number from {ALLOWED_BITS[0]} to {ALLOWED_BITS[-1]} "
            "(3 means W3A3) or a pair such as w4a6"
        )

    @property
    def is_full_precision(self) -> bool:
        return self.w >= FULL_PRECISION_BITS and self.a >= FULL_PRECISION_BITS

    @property
    def label(self) -> str:
        """Lower-case name used in folders and tables: ``w3a3``, or ``bf16``."""
        return "bf16" if self.is_full_precision else f"w{self.w}a{self.a}"


FULL_PRECISION = Bits(FULL_PRECISION_BITS, FULL_PRECISION_BITS)
