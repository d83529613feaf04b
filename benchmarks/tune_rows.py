"""The half of ``benchmarks/tune_int8.py`` that finds how rows are held while they are quantized.

Candidates were chosen by what the compiler says of each on Hopper: registers, so how many rows a
multiprocessor has in flight, and instructions for each element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.int8_layers import BF16, BLOCKS, TINY_BLOCKS
from benchmarks.tuning import compile_all, timed
from qvgen.packed.triton_linear import Codes, RowCall, padded_columns, quantize_call, quantize_groups
from qvgen.packed.triton_product import ProductCall
from qvgen.packed.triton_reading import norm_calls, norm_quantize
from qvgen.packed.triton_rows import Kind, Row, usual_row

Q_MAX = 15
SETS = 3
MOST_APART = 1e-3  # share of codes that may be others, where sums are rounded in another order
Ways = dict[int, tuple[tuple[tuple[int, ...], int, int | None], ...]]

# By columns: pieces, warps, registers. In pairs, but for norms.
PLAIN: Ways = {
    1536: (((1024, 512), 1, None), ((1024, 512), 1, 56), ((512, 512, 512), 1, None)),
    1920: (((2048,), 1, None), ((2048,), 2, None), ((1024, 1024), 1, None)),
    5120: (((4096, 1024), 2, None), ((4096, 1024), 2, 80), ((2048, 2048, 1024), 2, None),
           ((4096, 1024), 4, None)),
    7680: (((8192,), 4, None), ((8192,), 4, 80), ((4096, 4096), 4, None), ((8192,), 8, None)),
    8960: (((8192, 1024), 4, None), ((8192, 1024), 4, 80), ((4096, 4096, 1024), 4, None),
           ((8192, 512, 256), 4, 80)),
    13824: (((8192, 8192), 4, None), ((8192, 4096, 2048), 4, None), ((8192, 4096, 2048), 4, 96),
            ((8192, 8192), 8, 64)),
}  # fmt: skip
PLAIN_GROUPS: Ways = {
    1536: (((1024, 512), 1, None), ((512, 512, 512), 1, None), ((1024, 512), 2, None)),
    1920: (((2048,), 1, None), ((2048,), 1, 96), ((1024, 1024), 1, None), ((1024, 512, 512), 1, None)),
    5120: (((4096, 1024), 2, None), ((2048, 2048, 1024), 2, None), ((4096, 1024), 2, 96),
           ((4096, 1024), 4, None)),
}  # fmt: skip
GELU: Ways = {
    7680: (((8192,), 4, None), ((8192,), 4, 80), ((4096, 4096), 4, 80), ((8192,), 8, 48)),
    8960: (((8192, 1024), 4, None), ((8192, 1024), 4, 80), ((4096, 4096, 1024), 4, 80),
           ((8192, 1024), 8, 48)),
    13824: (((8192, 8192), 4, None), ((8192, 8192), 4, 128), ((8192, 8192), 8, 64), ((8192, 8192), 8, 80),
            ((8192, 4096, 2048), 4, 128), ((8192, 4096, 2048), 8, 64)),
}  # fmt: skip
NORM: Ways = {
    1536: (((1024, 512), 1, 80), ((1024, 512), 1, 64), ((1024, 512), 2, None)),
    1920: (((2048,), 1, 96), ((2048,), 1, 80), ((2048,), 2, None), ((1024, 1024), 1, None)),
    5120: (((4096, 1024), 2, 96), ((4096, 1024), 2, 80), ((4096, 1024), 4, None), ((4096, 1024), 4, 64)),
}
NORM_GROUPS: Ways = {
    1536: (((1024, 512), 1, 96), ((1024, 512), 1, 80), ((1024, 512), 2, None)),
    1920: (((2048,), 1, 128), ((2048,), 1, 96), ((2048,), 2, 80), ((1024, 1024), 1, None)),
    5120: (((4096, 1024), 2, 128), ((4096, 1024), 4, None), ((4096, 1024), 4, 96), ((4096, 1024), 4, 80)),
}
WAYS: dict[Kind, Ways] = {
    "plain": PLAIN, "plain_groups": PLAIN_GROUPS, "gelu": GELU, "norm": NORM, "norm_groups": NORM_GROUPS,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Rows of a model: so many ``tokens`` of ``columns`` for ``groups`` layers that clip each its own way."""

    kind: Kind
    tokens: int
    columns: int
    groups: int

    @property
    def bytes_moved(self) -> int:
        """Read and written: bfloat16; codes, scales and sums."""
        return self.tokens * (2 * self.columns + self.groups * (padded_columns(self.columns) + 8))


def cases(tiny: bool) -> Iterator[Case]:
    """Of all models' blocks: what attention reads, with a norm before it or not, and what GELU is before."""
    for groups in (TINY_BLOCKS if tiny else BLOCKS).values():
        width, hidden = groups[0], groups[-1]
        for kind in ("plain", "plain_groups", "norm", "norm_groups"):
            yield Case(kind, width.tokens, width.columns, 3 if kind.endswith("groups") else 1)
        yield Case("plain", hidden.tokens, hidden.columns, 1)
        yield Case("gelu", hidden.tokens, hidden.columns, 1)


def candidates(case: Case) -> list[Row]:
    """The first holds numbers by the rule; what it gives is what others are compared with."""
    kind, columns = case.kind, case.columns
    pairs = not kind.startswith("norm")
    numbers = usual_row(columns, kind, False)
    first = [numbers, usual_row(columns, kind, pairs)]
    if kind == "gelu":  # which is held as numbers in any case
        first.append(replace(numbers, registers=80))
    found = [Row(*way, pairs) for way in WAYS[kind].get(columns, ())]
    if columns not in WAYS[kind] and pairs and columns % 64 == 0:
        half = sum(numbers.pieces) // 2
        found.append(Row((half, half), 1, None, True))
    return list(dict.fromkeys(first + found))


def draw(case: Case, device: torch.device, seed: int) -> tuple[Callable[..., Codes], Callable[..., RowCall]]:
    """What quantizes drawn rows held in a way, and the launch of it."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (1, case.tokens, case.columns)
    x = torch.randn(shape, generator=generator, device=device, dtype=BF16)
    clips = torch.linspace(0.9, 1.0, case.groups, device=device)
    rest = (clips, clips, case.groups, Q_MAX, False)
    if not case.kind.startswith("norm"):
        gelu = case.kind == "gelu"
        return partial(quantize_groups, x, *rest, gelu), partial(quantize_call, x, *rest, gelu)
    scale, shift = (
        torch.randn(1, case.columns, generator=generator, device=device, dtype=BF16) for _ in range(2)
    )
    given: tuple[Any, ...] = ([x], [scale], [shift], None, None, 1e-5, *rest)
    return partial(norm_quantize, *given), lambda row: norm_calls(*given, row)[0][0]


def agree(made: Codes, wanted: Codes, kind: Kind) -> bool:
    """Bit for bit; with GELU or a norm but for a few codes, and scales within float32 roundings."""
    if kind.startswith("plain"):
        return all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
    apart = (made[0] != wanted[0]).float().mean()
    near = torch.allclose(made[1], wanted[1], rtol=1e-5, atol=0)
    exact = torch.equal(made[0].sum(-1, dtype=torch.int32), made[2][0])
    return bool(apart <= MOST_APART) and near and exact


def tune(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    """The fastest way, with the times of all that agree, and why others are left out."""
    tried = candidates(case)
    on_gpu = device.type == "cuda"
    drawn = [draw(case, device, seed) for seed in range(SETS if on_gpu else 1)]
    if on_gpu:
        launches = [drawn[0][1](row=row) for row in tried]
        compile_all([ProductCall(c.kernel, c.programs, c.operands, c.constants()) for c in launches])
        del launches
    wanted: Codes | None = None
    times: dict[Row, float] = {}
    failed: dict[str, str] = {}
    for row in tried:
        try:
            made = drawn[0][0](row=row)
            wanted = made if wanted is None else wanted
            if not agree(made, wanted, case.kind):
                failed[name(row)] = "differs"
                continue
            del made
            times[row] = timed([partial(run, row=row) for run, _ in drawn], device, repeats)
        except Exception as error:  # more registers than there are, say; the others go on
            failed[name(row)] = f"{type(error).__name__}: {str(error)[:120]}"
    best = min(times, key=lambda row: times[row])
    rates = {row: case.bytes_moved / ms / 1e9 for row, ms in times.items()}
    return {
        "case": asdict(case),
        "best": {**asdict(best), "tb_per_s": rates[best]},
        "failed": failed,
        "tb_per_s": {name(row): rates[row] for row in sorted(times, key=lambda row: times[row])},
    }


def name(row: Row) -> str:
    """A way in a few words."""
    pieces = "+".join(map(str, row.pieces))
    limit = "" if row.registers is None else f", {row.registers} registers"
    return f"{pieces} {'in pairs' if row.pairs else 'as numbers'}, {row.warps} warps{limit}"


def show(found: dict[str, Any]) -> str:
    """One line."""
    case, best = found["case"], next(iter(found["tb_per_s"]))
    rate, left_out = found["best"]["tb_per_s"], len(found["failed"])
    return f"{case['kind']} {case['tokens']}x{case['columns']}: {rate:.2f} TB/s, {best}; {left_out} left out"
