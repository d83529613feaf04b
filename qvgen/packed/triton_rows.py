"""How a row of activations is held while it is quantized: measured ways, else a rule.

What counts is how many bytes a multiprocessor waits for at a time: few registers a program, so that many
programs fit, and enough elements a thread that little is left beside them. ``benchmarks/tune_int8.py``
measures; ``triton_table.json`` holds what it found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qvgen.packed.layout import LANE

Kind = Literal["plain", "plain_groups", "gelu", "norm", "norm_groups"]
KINDS: tuple[Kind, ...] = ("plain", "plain_groups", "gelu", "norm", "norm_groups")
MOST_PIECES = 3
WARP = 32
# Longer rows are two pieces in any case: held as one, 13,824 numbers take so many registers that a
# multiprocessor has one row in flight in place of two.
LONG_ROW = 8193
# Elements of a row that one warp holds: on an H200 the best for plain rows of every measured width, or within
# one per cent of the best.
A_WARP = 2048
# What 64 to 72 elements a thread need in pairs. Left alone, the compiler takes up to twice as many.
FEW_REGISTERS = 80


@dataclass(frozen=True)
class Row:
    """One way to hold a row.

    Attributes:
        pieces: elements of each; powers of two, at most three (two where not ``pairs``), all but the last
            full.
        warps: of a program.
        registers: of a thread at most; None leaves it to the compiler.
        pairs: whether the row stays as words of two 16-bit numbers (``pair_kernels``).
    """

    pieces: tuple[int, ...]
    warps: int
    registers: int | None = None
    pairs: bool = False

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Row:
        """Inverse of ``dataclasses.asdict``; other keys are not looked at.

        Raises:
            ValueError: not such a way.
        """
        registers = data["registers"]
        row = Row(
            tuple(map(int, data["pieces"])),
            int(data["warps"]),
            None if registers is None else int(registers),
            bool(data["pairs"]),
        )
        if not 0 < len(row.pieces) <= (MOST_PIECES if row.pairs else 2):
            raise ValueError(
                f"a row is held in {row.pieces}; expected one to three pieces, two without pairs"
            )
        return row

    @property
    def options(self) -> dict[str, Any]:
        """Triton's, by name."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "enable_fp_fusion": False, **limit}

    def sizes(self, columns: int) -> dict[str, Any]:
        """The kernels' constants for rows of ``columns``.

        Raises:
            ValueError: the pieces do not fit such rows.
        """
        held = sum(self.pieces)
        if held - self.pieces[-1] > columns or held < columns + -columns % LANE:
            raise ValueError(f"rows of {columns} do not fit pieces of {self.pieces}")
        full = held == columns
        if self.pairs:
            words = [piece // 2 for piece in self.pieces] + [0] * (MOST_PIECES - len(self.pieces))
            return {"FIRST": words[0], "SECOND": words[1], "THIRD": words[2], "FULL": full}
        return {"HEAD": self.pieces[0], "TAIL": sum(self.pieces[1:]), "FULL": full}


def row_pieces(columns: int) -> tuple[int, ...]:
    """One or two powers of two that hold a row: one where that wastes no more than a quarter."""
    whole = max(LANE, 1 << (columns - 1).bit_length())
    head = whole // 2
    if columns <= 128 or whole * 3 // 4 < columns < LONG_ROW:
        return (whole,)
    return head, 1 << (columns - head - 1).bit_length()


def usual_row(columns: int, kind: Kind, pairs: bool) -> Row:
    """The rule, for rows of ``columns`` that nobody measured."""
    pairs = pairs and kind.startswith("plain")  # GELU of words was slower at every measured width
    pieces = row_pieces(columns + -columns % LANE)
    held = sum(pieces)
    warps = 1 << max(0, (held // A_WARP).bit_length() - 1)
    if not pairs:
        return Row(pieces, warps)
    if kind == "plain":
        warps = min(warps, 4)
    few = warps >= 4 and held // (WARP * warps) <= 72
    return Row(pieces, warps, FEW_REGISTERS if few else None, True)


def parse_rows(data: dict[str, dict[str, Any]]) -> dict[str, dict[int, Row]]:
    """Ways by kind and columns.

    Raises:
        ValueError: not such ways.
    """
    if set(data) - set(KINDS):
        raise ValueError(
            f"no table of tiles: rows are of the kinds {sorted(data)}, not of {KINDS}; tune anew"
        )
    return {
        kind: {int(columns): Row.from_dict(row) for columns, row in rows.items()}
        for kind, rows in data.items()
    }
