"""Which tiles the int8 product uses for which shape, and how rows are held: measured, else by a rule.

``triton_table.json`` holds the measured ones; ``benchmarks/tune_int8.py`` writes it. Nothing is tried
out while a model runs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any

from qvgen.packed.triton_rows import Kind, Row, parse_rows, usual_row

# Farther from every measured shape than these factors, the rule decides.
NEAR_WEIGHT, NEAR_TOKENS = 1.6, 4.0
SHARED_LIMIT = 227 * 1024  # bytes of shared memory of a program on Hopper
JOBS_SIDE = 128  # rows and columns of a tile of ``gluon_kernels``
STORED = 64  # columns of a result that ``gluon_kernels`` stores at a time


@dataclass(frozen=True)
class Tiles:
    """One way to run ``triton_kernels.int8_gemm``.

    Attributes:
        bm, bn, bk: rows, columns and depth of a tile; powers of two.
        warps: of a program.
        stages: tiles of depth ``bk`` in flight.
        group: tiles of rows that are worked off together, for the L2 cache.
        per_sm: programs a multiprocessor that go from tile to tile; 0 is a program for each tile.
        split: whether a tile is stored as two halves.
        whole: with ``split``, whether scales and biases of both halves are loaded at once.
        flatten: whether the loads of the next tile overlap the epilogue of this one.
        jobs: whether warps have jobs of their own (``gluon_kernels``, Hopper): ``bm`` and ``bn`` are 128
            then, and of the rest only ``bk``, ``stages`` and ``group`` are looked at.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8
    per_sm: int = 0
    split: bool = False
    whole: bool = False
    flatten: bool = False
    jobs: bool = False

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Tiles:
        """Inverse of ``dataclasses.asdict``.

        Raises:
            ValueError: unknown or missing keys, or tiles that warps with jobs do not take.
        """
        known = {f.name for f in fields(Tiles)}
        missing = {"bm", "bn", "bk", "warps", "stages"} - set(data)
        if missing or set(data) - known:
            raise ValueError(f"tiles are {data}; expected the keys {', '.join(sorted(known))}")
        tiles = Tiles(**data)
        if tiles.jobs and (tiles.bm, tiles.bn) != (JOBS_SIDE, JOBS_SIDE):
            size, wanted = f"{tiles.bm} x {tiles.bn}", f"{JOBS_SIDE} x {JOBS_SIDE}"
            raise ValueError(f"warps with jobs take tiles of {wanted}, not {size}: an older table? tune anew")
        return tiles

    @property
    def buffers(self) -> int:
        """With ``jobs``: pieces of a result that each group of warps has on their way out at a time."""
        operands = self.stages * (self.bm + self.bn) * self.bk
        piece = self.bm * STORED * 2
        return 2 if operands + 2 * 2 * piece <= SHARED_LIMIT - 1024 else 1

    def without_jobs(self) -> Tiles:
        """A way of equal warps with tiles of the same size, where none that was measured is known to fit."""
        if not self.jobs:
            return self
        return replace(
            self, jobs=False, warps=8, stages=min(self.stages, 3), per_sm=1, split=True, flatten=True
        )


@dataclass(frozen=True)
class Entry:
    """Tiles measured at ``m`` tokens and a weight [n, k].

    Attributes:
        m, n, k: sizes.
        tiles: the fastest.
        equal: the fastest without ``jobs``, where those of ``tiles`` have some; None if none was measured.
    """

    m: int
    n: int
    k: int
    tiles: Tiles
    equal: Tiles | None = None

    def best(self, jobs: bool) -> Tiles:
        """The fastest, or of those without jobs."""
        return self.tiles if jobs or not self.tiles.jobs else self.equal or self.tiles.without_jobs()


# Few tokens: the weight is what is read, small tiles give more programs to read it.
FEW = Tiles(64, 64, 128, warps=4, stages=4)
# A tile of a short row ends soon: two programs a multiprocessor, one multiplies while one stores.
SHORT = Tiles(128, 128, 128, warps=4, stages=2)
LONG = Tiles(128, 256, 128, warps=8, stages=3, per_sm=1, split=True, flatten=True)
# Warps with jobs won at every measured shape with many tokens. To launch them takes Python longer, so a
# product has to be worth it: about 30 us of a Hopper GPU.
JOBS = Tiles(128, 128, 128, warps=4, stages=6, jobs=True)
JOBS_WORK = 2**34
# Without the copy engine (before Hopper), and for the interpreter.
POINTERS = Tiles(128, 128, 64, warps=8, stages=3)
FEW_POINTERS = Tiles(64, 64, 64, warps=4, stages=3)
SHORT_K = 2560


def parse(text: str) -> tuple[list[Entry], dict[str, dict[int, Row]]]:
    """Matrix products of a table, and by kind and columns how rows are held that are quantized.

    Raises:
        ValueError: not such a table.
    """
    data = json.loads(text)
    try:
        entries = [
            Entry(int(e["m"]), int(e["n"]), int(e["k"]), Tiles.from_dict(e["tiles"]), _equal(e))
            for e in data["gemm"]
        ]
        return entries, parse_rows(data["quantize"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no table of tiles, {type(error).__name__}: {error}") from error


def _equal(entry: dict[str, Any]) -> Tiles | None:
    """The first without jobs of what was tried, which begins with the fastest."""
    tried = [Tiles.from_dict(one["tiles"]) for one in entry.get("tried", ())]
    return next((tiles for tiles in tried if not tiles.jobs), None) if entry["tiles"].get("jobs") else None


@cache
def _shipped() -> tuple[list[Entry], dict[str, dict[int, Row]]]:
    return parse(files("qvgen.packed").joinpath("triton_table.json").read_text())


def nearest(entries: list[Entry], m: int, n: int, k: int, jobs: bool = True) -> Tiles | None:
    """Tiles of the measured shape that is least away in the logarithms of the sizes, if one is near.

    Without ``jobs`` the best of those that have none.
    """

    def distance(entry: Entry) -> float:
        return sum(abs(math.log(a / b)) for a, b in ((entry.m, m), (entry.n, n), (entry.k, k)))

    near = [
        e for e in entries
        if max(e.n / n, n / e.n, e.k / k, k / e.k) <= NEAR_WEIGHT and max(e.m / m, m / e.m) <= NEAR_TOKENS
    ]  # fmt: skip
    return min(near, key=distance).best(jobs) if near else None


@cache
def tiles_for(m: int, n: int, k: int, copy_engine: bool, jobs: bool = True) -> Tiles:
    """Tiles for ``m`` tokens and a weight [n, k]; ``copy_engine``: through tensor descriptors.

    ``jobs``: whether the kernel whose warps have some can run; both were measured with 16-bit results.
    """
    small = m <= 256 or n < 128
    if not copy_engine:
        return FEW_POINTERS if small else POINTERS
    measured = nearest(_shipped()[0], m, n, k, jobs)
    if measured is not None:
        return measured
    if small:
        return FEW
    if jobs and m * n * k >= JOBS_WORK:
        return JOBS
    return SHORT if k <= SHORT_K else LONG


@cache
def row_for(columns: int, kind: Kind, pairs: bool) -> Row:
    """How rows of ``columns`` are held; in pairs only where they can be (``pairs``)."""
    measured = _shipped()[1].get(kind, {}).get(columns)
    if measured is not None and (pairs or not measured.pairs):
        return measured
    return usual_row(columns, kind, pairs)
