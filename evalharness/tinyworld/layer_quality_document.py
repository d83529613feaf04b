"""Tables of the layers' signal to noise ratios: medians, kinds of layers, paired comparisons."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One quantized layer.

    Attributes:
        method: label of the row.
        bits: such as ``w4a4``.
        seed: of calibration.
        layer: name of the linear.
        sqnr_db: signal to quantization noise of its output, dB.
        stored_bits: of the layer; None where unknown.
        weights: how many the layer has.
    """

    method: str
    bits: str
    seed: int
    layer: str
    sqnr_db: float
    stored_bits: int | None
    weights: int

    @property
    def kind(self) -> str:
        """The name within its block: ``transformer_blocks.3.attn1.to_q`` is an ``attn1.to_q``."""
        parts = self.layer.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        return ".".join(parts[numbers[0] + 1 :]) if numbers else self.layer


def as_markdown(rows: Sequence[Row], judged: str, command: str) -> str:
    """The document; ``judged`` says on which inputs, ``command`` how it was made."""
    parts = [
        "# Output SQNR of tinyworld's layers\n",
        f"Written by\n\n    {command}\n",
        "Every layer stands in [layers.csv](layers.csv). Signal to quantization noise of a linear's output,"
        f"\nin dB, on {judged}.\nHigher is better; 6 dB are one bit. Layers one by one, inputs of the"
        " full-precision model.\n",
    ]
    for bits in dict.fromkeys(row.bits for row in rows):
        mine = [row for row in rows if row.bits == bits]
        parts += [f"## {bits.upper()}\n", _medians(mine), _kinds(mine), _pairs(mine)]
    return "\n".join(parts)


def paired(rows: Sequence[Row], one: str, other: str) -> tuple[int, int, float]:
    """On layers that both have quantized: how often ``one`` is better, of how many, median gain in dB."""
    mine, theirs = (
        {(row.layer, row.seed): row.sqnr_db for row in rows if row.method == name} for name in (one, other)
    )
    differences = [mine[key] - theirs[key] for key in mine if key in theirs]
    wins = sum(difference > 0 for difference in differences)
    return wins, len(differences), statistics.median(differences) if differences else 0.0


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows))


def _medians(rows: Sequence[Row]) -> str:
    lines = []
    for name in _methods(rows):
        mine = [row for row in rows if row.method == name]
        values = sorted(row.sqnr_db for row in mine)
        known = [row for row in mine if row.stored_bits is not None]
        bits = sum(row.stored_bits or 0 for row in known)
        lines.append(
            [
                f"`{name}`", str(len(values)), f"{statistics.median(values):.1f}",
                f"{statistics.fmean(values):.1f}", f"{values[0]:.1f}", f"{values[-1]:.1f}",
                f"{bits / sum(row.weights for row in known):.1f}" if known else "-",
            ]
        )  # fmt: skip
    return _table(["method", "layers", "median", "mean", "least", "largest", "stored bits a weight"], lines)


def _kinds(rows: Sequence[Row]) -> str:
    kinds = list(dict.fromkeys(row.kind for row in rows))
    lines = []
    for name in _methods(rows):
        cells = []
        for kind in kinds:
            values = [row.sqnr_db for row in rows if row.method == name and row.kind == kind]
            cells.append(f"{statistics.median(values):.1f}" if values else "-")
        lines.append([f"`{name}`", *cells])
    return "Medians by kind of layer:\n\n" + _table(["method", *(f"`{kind}`" for kind in kinds)], lines)


def _pairs(rows: Sequence[Row]) -> str:
    names = _methods(rows)
    lines = []
    for one in names:
        cells = []
        for other in names:
            wins, count, middle = paired(rows, one, other)
            cells.append("" if one == other or not count else f"{wins}/{count}, {middle:+.1f}")
        lines.append([f"`{one}`", *cells])
    text = (
        "Layer by layer: on how many the row's method is better than the column's, and the median difference:"
    )
    return f"{text}\n\n" + _table(["", *(f"`{name}`" for name in names)], lines)


def _table(headers: list[str], lines: list[list[str]]) -> str:
    rows = [headers, ["---"] * len(headers), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)
