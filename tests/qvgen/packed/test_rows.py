"""Quantizing rows: in pairs and not, in every way a row can be held, against the plain formulas.

On a GPU as it is; without one in Triton's interpreter, where ``TRITON_INTERPRET=1`` is set and
Triton is installed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qvgen.fake_quant import token_range, token_scale
from qvgen.fused import switch
from qvgen.packed import triton_linear, triton_rows, triton_table
from qvgen.packed.triton_linear import Codes, Tokens, has_pairs, quantize_groups, split_tokens
from qvgen.packed.triton_reading import norm_quantize
from qvgen.packed.triton_rows import KINDS, Kind, Row, parse_rows, row_pieces, usual_row
from qvgen.packed.triton_table import row_for
from tests.qvgen.triton_cases import DEVICES, draw

HALVES = [torch.bfloat16, torch.float16]
BITS = [2, 3, 4, 8]
PLAIN = Row((128,), 1)
# Of rows of 65 to 128 columns; sums of 64 and 32 numbers are those that wrap to something.
HELD = [Row((128,), 1, None, True), Row((64, 64), 2, 80, True), Row((64, 32, 32), 1, None, True)]
device = pytest.mark.parametrize("device", DEVICES)


def hard_rows(columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Rows with one sign, without range, with large and tiny numbers, and normal ones."""
    x = draw(9, columns, seed=seed)
    x[0], x[1], x[2] = x[0].abs() + 3, -x[1].abs(), 0
    x[3] = torch.arange(columns) - columns / 2
    x[4], x[5] = x[4] * 1e4, x[5] * 1e-7
    x[6, 0], x[6, 1:] = -2.0, 0.0
    x[7, -1] = 50.0
    return x.to(dtype)


def values(tokens: Tokens, columns: int) -> Tensor:
    """q - z, int64."""
    codes = tokens.codes[:, :columns].long()
    return codes if tokens.zero_point is None else codes - tokens.zero_point[:, None]


def same(a: Codes, b: Codes) -> bool:
    """Bit for bit, NaN included."""
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


def is_reference(
    tokens: Tokens, x: Tensor, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool
) -> None:
    """Codes, scales, zero points and sums are those of the formulas of ``qvgen.fake_quant``."""
    low, high = token_range(x)
    scale, zero = token_scale(low * lower, high * upper, q_max, symmetric=symmetric)
    wanted = (x.float() / scale).round().maximum(-zero).minimum(q_max - zero).long()
    columns = x.shape[1]
    assert torch.equal(values(tokens, columns), wanted)
    assert torch.equal(tokens.scale, scale[:, 0])
    assert torch.equal(tokens.sums.long(), wanted.sum(1))
    assert not tokens.codes[:, columns:].any()
    assert (tokens.zero_point is not None) == (q_max == 255 and not symmetric)
    if tokens.zero_point is not None:
        assert torch.equal(tokens.zero_point.long() + 128, zero[:, 0].long())


@device
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("row", HELD)
def test_codes_of_pairs(row: Row, symmetric: bool, bits: int, dtype: torch.dtype, device: str) -> None:
    """Of 98 columns in 128 codes, and of 128, which fill every piece."""
    for columns in (98, 128):
        x = hard_rows(columns, dtype, bits).to(device)
        clip = torch.tensor([0.9], device=device)
        tokens = triton_linear.quantize_tokens(x, clip, clip * 0.8, 2**bits - 1, symmetric, row)
        is_reference(tokens, x, clip, clip * 0.8, 2**bits - 1, symmetric)


@device
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("columns", [1, 2, 30, 33, 64, 200])
@pytest.mark.parametrize("q_max", [15, 255])
def test_codes_of_every_width(columns: int, q_max: int, dtype: torch.dtype, device: str) -> None:
    """As the table holds them: odd widths and float32 not in pairs."""
    x = hard_rows(columns, dtype).to(device)
    assert has_pairs(x) == (columns % 2 == 0 and dtype != torch.float32)
    one = torch.ones(1, device=device)
    is_reference(triton_linear.quantize_tokens(x, one, one, q_max, False), x, one, one, q_max, False)
    is_reference(triton_linear.quantize_tokens(x[:1], one, one, q_max, False), x[:1], one, one, q_max, False)


@device
@pytest.mark.parametrize("row", [*HELD, PLAIN])
def test_each_group_and_sample_has_its_own_clip(row: Row, device: str) -> None:
    x = draw(6, 98).to(torch.bfloat16).to(device)
    lower = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)).to(device) * 0.5 + 0.5
    upper = lower.flip(1)
    made = split_tokens(*quantize_groups(x, lower.flatten(), upper.flatten(), 3, 255, False, row=row))
    for group, tokens in enumerate(made):
        by_row = [clip[group].repeat_interleave(3)[:, None] for clip in (lower, upper)]
        is_reference(tokens, x, by_row[0], by_row[1], 255, False)


@device
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("row", HELD)
@pytest.mark.parametrize("gelu", [False, True])
def test_numbers_that_are_none(gelu: bool, row: Row, dtype: torch.dtype, device: str) -> None:
    """NaN and infinities show in the scale of their row; all bits are those of the other kernel."""
    x = draw(7, 98).to(dtype)
    x[1, 96], x[2, 0], x[3, 97] = math.nan, -math.nan, math.inf
    x[4, 40], x[5, :] = -math.inf, math.nan
    one = torch.ones(1, device=device)
    for q_max in (15, 255):
        made, other = (
            quantize_groups(x.to(device), one, one, 1, q_max, False, gelu, row=r) for r in (row, PLAIN)
        )
        assert same(made, other)
    scale = made[1][0].cpu()
    assert scale[[1, 2, 5]].isnan().all() and not scale[[0, 6]].isnan().any()
    assert not scale[[3, 4]].isfinite().any()


@device
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("row", [*HELD, PLAIN])
@pytest.mark.parametrize("q_max", [7, 15, 255])
def test_gelu_in_the_read(q_max: int, row: Row, dtype: torch.dtype, device: str) -> None:
    """Within half a step of exact arithmetic; 0 behind the row, and the sums of the codes."""
    x = draw(12, 98, seed=q_max).mul(3).to(dtype).to(device)
    one = torch.ones(1, device=device)
    (tokens,) = split_tokens(*quantize_groups(x, one, one, 1, q_max, False, True, row=row))
    wanted = functional.gelu(x.double(), approximate="tanh")
    found = values(tokens, 98).double() * tokens.scale[:, None].double()
    away = (found - wanted).abs() / tokens.scale[:, None].double()
    # The range's ends can be off by as much again, where the whole zero point cuts it.
    assert away.max() <= 1.0001 and (away <= 0.5001).double().mean() > 0.9
    assert torch.equal(tokens.sums.long(), values(tokens, 98).sum(1)) and not tokens.codes[:, 98:].any()


@device
def test_rows_that_are_no_whole_words(device: str) -> None:
    """Views that begin within a word, or whose rows do, are read number by number: the same codes."""
    wide = draw(5, 203).to(torch.bfloat16).to(device)
    one = torch.ones(1, device=device)
    for view in (wide[:, 1:99], wide[:, :98], wide[:1, 1:99], wide[::2, 1:99]):
        aligned = view.clone()
        assert has_pairs(aligned) and not has_pairs(view)
        made, wanted = (quantize_groups(x, one, one, 1, 15, False) for x in (view, aligned))
        assert same(made, wanted)
        with pytest.raises(ValueError, match="no whole words"):
            quantize_groups(view, one, one, 1, 15, False, row=HELD[0])
    even = draw(5, 204).to(torch.float16).to(device)[:, 2:100]
    assert has_pairs(even)
    assert same(*(quantize_groups(x, one, one, 1, 15, False) for x in (even, even.contiguous())))


@device
@pytest.mark.parametrize("columns", [96, 98])
@pytest.mark.parametrize("pieces", [(128,), (64, 64), (64, 32)])
def test_norms_of_rows_in_pieces(pieces: tuple[int, ...], columns: int, device: str) -> None:
    """A mean and a variance count what is in the row, however it is held."""
    if sum(pieces) < 128 and columns > 96:
        pytest.skip("does not fit")
    x, scale, shift = draw(2, 5, columns) * 3 + 7, draw(2, columns, seed=1), draw(2, columns, seed=2)
    clips = torch.tensor([1.0, 0.7], device=device)
    given = [t.to(torch.bfloat16).to(device) for t in (x, scale, shift)]
    held = Row(pieces, 1)
    made = split_tokens(
        *norm_quantize(
            [given[0]], [given[1]], [given[2]], None, None, 1e-5, clips, clips, 2, 255, False, held
        )
    )
    exact = functional.layer_norm(given[0].double(), (columns,), eps=1e-5)
    exact = (exact * (1 + given[1].double()[:, None]) + given[2].double()[:, None]).view(10, columns)
    tokens = made[0]
    away = (values(tokens, columns) * tokens.scale[:, None].double() - exact).abs() / tokens.scale[:, None]
    assert away.max() <= 1.01 and (away <= 0.51).double().mean() > 0.9
    span = exact.amax(1).clamp(min=0) - exact.amin(1).clamp(max=0)
    for tokens, clip in zip(made, clips.tolist(), strict=True):
        torch.testing.assert_close(tokens.scale.double(), span * clip / 255, rtol=1e-5, atol=0)
        assert torch.equal(tokens.sums.long(), values(tokens, columns).sum(1))
        assert not tokens.codes[:, columns:].any()


WIDTHS = [1, 16, 30, 40, 128, 129, 1536, 1920, 3072, 5120, 7680, 8960, 13824, 14336, 16384]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [False, True])
def test_every_row_can_be_held(columns: int, kind: Kind, pairs: bool) -> None:
    """By the table and by the rule: pieces hold a row and its padding; the last alone reaches behind it."""
    padded = -(-columns // 32) * 32
    for row in (row_for(columns, kind, pairs), usual_row(columns, kind, pairs)):
        *full, last = row.pieces
        assert sum(full) <= columns and sum(row.pieces) >= padded
        assert all(piece & (piece - 1) == 0 for piece in row.pieces)
        assert columns <= 128 or sum(row.pieces) * 3 <= padded * 4
        assert row.warps in (1, 2, 4, 8, 16, 32) and last >= 32
        assert not row.pairs or (pairs and not kind.startswith("norm"))
        # A multiprocessor has 65536 registers; no thread holds more of the row than it has.
        assert row.registers is None or sum(row.pieces) / (32 * row.warps) <= 1.2 * row.registers
        sizes = row.sizes(columns)
        assert sizes["FULL"] == (sum(row.pieces) == columns)
        named = [sizes[name] for name in ("FIRST", "SECOND", "THIRD") if row.pairs]
        assert (2 * sum(named) if row.pairs else sizes["HEAD"] + sizes["TAIL"]) == sum(row.pieces)


def test_one_piece_where_a_quarter_or_less_is_wasted() -> None:
    assert row_pieces(1920) == (2048,) and row_pieces(1536) == (1024, 512)
    assert row_pieces(5120) == (4096, 1024) and row_pieces(8192) == (8192,)
    assert row_pieces(13824) == (8192, 8192) and row_pieces(33) == (64,)


def test_pieces_that_do_not_hold_a_row_are_refused() -> None:
    for pieces, columns in (((64,), 65), ((64, 64), 30), ((32,), 33)):
        with pytest.raises(ValueError, match="do not fit"):
            Row(pieces, 1).sizes(columns)
    assert Row((64,), 1).sizes(33) == {"HEAD": 64, "TAIL": 0, "FULL": False}
    assert Row((64, 32, 32), 1, None, True).sizes(128)["FULL"]


def test_the_table_of_rows() -> None:
    one: dict[str, Any] = {"pieces": [2048], "warps": 1, "registers": None, "pairs": True, "tb_per_s": 3.4}
    found = parse_rows({"plain": {"1920": one}, "gelu": {"7680": {**one, "pieces": [8192], "registers": 80}}})
    assert found["plain"] == {1920: Row((2048,), 1, None, True)}
    assert found["gelu"][7680].options["maxnreg"] == 80 and "maxnreg" not in found["plain"][1920].options
    for broken in ({**one, "pieces": []}, {**one, "pieces": [64, 64, 64], "pairs": False}):
        with pytest.raises(ValueError, match="pieces"):
            parse_rows({"plain": {"1920": broken}})
    with pytest.raises(ValueError, match="kinds"):
        parse_rows({"fast": {}})


def test_gelu_by_the_rule_is_held_as_numbers() -> None:
    """As at every measured width of the shipped table."""
    for columns in WIDTHS:
        assert usual_row(columns, "plain", True).pairs and not usual_row(columns, "gelu", True).pairs
    for columns in (7680, 8960, 13824):
        assert row_for(columns, "plain", True).pairs and not row_for(columns, "gelu", True).pairs


def test_the_table_decides_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in pairs is none for rows that are not whole words."""
    measured = Row((2048,), 2, 96, True)
    monkeypatch.setattr(triton_table, "_shipped", lambda: ([], {"plain": {1920: measured}}))
    assert row_for.__wrapped__(1920, "plain", True) == measured
    assert row_for.__wrapped__(1920, "plain", False) == Row((2048,), 1)
    assert row_for.__wrapped__(1920, "gelu", True) == usual_row(1920, "gelu", True)


def test_the_shipped_table_knows_the_models() -> None:
    text = (Path(triton_rows.__file__).parent / "triton_table.json").read_text()
    known = {kind: set(map(int, rows)) for kind, rows in json.loads(text)["quantize"].items()}
    assert known["plain"] == {1536, 1920, 5120, 7680, 8960, 13824}
    assert known["plain_groups"] == {1536, 1920, 5120} and known["gelu"] == {7680, 8960, 13824}


@pytest.mark.cuda
@pytest.mark.parametrize("columns", [1536, 1920, 3072, 5120, 7680, 8960, 13824, 14336])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("q_max", [3, 15, 255])
def test_pairs_give_the_bits_of_numbers(columns: int, dtype: torch.dtype, q_max: int) -> None:
    """By the rule and by the table; with three groups and with GELU too, and against the formulas."""
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    x = (draw(515, columns) * torch.logspace(-4, 3, 515)[:, None]).to(dtype).cuda()
    x[5, 7], x[6, 8], x[7] = math.nan, math.inf, 0
    clips = torch.linspace(0.7, 1.0, 3, device="cuda")
    kinds: list[tuple[Kind, int]] = [("plain", 1), ("plain_groups", 3), ("gelu", 1)]
    for kind, groups in kinds:
        gelu = kind == "gelu"
        wanted = quantize_groups(
            x, clips[:groups], clips[:groups], groups, q_max, False, gelu, usual_row(columns, kind, False)
        )
        # By the plain rows' rule, since GELU's own holds numbers.
        for row in (usual_row(columns, "plain", True), row_for(columns, kind, True)):
            made = quantize_groups(x, clips[:groups], clips[:groups], groups, q_max, False, gelu, row)
            assert same(made, wanted)
    finite = x[8:]
    (tokens,) = split_tokens(*quantize_groups(finite, clips[:1], clips[:1], 1, q_max, False))
    is_reference(tokens, finite, clips[:1], clips[:1], q_max, False)


@pytest.mark.cuda
def test_gelu_on_a_gpu_is_gelu() -> None:
    """Within 2^-21 of itself of the exact one, where the codes of one number a row show it."""
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    x = torch.cat([torch.logspace(-38, 4, 4096), torch.linspace(0.001, 12, 4096)])
    x = torch.cat([x, -x[x < 9]]).cuda()[:, None]
    one = torch.ones(1, device="cuda")
    scale = quantize_groups(x.expand(-1, 32), one, one, 1, 255, False, True)[1][0].double()
    wanted = functional.gelu(x[:, 0].double(), approximate="tanh").abs()
    floor = triton_linear.SCALE_FLOOR
    away = (scale - (wanted / 255).clamp(min=floor)).abs() / scale
    limit = 2.0**-21 * (1 + x[:, 0].double().abs().clamp(max=9) ** 3)
    assert (away <= limit).all(), float((away / limit).max())
    edge = torch.tensor([[math.inf], [-math.inf], [math.nan], [-1e30]], device="cuda")
    scale = quantize_groups(edge, one, one, 1, 255, False, True)[1][0].tolist()
    assert scale[0] == math.inf and math.isnan(scale[1]) and math.isnan(scale[2]) and scale[3] < 1e-5
